"""Rules of the series `act`: which training mode, with which setting, and what validates it."""

from __future__ import annotations

from dataclasses import dataclass

from search_spaces.rules.kinds import ComparisonRule, ThresholdRule, above
from search_spaces.rules.measures import Q_HALT_ACCURACY

O1, O2, O3 = "act/O1", "act/O2", "act/O3"
L1, L2, L3 = "act/L1", "act/L2", "act/L3"
E1, E2, E3 = "act/E1", "act/E2", "act/E3"
ENCODERS = (E1, E2, E3)
MODE_ARMS = (O1, O2, O3, L1, L2, L3)

FIRST, LAST = "act1", "act3"
"""Phases of the series; ``act3@L2`` gives the encoders L2's mode."""
FURTHER = {"cached": "act2_cached", "online": "act2_online"}
"""Phase with a side's further settings, by its mode."""


@dataclass(frozen=True)
class Side:
    """One training mode: its first arm, the arms that refine it, and what they vary."""

    name: str
    mode: str
    """`encode_mode`."""
    base: str
    further: tuple[str, ...]
    option: str
    """What its arms vary, and what the winner hands on to the encoders."""


ORIGINAL = Side("original mode", "cached", O1, (O2, O3), "halt_exploration_prob")
ONLINE = Side("online mode", "online", L1, (L2, L3), "num_act_steps")
DEFAULT = ORIGINAL
"""The branch that is taken while O1 against L1 is not decided: the control's mode."""

MODES = ComparisonRule(
    "O1 or L1", "act", L1, O1, "different", "go on with the better mode, the control's if neither"
)
SETTINGS: dict[str, tuple[ComparisonRule, ...]] = {
    side.mode: tuple(
        ComparisonRule(
            f"setting ({arm.partition('/')[2]})", "act", arm, side.base, "better",
            "use this setting for the encoders", option=side.option,
        )
        for arm in side.further
    )
    for side in (ORIGINAL, ONLINE)
}  # fmt: skip

ORIGINAL_Q_HEAD = ThresholdRule(
    "Q-head predicts", "act", (O1,), above(0.80),
    "the Q-head learns to predict correctness", measure=Q_HALT_ACCURACY, kind="success",
)  # fmt: skip
COMPARABLE = 0.02
"""Original mode is "comparable" when its accuracy is at most this much below online mode's (ours;
observed values)."""
