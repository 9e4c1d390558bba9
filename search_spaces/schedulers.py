"""Which stopping rules a search runs with, by the scheduler's name.

``bar`` is what phases run with; ``asha`` adds halving; ``median`` stops what lies below the median
of those that came before; ``none`` stops nothing.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

from search_spaces.stopping import Bar, Halving, Rule, Rung, StoppingRule, show
from trainable.errors import ConfigError, nearest

ETA = 3.0
"""Halving factor: ASHA's usual one is 3 or 4."""

FIRST_RUNG = 1 / 8
"""Share of the budget at which halving begins: before it, warm-up says more than the point."""


@dataclass(frozen=True)
class Median:
    """Stop a trial whose value is below the median of those that reached the same rung before.

    A rung at every tenth of the budget from `first` on. Until `enough` others have arrived only a
    value that is not a number is stopped. After the median stopping rule of Golovin et al., 2017
    (https://doi.org/10.1145/3097983.3098043), which compares with running averages instead.
    """

    first: float = 0.2
    enough: int = 3
    name: str = "median"

    def __post_init__(self) -> None:
        if not 0 < self.first < 1 or self.enough < 1:
            raise ConfigError("median needs first between 0 and 1, and enough of at least 1")

    def milestones(self, budget: float) -> tuple[float, ...]:
        """Every tenth of the budget from `first` on, without the end."""
        return tuple(budget * i / 10 for i in range(1, 10) if i / 10 >= self.first)

    def judge(self, value: float, others: Sequence[float], metric: str) -> tuple[bool, str]:
        """Survives if and only if it is at least the median (NaN ranks last)."""
        if len(others) < self.enough:
            told = f"{show(value, metric)}, {len(others)} others so far: too few for a median"
            return not math.isnan(value), told
        middle = statistics.median(-math.inf if math.isnan(v) else v for v in others)
        survives = value >= middle
        told = "not a number" if middle == -math.inf else show(middle, metric)
        sign = "≥" if survives else "is not ≥" if math.isnan(value) else "<"
        return survives, f"{show(value, metric)} {sign} {told}, the median of {len(others)} others"


def _asha(budget: float) -> tuple[Rule, ...]:
    return Bar(), Halving.geometric(ETA, budget=budget, first=FIRST_RUNG * budget)


SCHEDULERS: dict[str, Callable[[float], tuple[Rule, ...]]] = {
    "asha": _asha,
    "bar": lambda budget: (Bar(),),
    "median": lambda budget: (Median(),),
    "none": lambda budget: (),
}
"""Rules for a budget in epochs, by name."""


def check_scheduler(name: str) -> str:
    """The name of a scheduler. Raises `ConfigError` for an unknown one, naming the nearest."""
    if name not in SCHEDULERS:
        raise ConfigError(
            f"unknown scheduler {name!r}{nearest(name, SCHEDULERS)}: "
            f"choose from {', '.join(SCHEDULERS)}"
        )
    return name


def search_rule(
    scheduler: str, budget: float, *, metric: str = "train/accuracy"
) -> StoppingRule | None:
    """The rule of a search whose trials have `budget` epochs; None where nothing is stopped."""
    rules = SCHEDULERS[check_scheduler(scheduler)](budget)
    return StoppingRule(rules, budget=budget, metric=metric) if rules else None


Report = tuple[float, str, float, float | None]
"""Time, trial, epoch and value (None: not measured, NaN: not a number) of one recorded row."""


def place(rule: StoppingRule, reports: Iterable[Report]) -> dict[str, str]:
    """Place recorded reports on the rungs in the order of their times, as they once arrived.

    Returns why each trial that the rule stops is stopped. Reports of a trial after its stop are
    left out, as they are live.
    """
    stopped: dict[str, str] = {}
    for _, trial_id, epoch, value in sorted(reports, key=lambda report: (report[0], report[2])):
        if trial_id in stopped:
            continue
        decision = rule.on_report(trial_id, epoch, value)
        if decision.stop:
            stopped[trial_id] = decision.reason
    return stopped


@dataclass(frozen=True)
class RungLine:
    """One row of the rung table."""

    rule: str
    milestone: float
    reached: int
    survivors: tuple[str, ...]
    """Best first."""
    stopped: dict[str, str]
    """Reason by trial."""


def rung_lines(rungs: Iterable[Rung]) -> list[RungLine]:
    """Who reached each rung, who survived it, and why the others did not; by milestone."""
    lines = []
    for rung in sorted(rungs, key=lambda rung: (rung.milestone, rung.rule)):
        kept = [(trial, e.value) for trial, e in rung.entries.items() if not e.stop]
        lines.append(
            RungLine(
                rung.rule,
                rung.milestone,
                len(rung.entries),
                tuple(trial for trial, _ in sorted(kept, key=lambda one: -one[1])),
                {trial: e.reason for trial, e in rung.entries.items() if e.stop},
            )
        )
    return lines
