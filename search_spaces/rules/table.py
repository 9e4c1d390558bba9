"""One table of every rule: which metric, which window, final or best, and how it is decided."""

from __future__ import annotations

from dataclasses import dataclass

from search_spaces.rules import act, debug, frozen, overfit
from search_spaces.rules.kinds import ComparisonRule, DecisionRule
from search_spaces.rules.measures import Measure

OBSERVED = "observed value"
TESTED = "paired sign-flip test at equal samples seen"


@dataclass(frozen=True)
class Row:
    """One rule's line."""

    rule: str
    after: str
    arms: tuple[str, ...]
    metric: str
    window: str
    summary: str
    """``mean`` and ``last`` are final values; no rule reads a best one."""
    decided_by: str
    ours: bool


def window_text(measure: Measure) -> str:
    """``last 10 % of steps``."""
    if measure.window >= 1:
        return "all rows"
    return "last row" if measure.window == 0 else f"last {100 * measure.window:g} % of steps"


def every_rule() -> tuple[DecisionRule, ...]:
    """All threshold and comparison rules of the plan, in the documents' order."""
    return (
        *overfit.PHASE1,
        *overfit.PHASE2,
        *overfit.PHASE3,
        *overfit.RED_FLAGS,
        overfit.FULL_DATA,
        debug.BASELINE_OK,
        debug.BASELINE_FAILS,
        act.MODES,
        *act.SETTINGS[act.ORIGINAL.mode],
        *act.SETTINGS[act.ONLINE.mode],
        act.ORIGINAL_Q_HEAD,
        *frozen.COMPARISONS,
    )


def table() -> tuple[Row, ...]:
    """The table of `every_rule`."""
    return tuple(_row(rule) for rule in every_rule())


def _row(rule: DecisionRule) -> Row:
    tested = isinstance(rule, ComparisonRule) and rule.relation != ">="
    arms = (rule.left, rule.right) if isinstance(rule, ComparisonRule) else rule.arms
    return Row(
        rule=rule.name,
        after=rule.after,
        arms=arms,
        metric=rule.measure.metric,
        window=window_text(rule.measure),
        summary=rule.measure.summary,
        decided_by=TESTED if tested else OBSERVED,
        ours=rule.ours,
    )
