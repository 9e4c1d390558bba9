"""Red flags and scenarios of the series `overfit`."""

from __future__ import annotations

from analysis.decision import Decision, decided, outcome, quote, undecided
from analysis.observe import Observation
from analysis.scratch import extensions
from analysis.steps import debug_steps
from analysis.tested import family_of, missing_parent
from analysis.view import View
from search_spaces import rules
from search_spaces.rules import ComparisonRule, Scenario, ThresholdRule


def red_flag(rule: ThresholdRule, view: View) -> Decision:
    """Raised when the band holds for all arms; one arm outside it is enough to clear it."""
    arms = [view[name] for name in rule.arms]
    quoted = quote(rule, rule.arms)
    known = [arm for arm in arms if arm.problem is None]
    outside = [arm for arm in known if not rule.band.contains(arm.judged)]
    problems = [arm.problem for arm in arms if arm.problem is not None]
    if outside:
        clear = ", ".join(arm.id for arm in outside)
        text = f"{', '.join(arm.told for arm in known)}: {clear} not in the range {rule.band.text}"
        under = [arm for arm in outside if rule.band.low and arm.judged < rule.band.low]
        if under:
            text += (
                f"; {', '.join(arm.id for arm in under)} below the rule's range is no better: "
                f"the rule for each encoder applies"
            )
        return decided(rule.name, quoted, "not raised", text, known, after=rule.after)
    if problems:
        return undecided(rule.name, quoted, arms, problems, after=rule.after)
    waiting = [one for one in extensions(view) if one.target in rule.arms]
    if waiting:
        return undecided(rule.name, quoted, arms, [waiting[0].why], after=rule.after, next=waiting)
    text = f"{', '.join(arm.told for arm in arms)}: {outcome(rule)}"
    follow = debug_steps(view.run, rule.name) if rule.name == "red flag 1" else []
    return decided(
        rule.name, quoted, "raised", text, arms,
        after=rule.after, kind=rule.kind, next=follow, checks=rule.checks,
    )  # fmt: skip


def scenario(asked: Scenario, view: View) -> Decision:
    """One of the document's success scenarios."""
    tests = [r for r in asked.improvements if isinstance(r, ComparisonRule)]
    if tests:
        return _by_test(asked, tests, view)
    bands = [r for r in asked.improvements if isinstance(r, ThresholdRule)]
    where = [r for r in asked.where if isinstance(r, ThresholdRule)]
    return _by_encoder(asked, bands, where, view) if bands else _by_threshold(asked, where[0], view)


def _answer(asked: Scenario, quoted: str, told: str, arms: list[Observation], holds: bool,
            *, after: str, tested: bool = False) -> Decision:  # fmt: skip
    text = f"{told}: {asked.implication}" if holds else told
    verdict = "holds" if holds else "does not hold"
    return decided(
        f"scenario {asked.name}", quoted, verdict, text, arms,
        after=after, kind="scenario", tested=tested,
    )  # fmt: skip


def _by_encoder(
    asked: Scenario, bands: list[ThresholdRule], where: list[ThresholdRule], view: View
) -> Decision:
    """A and B: encoders above a threshold and better than the control (observed values)."""
    control = view[rules.E1A]
    arms = [view[name] for name in bands[0].arms]
    improving = [a for a in arms if any(r.band.contains(a.judged) for r in bands)]
    improving = [a for a in improving if not a.judged <= control.judged]
    conditions = [f"E1a {r.band.text}" for r in where]
    wanted = "at least one of" if asked.mode == "any_improves" else "none of"
    ids = ", ".join(arm.id for arm in arms)
    conditions.append(f"{wanted} {ids} {bands[0].band.text} and better than E1a")
    quoted = f"scenario {asked.name}, {asked.text}: {' and '.join(conditions)}"
    told = ", ".join(one.told for one in (control, *arms))
    involved = [control, *arms]
    open_ = [arm.problem for arm in arms if arm.problem is not None]

    def answer(holds: bool) -> Decision:
        return _answer(asked, quoted, told, involved, holds, after="phase1")

    def stays_open(reasons: list[str]) -> Decision:
        return undecided(f"scenario {asked.name}", quoted, involved, reasons, after="phase1")

    if control.problem is not None:
        return stays_open([control.problem])
    if not all(r.band.contains(control.judged) for r in where):
        return answer(False)
    if improving:
        return answer(asked.mode == "any_improves")
    return stays_open(open_) if open_ else answer(asked.mode == "none_improves")


def _by_test(asked: Scenario, tests: list[ComparisonRule], view: View) -> Decision:
    """C: an exploration significantly better than the control's, by the phase's paired tests."""
    found = view.compare(family_of(view, "phase2"))
    arms = [view[name] for name in dict.fromkeys([tests[0].right, *(r.left for r in tests)])]
    left = " or ".join(view[rule.left].id for rule in tests)
    quoted = f"scenario {asked.name}, {asked.text}: {left} significantly better than {arms[0].id}"
    made = {rule.name: found[rule.name] for rule in tests if rule.name in found}
    told = "; ".join(one.told for one in made.values())
    if any(one.better for one in made.values()):
        return _answer(asked, quoted, told, arms, True, after="phase2", tested=True)
    problems = [
        missing_parent(view, rule, problem)
        for rule in tests
        if (problem := made[rule.name].problem) is not None
    ]
    few = [one.too_few for one in made.values() if one.problem is None and not one.enough]
    if problems or few:
        return undecided(f"scenario {asked.name}", quoted, arms, problems or few, after="phase2")
    return _answer(asked, quoted, told, arms, False, after="phase2", tested=True)


def _by_threshold(asked: Scenario, rule: ThresholdRule, view: View) -> Decision:
    """D: E4a above 90 %."""
    arm = view[rule.arms[0]]
    quoted = f"scenario {asked.name}, {asked.text}: {arm.id} {rule.band.text}"
    waiting = [one.why for one in extensions(view) if one.target == arm.experiment]
    reasons = [arm.problem] if arm.problem is not None else waiting
    if reasons:
        return undecided(f"scenario {asked.name}", quoted, [arm], reasons, after=rule.after)
    holds = rule.band.contains(arm.judged)
    return _answer(asked, quoted, arm.told, [arm], holds, after=rule.after)
