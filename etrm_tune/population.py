"""Population-based training: rates that adapt while their trials train.

After Jaderberg et al., 2017 (https://arxiv.org/abs/1711.09846), in rounds, so that the outcome
depends on seeds and not on which trial was faster. All members train to the same step and pause.
The last quarter of them copy the state of one of the first quarter, and go on with that one's rate
times 0.8 or 1.25. A member that diverged copies too, whatever its place. Seeds are populations of
their own.

What was judged stands in plan.json (``search.population``) before anything is copied, and copies
are checkpoints like any other: an interrupted search judges nothing twice and goes on with what it
finds.
"""

from __future__ import annotations

import hashlib
import json
import math
import random
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from etrm_tune.plan import PlannedTrial
from etrm_tune.run_folder import FINAL, RunFolder
from search_spaces.parameters import Space
from search_spaces.stopping import show
from trainable.checkpoint import list_steps
from trainable.config import TrialConfig
from trainable.errors import ConfigError
from trainable.inherit import inherit, lineage

ACCURACY = "train/accuracy"
SCHEDULER = "pbt"

ROUNDS = 6
"""Parts of a budget; the population is judged between them."""

QUARTER = 0.25
"""Share of the population that copies, and from which it copies."""

FACTORS = (0.8, 1.25)
"""A copied rate is multiplied by one of them."""

ADAPTS = ("lr", "lr_warmup_steps")
"""Options in which members may differ: their weights must fit each other."""

Round = dict[str, Any]
"""``step``, ``epoch``, ``seed``, ``members``: list of `Judged` as plain values."""


def check_population(space: Space, size: int) -> None:
    """Raise `ConfigError` for a space whose points cannot copy each other, or too few of them."""
    others = [p.option for p in space.parameters if p.option not in ADAPTS]
    if others or not any(p.option == "lr" for p in space.parameters):
        told = f"{', '.join(others)} would differ between them" if others else "lr is not in it"
        raise ConfigError(
            f"--scheduler pbt adapts the learning rate of trials that copy each other's weights, "
            f"in space {space.name} {told}: use --space lr, or another scheduler"
        )
    if size < 2:
        raise ConfigError(f"--trials {size}: a population has 2 members or more, better 8")


def milestones(total_steps: int, log_interval: int) -> list[int]:
    """Steps after which a population is judged: those of a report, before the last one."""
    found = []
    for part in range(1, ROUNDS):
        step = log_interval * round(part * total_steps / ROUNDS / log_interval)
        if 0 < step < total_steps and step not in found:
            found.append(step)
    return found


def label(points: Sequence[Mapping[str, Any]], seed: int) -> str:
    """All that decides the rates of a population, for its members' identities."""
    text = json.dumps([list(map(dict, points)), seed, ROUNDS, QUARTER, FACTORS], sort_keys=True)
    return f"pbt of {len(points)}, {hashlib.sha256(text.encode()).hexdigest()[:12]}"


@dataclass(frozen=True)
class Judged:
    """One member at the end of a round."""

    trial_id: str
    value: float
    """Mean accuracy of the round's second half; NaN where nothing was measured, or it diverged."""
    factor: float
    """Of its own rate, from here on."""
    parent: str | None = None
    """Whom it copies."""
    reason: str = ""

    def to_json(self) -> dict[str, Any]:
        """Plain values; NaN is None."""
        return vars(self) | {"value": None if math.isnan(self.value) else self.value}


@dataclass(frozen=True)
class Member:
    """What a member brings to a judgement."""

    trial_id: str
    value: float
    rate: float
    """Its configuration's own."""
    factor: float = 1.0
    """Of it, so far."""
    diverged: bool = False


def judge(
    members: Sequence[Member], *, step: int, draw: str, limits: tuple[float, float]
) -> list[Judged]:
    """Who goes on and who copies whom; a pure function of its arguments.

    Args:
        members: in the order of the plan, which decides between equals.
        draw: seeds the choice of parents and factors.
        limits: of a rate after it was multiplied.

    Nobody copies from an equal, or where nothing was measured.
    """
    values = [-math.inf if math.isnan(one.value) else one.value for one in members]
    order = sorted(range(len(members)), key=lambda at: (-values[at], at))
    count = max(1, int(QUARTER * len(members)))
    nothing = all(math.isnan(value) for value in (one.value for one in members))
    first = [members[at] for at in order[:count] if not math.isnan(members[at].value)]
    last = set(order[len(order) - count :]) if len(members) > 1 else set()
    judged = []
    for at, one in enumerate(members):
        place = f"{show(one.value, ACCURACY)}, place {order.index(at) + 1} of {len(members)}"
        place = f"diverged, {place}" if one.diverged else place
        if nothing and not one.diverged:
            place = "nothing was measured on this rung"
        random_ = random.Random(f"{draw} {step} {one.trial_id}")
        better = [p for p in first if math.isnan(one.value) or p.value > one.value]
        if (at not in last and not one.diverged) or not better:
            judged.append(
                Judged(one.trial_id, one.value, one.factor, None, f"pbt: {place}: goes on")
            )
            continue
        parent = random_.choice(better)
        before = one.rate * one.factor
        wanted = parent.rate * parent.factor * random_.choice(FACTORS)
        rate = min(max(wanted, limits[0]), limits[1])
        reason = (
            f"pbt: {place}: copies {parent.trial_id} ({show(parent.value, ACCURACY)}) at step "
            f"{step}, rate {before:.3g} → {rate:.3g}"
        )
        judged.append(Judged(one.trial_id, one.value, rate / one.rate, parent.trial_id, reason))
    return judged


@dataclass
class Population:
    """The populations of a search, one per seed, in a run folder."""

    folder: RunFolder
    seed: int
    total_steps: int
    limits: tuple[float, float]
    """Smallest and largest rate of the space, in the members' own scale."""
    save: Callable[[], None]
    """Writes plan.json with `rounds` in it."""
    rounds: list[Round] = field(default_factory=list)
    members: list[PlannedTrial] = field(default_factory=list)

    @property
    def milestones(self) -> list[int]:
        """Steps at which members wait for each other."""
        return milestones(self.total_steps, self.members[0].config.log_interval)

    @property
    def seeds(self) -> list[int]:
        """In order."""
        return sorted({trial.config.seed for trial in self.members})

    def advance(self, statuses: dict[str, str]) -> list[str]:
        """Judge what can be judged, copy, and return the members that now have to run.

        A member that had diverged and copied another is ``interrupted`` in ``statuses`` and in its
        folder from then on.
        """
        for seed in self.seeds:
            self._finish_copies(self._rounds(seed)[-1:], statuses)
        waiting: list[str] = []
        for seed in self.seeds:
            members = [trial for trial in self.members if trial.config.seed == seed]
            while True:
                at = self._next(seed)
                late = [t for t in members if not self._is_there(t, at, statuses)]
                if late or at is None:
                    waiting += [trial.trial_id for trial in late]
                    break
                self.rounds.append(self._judge(members, at, seed, statuses))
                self.save()
                self._finish_copies(self.rounds[-1:], statuses)
        return waiting

    def task(self, trial: PlannedTrial) -> tuple[TrialConfig, int | None]:
        """A member's configuration with its rates, and the step at which it pauses."""
        factors = []
        for one in self._rounds(trial.config.seed):
            mine = self._of(one, trial.trial_id)
            if mine["parent"] is not None:
                factors.append((one["step"], mine["factor"]))
        return trial.config.replace(lr_factors=tuple(factors)), self._next(trial.config.seed)

    def schedule(self, trial_id: str) -> list[tuple[int, str, float]]:
        """(since step, member, its rate) of all that a member's weights have been through."""
        of = {trial.trial_id: trial for trial in self.members}
        found: list[tuple[int, str, float]] = []
        current = trial_id
        for one in reversed(self._rounds(of[trial_id].config.seed)):
            mine = self._of(one, current)
            if mine["parent"] is not None:
                found.append((one["step"], current, mine["factor"] * of[current].config.lr))
                current = mine["parent"]
        found.append((0, current, of[current].config.lr))
        # A parent's own earlier copies are met on the way back, so the rates are in order.
        return found[::-1]

    # Parts.

    def _rounds(self, seed: int) -> list[Round]:
        return [one for one in self.rounds if one["seed"] == seed]

    def _next(self, seed: int) -> int | None:
        done = len(self._rounds(seed))
        return self.milestones[done] if done < len(self.milestones) else None

    @staticmethod
    def _of(one: Round, trial_id: str) -> dict[str, Any]:
        found: dict[str, Any] = next(m for m in one["members"] if m["trial_id"] == trial_id)
        return found

    def _is_there(self, trial: PlannedTrial, step: int | None, statuses: Mapping[str, str]) -> bool:
        if statuses[trial.trial_id] in FINAL:
            return True
        saved = list_steps(self.folder.trial(trial.trial_id) / "checkpoints")
        return step is not None and bool(saved) and saved[-1][0] >= step

    def _judge(
        self, members: Sequence[PlannedTrial], step: int, seed: int, statuses: Mapping[str, str]
    ) -> Round:
        before = self._rounds(seed)
        since = before[-1]["step"] if before else 0
        rows = {t.trial_id: self.folder.rows(t.trial_id) for t in members}
        brought = [
            Member(
                trial.trial_id,
                math.nan
                if statuses[trial.trial_id] == "diverged"
                else _value(rows[trial.trial_id], since, step),
                trial.config.lr,
                self._of(before[-1], trial.trial_id)["factor"] if before else 1.0,
                statuses[trial.trial_id] == "diverged",
            )
            for trial in members
        ]
        judged = judge(brought, step=step, draw=f"{self.seed} {seed}", limits=self.limits)
        epochs = members[0].config.epochs * step / self.total_steps
        for one in judged:
            self._record(one, rows[one.trial_id], step, epochs)
        return {
            "step": step,
            "epoch": epochs,
            "seed": seed,
            "members": [one.to_json() for one in judged],
        }

    def _record(
        self, one: Judged, rows: Sequence[Mapping[str, Any]], step: int, epochs: float
    ) -> None:
        line = {
            "rung": epochs,
            "rule": SCHEDULER,
            "epoch": next((r.get("epoch") for r in rows if r["step"] == step), epochs),
            "step": step,
            "value": one.to_json()["value"],
            "stop": False,
            "reason": one.reason,
            "parent": one.parent,
            "factor": one.factor,
            "time": time.time(),
        }
        with (self.folder.trial(one.trial_id) / "scheduler.jsonl").open("a") as file:
            file.write(json.dumps(line) + "\n")

    def _finish_copies(self, rounds: Sequence[Round], statuses: dict[str, str]) -> None:
        """Copies that were decided and are not in their folders yet."""
        of = {trial.trial_id: trial for trial in self.members}
        for one in rounds:
            for mine in one["members"]:
                trial_id, parent, step = mine["trial_id"], mine["parent"], one["step"]
                if parent is None or statuses[trial_id] in FINAL - {"diverged"}:
                    continue
                home = self.folder.trial(trial_id)
                told = lineage(home)
                if told and told[-1] == {"trial_id": parent, "step": step}:
                    continue
                trial = of[trial_id]
                inherit(
                    self.folder.trial(parent), home, step,
                    config=self.task(trial)[0], identity=trial.identity,
                )  # fmt: skip
                statuses[trial_id] = "interrupted"
                self.folder.write_status(trial_id, "interrupted", mine["reason"], step=step)


def _value(rows: Sequence[Mapping[str, Any]], since: int, step: int) -> float:
    """Mean accuracy of the second half of a round; of all of it where that measured nothing."""
    for begin in ((since + step) / 2, since):
        told = [row.get(ACCURACY) for row in rows if begin < row["step"] <= step]
        found = [float(value) for value in told if value is not None and math.isfinite(value)]
        if found:
            return statistics.fmean(found)
    return math.nan


def copy_lines(rounds: Sequence[Round]) -> list[str]:
    """Who copied whom at which step and which rate followed, in words; one line per copy."""
    told = []
    for one in sorted(rounds, key=lambda r: (r["step"], r["seed"])):
        copies = [m for m in one["members"] if m["parent"] is not None]
        if not copies:
            told.append(f"step {one['step']}, seed {one['seed']}: nobody copied")
        told += [f"{m['trial_id']}: {str(m['reason']).removeprefix('pbt: ')}" for m in copies]
    return told
