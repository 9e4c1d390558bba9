"""Cost grows linearly: CPU seconds of a step against rows, and of a plan against trials.

    python -m benchmarks.linear [--hidden 64] [--json FILE]

Rows: training steps of E1a (default settings) at batches of 4 to 32. Trials: 1 to 4 whole trials
of a few steps one after another through `trainable.loop.train`, data, checkpoint and files
included. Least squares, with the share of the variance that the line explains.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

from benchmarks.evaluation import linear_fit
from benchmarks.steps import config_of
from trainable.loop import train
from trainable.trial import Trial


def main() -> None:
    """Print both fits."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--hidden", type=int, default=64)
    parser.add_argument("--steps", type=int, default=5)
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    sizes = {"hidden": args.hidden, "data": "32", "dtype": "float32", "threads": 1}
    found: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as folder:
        rows = [4, 8, 16, 24, 32]
        seconds = []
        for batch in rows:
            trial = Trial(config_of("etrm", "default", batch=batch, **sizes), Path(folder))
            used = []
            for _ in range(args.steps + 1):
                began = time.process_time()
                trial.train_step()
                used.append(time.process_time() - began)
            seconds.append(statistics.median(used[1:]))
        found["rows"] = {"x": rows, "cpu_s": seconds, "fit": linear_fit(rows, seconds)}
        totals = [0.0]
        for seed in range(4):
            config = config_of("etrm", "default", batch=8, **sizes)
            config = config.replace(seed=seed, epochs=8 * (args.steps + 0.5) / 36)
            began = time.process_time()
            train(config, out_dir=Path(folder) / str(seed), progress=False)
            totals.append(totals[-1] + time.process_time() - began)
        counts = list(range(len(totals)))
        found["trials"] = {"x": counts, "cpu_s": totals, "fit": linear_fit(counts, totals)}
    for name, one in found.items():
        fit = one["fit"]
        points = ", ".join(f"{x}: {y:.2f}" for x, y in zip(one["x"], one["cpu_s"], strict=True))
        print(
            f"CPU s against {name}: {points}; {fit['intercept']:.3f} + {fit['slope']:.3f} per "
            f"{name[:-1]}, R² {fit['r2']:.4f}"
        )
    if args.json:
        args.json.write_text(json.dumps(found, indent=1) + "\n")


if __name__ == "__main__":
    main()
