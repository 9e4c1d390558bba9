"""How long a run will take, and what became of the estimate.

A dry run measures (`etrm_tune.costs`). A run itself measures nothing beforehand: the first steps of
its first trial give a worker's speed, from which every trial's time follows by operations. That
first estimate is kept in plan.json, ``estimate``, and never made anew, so that it can be compared
with the time that the run's sessions took.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.table import Table

from etrm_tune.costs import TrialCost, from_rate, makespan, plan_work
from etrm_tune.plan import Plan
from etrm_tune.resources import Allotment, available_memory
from etrm_tune.run_folder import RunFolder
from etrm_tune.terminal import WIDTH, note

if TYPE_CHECKING:
    from trainable.flops import Work

LONG_NAME = 24
"""Characters of a trial's name beyond which the table leaves a column out."""

FIRST_STEPS = 10
"""Steps of a trial after which its speed is read."""


def minutes(seconds: float) -> str:
    """``"40 s"``, ``"12 min"``, ``"3 h 20 min"``."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    whole = round(seconds / 60)
    if whole < 120:
        return f"{whole} min"
    return f"{whole // 60} h {whole % 60:02} min"


def amount(value: float) -> str:
    """``"1.2 M"``, ``"25 G"``."""
    for size, sign in ((1e15, "P"), (1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k")):
        if value >= size:
            return f"{value / size:.3g} {sign}"
    return f"{value:.3g}"


def show_costs(
    console: Console,
    plan: Plan,
    costs: Sequence[TrialCost],
    allotments: Mapping[str, Allotment],
) -> None:
    """Print every trial's steps, parameters, operations, time and memory, and the run's time."""
    if not costs:
        console.print("  every trial is done: nothing would be run")
        return
    columns = ["steps", "decoder", "encoder", "FLOP/step", "FLOP", "s/step", "time", "memory"]
    # What steps and totals tell makes room for long names.
    left_out = set() if console.width >= WIDTH else {"s/step"}
    if max(len(cost.trial_id) for cost in costs) > LONG_NAME:
        left_out.add("FLOP/step")
    columns = [name for name in columns if name not in left_out]
    table = Table(box=None, pad_edge=False)
    table.add_column("  trial", overflow="fold")
    for name in columns:
        table.add_column(name, justify="right", no_wrap=True)
    for cost in costs:
        encoder, memory = cost.work.parameters.encoder, cost.memory
        gpu = cost.measured.gpu_memory
        told = {
            "steps": str(cost.work.steps),
            "decoder": amount(cost.work.parameters.decoder),
            "encoder": amount(encoder) if encoder else "–",
            "FLOP/step": amount(cost.work.step),
            "FLOP": amount(cost.work.total),
            "s/step": f"{cost.measured.step_s:.3g}",
            "time": minutes(cost.seconds),
            "memory": (amount(memory) + "B" if memory else "?")
            + (f", GPU {amount(gpu)}B" if gpu else ""),
        }
        table.add_row(f"  {cost.trial_id}", *(told[name] for name in columns))
    console.print(table)
    for basis, ids in _by_basis(costs).items():
        trials = "all trials" if len(ids) == len(costs) else ", ".join(ids)
        source = basis if basis.startswith(("measured", "as ")) else f"from {basis}"
        note(console, f"time {source}: {trials}")
    seconds = {cost.trial_id: cost.seconds for cost in costs}
    wall = makespan(plan.stages, seconds, allotments)
    at_once = ", ".join(f"{a.concurrent} {role}s at once" for role, a in allotments.items())
    total = amount(sum(cost.work.total for cost in costs))
    note(console, f"estimated: {minutes(wall)} in all ({at_once}), {total}FLOP")
    needed = max(
        a.concurrent * max((c.memory for c in costs if c.role == role), default=0)
        for role, a in allotments.items()
    )
    free = available_memory()
    if needed and free is not None and needed > free:
        note(
            console,
            f"warning: trials need {amount(needed)}B at once, {amount(free)}B are free: "
            f"give --concurrent or --set global_batch_size",
            "yellow",
        )


def _by_basis(costs: Sequence[TrialCost]) -> dict[str, list[str]]:
    """Trials by where their seconds come from."""
    found: dict[str, list[str]] = {}
    for cost in costs:
        found.setdefault(cost.basis, []).append(cost.trial_id)
    return found


@dataclass
class Clock:
    """Keeps ``estimate`` and ``sessions`` of a locked run folder's plan.json."""

    folder: RunFolder
    plan: Plan
    allotments: Mapping[str, Allotment]
    works: Mapping[str, Work] = field(default_factory=dict)

    def begin(self, done: Sequence[str] = ()) -> None:
        """A session begins; `done` are the trials that it will not run."""
        self._done = set(done)
        stored = self.folder.read_plan() or {}
        sessions = [list(session) for session in stored.get("sessions", [])]
        if sessions:  # a killed session could not write its end
            rows = [self.folder.rows(t.trial_id)[-1:] for t in self.plan.trials]
            last = max((row[0].get("time", 0.0) for row in rows if row), default=0.0)
            sessions[-1][1] = max(sessions[-1][1], min(last, time.time()))
        now = time.time()
        self._sessions = [*sessions, [now, now]]
        self._known = "estimate" in stored
        if not self._known:
            self.works = plan_work(self.plan)
        self.folder.update_plan(sessions=self._sessions)

    def see(self, trial_id: str, row: Mapping[str, Any]) -> None:
        """A trial's row: the first one that tells the speed makes the run's estimate."""
        step, seconds = row.get("step", 0), row.get("wall_s")
        work = self.works.get(trial_id)
        if self._known or work is None or not seconds or step < min(FIRST_STEPS, work.steps):
            return
        self._known = True
        roles = {t.trial_id: t.role for t in self.plan.trials}
        workers = {role: a.workers for role, a in self.allotments.items()}
        rate = work.step * step / seconds / workers[roles[trial_id]]
        costs = [
            TrialCost(
                t.trial_id, t.role, self.works[t.trial_id],
                from_rate(self.works[t.trial_id], rate, workers[t.role]),
                f"first {step} steps of {trial_id}", workers[t.role],
            )
            for t in self.plan.trials
            if t.trial_id in self.works and t.trial_id not in self._done
        ]  # fmt: skip
        seconds_of = {cost.trial_id: cost.seconds for cost in costs}
        wall = makespan(self.plan.stages, seconds_of, self.allotments)
        self.folder.update_plan(
            estimate={
                "wall_s": round(wall, 1),
                "made_at": time.time(),
                "basis": f"first {step} steps of {trial_id}",
                "trials": {cost.trial_id: cost.to_json() for cost in costs},
            }
        )

    def tick(self) -> None:
        """The session goes on until now."""
        self._sessions[-1][1] = time.time()
        self.folder.update_plan(sessions=self._sessions)


def took_s(plan: Mapping[str, Any]) -> float:
    """Seconds that a run's sessions took together, from its plan.json."""
    return float(sum(end - began for began, end in plan.get("sessions", [])))


def estimate_line(plan: Mapping[str, Any] | None) -> str:
    """``estimated 12 min, took 14 min``; empty where nothing was run or estimated."""
    estimate, took = (plan or {}).get("estimate"), took_s(plan or {})
    if not estimate or not took:
        return ""
    sessions = len((plan or {})["sessions"])
    several = f" in {sessions} sessions" if sessions > 1 else ""
    return (
        f"estimated {minutes(estimate['wall_s'])} ({estimate['basis']}), "
        f"took {minutes(took)}{several}"
    )
