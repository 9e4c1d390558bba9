"""Decisions of the series `overfit`: after each phase, red flags, scenarios.

Threshold rules are decided on the observed value. "Better" and "different" are decided by the
paired test of `analysis.paired`; with too few seeds they are not decided and the control is kept.
"""

from __future__ import annotations

import math

from analysis.decision import Decision, decided, outcome, quote, undecided
from analysis.flags import red_flag, scenario
from analysis.observe import Observation
from analysis.scratch import from_scratch
from analysis.steps import step
from analysis.tested import PHASE1_ARMS, PHASE_ARMS, family_of, holds, tested
from analysis.view import View
from search_spaces import rules
from search_spaces.rules import ComparisonRule, ThresholdRule

DEEPER = "deeper encoders help"


def decide_overfit(view: View) -> list[Decision]:
    """Decisions of every phase that the run holds an arm of, then flags and scenarios."""
    held = [phase for phase in PHASE_ARMS if holds(view, phase)]
    decisions: list[Decision] = []
    if "phase1" in held:
        decisions += [_encoder(view, view[name], view[rules.E1A]) for name in PHASE1_ARMS]
        for rule in rules.PHASE1:
            if isinstance(rule, ComparisonRule):
                decisions.append(_observed_order(rule, view))
            elif rule.name == "VAE compatible":
                decisions.append(_vae_compatible(rule, view[rules.E2A]))
    for phase in ("phase2", "phase3"):
        if phase in held:
            if phase == "phase3":
                decisions.append(from_scratch(view))
            family = family_of(view, phase)
            decisions += [tested(view, rule, family) for rule in family]
    decisions += [red_flag(r, view) for r in rules.RED_FLAGS if r.after in held]
    asked = {"A": "phase1", "B": "phase1", "C": "phase2", "D": "phase3"}
    decisions += [scenario(s, view) for s in rules.SCENARIOS if asked[s.name] in held]
    return decisions


def _encoder(view: View, arm: Observation, control: Observation) -> Decision:
    """The band that one encoder's accuracy lies in."""
    bands = [
        rule
        for rule in rules.PHASE1
        if isinstance(rule, ThresholdRule)
        and arm.experiment in rule.arms
        and rule.name != "VAE compatible"
    ]
    quoted = "; ".join(quote(rule, (arm.experiment,)) for rule in bands)
    if arm.problem is not None:
        return undecided(arm.id, quoted, [arm], [arm.problem], after="phase1")
    rule = next(rule for rule in bands if rule.band.contains(arm.judged))
    if rule.name == DEEPER:
        return _deeper(view, rule, quoted, arm, control)
    follow = [step(view.run, target, f"{arm.id} is validated") for target in rule.next]
    text = f"{arm.told} ({rule.band.text}): {outcome(rule)}"
    return decided(
        arm.id, quoted, rule.name, text, [arm], after="phase1", kind=rule.kind, next=follow
    )


def _deeper(
    view: View, rule: ThresholdRule, quoted: str, arm: Observation, control: Observation
) -> Decision:
    """Above 92 %: "significantly better" also asks that it is better than the control."""
    if problems := view.problems(arm.experiment, control.experiment):
        reason = f"{arm.told} ({rule.band.text}), but what it has to beat is open: {problems[0]}"
        return undecided(arm.id, quoted, [arm, control], [reason], after="phase1")
    against = f"{arm.told} ({rule.band.text}) against {control.told}"
    both = [arm, control]
    if arm.judged <= control.judged:
        text = f"{against}: above the threshold, but not better than the control"
        return decided(arm.id, quoted, "not better than E1a", text, both, after="phase1")
    text = (
        f"{against}: use this encoder for the full data set, after weighing the gain against its "
        f"compute{_cost(arm, control)}. An observed difference, not a test"
    )
    return decided(arm.id, quoted, rule.name, text, both, after="phase1", kind=rule.kind)


def _vae_compatible(rule: ThresholdRule, arm: Observation) -> Decision:
    quoted = quote(rule, rule.arms)
    if arm.problem is not None:
        return undecided(rule.name, quoted, [arm], [arm.problem], after="phase1")
    if rule.band.contains(arm.judged):
        text = f"{arm.told} ({rule.band.text}): {outcome(rule)}"
        return decided(rule.name, quoted, "yes", text, [arm], after="phase1", kind=rule.kind)
    text = f"{arm.told} (not {rule.band.text}): compatibility is not shown"
    return decided(rule.name, quoted, "not shown", text, [arm], after="phase1", kind="no rule")


def _observed_order(rule: ComparisonRule, view: View) -> Decision:
    left, right = view[rule.left], view[rule.right]
    both, quoted = [left, right], f"{left.id} {rule.relation} {right.id}: {rule.outcome}"
    problems = view.problems(rule.left, rule.right)
    if problems:
        return undecided(rule.name, quoted, both, problems, after=rule.after)
    if left.judged == right.judged == -math.inf:
        reason = f"{left.told}, {right.told}: both are below every threshold and have no order"
        return undecided(rule.name, quoted, both, [reason], after=rule.after)
    told = f"{left.told}, {right.told}"
    caution = "an order of observed values, not a test"
    if left.judged >= right.judged:
        text = f"{told}: {rule.outcome}{_cost(left, right)}; {caution}"
        return decided(rule.name, quoted, "not needed", text, both, after=rule.after)
    text = f"{told}: {right.id} is ahead, so the rule does not apply; {caution}"
    return decided(rule.name, quoted, "does not apply", text, both, after=rule.after)


def _cost(arm: Observation, partner: Observation) -> str:
    """``; parameters 1.2 M against 0.4 M, …`` as far as both were recorded."""
    parts = []
    for name, scale, unit in (("parameters", 1e6, "M"), ("training seconds", 60.0, "min")):
        if name in arm.numbers and name in partner.numbers:
            mine, other = arm.numbers[name] / scale, partner.numbers[name] / scale
            what = "parameters" if name == "parameters" else "training time"
            parts.append(f"{what} {mine:.3g} {unit} against {other:.3g} {unit}")
    return f"; {', '.join(parts)}" if parts else "; parameters were not recorded"
