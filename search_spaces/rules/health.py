"""Signs of a sick trial: every threshold of `analysis.health`, with its origin, in one table."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Origin = Literal["repo", "document", "ours"]

RECENT = 10
"""Rows at the end of a trial that a sign looks at (ours)."""
SETTLED = 0.20
"""Share of the budget before which halting, Q-head and collapse are not judged (ours): a fresh
Q-head says "go on" to everything."""
PLATEAU_FROM = 0.50
"""Share of the budget before which no plateau is reported (ours)."""

STARVED = 0.10
STARVING = 0.20
COLLAPSED = 0.10
COLLAPSING = 0.30
POSTERIOR = 1e-2
STUCK_STEPS = 0.05
Q_HEAD_MARGIN = 0.0
BLOWN_UP = 3.0
AS_BEFORE = 0.50
"""Share of the first mean of the loss below which a rise is noise (ours): what is learned by heart
goes up and down by any multiple near zero."""
PLATEAU_GAIN = 0.005
PLATEAU_BELOW = 0.90


@dataclass(frozen=True)
class Threshold:
    """One line of the table."""

    sign: str
    level: Literal["warning", "critical"]
    value: float
    text: str
    origin: Origin


THRESHOLDS: tuple[Threshold, ...] = (
    Threshold("gradient starvation", "critical", STARVED,
              "encoder norm / total norm of the gradient below this", "repo"),
    Threshold("gradient starvation", "warning", STARVING,
              "encoder norm / total norm of the gradient below this", "ours"),
    Threshold("encoder collapse", "critical", COLLAPSED,
              "encoder/cross_sample_var below this share of its highest value so far", "ours"),
    Threshold("encoder collapse", "warning", COLLAPSING,
              "encoder/cross_sample_var below this share of its highest value so far", "ours"),
    Threshold("posterior collapse", "critical", POSTERIOR,
              "KL of a latent dimension (encoder/kl_per_dim, nats) below this", "ours"),
    Threshold("stuck halting", "warning", STUCK_STEPS,
              "train/steps within this of 1 or of halt_max_steps", "document"),
    Threshold("Q-head", "warning", Q_HEAD_MARGIN,
              "train/q_halt_accuracy at most this above its base rate", "document"),
    Threshold("divergence", "critical", 0.0, "a loss that is not finite", "ours"),
    Threshold("divergence", "warning", BLOWN_UP,
              "train/loss above this multiple of its lowest mean so far, and above half its first",
              "ours"),
    Threshold("plateau", "warning", PLATEAU_GAIN,
              "train/accuracy below 90 % gained less than this over the last third", "ours"),
)  # fmt: skip
"""Signs, in the order in which they are shown."""


def threshold(sign: str, level: Literal["warning", "critical"]) -> Threshold:
    """The line of a sign and level. Raises KeyError when there is none."""
    for line in THRESHOLDS:
        if (line.sign, line.level) == (sign, level):
            return line
    raise KeyError(f"{sign}, {level}")
