"""What Ray and the conductor add to trials: seconds to start, to report, to schedule, and memory.

    python -m benchmarks.overhead [reports] [start] [search] [--trials 200] [--json FILE]

Trains nothing: loops that only report, run by the conductor as any other trial.

- ``reports``: seconds per report of a trainer's and of a forked trial, as fast as they can.
- ``start``: seconds until a trial's loop begins, ours and the bare pattern (`benchmarks.bare`), in
  turn, in the same Ray.
- ``search``: a search of 1-second trials at full concurrency: the share of the slots' time in which
  no trial runs, and the main process's memory after a tenth, half and all of the trials.

Exits with 1 where a bound is exceeded: 50 ms a report, 1.2 × the bare start, 15 % lost, and
`GROWTH` bytes a trial. The machine's other load counts: bounds are meant for a quiet one.
"""

from __future__ import annotations

import argparse
import importlib
import json
import statistics
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from rich.console import Console

from etrm_tune.command import How, Prepared, write_plan
from etrm_tune.division import divide
from etrm_tune.live import LiveTable
from etrm_tune.plan import Options, Plan, PlannedTrial
from etrm_tune.resources import Allotment, Machine, this_machine
from etrm_tune.run_folder import RunFolder
from etrm_tune.search import Search, SearchOptions
from etrm_tune.search_run import write_search
from etrm_tune.session import Signals, quiet, ray_session
from trainable.config import TrialConfig

REPORT_S, START_RATIO, LOST = 0.050, 1.2, 0.15
GROWTH = 256 * 1024
"""Bytes of the main process per trial that count as flat: Ray Tune itself keeps every trial."""


@dataclass
class Bench:
    """A run folder, a Ray, and what was measured."""

    machine: Machine
    signals: Signals
    console: Console
    scratch: Path
    found: dict[str, Any] = field(default_factory=dict)
    exceeded: list[str] = field(default_factory=list)

    def bound(self, name: str, value: float, limit: float, unit: str) -> None:
        """Print a measurement beside its bound."""
        ok = value <= limit
        self.found[name] = value
        self.console.print(f"{name:44} {value:9.3f} {unit}  (bound {limit:g}){'' if ok else ' !'}")
        if not ok:
            self.exceeded.append(name)

    def say(self, name: str, value: float, unit: str) -> None:
        """Print a measurement."""
        self.found[name] = value
        self.console.print(f"{name:44} {value:9.3f} {unit}")

    def conduct(self, name: str, trials: Sequence[PlannedTrial], train: str, *, forked: bool,
                concurrent: int | None = None) -> tuple[RunFolder, float, float]:  # fmt: skip
        """Run trials in a folder of their own: the folder, when that began and ended."""
        from etrm_tune.conductor import Conductor

        options = Options("overhead", "laptop", "2026-01-21", len(trials), scheduler="none")
        plan = Plan(options, tuple(trials))
        allotments = divide(plan, self.machine, How(concurrent=concurrent), None)
        allotments = {role: replace(one, forked=forked) for role, one in allotments.items()}
        folder = RunFolder(self.scratch / name)
        with folder.locked():
            write_plan(folder, Prepared(plan, self.machine, allotments))
            with folder.log.open("a") as log:
                table = LiveTable(Console(file=log), list(trials), name)
                conductor = Conductor(folder, plan, allotments, self.signals, table, train=train)
                conductor.prepare()
                began = time.time()
                conductor.run()
        return folder, began, time.time()


def trials(name: str, number: int, epochs: int) -> list[PlannedTrial]:
    """Trials that count."""
    found = []
    for seed in range(number):
        config = TrialConfig(name=f"overhead/{name}", seed=seed, epochs=epochs)
        found.append(PlannedTrial(f"overhead-{name}-s{seed}", "arm", config, config.identity()))
    return found


def times(folder: RunFolder, trial_id: str) -> tuple[float, float]:
    """When a trial's loop began and ended."""
    began, ended = json.loads((folder.trial(trial_id) / "times.json").read_text())
    return float(began), float(ended)


def reports(bench: Bench, number: int) -> None:
    """Seconds per report, both kinds of trial."""
    for kind, forked in (("trainer", False), ("forked", True)):
        (trial,) = trials(kind, 1, number)
        folder, began, _ = bench.conduct(
            f"reports-{kind}", [trial], "benchmarks.loops:count", forked=forked
        )
        first, last = times(folder, trial.trial_id)
        bench.bound(f"a report, {kind}", (last - first) / number, REPORT_S, "s")
        bench.say(f"start of the first trial, {kind}", first - began, "s")


def starts(bench: Bench, pairs: int) -> None:
    """A nested trial's start beside the bare pattern's, in turn; the first pair warms up."""
    from benchmarks.bare import run

    ours, theirs = [], []
    for at in range(pairs + 1):
        for kind in ("ours", "bare") if at % 2 else ("bare", "ours"):
            if kind == "ours":
                (trial,) = trials(f"start{at}", 1, 2)
                folder, began, _ = bench.conduct(
                    f"start-{at}", [trial], "benchmarks.loops:count", forked=False, concurrent=1
                )
                ours.append(times(folder, trial.trial_id)[0] - began)
                continue
            home = bench.scratch / f"bare-{at}"
            home.mkdir()
            began = time.time()
            run(
                {
                    "train": "benchmarks.loops:bare", "epochs": 2, "out_dir": str(home),
                    "name": f"bare-{at}", "storage": str(home), "cpus": 1,
                },
                str(home),
            )  # fmt: skip
            theirs.append(json.loads((home / "times.json").read_text())[0] - began)
    bench.say("start of the bare pattern, median", statistics.median(theirs[1:]), "s")
    bench.say("start of a nested trial, median", statistics.median(ours[1:]), "s")
    ratios = [o / t for o, t in zip(ours[1:], theirs[1:], strict=True)]
    bench.found["start_pairs"] = [[o, t] for o, t in zip(ours, theirs, strict=True)]
    bench.bound("nested over bare, median of pairs", statistics.median(ratios), START_RATIO, "×")


class Shorter(Search):
    """A search whose trials need no decoder."""

    def planned(self, points: Any) -> Plan:
        plan = super().planned(points)
        arms = [
            replace(t, config=t.config.replace(epochs=100, num_threads=1), needs=None)
            for t in plan.trials
            if t.role == "arm"
        ]
        return replace(plan, trials=tuple(arms))


class NoFiles:
    """Nothing is read."""

    def data_hash(self, config: Any) -> str:
        return "none"

    def decoder_options(self, path: Any) -> dict[str, Any]:
        return {}

    def decoder_reference(self, path: Any) -> str:
        return ""


def resident() -> int:
    """Bytes of this process."""
    psutil = importlib.import_module("psutil")
    return int(psutil.Process().memory_info().rss)


def search(bench: Bench, number: int) -> None:
    """A search of `number` short trials."""
    from etrm_tune.conductor import Conductor

    folder = RunFolder(bench.scratch / "search")
    options = Options("search halting,lr", "laptop", "2026-01-21", 1, scheduler="none")
    wanted = SearchOptions("halting,lr", "tpe", trials=number).merged(None)
    found = Shorter(folder, options, wanted, NoFiles())
    found.load(None)
    plan = found.plan()
    slots = bench.machine.cpus
    allotments = {"arm": Allotment(bench.machine, slots, 1, 1, forked=True)}
    memory: dict[int, int] = {}
    cpu = time.process_time()

    class Measured(Conductor):
        def finish(self, trial: PlannedTrial, status: str, reason: str) -> None:
            super().finish(trial, status, reason)
            memory[sum(s == "finished" for s in self.statuses.values())] = resident()

    with folder.locked():
        write_search(folder, Prepared(plan, bench.machine, allotments), found)
        with folder.log.open("a") as log:
            table = LiveTable(Console(file=log), plan.trials, "search")
            conductor = Measured(
                folder, plan, allotments, bench.signals, table,
                train="benchmarks.loops:second", source=found,
            )  # fmt: skip
            conductor.prepare()
            began = time.time()
            conductor.run()
            wall = time.time() - began
    done = [
        times(folder, trial_id) for trial_id, s in conductor.statuses.items() if s == "finished"
    ]
    assert len(done) == number, f"{len(done)} of {number} trials finished"
    trained = sum(end - start for start, end in done)
    steady = max(e for _, e in done) - min(s for s, _ in done)
    bench.say(f"{number} trials of {trained / number:.2f} s on {slots} slots", wall, "s")
    bench.bound("share of the slots' time lost", 1 - trained / slots / wall, LOST, "")
    bench.say("the same, from first to last loop", 1 - trained / slots / steady, "")
    cpu = time.process_time() - cpu
    bench.say("main process, CPU seconds per trial", cpu / number, "s")
    marks = [max(1, number // 10), number // 2, number]
    for mark in marks:
        bench.say(f"main process, MB after {mark} trials", memory[mark] / 1e6, "MB")
    growth = (memory[marks[2]] - memory[marks[0]]) / (marks[2] - marks[0])
    bench.bound("main process, growth per trial", growth / 1e6, GROWTH / 1e6, "MB")


@contextmanager
def opened() -> Iterator[Bench]:
    """A Ray of its own, with the terminal for results."""
    machine = this_machine()
    with (
        tempfile.TemporaryDirectory() as scratch,
        Signals() as signals,
        quiet(Path(scratch) / "log") as terminal,
        ray_session(machine, signals),
    ):
        yield Bench(machine, signals, Console(file=terminal, width=100), Path(scratch))


def main() -> int:
    """Run and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("parts", nargs="*", metavar="PART", help="reports, start, search (all)")
    parser.add_argument("--reports", type=int, default=200)
    parser.add_argument("--pairs", type=int, default=3)
    parser.add_argument("--trials", type=int, default=200)
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    parts = args.parts or ["reports", "start", "search"]
    with opened() as bench:
        if "reports" in parts:
            reports(bench, args.reports)
        if "start" in parts:
            starts(bench, args.pairs)
        if "search" in parts:
            search(bench, args.trials)
    if args.json:
        args.json.write_text(json.dumps(bench.found, indent=1) + "\n")
    return 1 if bench.exceeded else 0


if __name__ == "__main__":
    sys.exit(main())
