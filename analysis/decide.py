"""The plan's decisions, each with its rule, the numbers it rests on, n, and what limits it.

The rules are `search_spaces.rules`: this room evaluates them and adds no threshold of its own. A
run that the bar stopped counts as below every threshold; a missing, crashed, diverged or unfinished
one gives "not decided" with the reason. Trials of several revisions or profiles are never compared.
"""

from __future__ import annotations

from collections.abc import Sequence

from analysis.act import decide_act
from analysis.debug import decide_debug
from analysis.decision import Decision, NextStep, undecided
from analysis.frozen import decide_frozen
from analysis.load import Run
from analysis.overfit import decide_overfit
from analysis.recommend import Recommendation, recommend
from analysis.select import full_data, selection
from analysis.view import View, by_data, mixed_plans


def decide(run: Run) -> list[Decision]:
    """Every decision that the run's experiments bear on, series by series, in the plan's order.

    Empty when the run holds no experiment that a rule reads. Experiments that are missing are named
    in the decisions that need them. Trials of several revisions or profiles together are not
    compared: one decision says so.
    """
    if mixed := mixed_plans(run):
        return [undecided("all", "one revision and one profile", [], [mixed], after="")]
    plan, full = by_data(run)
    view = View(plan)
    decisions = decide_overfit(view)
    if any(decision.after == "phase3" for decision in decisions):
        decisions.append(selection(view))
    for series in (decide_debug, decide_act, decide_frozen):
        decisions += series(view)
    return decisions + full_data(View(full))


def next_steps(run: Run) -> list[NextStep]:
    """What the decisions ask for, the recommended step first.

    Steps with ``default=True`` are the stated branch of an unattended run where nothing was
    decided. Empty when there is nothing to run.
    """
    return list(recommendation(run).steps)


def recommendation(run: Run) -> Recommendation:
    """Why and what next."""
    return recommend(run, decide(run))


def red_flags(run: Run) -> list[Decision]:
    """The red flags that are raised, each with its recommended `checks`."""
    return [decision for decision in decide(run) if decision.raised]


def next_step(run: Run, decisions: Sequence[Decision]) -> tuple[str, str | None]:
    """The recommendation in one line: (why, command)."""
    found = recommend(run, decisions)
    return found.why, found.command
