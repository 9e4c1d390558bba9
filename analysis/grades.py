"""Grades of the series `debug`: every one that holds is reported."""

from __future__ import annotations

import pandas as pd

from analysis.decision import Decision, decided, undecided
from analysis.observe import Observation
from analysis.view import View, still_rising
from search_spaces.rules import LEARNING_CURVE, TRAIN_ACCURACY
from search_spaces.rules import debug as rules

AFTER = "debug"

QUOTES = {
    "minimal success": f"one encoder run within {100 * rules.MARGIN:g} points of E0v2 (~90 %)",
    "good success": f"an encoder run {rules.GOOD.text} with a clear learning curve (last tenth "
    f"{100 * LEARNING_CURVE:g} points above the first, ours)",
    "partial success": f"an encoder run {rules.PARTIAL.text} on a plateau",
    "failure": f"every encoder run near random (~10 %; {rules.NEAR_RANDOM.text} is ours)",
}


def grades(view: View) -> list[Decision]:
    """One decision per grade, over the arms that train an encoder."""
    names = [str(name) for name in dict.fromkeys(view.run.arms["experiment"])]
    names = [n for n in names if n.startswith("debug/") and n not in rules.NOT_TRAINED]
    if not names:
        return []
    arms = [view[name] for name in names]
    known = [arm for arm in arms if arm.problem is None]
    open_ = [arm.problem for arm in arms if arm.problem is not None]
    control = view[rules.E0]
    found: list[Decision] = []

    matching = [
        arm for arm in known
        if control.problem is None and round(arm.judged - control.judged, 9) >= -rules.MARGIN
    ]  # fmt: skip
    missing = [control.problem] if control.problem is not None else open_
    found.append(_grade("minimal success", matching, known, missing))
    good = [a for a in known if rules.GOOD.contains(a.judged) and _clear_curve(view, a)]
    found.append(_grade("good success", good, known, open_))
    flat = [a for a in known if rules.PARTIAL.contains(a.judged) and _plateau(view, a)]
    found.append(_grade("partial success", flat, known, open_))
    random = [a for a in known if rules.NEAR_RANDOM.contains(a.judged)]
    above = [arm for arm in known if arm not in random]
    if above:
        found.append(_answer("failure", "does not hold", above))
    elif open_:
        found.append(undecided("grade: failure", QUOTES["failure"], known, open_, after=AFTER))
    else:
        found.append(_answer("failure", "holds", random))
    return found


def _grade(
    name: str, holding: list[Observation], known: list[Observation], open_: list[str]
) -> Decision:
    """Holds when one arm is enough; open while an undecided arm could still make it hold."""
    if holding:
        return _answer(name, "holds", holding)
    if open_:
        return undecided(f"grade: {name}", QUOTES[name], known, open_, after=AFTER)
    return _answer(name, "does not hold", known)


def _answer(name: str, verdict: str, arms: list[Observation]) -> Decision:
    text = ", ".join(arm.told for arm in arms)
    return decided(f"grade: {name}", QUOTES[name], verdict, text, arms, after=AFTER, kind="grade")


def _clear_curve(view: View, arm: Observation) -> bool:
    return any(_risen(curve) for curve in view.curves(arm.experiment))


def _risen(curve: pd.DataFrame) -> bool:
    metric = TRAIN_ACCURACY.metric
    if metric not in curve or curve.empty:
        return False
    last = float(curve["step"].iloc[-1])
    early = curve[curve["step"] <= 0.1 * last][metric].dropna()
    late = curve[curve["step"] > 0.9 * last][metric].dropna()
    if early.empty or late.empty:
        return False
    return bool(round(float(late.mean() - early.mean()), 9) >= LEARNING_CURVE)


def _plateau(view: View, arm: Observation) -> bool:
    return all(still_rising(curve) is False for curve in view.curves(arm.experiment))
