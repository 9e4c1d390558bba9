"""Which stopping rules a search runs with, by the scheduler's name.

``bar`` is what phases run with; ``asha`` adds halving; ``median`` stops what lies below the median
of those that came before; ``none`` stops nothing, nor does ``pbt``, whose trials copy each other.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import NoReturn

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
    waits: bool = True

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
    "pbt": lambda budget: (),  # members copy each other, see `etrm_tune.population`
}
"""Rules for a budget in epochs, by name."""


SETTINGS = {
    "bar": "bar:THRESHOLD@SHARE, such as bar:0.15@0.25 (below 15 % at a quarter of the budget)",
    "asha": "asha:SHARE,SHARE, such as asha:0.125,0.375 (rungs as shares of the budget)",
}
"""How a scheduler's name carries settings of its own."""

OWN_BAR = "own bar"
"""Name of a bar with settings of its own: its stops are no answer to the plan's rules."""


def check_scheduler(name: str) -> str:
    """The name of a scheduler, with settings or without.

    Raises `ConfigError` for an unknown one, naming the nearest, and for settings out of range.
    """
    rules_of(name, 1.0)
    return name


def rules_of(scheduler: str, budget: float) -> tuple[Rule, ...]:
    """Rules for a budget in epochs: of a name (`SCHEDULERS`), or of one with `SETTINGS`.

    >>> rules_of("bar:0.15@0.25", 1000)[0].milestones(1000)
    (250.0,)

    Raises `ConfigError` as `check_scheduler` does.
    """
    name, given, settings = scheduler.partition(":")
    if name not in SCHEDULERS:
        raise ConfigError(
            f"unknown scheduler {name!r}{nearest(name, SCHEDULERS)}: "
            f"choose from {', '.join(SCHEDULERS)}"
        )
    if not given:
        return SCHEDULERS[name](budget)
    usage = SETTINGS.get(name, f"{name} without settings")
    try:
        if name == "bar":
            threshold, at = (float(part) for part in settings.split("@"))
            if 0 < threshold < 1 and 0 < at < 1:
                return (Bar(threshold, at, name=OWN_BAR),)
        elif name == "asha":
            shares = [float(part) for part in settings.split(",")]
            if all(0 < share < 1 for share in shares):
                return Bar(), Halving(ETA, tuple(share * budget for share in shares))
    except (ValueError, ConfigError):
        pass
    return _refuse(scheduler, usage)


def _refuse(scheduler: str, usage: str) -> NoReturn:
    raise ConfigError(f"scheduler {scheduler!r}: give {usage}")


def search_rule(
    scheduler: str, budget: float, *, metric: str = "train/accuracy"
) -> StoppingRule | None:
    """The rule of a search whose trials have `budget` epochs; None where nothing is stopped."""
    rules = rules_of(scheduler, budget)
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
