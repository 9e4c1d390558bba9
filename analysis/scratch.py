"""E4a: does ETRM learn without a pretrained decoder, and when does it get more epochs first?"""

from __future__ import annotations

import search_spaces
from analysis.decision import Decision, NextStep, decided, outcome, quote, undecided
from analysis.steps import step
from analysis.view import View, still_rising
from search_spaces import rules
from search_spaces.rules import ThresholdRule

NAME = "E4a"

_THRESHOLDS = {rule.name: rule for rule in rules.PHASE3 if isinstance(rule, ThresholdRule)}


def from_scratch(view: View) -> Decision:
    """E4a's band, with E1a's where the rule asks for it."""
    arm, control = view[rules.E4A], view[rules.E1A]
    quoted = "; ".join(quote(rule, rule.arms) for rule in _THRESHOLDS.values())
    both = [arm, control]
    if arm.problem is not None:
        return undecided(NAME, quoted, [arm], [arm.problem], after="phase3")
    more = extensions(view)
    if more:
        return undecided(NAME, quoted, [arm], [more[0].why], after="phase3", next=more)
    works = _THRESHOLDS["learns from scratch"]
    if works.band.contains(arm.judged):
        text = f"{arm.told} ({works.band.text}): {outcome(works)}"
        return decided(NAME, quoted, works.name, text, [arm], after="phase3", kind=works.kind)
    essential, partly = _THRESHOLDS["pretrained decoder essential"], _THRESHOLDS["partly learns"]
    validated = dict(essential.given)[rules.E1A]
    if control.problem is not None:
        reason = f"{arm.told}, but whether the control succeeded is open: {control.problem}"
        return undecided(NAME, quoted, both, [reason], after="phase3")
    told = f"{arm.told}, {control.told}"
    if not validated.contains(control.judged):
        text = f"{told}: the document has no rule where both fail (E1a not {validated.text})"
        return decided(NAME, quoted, "no rule", text, both, after="phase3", kind="no rule")
    if partly.band.contains(arm.judged):
        text = f"{told}: {outcome(essential)}; {outcome(partly)}"
        return decided(NAME, quoted, partly.name, text, both, after="phase3")
    text = f"{told}: {outcome(essential)}"
    return decided(NAME, quoted, essential.name, text, both, after="phase3")


def extensions(view: View) -> list[NextStep]:
    """E4* arms that get more epochs before they are judged (`rules.EXTENSION`): at most 90 %,
    finished, still rising in any seed, and not yet extended."""
    rule = rules.EXTENSION
    steps = []
    for name in view.present(rule.arms):
        arm, trials = view[name], view.trials(name)
        if arm.problem is not None or not rule.when.contains(arm.judged) or arm.stopped == arm.n:
            continue
        epochs = view.mean(name, "config/epochs")
        rising = any(still_rising(curve) for curve in view.curves(name))
        if not rising or not epochs < planned_epochs(view, name) * rule.factor - 1e-6:
            continue
        more = epochs * rule.factor
        seeds = ", ".join(str(seed) for seed in trials["seed"])
        why = (
            f"{arm.told} ({rule.when.text}) and still rising at {epochs:g} epochs (seeds {seeds}): "
            f"continue to {more:g} epochs before it is judged ({rule.why})"
        )
        overrides = {"epochs": _whole(more)}
        steps.append(step(view.run, name, why, overrides=overrides, kind="extend"))
    return steps


def planned_epochs(view: View, experiment: str) -> float:
    """Epochs before any extension: the control's where it is at hand, else the profile's."""
    if view.has(rules.E1A):
        return view.mean(rules.E1A, "config/epochs")
    trials = view.trials(experiment)
    profile, revision = str(trials["profile"].iloc[0]), str(trials["revision"].iloc[0])
    resolved = search_spaces.resolve(experiment, revision=revision, profile=profile)
    return float(resolved.config.epochs)


def extended_epochs(view: View, experiment: str) -> float | None:
    """Epochs of an arm that was extended; None for one that was not."""
    if experiment not in rules.EXTENSION.arms:
        return None
    epochs = view.mean(experiment, "config/epochs")
    return _whole(epochs) if epochs > planned_epochs(view, experiment) else None


def _whole(epochs: float) -> float:
    """As an integer where it is one: that is how it is typed."""
    return int(epochs) if float(epochs).is_integer() else epochs
