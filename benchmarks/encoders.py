"""One training step of every encoder and of TRM: default against `parity`, seconds and memory.

Both settings train on the laptop's puzzles. `parity` does the work of the public implementations:
30 × 30 canvas, every demonstration slot and every PAD cell encoded, at every row. Steps of both
alternate, so that a noisy machine slows both; CPU seconds count what the process itself used.
Memory is what the forward pass keeps for backward (bytes of distinct storages, weights left out),
the part that the settings differ in.

    python -m benchmarks.encoders [--hidden 64] [--batch 4] [--demos 3] [--steps 2] [--out FILE]

With `--demos 10` parity encodes as many slots as the published configuration.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

import search_spaces
from trainable.config import TrialConfig
from trainable.encoder_options import ENCODER_FACTS
from trainable.trial import Trial

NAMES = ("trm", *ENCODER_FACTS)
SETTINGS = ("default", "parity")


def options_of(name: str) -> dict[str, Any]:
    """Options of the model that has this encoder; "trm" for the model without."""
    if name == "trm":
        return {"kind": "trm"}
    facts = ENCODER_FACTS[name]
    if facts.recurrent:
        return {"kind": "etrmtrm", "recurrent_encoder_type": name}
    return {"encoder_type": name} | ({"kl_weight": 1e-4} if facts.variational else {})


def config_of(name: str, setting: str, *, hidden: int, batch: int, demos: int) -> TrialConfig:
    """E1a of the laptop profile at this size, with another encoder."""
    resolved = search_spaces.resolve("overfit/E1a", profile="laptop")
    config = resolved.config.replace(
        pretrained_decoder=False,
        hidden_size=hidden,
        puzzle_emb_ndim=hidden,
        num_heads=max(1, hidden // 32),
        global_batch_size=batch,
        max_demos=demos,
        max_eval_groups=0,
        num_threads=1,
        **options_of(name),
    )
    return config.replace(parity=True, canvas="full") if setting == "parity" else config


def saved_bytes(parameters: Iterable[Tensor], run: Callable[[], object]) -> int:
    """Bytes of distinct storages that `run` keeps for backward, `parameters` left out."""
    own = {p.untyped_storage().data_ptr() for p in parameters}
    sizes: dict[int, int] = {}
    alive: list[Tensor] = []

    def note(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in own:
            sizes[storage.data_ptr()] = storage.nbytes()
            alive.append(tensor)  # so that no address is used twice
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
        run()
    return sum(sizes.values())


def measure(name: str, *, steps: int, **sizes: int) -> dict[str, Any]:
    """Medians of both settings of one model; the first step of each measures memory alone."""
    with tempfile.TemporaryDirectory() as folder:
        pair = {s: Trial(config_of(name, s, **sizes), Path(folder)) for s in SETTINGS}
        kept = {
            s: saved_bytes(trial.model.parameters(), trial.train_step) for s, trial in pair.items()
        }
        wall: dict[str, list[float]] = {s: [] for s in SETTINGS}
        used: dict[str, list[float]] = {s: [] for s in SETTINGS}
        for _ in range(steps):
            for s, trial in pair.items():
                began, cpu = time.perf_counter(), time.process_time()
                trial.train_step()
                wall[s].append(time.perf_counter() - began)
                used[s].append(time.process_time() - cpu)
    row: dict[str, Any] = {"model": name, "parameters": pair["default"].parameters}
    for s in SETTINGS:
        row |= {
            f"{s}_wall_s": statistics.median(wall[s]),
            f"{s}_cpu_s": statistics.median(used[s]),
            f"{s}_saved_mb": kept[s] / 1e6,
        }
    for what in ("wall_s", "cpu_s", "saved_mb"):
        row[f"ratio_{what}"] = row[f"parity_{what}"] / row[f"default_{what}"]
    return row


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--hidden", type=int, default=64)
    parser.add_argument("--batch", type=int, default=4)
    parser.add_argument("--demos", type=int, default=3, help="demonstration slots")
    parser.add_argument("--steps", type=int, default=2, help="timed steps of each setting")
    parser.add_argument("--only", nargs="*", choices=NAMES, default=NAMES, metavar="MODEL")
    parser.add_argument("--out", "--json", dest="out", type=Path, help="write the numbers here")
    args = parser.parse_args()
    sizes = {"hidden": args.hidden, "batch": args.batch, "demos": args.demos}
    print(f"{'':20}{'default':>26}{'parity':>28}{'ratio':>18}")
    heads = "".join(f"{'wall s':>9}{'CPU s':>9}{'saved MB':>10}" for _ in SETTINGS)
    print(f"{'':20}{heads}{'CPU':>8}{'memory':>9}")
    rows = []
    for name in args.only:
        row = measure(name, steps=args.steps, **sizes)
        rows.append(row)
        numbers = "".join(
            f"{row[f'{s}_wall_s']:9.3f}{row[f'{s}_cpu_s']:9.3f}{row[f'{s}_saved_mb']:10.1f}"
            for s in SETTINGS
        )
        print(
            f"{name:20}{numbers}{row['ratio_cpu_s']:8.1f}{row['ratio_saved_mb']:9.1f}", flush=True
        )
    if args.out:
        found = {**sizes, "steps": args.steps, "torch": torch.__version__, "rows": rows}
        args.out.write_text(json.dumps(found, indent=1) + "\n")


if __name__ == "__main__":
    main()
