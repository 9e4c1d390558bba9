"""Decisions of the series `debug`: each arm against the TRM, the tree, the grades.

An encoder run is ok when its accuracy lies at most `rules.debug.MARGIN` below E0v2's; both are
observed values. The tree's order is that of its drawing: phase 3 before phase 2.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

from analysis.decision import Decision, NextStep, decided, quote, undecided
from analysis.grades import grades
from analysis.observe import Observation
from analysis.paired import paired, points
from analysis.select import full_data_step
from analysis.steps import step, unfinished
from analysis.view import View
from search_spaces.rules import TRAIN_ACCURACY
from search_spaces.rules import debug as rules

AFTER = "debug"
TREE = "debug tree"


def decide_debug(view: View) -> list[Decision]:
    """Empty when the run holds no arm of the series that a rule reads."""
    judged = (rules.E0, *rules.SUCCEEDS)
    if not view.has(*judged, rules.DIAG2):
        return []
    shown = [name for name in rules.SUCCEEDS if name in rules.START or view.has(name)]
    decisions = [_baseline(view), *(_arm(view, name) for name in shown)]
    if view.has(rules.E1, rules.DIAG2):
        decisions.append(_gradients(view))
    return [*decisions, _tree(view), *grades(view)]


def matches(view: View, name: str) -> bool | None:
    """Whether an arm matches E0v2; None while either is not decided."""
    if view.problems(name, rules.E0):
        return None
    arm, control = view[name], view[rules.E0]
    return round(arm.judged - control.judged, 9) >= -rules.MARGIN


def _baseline(view: View) -> Decision:
    arm = view[rules.E0]
    both = (rules.BASELINE_OK, rules.BASELINE_FAILS)
    quoted = "; ".join(quote(rule, rule.arms) for rule in both)
    if arm.problem is not None:
        return undecided(arm.id, quoted, [arm], [arm.problem], after=AFTER)
    rule = next(rule for rule in both if rule.band.contains(arm.judged))
    text = f"{arm.told} ({rule.band.text}): {rule.outcome}"
    return decided(
        arm.id, quoted, rule.name, text, [arm], after=AFTER, kind=rule.kind, checks=rule.checks
    )


def _arm(view: View, name: str) -> Decision:
    arm, control = view[name], view[rules.E0]
    margin = f"{100 * rules.MARGIN:g} points"
    quoted = (
        f"{arm.id} at most {margin} below {control.id} (ours): {rules.SUCCEEDS[name]}; otherwise: "
        f"{rules.FAILS[name]}"
    )
    problems = view.problems(name, rules.E0)
    if problems:
        return undecided(arm.id, quoted, [arm, control], problems, after=AFTER)
    told = f"{arm.told} against {control.told}{_interval(view, name)}"
    checks = rules.INTERFACE_CHECKS if name == rules.DIAG1 else ()
    if matches(view, name):
        text = f"{told}: {rules.SUCCEEDS[name]}"
        return decided(arm.id, quoted, "ok", text, [arm, control], after=AFTER, kind="success")
    text = f"{told}: {rules.FAILS[name]}"
    return decided(
        arm.id, quoted, "fails", text, [arm, control], after=AFTER, kind="drop", checks=checks
    )


def _interval(view: View, name: str) -> str:
    found = paired(view.run, name, rules.E0, TRAIN_ACCURACY)
    if found.problem is not None or found.n < 2:
        return ""
    return (
        f" (paired difference at equal samples {points(found.mean)}, interval {points(found.low)} "
        f"to {points(found.high)}, n = {found.n})"
    )


def _gradients(view: View) -> Decision:
    """E_diag2: are both gradients there, and of similar size? Read on E1v2 where it did not run."""
    name = rules.DIAG2 if view.has(rules.DIAG2) else rules.E1
    arm, band = view[name], rules.SIMILAR_GRADIENTS
    quoted = (
        f"gradients of encoder and TRM non-zero and of similar magnitude: ratio {band.low:g} to "
        f"{band.high:g} (ours)"
    )
    norms = [view.mean(name, column) for column in ("encoder_gradient", "decoder_gradient")]
    if any(math.isnan(norm) for norm in norms):
        reason = arm.problem or f"{arm.id}: gradient norms were not measured"
        return undecided("gradients", quoted, [arm], [reason], after=AFTER)
    told = f"{arm.id}: grad/encoder_norm {norms[0]:.3g}, grad/decoder_norm {norms[1]:.3g}"
    if min(norms) <= 0:
        return decided("gradients", quoted, "missing", told, [arm], after=AFTER, kind="drop")
    ratio = norms[0] / norms[1]
    verdict = "similar" if band.contains(ratio) else "dissimilar"
    text = f"{told}, ratio {ratio:.3g}: {verdict}"
    return decided("gradients", quoted, verdict, text, [arm], after=AFTER)


def _tree(view: View) -> Decision:
    quoted = (
        "E0v2 fails: stop, debug the baseline; E1v2 ok: full data; E_diag1 fails: fix the "
        "interface; else phase 3, then phase 2: any ok: full data, none: redesign"
    )
    start = [view[name] for name in rules.START]
    control, encoder, random = start

    def answer(
        verdict: str,
        text: str,
        arms: Sequence[Observation],
        kind: str = "note",
        next: Sequence[NextStep] = (),
        checks: tuple[str, ...] = (),
    ) -> Decision:
        return decided(
            TREE, quoted, verdict, text, arms, after=AFTER, kind=kind, next=next, checks=checks
        )

    def wait(reasons: list[str], default: Sequence[NextStep] = ()) -> Decision:
        steps = [*_again(view), *default]
        return undecided(TREE, quoted, start, reasons, after=AFTER, next=steps)

    if control.problem is not None:
        return wait([control.problem])
    if not rules.BASELINE_OK.band.contains(control.judged):
        text = f"{control.told}: {rules.BASELINE_FAILS.outcome}"
        return answer("debug the baseline", text, [control], checks=rules.BASELINE_FAILS.checks)
    if encoder.problem is None and matches(view, rules.E1):
        return answer(
            "success", f"{encoder.told} matches {control.told}: go to the full data set",
            [encoder, control], "success", _full_data(view, [rules.E1]),
        )  # fmt: skip
    going_on = step(
        view.run, "debug3", "the start is not decided: unattended, the tree goes on with phase 3",
        default=True,
    )  # fmt: skip
    open_ = [p for name in rules.START[1:] for p in view.problems(name, rules.E0)]
    if open_:
        return wait(open_, [going_on])
    told = f"{encoder.told} and {random.told} against {control.told}"
    if not matches(view, rules.DIAG1):
        why = "the encoder-TRM interface: known embeddings against the encoder's output"
        steps = [step(view.run, f"{rules.INTERFACE},{rules.IDENTITY}", why, kind="check")]
        return answer(
            "fix the interface", f"{told}: {rules.FAILS[rules.DIAG1]}", start,
            next=steps, checks=rules.INTERFACE_CHECKS,
        )  # fmt: skip
    for word, arms in (("debug3", rules.TUNING), ("debug2", rules.ARCHITECTURE)):
        good = [name for name in arms if matches(view, name)]
        if good:
            seen = [view[name] for name in good]
            text = f"{', '.join(one.told for one in seen)} against {control.told}: full data next"
            steps = _full_data(view, good)
            return answer("success", text, [*seen, control], "success", steps)
        if not view.has(*arms):
            why = "none of phase 3 is ok: other encoders (phase 2)"
            if word == "debug3":
                why = f"{told}: the interface works, E1v2 does not learn it"
            if open_:
                return wait(
                    open_, [step(view.run, word, f"{why}, as far as decided", default=True)]
                )
            return answer(f"run {word}", why, start, next=[step(view.run, word, why)])
        open_ += [p for name in arms for p in view.problems(name, rules.E0)]
    if open_:
        return wait(open_)
    text = "no encoder of phases 3 and 2 matches E0v2: redesign the encoder"
    return answer("redesign the encoder", text, start, "drop")


def _again(view: View) -> list[NextStep]:
    """What brings the missing answer: the same command again, or the runs that are not there."""
    found = unfinished(view.run)
    if found is not None:
        return [found]
    absent = [name.partition("/")[2] for name in rules.START if not view.has(name)]
    return [step(view.run, "debug1", f"{', '.join(absent)} not run yet")] if absent else []


def _full_data(view: View, names: Sequence[str]) -> list[NextStep]:
    best = sorted(names, key=lambda name: -view[name].judged)[:3]
    return [full_data_step(view, view[name], f"{view[name].told} matches E0v2") for name in best]
