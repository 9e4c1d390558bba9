"""What Ray adds to a trial: seconds to start, seconds per report, memory of the process tree.

    python benchmarks/overhead.py [--reports 200] [--trials 2]

Trains nothing: a loop that only reports, as fast as it can, run by the conductor as any other.
Memory is the sum of PSS over the process tree, sampled twice a second, and what lies in /dev/shm.
"""

from __future__ import annotations

import argparse
import importlib
import json
import tempfile
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import Console

from etrm_tune.command import How, Prepared, divide, write_plan
from etrm_tune.live import LiveTable
from etrm_tune.plan import Options, Plan, PlannedTrial
from etrm_tune.resources import this_machine
from etrm_tune.run_folder import RunFolder
from etrm_tune.session import Signals, quiet, ray_session
from trainable.config import TrialConfig


@dataclass
class Counted:
    """What `count` returns, as the training loop would."""

    status: str
    reason: str
    step: int
    total_steps: int


def count(
    config: TrialConfig, *, out_dir: Path, report: Callable[[dict[str, Any]], bool], **_: Any
) -> Counted:
    """A loop of ``config.epochs`` reports that notes when it began and ended."""
    began, total = time.time(), int(config.epochs)
    for step in range(1, total + 1):
        row = {"step": step, "epoch": step, "train/accuracy": 1.0, "train/loss": 0.0}
        report(row | {f"metric/{i}": float(i) for i in range(40)})
    (out_dir / "times.json").write_text(json.dumps([began, time.time()]))
    return Counted("finished", "", total, total)


class Memory(threading.Thread):
    """Samples the process tree's PSS and /dev/shm; ``peak`` in bytes."""

    def __init__(self) -> None:
        super().__init__(daemon=True)
        self.peak = 0
        self.done = threading.Event()

    def run(self) -> None:
        """Sample until ``done``."""
        psutil = importlib.import_module("psutil")
        while not self.done.wait(0.5):
            self.peak = max(self.peak, self._now(psutil))

    def _now(self, psutil: Any) -> int:
        me = psutil.Process()
        total = sum(f.stat().st_size for f in Path("/dev/shm").glob("*") if f.is_file())
        for process in [me, *me.children(recursive=True)]:
            try:
                total += process.memory_full_info().pss
            except psutil.Error:
                continue
        return int(total)


def main() -> None:
    """Run and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--reports", type=int, default=200)
    parser.add_argument("--trials", type=int, default=2)
    args = parser.parse_args()

    trials = []
    for seed in range(args.trials):
        config = TrialConfig(name="overhead/report", seed=seed, epochs=args.reports)
        trials.append(PlannedTrial(f"overhead-report-s{seed}", "arm", config, config.identity()))
    options = Options("overhead", "laptop", "2026-01-21", args.trials, scheduler="none")
    plan = Plan(options, tuple(trials))
    machine = this_machine()
    allotments = divide(plan, machine, How(), None)

    with tempfile.TemporaryDirectory() as scratch, Signals() as signals:
        folder = RunFolder(Path(scratch) / "overhead")
        with folder.locked(), quiet(folder.path / "run.log") as terminal:
            from etrm_tune.conductor import Conductor

            console = Console(file=terminal)
            write_plan(folder, Prepared(plan, machine, allotments))
            table = LiveTable(Console(file=folder.log.open("a")), trials, "overhead")
            conductor = Conductor(
                folder, plan, allotments, signals, table, train="benchmarks.overhead:count"
            )
            conductor.prepare()
            start = time.time()
            with ray_session(machine, signals):
                memory = Memory()
                memory.start()
                ready = time.time()
                conductor.run()
                end = time.time()
                memory.done.set()
            gone = time.time()
            times = [
                json.loads((folder.trial(t.trial_id) / "times.json").read_text()) for t in trials
            ]
            console.print(f"{allotments['arm']}", highlight=False)
            console.print(f"Ray's start          {ready - start:6.2f} s")
            console.print(f"first worker's start {min(b for b, _ in times) - ready:6.2f} s")
            each = [1000 * (e - b) / args.reports for b, e in times]
            shown = ", ".join(f"{ms:.0f}" for ms in each)
            console.print(f"per report           {shown} ms (one number per trial)")
            console.print(f"last report to end   {end - max(e for _, e in times):6.2f} s")
            console.print(f"Ray's shutdown       {gone - end:6.2f} s")
            console.print(f"peak memory          {memory.peak / 2**30:6.2f} GiB")


if __name__ == "__main__":
    main()
