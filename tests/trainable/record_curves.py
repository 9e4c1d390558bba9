"""Golden loss curves on the CPU: what tiny trials of every kind of model do in float32.

    python -m tests.trainable.record_curves            print the difference to the stored curves
    python -m tests.trainable.record_curves --write    and store the new ones

An intended change of numerics re-records them in a commit of its own, raises `SEMANTICS_VERSION` in
`trainable/config.py`, and says the printed difference.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from pathlib import Path
from typing import Any
from unittest import mock

import torch

from tests.trainable.small_trials import puzzle_folder, tiny
from trainable.config import SEMANTICS_VERSION
from trainable.trial import Trial

FILE = Path(__file__).parents[1] / "golden_curves" / "curves.json"
STEPS = 12
DIGITS = 9
"""Significant digits that are stored."""

TOLERANCE = {"loss": 1e-4, "grad_norm": 1e-2}
"""Relative. Another CPU, thread count or build of torch sums in another order: an error of about
1e-7, which the recursion and the optimizer amplify. Weights changed by 1e-7 of themselves move the
losses by at most 4e-6 and gradient norms by 2e-4; those of the variational encoders, whose context
is amplified, by 2e-3 at rate 1e-4 and 4e-5 at 1e-5: hence their small rate. A rate of 1e-4 that is
higher by a tenth moves every other loss by at least 5e-3."""

MODELS: dict[str, dict[str, Any]] = {
    "trm": {"kind": "trm"},
    "etrm-standard": {},
    "etrm-standard-cached": {"encode_mode": "cached"},
    "etrm-standard-online": {"encode_mode": "online", "num_act_steps": 2},
    "etrm-hybrid_variational": {
        "encoder_type": "hybrid_variational",
        "kl_weight": 1e-3,
        "lr": 3e-6,
    },
    "etrm-lpn_variational": {"encoder_type": "lpn_variational", "kl_weight": 1e-3, "lr": 3e-6},
    "etrmtrm-recurrent_standard": {
        "kind": "etrmtrm",
        "recurrent_encoder_type": "recurrent_standard",
    },
    "etrmtrm-trm_style": {"kind": "etrmtrm", "recurrent_encoder_type": "trm_style"},
}
SETTINGS: dict[str, dict[str, Any]] = {
    "default": {"canvas": "demos"},
    "parity": {"canvas": "full", "parity": True},
}
CASES = [f"{model}/{setting}" for model in MODELS for setting in SETTINGS]
COMMON: dict[str, Any] = {
    "steps": STEPS,
    "global_batch_size": 2,
    "max_demos": 2,
    "num_aug": 1,
    "halt_max_steps": 3,
    "halt_exploration_prob": 0.5,
    "lr": 1e-4,
    "lr_warmup_steps": 3,
    "lr_min_ratio": 0.1,
    "grad_clip_norm": 1.0,
    "max_eval_groups": 0,
    "seed": 1,
}

Curve = dict[str, list[float]]


def curve(case: str, folder: Path, **options: Any) -> Curve:
    """Loss and gradient norm (before clipping) of every training step of a case.

    `folder` is that of `puzzle_folder()`; `options` replace the case's. One thread, on the CPU.
    """
    model, setting = case.split("/")
    config = tiny(folder, **(COMMON | MODELS[model] | SETTINGS[setting] | options))
    with mock.patch("torch.cuda.is_available", return_value=False):
        trial = Trial(config, folder)
    found: Curve = {"loss": [], "grad_norm": []}
    for _ in range(STEPS):
        trial.train_step()
        row = trial.measure()
        found["loss"].append(row["train/loss"])
        found["grad_norm"].append(row["grad/total_norm"])
    return {name: [float(f"{v:.{DIGITS}g}") for v in values] for name, values in found.items()}


def difference(expected: Curve, found: Curve) -> dict[str, float]:
    """Largest relative difference by name, over all steps."""
    return {
        name: max(abs(b - a) / max(abs(a), 1e-12) for a, b in zip(values, found[name], strict=True))
        for name, values in expected.items()
    }


def stored() -> dict[str, Any]:
    """The file: `semantics_version`, `torch`, and `curves` by case."""
    data: dict[str, Any] = json.loads(FILE.read_text())
    return data


def main() -> None:
    """Print the differences; write where asked."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--write", action="store_true", help="store the new curves")
    args = parser.parse_args()
    torch.set_num_threads(1)
    before = stored() if FILE.exists() else {"curves": {}, "semantics_version": None}
    curves = {}
    with tempfile.TemporaryDirectory() as scratch:
        folder = puzzle_folder(Path(scratch))
        for case in CASES:
            curves[case] = curve(case, folder)
            old = before["curves"].get(case)
            found = None if old is None else difference(old, curves[case])
            first, last = curves[case]["loss"][0], curves[case]["loss"][-1]
            change = (
                "new"
                if found is None
                else ", ".join(f"{name} differs by {value:.1e}" for name, value in found.items())
            )
            print(f"{case:40s} loss {first:.4f} to {last:.4f}   {change}")
    print(f"semantics_version: stored {before['semantics_version']}, now {SEMANTICS_VERSION}")
    if args.write:
        FILE.parent.mkdir(exist_ok=True)
        data = {
            "semantics_version": SEMANTICS_VERSION,
            "torch": torch.__version__,
            "curves": curves,
        }
        FILE.write_text(json.dumps(data, indent=1) + "\n")
        print(f"written: {FILE}")


if __name__ == "__main__":
    main()
