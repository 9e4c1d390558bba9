"""Seconds of a held-out evaluation, default against `parity` settings, and how they grow with rows.

Full ACT (`halt_max_steps` steps) on queries of ARC-1 evaluation puzzles and their augmentations,
with voting, as a trial does it. The work of the settings is timed in turn, batch by batch, in one
process: a noisy machine slows both, and CPU seconds count what the process itself used. The fit is
CPU seconds (on CUDA wall seconds) against rows done, least squares.

    python -m benchmarks.evaluation [--hidden 128] [--rows 256] [--parity-rows 32] [--json FILE]

Parity settings encode at every ACT step, every slot and cell, as the public evaluation does: each
row costs the same, and `--parity-rows` of them tell what all cost. They take 8 minutes of a core
for 32 rows, the default settings as long for 256.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks.steps import SETTINGS, config_of
from trainable.data import ArcData
from trainable.data.batches import Batch
from trainable.evaluate import _Sums, evaluation_mode, real_rows, run_act, to_tensors
from trainable.evaluation import ArcVoting
from trainable.flops import batch_tokens, evaluation_flops
from trainable.trial import Trial


def linear_fit(x: Sequence[float], y: Sequence[float]) -> dict[str, float]:
    """Least squares y = a + b·x: intercept, slope and the share of the variance it explains."""
    slope, intercept = np.polyfit(x, y, 1)
    rest = np.asarray(y) - (intercept + slope * np.asarray(x))
    spread = float(np.square(np.asarray(y) - np.mean(y)).sum())
    return {
        "intercept": float(intercept),
        "slope": float(slope),
        "r2": 1 - float(np.square(rest).sum()) / spread if spread else 1.0,
    }


def now(trial: Trial) -> float:
    """CPU seconds so far; on CUDA wall seconds, with everything done."""
    if trial.device.type == "cuda":
        torch.cuda.synchronize()
        return time.perf_counter()
    return time.process_time()


def passes(trial: Trial, size: int) -> Iterator[tuple[int, float, float]]:
    """Evaluate batch by batch: rows, CPU seconds and operations of each batch."""
    data: ArcData = trial.data
    voting = ArcVoting(data.eval_puzzles(), data.identifier_names, num_aug=data.eval_num_aug)
    sums = _Sums(trial.device)
    batches = iter(data.eval_batches(size))
    while True:
        with evaluation_mode(trial.model):
            began = now(trial)
            arrays: Batch | None = next(batches, None)
            if arrays is None:
                return
            arrays = real_rows(arrays)
            batch = to_tensors(arrays, trial.device)
            outputs = run_act(trial.model, batch)
            sums.add(outputs, batch)
            voting.update(
                arrays["puzzle_identifiers"],
                arrays["inputs"],
                outputs["logits"].argmax(-1),
                outputs["q_halt_logits"],
            )
            used = now(trial) - began
        work = evaluation_flops(trial.config.model, batch_tokens(trial.config.model, arrays))
        yield len(arrays["inputs"]), used, work


def main() -> None:
    """Print both settings as they go, then the ratio and the fits."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--hidden", type=int, default=128)
    parser.add_argument("--rows", type=int, default=256)
    parser.add_argument("--subset", choices=["evaluation", "training"], default="evaluation")
    parser.add_argument("--parity-rows", type=int, default=32)
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--act-steps", type=int, default=16)
    parser.add_argument("--kind", choices=["etrm", "trm"], default="etrm")
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    sizes = {"hidden": args.hidden, "batch": 8, "data": "32", "dtype": "float32", "threads": 1}
    found: dict[str, Any] = vars(args) | {"json": None, "torch": torch.__version__}
    with tempfile.TemporaryDirectory() as folder:
        running = {}
        for setting in SETTINGS:
            config = config_of(args.kind, setting, **sizes).replace(
                max_eval_groups=32,
                eval_num_aug=-(-args.rows // 32),
                halt_max_steps=args.act_steps,
                eval_subset=args.subset,
                train_subsets=("evaluation" if args.subset == "training" else "training",),
            )
            running[setting] = passes(Trial(config, Path(folder)), args.batch)
            found[setting] = {"rows": [0], "cpu_s": [0.0], "flops": 0.0}
        while found["default"]["rows"][-1] < args.rows:
            for setting, batches in running.items():
                if setting == "parity" and found[setting]["rows"][-1] >= args.parity_rows:
                    continue
                rows, used, work = next(batches)
                one = found[setting]
                one["rows"].append(one["rows"][-1] + rows)
                one["cpu_s"].append(one["cpu_s"][-1] + used)
                one["flops"] += work
                print(f"{setting:8}{one['rows'][-1]:6} rows{one['cpu_s'][-1]:10.1f} s", flush=True)
            if args.json:
                args.json.write_text(json.dumps(found, indent=1) + "\n")
    for setting in SETTINGS:
        found[setting]["fit"] = linear_fit(found[setting]["rows"], found[setting]["cpu_s"])
        print(setting, "CPU s against rows:", found[setting]["fit"])
    a_row = {s: found[s]["cpu_s"][-1] / found[s]["rows"][-1] for s in SETTINGS}
    operations = {s: found[s]["flops"] / found[s]["rows"][-1] for s in SETTINGS}
    found["ratio"] = a_row["parity"] / a_row["default"]
    found["ratio_flops"] = operations["parity"] / operations["default"]
    print(
        f"{args.act_steps} ACT steps, hidden {args.hidden}: a row takes {a_row['default']:.2f} s "
        f"over {found['default']['rows'][-1]} rows, with parity settings {a_row['parity']:.2f} s "
        f"over {found['parity']['rows'][-1]}, ratio {found['ratio']:.1f} (operations "
        f"{found['ratio_flops']:.1f})"
    )
    if args.json:
        args.json.write_text(json.dumps(found, indent=1) + "\n")


if __name__ == "__main__":
    main()
