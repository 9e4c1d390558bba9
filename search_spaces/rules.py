"""The plan's decision rules as data: which metric, which window, which threshold, whose rule.

`analysis.decide` evaluates them; this file holds every number that a decision may rest on. `ours`
marks what no document says. Values are shares (0.9 is 90 %), strict or not exactly as written:
"more than 90 %" excludes 90 %.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

# ------------------------------------------------------------------------------------- measuring


@dataclass(frozen=True)
class Measure:
    """How one number is taken from a trial's curve."""

    metric: str
    window: float
    """Share of the trial's steps, at its end, that counts; rows are evenly spaced and weigh the
    same. 0: the last row alone. 1: all rows."""
    summary: Literal["mean", "best", "last"]
    text: str


TRAIN_ACCURACY = Measure(
    "train/accuracy", 0.10, "mean", "train/accuracy (halted rows), mean of the last 10 % of steps"
)
TRAIN_EXACT = Measure(
    "train/exact_accuracy", 0.10, "mean", "train/exact_accuracy, mean of the last 10 % of steps"
)
Q_HALT_ACCURACY = Measure(
    "train/q_halt_accuracy", 0.10, "mean", "train/q_halt_accuracy, mean of the last 10 % of steps"
)
STEPS = Measure("train/steps", 0.10, "mean", "train/steps, mean of the last 10 % of steps")
TRAIN_LOSS = Measure("train/loss", 0.10, "mean", "train/loss, mean of the last 10 % of steps")

MEASURES = (TRAIN_ACCURACY, TRAIN_EXACT, Q_HALT_ACCURACY, STEPS, TRAIN_LOSS)

CONVERGENCE_LEVELS = (0.80, 0.90)
"""Steps to reach these levels of `train/accuracy` are reported for every arm, never a gate. Reached
at the first row from which on `CONVERGENCE_ROWS` rows in a row are at the level or above (ours)."""
CONVERGENCE_ROWS = 3

Treatment = Literal["value", "below", "undecided"]
STATUS_COUNTS: dict[str, Treatment] = {
    "finished": "value",
    "stopped": "below",  # stopped by the bar: below every threshold, and that is an answer
    "diverged": "undecided",
    "failed": "undecided",
    "interrupted": "undecided",
    "running": "undecided",
    "pending": "undecided",
}
"""How a trial of each status enters a rule; a trial that is missing is undecided."""


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


# ----------------------------------------------------------------------------------------- rules


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


@dataclass(frozen=True)
class ComparisonRule:
    """If `left` relates to `right` as stated, then `outcome`."""

    name: str
    after: str
    left: str
    right: str
    relation: Literal[">=", "better", "different"]
    """``>=``: observed values. ``better`` and ``different``: by the paired test of the analysis
    (the documents leave "significantly" undefined; the test is ours)."""
    outcome: str
    measure: Measure = TRAIN_ACCURACY
    next: tuple[str, ...] = ()
    ours: bool = False


DecisionRule = ThresholdRule | ComparisonRule

E1A, E1B, E1C = "overfit/E1a", "overfit/E1b", "overfit/E1c"
E2A, E2B, E2C = "overfit/E2a", "overfit/E2b", "overfit/E2c"
E3A, E3B = "overfit/E3a", "overfit/E3b"
E4A = "overfit/E4a"

PHASE1: tuple[DecisionRule, ...] = (
    ThresholdRule(
        "standard encoder validated", "phase1", (E1A,), above(0.90),
        "the standard encoder is validated: go on to phase 2, halting and exploration",
        next=("phase2",), kind="success",
    ),
    ThresholdRule(
        "baseline not validated", "phase1", (E1A,), at_most(0.90),
        "the document has no rule for a control of at most 90 %",
        kind="no rule",
    ),
    ThresholdRule(
        "deeper encoders help", "phase1", (E2A, E2B, E2C), above(0.92),
        "significantly better: use this encoder for the full data set, after weighing the gain "
        "against its compute",
        kind="success",
    ),
    ThresholdRule(
        "no rule between", "phase1", (E2A, E2B, E2C), between(0.80, 0.92),
        "the document has no rule for a deeper encoder between 80 % and 92 %",
        kind="no rule",
    ),
    ThresholdRule(
        "variational encoder fails", "phase1", (E2A, E2B), below(0.80),
        "abandon this variational/LPN encoder for now, focus on standard variants",
        kind="drop",
    ),
    ThresholdRule(
        "hybrid depth fails", "phase1", (E2C,), below(0.80),
        "drop hybrid depth",
        kind="drop", ours=True,
    ),
    ThresholdRule(
        "VAE compatible", "phase1", (E2A,), above(0.90),
        "VAE regularization is compatible with ETRM",
        kind="success",
    ),
    ComparisonRule(
        "VAE not needed", "phase1", E2C, E2A, ">=",
        "the VAE is not needed: hybrid_standard does as well (compare the parameters)",
    ),
)  # fmt: skip

PHASE2: tuple[DecisionRule, ...] = (
    *(
        ComparisonRule(
            f"exploration helps ({arm.partition('/')[2]})", "phase2", arm, E1A, "better",
            "use this exploration for the full data set",
        )
        for arm in (E1B, E1C)
    ),
    *(
        ComparisonRule(
            f"maximal steps matter ({arm.partition('/')[2]})", "phase2", arm, E1A, "different",
            "tune the maximal number of steps by puzzle complexity",
        )
        for arm in (E3A, E3B)
    ),
)  # fmt: skip

PHASE3: tuple[DecisionRule, ...] = (
    ThresholdRule(
        "learns from scratch", "phase3", (E4A,), above(0.90),
        "ETRM is validated without a pretrained decoder: ready for the full data set",
        kind="success",
    ),
    ThresholdRule(
        "pretrained decoder essential", "phase3", (E4A,), at_most(0.90),
        "the pretrained decoder is essential; a better encoder initialization may be needed",
        given=((E1A, above(0.90)),),
    ),
    ThresholdRule(
        "partly learns", "phase3", (E4A,), Band(0.50, 0.90),
        "the pretrained decoder is essential, ETRM partly learns without it",
        ours=True,
    ),
)  # fmt: skip

DECISIONS: dict[str, tuple[DecisionRule, ...]] = {
    "phase1": PHASE1,
    "phase2": PHASE2,
    "phase3": PHASE3,
}
"""Decision points of the series `overfit`, by the phase after which they are read."""

RED_FLAGS: tuple[ThresholdRule, ...] = (
    ThresholdRule(
        "red flag 1", "phase1", (E1A, E2A, E2B, E2C), at_most(0.80),
        "no encoder learns the 32 groups: look for bugs, gradient flow and data pipeline first",
        scope="all", kind="red flag",
    ),
    ThresholdRule(
        "red flag 2", "phase3", (E4A,), below(0.50),
        "learns only with a pretrained decoder: better encoder initialization or more training",
        kind="red flag",
    ),
    ThresholdRule(
        "red flag 3", "phase1", (E2A, E2B), between(0.50, 0.60),
        "still stuck as with cached encoding: the VAE may be incompatible, abandon it",
        scope="all", kind="red flag",
    ),
)  # fmt: skip


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


_CONTROL_OK = PHASE1[0]
_DEEPER = PHASE1[2]

SCENARIOS: tuple[Scenario, ...] = (
    Scenario(
        "A", "the standard encoder is best",
        "keep the standard encoder, work on data and training",
        where=(_CONTROL_OK,), improvements=(_DEEPER,), mode="none_improves",
    ),
    Scenario(
        "B", "deeper encoders help", "scale the encoder up for the full data set",
        improvements=(_DEEPER,),
    ),
    Scenario(
        "C", "exploration matters", "adjust exploration for Q-head learning",
        improvements=PHASE2[:2],
    ),
    Scenario(
        "D", "from scratch works", "ETRM learns by itself, it does not only tune the decoder",
        where=(PHASE3[0],),
    ),
)  # fmt: skip


@dataclass(frozen=True)
class Extension:
    """Arms that get more epochs before they are judged, if they are still rising."""

    arms: tuple[str, ...]
    when: Band
    factor: float
    """New budget in units of the arm's own."""
    why: str


EXTENSION = Extension(
    ("overfit/E4a", "overfit/E4b"), at_most(0.90), 2.5,
    "from scratch needs more steps: 20,000 epochs become 50,000 while accuracy rises",
)  # fmt: skip


@dataclass(frozen=True)
class Target:
    """What the document hopes to see, reported and never a gate."""

    measure: Measure
    band: Band
    text: str


TARGETS: tuple[Target, ...] = (
    Target(TRAIN_ACCURACY, above(0.90), "token accuracy above 90 %"),
    Target(TRAIN_EXACT, above(0.50), "whole grids above 50 %"),
    Target(Q_HALT_ACCURACY, above(0.85), "the Q-head predicts correctness"),
)
"""Beside these: `train/steps` below `halt_max_steps`, and samples that use diverse steps."""


@dataclass(frozen=True)
class Selection:
    """The best configurations that go to the full data set."""

    most: int
    band: Band
    order: tuple[str, ...]


SELECTION = Selection(
    3, above(0.90), ("train accuracy, highest first", "steps to 90 %, fewest first",
                     "q_halt_accuracy, highest first"),
)  # fmt: skip
