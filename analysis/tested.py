"""Comparative rules decided by the paired test, and which arms make up a phase."""

from __future__ import annotations

import math
from collections.abc import Sequence

import search_spaces
from analysis.decision import Decision, decided, source, undecided
from analysis.steps import step
from analysis.view import View
from search_spaces import rules
from search_spaces.rules import ComparisonRule

PHASE1_ARMS = (rules.E1A, rules.E2A, rules.E2B, rules.E2C)
PHASE2_ARMS = tuple(rule.left for rule in rules.PHASE2)
PHASE3_ARMS = (rules.E4A, rules.E2D, rules.E5A_LOW, rules.E5A_HIGH)
PHASE_ARMS = {"phase1": PHASE1_ARMS, "phase2": PHASE2_ARMS, "phase3": PHASE3_ARMS}


def holds(view: View, phase: str) -> bool:
    """Whether the run is about a phase. E1a alone is phase 1's; beside later arms it is their
    control."""
    arms = PHASE_ARMS[phase]
    if phase != "phase1":
        return view.has(*arms)
    later = view.has(*PHASE2_ARMS, *PHASE3_ARMS)
    return view.has(*arms[1:]) or (view.has(rules.E1A) and not later)


def family_of(view: View, phase: str) -> list[ComparisonRule]:
    """The phase's comparisons that the plan's revision has."""
    known = {arm.name for arm in search_spaces.experiments(revision_of(view))}
    return [
        rule
        for rule in rules.DECISIONS[phase]
        if isinstance(rule, ComparisonRule) and rule.left in known
    ]


def revision_of(view: View) -> str:
    """The revision that the trials name (the default one where none does)."""
    named = view.run.arms["revision"].dropna()
    return str(named.iloc[0]) if len(named) else search_spaces.DEFAULT_REVISION


def tested(view: View, rule: ComparisonRule, family: Sequence[ComparisonRule]) -> Decision:
    """A comparison by the paired test, Holm-corrected over `family`."""
    left, right = view[rule.left], view[rule.right]
    word = "significantly better than" if rule.relation == "better" else "different from"
    if rule.relation == "different":
        word = "significantly different from"
    quoted = f"{left.id} {word} {right.id}: {rule.outcome}{source(ours=rule.ours)}"
    quoted += f" ({rule.measure.metric}, paired test at equal samples, Holm over {len(family)})"
    keep = f"the control {right.id} is kept"
    found = view.compare(family)[rule.name]
    arms = [left, right]
    if found.problem is not None:
        reason = missing_parent(view, rule, found.problem)
        return undecided(rule.name, quoted, arms, [reason, keep], after=rule.after)
    if left.judged == right.judged == -math.inf:
        reason = f"{left.told}, {right.told}: both are below every threshold and have no order"
        return undecided(rule.name, quoted, arms, [reason, keep], after=rule.after)
    if not found.enough:
        more = step(
            view.run, _target(view, rule), f"{rule.name}: decided from N = {found.needed} on",
            kind="seeds", seeds=found.needed,
        )  # fmt: skip
        return undecided(
            rule.name, quoted, arms, [found.too_few, f"observed: {found.told}", keep],
            after=rule.after, next=[more],
        )  # fmt: skip
    told = found.told
    if rule.relation == "better" and found.better:
        verdict, text, kind = "better", f"{told}: {rule.outcome}", "success"
    elif rule.relation == "different" and found.significant:
        order = "better" if found.mean > 0 else "worse"
        verdict, text, kind = f"different ({order})", f"{told}: {rule.outcome}", "success"
    elif found.significant:
        verdict, text, kind = "worse", f"{told}: {keep}", "note"
    else:
        verdict, text, kind = "no difference shown", f"{told}: {keep}", "note"
    return decided(
        rule.name, quoted, verdict, text + source(ours=rule.ours), arms,
        after=rule.after, kind=kind, tested=True,
    )  # fmt: skip


def missing_parent(view: View, rule: ComparisonRule, problem: str) -> str:
    """Says where the partner of a comparison runs when the run at hand lacks it."""
    if view.has(rule.right) or not view.has(rule.left):
        return problem
    partner = rule.right.partition("/")[2]
    where = next((phase for phase, arms in PHASE_ARMS.items() if rule.right in arms), None)
    home = f" of {where}" if where else ""
    return f"{problem}: {partner} is the control{home}, load that run together with this one"


def _target(view: View, rule: ComparisonRule) -> str:
    """What more seeds have to repeat: the phase with the control, which another phase may hold."""
    if rule.after not in PHASE_ARMS:
        return f"{rule.left},{rule.right}"
    return rule.after if rule.right in PHASE_ARMS[rule.after] else f"{rule.right},{rule.after}"
