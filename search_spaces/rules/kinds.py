"""What a decision rule is: thresholds, comparisons, scenarios, as frozen values."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from search_spaces.rules.measures import TRAIN_ACCURACY, Measure


@dataclass(frozen=True)
class Band:
    """An interval of values. NaN lies in none."""

    low: float | None = None
    high: float | None = None
    low_included: bool = True
    high_included: bool = True

    def contains(self, value: float) -> bool:
        """Whether `value` lies in the interval."""
        above = self.low is None or (value >= self.low if self.low_included else value > self.low)
        below = self.high is None or (
            value <= self.high if self.high_included else value < self.high
        )
        return value == value and above and below

    @property
    def text(self) -> str:
        """``> 90 %``, ``< 80 %``, ``80 % to 92 %``."""
        low = "" if self.low is None else f"{100 * self.low:g} %"
        high = "" if self.high is None else f"{100 * self.high:g} %"
        if low and high:
            return f"{low} to {high}"
        if low:
            return f"{'≥' if self.low_included else '>'} {low}"
        return f"{'≤' if self.high_included else '<'} {high}"


def above(value: float) -> Band:
    """More than `value`."""
    return Band(low=value, low_included=False)


def below(value: float) -> Band:
    """Less than `value`."""
    return Band(high=value, high_included=False)


def at_most(value: float) -> Band:
    """`value` or less."""
    return Band(high=value)


def between(low: float, high: float) -> Band:
    """`low` to `high`, both included."""
    return Band(low, high)


@dataclass(frozen=True)
class ThresholdRule:
    """If an arm's measure lies in a band, then `outcome`. Each arm is judged separately unless
    `scope` says how the arms are taken together."""

    name: str
    after: str
    """Phase after which it is read."""
    arms: tuple[str, ...]
    band: Band
    outcome: str
    measure: Measure = TRAIN_ACCURACY
    scope: Literal["each", "all", "any"] = "each"
    given: tuple[tuple[str, Band], ...] = ()
    """Further conditions, (arm, band) on the same measure, that must hold as well."""
    next: tuple[str, ...] = ()
    """Targets that the outcome asks for."""
    kind: Literal["success", "drop", "note", "no rule", "red flag"] = "note"
    ours: bool = False
    checks: tuple[str, ...] = ()
    """What to look at when it holds."""


@dataclass(frozen=True)
class ComparisonRule:
    """If `left` relates to `right` as stated, then `outcome`."""

    name: str
    after: str
    left: str
    right: str
    relation: Literal[">=", "better", "different"]
    """``>=``: observed values. ``better`` and ``different``: by the two-sided paired sign-flip test
    at equal samples seen, Holm-corrected over the rules of its phase (the documents leave
    "significantly" undefined; the test is ours)."""
    outcome: str
    measure: Measure = TRAIN_ACCURACY
    next: tuple[str, ...] = ()
    ours: bool = False
    option: str | None = None
    """Option of `left` that a positive answer carries to the full data set."""


DecisionRule = ThresholdRule | ComparisonRule


@dataclass(frozen=True)
class Scenario:
    """One of the document's success scenarios and what follows from it.

    It holds when all `where` hold, and, of `improvements`, at least one does (``any_improves``) or
    none does (``none_improves``).
    """

    name: str
    text: str
    implication: str
    where: tuple[ThresholdRule | ComparisonRule, ...] = ()
    improvements: tuple[ThresholdRule | ComparisonRule, ...] = ()
    mode: Literal["any_improves", "none_improves"] = "any_improves"


@dataclass(frozen=True)
class Extension:
    """Arms that get more epochs before they are judged, if they are still rising."""

    arms: tuple[str, ...]
    when: Band
    factor: float
    """New budget in units of the arm's own."""
    why: str


@dataclass(frozen=True)
class Target:
    """What the document hopes to see, reported and never a gate."""

    measure: Measure
    band: Band
    text: str


@dataclass(frozen=True)
class Selection:
    """The best configurations that go to the full data set."""

    most: int
    band: Band
    order: tuple[str, ...]
