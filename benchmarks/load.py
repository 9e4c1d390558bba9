"""How fast `analysis.load` reads a large run folder, and in how much memory.

    python -m benchmarks.load [--trials 1000] [--rows 10000] [--metrics 6] [--keep FOLDER]

Makes a run folder of JSON lines in a temporary place, then measures in fresh processes: `load` from
the lines alone, `write_derived`, `load` afterwards (three times), and `load` of a copy whose file
times are all new. Peak memory is the process's maximum resident set; imports are not timed.
``--metrics`` counts the measured columns beside step, epoch, samples, time and wall_s.
"""

from __future__ import annotations

import argparse
import json
import resource
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

METRICS = ("train/accuracy", "train/exact_accuracy", "train/loss", "train/lm_loss", "train/steps",
           "train/q_halt_accuracy")  # fmt: skip


def lines(rows: int, metrics: int) -> bytes:
    """Rows of one trial: a curve that rises and settles, every digit written."""
    names = [METRICS[i] if i < len(METRICS) else f"train/steps_hist/{i}" for i in range(metrics)]
    written = []
    for step in range(1, rows + 1):
        done = step / rows
        row: dict[str, object] = {"kind": "row", "step": step, "epoch": step / 7}
        row |= {"samples": step * 32, "time": 1.7e9 + step / 3, "wall_s": step / 3}
        row |= {name: done ** (0.1 + i / 9) for i, name in enumerate(names)}
        written.append(json.dumps(row))
    return "\n".join(written).encode() + b"\n"


def make(folder: Path, trials: int, rows: int, metrics: int) -> int:
    """Write the run folder; returns the bytes of its JSON lines."""
    names = [f"overfit-E1a-s{seed}" for seed in range(trials)]
    plan = {"schema_version": 1, "target": "benchmark", "profile": "laptop", "trials": names}
    (folder / "trials").mkdir(parents=True)
    (folder / "plan.json").write_text(json.dumps(plan))
    body, total = lines(rows, metrics), 0
    for name in names:
        place = folder / "trials" / name
        place.mkdir()
        start = {"kind": "start", "schema_version": 1, "attempt": 1, "resumed_from": 0}
        start |= {"total_steps": rows, "trial_id": name}
        end = json.dumps({"kind": "end", "status": "finished", "reason": None})
        content = json.dumps(start).encode() + b"\n" + body + end.encode() + b"\n"
        (place / "attempt-1.jsonl").write_bytes(content)
        told = {"schema_version": 1, "status": "finished", "attempt": 1}
        (place / "status.json").write_text(json.dumps(told))
        described = {"schema_version": 1, "identity": name, "config": {"name": "overfit/E1a"}}
        (place / "config.json").write_text(json.dumps(described))
        total += len(content)
    return total


def child(what: str, folder: str) -> None:
    """Do one thing in this process and print what it took."""
    import analysis

    imported = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    began, cpu = time.perf_counter(), time.process_time()
    run = analysis.write_derived(folder) if what == "derive" else analysis.load(folder)
    wall, spent = time.perf_counter() - began, time.process_time() - cpu
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    began = time.perf_counter()
    mean = float(run.curves["train/accuracy"].mean())
    used = time.perf_counter() - began
    after = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    print(
        f"{wall:7.2f} s  ({spent:6.2f} s CPU)  peak {peak / 2**20:5.2f} GiB (imports "
        f"{imported / 2**20:.2f})  {len(run.trials)} trials, {len(run.curves)} rows, "
        f"{run.curves.shape[1]} columns; then one column's mean {mean:.3f}: {used:.2f} s, "
        f"peak {after / 2**20:.2f} GiB"
    )


def main() -> None:
    """Run and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--trials", type=int, default=1000)
    parser.add_argument("--rows", type=int, default=10_000)
    parser.add_argument("--metrics", type=int, default=6)
    parser.add_argument("--keep", metavar="FOLDER", help="where to make it, and leave it")
    parser.add_argument("--child", nargs=2, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.child:
        child(*args.child)
        return

    def measure(title: str, what: str, folder: Path) -> None:
        words = [sys.executable, "-m", "benchmarks.load", "--child", what, str(folder)]
        out = subprocess.run(words, check=True, capture_output=True, text=True).stdout
        print(f"{title:28}{out.strip()}", flush=True)

    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(args.keep or scratch) / "load"
        size = make(folder, args.trials, args.rows, args.metrics)
        print(f"{size / 1e9:.2f} GB of JSON lines", flush=True)
        measure("JSON lines alone", "load", folder)
        measure("write_derived", "derive", folder)
        kept = sum(path.stat().st_size for path in (folder / "cache").iterdir())
        print(f"{kept / 1e9:.2f} GB in cache/", flush=True)
        for again in (1, 2, 3):
            measure(f"after write_derived, {again}", "load", folder)
        copy = Path(args.keep or scratch) / "copy"
        shutil.copytree(folder, copy, copy_function=shutil.copyfile)
        measure("a copy, all times new", "load", copy)


if __name__ == "__main__":
    main()
