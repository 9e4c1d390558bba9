"""How numbers are taken from a curve, and what counts: the measuring half of the rules.

Final values, never the best row: a mean over the last tenth of the steps, the same stopping point
for every seed. Comparisons between arms take the same window before the point of equal samples.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal


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
LM_LOSS = Measure("train/lm_loss", 0.10, "mean", "train/lm_loss, mean of the last 10 % of steps")
ENCODER_GRADIENT = Measure(
    "grad/encoder_norm", 0.10, "mean", "grad/encoder_norm, mean of the last 10 % of steps"
)
TOKEN_STD = Measure(
    "encoder/token_std", 0.10, "mean", "encoder/token_std, mean of the last 10 % of steps"
)
PASS_AT_1 = Measure("eval/pass@1", 1.0, "last", "eval/pass@1, last evaluation")
EVAL_EXACT = Measure("eval/exact_accuracy", 1.0, "last", "eval/exact_accuracy, last evaluation")

MEASURES = (
    TRAIN_ACCURACY,
    TRAIN_EXACT,
    Q_HALT_ACCURACY,
    STEPS,
    TRAIN_LOSS,
    LM_LOSS,
    ENCODER_GRADIENT,
    TOKEN_STD,
    PASS_AT_1,
    EVAL_EXACT,
)

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

ALPHA = 0.05
"""Family-wise error rate of the paired tests of one phase, two-sided, Holm-corrected (ours)."""
POWER = 0.80
"""Power at which the smallest detectable effect is stated (ours)."""
CONFIDENCE = 0.95
"""Of the bootstrap intervals (ours)."""
RESAMPLES = 9_999
"""Bootstrap resamples, drawn with a fixed seed."""


@dataclass(frozen=True)
class Rising:
    """A curve still rises when the mean of its last `window` of steps exceeds that of the `window`
    before by more than `margin`. A plateau is a curve that does not rise."""

    window: float
    margin: float


STILL_RISING = Rising(window=0.10, margin=0.005)
"""Half a point of train accuracy over the last tenth (ours: the document says "still rising")."""

LEARNING_CURVE = 0.20
"""A clear learning curve: the last tenth lies this much above the first tenth (ours)."""
