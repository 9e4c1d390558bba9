"""Decisions of the series `act`: the better training mode, its best setting, the encoders in it.

O1 against L1 by the paired test; while it is not decided the control's mode is kept and said so.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace

from analysis.decision import NOT_DECIDED, Decision, NextStep, decided, quote, undecided
from analysis.observe import Observation, percent
from analysis.paired import Paired, points
from analysis.steps import step, unfinished
from analysis.tested import tested
from analysis.view import View
from search_spaces.rules import ComparisonRule
from search_spaces.rules import act as rules
from search_spaces.rules.health import STUCK_STEPS

AFTER = "act"
TREE = "act tree"


def decide_act(view: View) -> list[Decision]:
    """Empty when the run holds no arm of the series."""
    arms = (*rules.MODE_ARMS, *rules.ENCODERS)
    if not view.has(*arms):
        return []
    decisions = [_modes(view)]
    for side in (rules.ORIGINAL, rules.ONLINE):
        if view.has(*side.further):
            family = list(rules.SETTINGS[side.mode])
            decisions += [tested(view, rule, family) for rule in family]
    if view.has(*rules.ENCODERS):
        family = encoder_rules(view)
        decisions += [tested(view, rule, family) for rule in family]
    if view.has(rules.O1, rules.L1):
        decisions += [_original_validated(view), _online_validated(view)]
    return [*decisions, _tree(view)]


def _modes(view: View) -> Decision:
    """O1 against L1: the test on accuracy, with speed and Q-head beside it."""
    found = tested(view, rules.MODES, [rules.MODES])
    facts = [_facts(view, name) for name in (rules.O1, rules.L1) if view[name].problem is None]
    return replace(found, text="; ".join([found.text, *facts]))


def _facts(view: View, name: str) -> str:
    arm = view[name]
    reached = [
        f"{view.mean(name, f'epochs_to_{level}'):.0f} epochs to {level} %"
        for level in (80, 90)
        if not view.trials(name)[f"epochs_to_{level}"].isna().any()
    ]
    q_head = view.mean(name, "q_halt_accuracy")
    return f"{arm.id}: {', '.join(reached) or '80 % not held'}, q_halt_accuracy {percent(q_head)}"


def winner(view: View) -> tuple[rules.Side, bool]:
    """The better side, and whether it is decided (else the control's)."""
    found = view.compare([rules.MODES])[rules.MODES.name]
    if found.significant:
        return (rules.ONLINE if found.mean > 0 else rules.ORIGINAL), True
    return rules.DEFAULT, found.enough


def best_setting(view: View, side: rules.Side) -> tuple[str, bool]:
    """The side's best arm, and whether it is decided (else its first)."""
    family = rules.SETTINGS[side.mode]
    found = view.compare(family)
    better = [rule for rule in family if found[rule.name].better]
    if better:
        best = max(better, key=lambda rule: found[rule.name].mean)
        return best.left, True
    return side.base, all(one.enough for one in found.values())


def encoder_rules(view: View) -> list[ComparisonRule]:
    """E1 to E3 against the mode's arm that they were made for (their `encode_mode` and setting)."""
    base = best_setting(view, winner(view)[0])[0]
    for name in view.present(rules.ENCODERS):
        trials = view.trials(name)
        if "config/encode_mode" not in trials:
            break
        mode = str(trials["config/encode_mode"].iloc[0])
        side = next((s for s in (rules.ORIGINAL, rules.ONLINE) if s.mode == mode), None)
        if side is not None:
            value = trials[f"config/{side.option}"].iloc[0]
            for arm in (side.base, *side.further):
                same = view.trials(arm).get(f"config/{side.option}")
                if same is not None and len(same) and same.iloc[0] == value:
                    base = arm
        break
    return [
        ComparisonRule(
            f"encoder ({name.partition('/')[2]})", AFTER, name, base, "better",
            "use this encoder in this mode", ours=True,
        )
        for name in rules.ENCODERS
    ]  # fmt: skip


def _original_validated(view: View) -> Decision:
    arm, online = view[rules.O1], view[rules.L1]
    rule = rules.ORIGINAL_Q_HEAD
    quoted = (
        f"original mode is validated by {quote(rule, rule.arms)} (q_halt_accuracy), steps not "
        f"stuck at 1 or the maximum, accuracy comparable or better (at most "
        f"{100 * rules.COMPARABLE:g} points below online mode, observed, ours)"
    )
    problems = [one.problem for one in (arm, online) if one.problem is not None]
    if problems:
        return undecided("original mode", quoted, [arm, online], problems, after=AFTER)
    q_head, steps = (view.mean(rules.O1, name) for name in ("q_halt_accuracy", "steps"))
    most = view.mean(rules.O1, "halt_max_steps")
    stuck = steps <= 1 + STUCK_STEPS or steps >= most - STUCK_STEPS
    gap = arm.judged - online.judged if arm.judged != online.judged else 0.0
    criteria = {
        f"q_halt_accuracy {percent(q_head)} ({rule.band.text})": rule.band.contains(q_head),
        f"{steps:.1f} mean steps of {most:.0f}": not stuck,
        f"accuracy {arm.told} against {online.told}": round(gap, 9) >= -rules.COMPARABLE,
    }
    unknown = [value for value in (q_head, steps, most) if math.isnan(value)]
    if unknown:
        reason = f"{arm.id}: q_halt_accuracy or steps were not measured"
        return undecided("original mode", quoted, [arm, online], [reason], after=AFTER)
    return _criteria("original mode", quoted, criteria, [arm, online])


def _online_validated(view: View) -> Decision:
    """Fewer epochs to the same accuracy, and a higher final one (tested)."""
    name = "online mode"
    arm, original = view[rules.L1], view[rules.O1]
    quoted = (
        "online mode is validated by fewer epochs to the same accuracy, higher final accuracy "
        "(paired test), better generalization (on the full data set)"
    )
    problems = [one.problem for one in (arm, original) if one.problem is not None]
    if problems:
        return undecided(name, quoted, [arm, original], problems, after=AFTER)
    found = view.compare([rules.MODES])[rules.MODES.name]
    faster = _faster(view)
    if not found.enough:
        reasons = [found.problem or found.too_few, f"observed: {found.told}", faster[1]]
        return undecided(name, quoted, [arm, original], reasons, after=AFTER)
    criteria = {faster[1]: faster[0], found.told: found.better}
    return _criteria(name, quoted, criteria, [arm, original], tested_=True)


def _faster(view: View) -> tuple[bool, str]:
    """Whether L1 holds the highest level that both hold after fewer epochs (observed)."""
    for level in (90, 80):
        epochs = [view.trials(name)[f"epochs_to_{level}"] for name in (rules.L1, rules.O1)]
        if not any(values.isna().any() for values in epochs):
            online, original = (float(values.mean()) for values in epochs)
            text = f"{level} % after {online:.0f} epochs online, {original:.0f} original"
            return online < original, text
    return False, "no level that both modes hold"


def _criteria(
    name: str, quoted: str, criteria: dict[str, bool], arms: list[Observation], *,
    tested_: bool = False,
) -> Decision:  # fmt: skip
    text = "; ".join(f"{said}: {'yes' if holds else 'no'}" for said, holds in criteria.items())
    holds = all(criteria.values())
    return decided(
        name, quoted, "validated" if holds else "not validated", text, arms,
        after=AFTER, kind="success" if holds else "note", tested=tested_,
    )  # fmt: skip


def _tree(view: View) -> Decision:
    """Where the tree stands, and the step it asks for."""
    quoted = (
        "O1 against L1; then the better side's settings (O2, O3 or L2, L3); then E1 to E3 in the "
        "winner's mode with its best setting"
    )
    start = [view[name] for name in (rules.O1, rules.L1)]
    side, sure = winner(view)
    again = unfinished(view.run)
    found = view.compare([rules.MODES])[rules.MODES.name]
    chosen = view[side.base]

    def answer(verdict: str, text: str, steps: Sequence[NextStep], *, settled: bool) -> Decision:
        if settled:
            return decided(TREE, quoted, verdict, text, start, after=AFTER, next=steps, tested=True)
        return undecided(TREE, quoted, start, [text], after=AFTER, next=steps)

    absent = [arm.id for arm in start if not view.has(arm.experiment)]
    if absent or (chosen.problem is not None and not sure):
        reason = f"{', '.join(absent)} not run yet" if absent else str(chosen.problem)
        first = step(view.run, rules.FIRST, f"{reason}: O1 and L1 come first")
        steps = [again if again and not absent else first]
        return undecided(TREE, quoted, start, [reason], after=AFTER, next=steps)
    told = _because(found, side, sure)
    retry = [again] if again and not sure else []
    missing = [name for name in side.further if not view.has(name)]
    if missing:
        why = f"{told}: its further settings"
        steps = [*retry, step(view.run, rules.FURTHER[side.mode], why, default=not sure)]
        return answer(f"run {side.name}'s settings", why, steps, settled=sure)
    best, best_sure = best_setting(view, side)
    settled = sure and best_sure
    setting = f"{told}; setting of {view[best].id}"
    if not best_sure:
        setting += " (not decided among its settings: the first is kept)"
    if not view.has(*rules.ENCODERS):
        options = _mode_of(view, side, best)
        target = f"{rules.LAST}@{best.partition('/')[2]}"
        why = f"{setting}: encoders E1 to E3 in that mode ({_options_text(options)})"
        steps = [step(view.run, target, why, default=not settled)]
        return answer("run the encoders", why, steps, settled=settled)
    if again is not None:
        return undecided(TREE, quoted, start, [again.why], after=AFTER, next=[again])
    return answer(f"{side.name}, {view[best].id}", f"{setting}: the tree is walked", [],
                  settled=settled)  # fmt: skip


def _because(found: Paired, side: rules.Side, sure: bool) -> str:
    if found.problem is not None:
        return f"{NOT_DECIDED} ({found.problem}): {side.name} is kept, the control's"
    if not sure:
        return f"{NOT_DECIDED}: {found.too_few}; {side.name} is kept, the control's"
    if found.significant:
        return f"{side.name} is better by {points(abs(found.mean), sign=False)}"
    return f"no difference shown: {side.name} is kept, the control's"


def _mode_of(view: View, side: rules.Side, best: str) -> dict[str, object]:
    value = view.trials(best)[f"config/{side.option}"].iloc[0]
    return {"encode_mode": side.mode, side.option: value}


def _options_text(options: dict[str, object]) -> str:
    return ", ".join(f"{name} {value}" for name, value in options.items())
