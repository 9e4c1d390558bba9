"""Decisions of the series `frozen`: learns, stuck, or trains but useless; and what helps.

Every trial of the series with a frozen decoder is judged by itself; its outcome names the
hypotheses to look at next (`analysis.hypotheses`).
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import pandas as pd

from analysis.decision import Decision, decided, undecided
from analysis.margins import GENERALISES
from analysis.observe import percent
from analysis.select import full_data_step
from analysis.steps import step, unfinished
from analysis.tested import tested
from analysis.view import View
from search_spaces.rules import frozen as rules

AFTER = "frozen"
TREE = "frozen tree"


@dataclass(frozen=True)
class Progress:
    """What one curve says about its encoder. None: not measured."""

    gradient: float | None = None
    flows: bool | None = None
    """Gradient non-zero, and stable over the last tenth."""
    vanishes: bool | None = None
    loss: tuple[float, float] | None = None
    """train/lm_loss over the first and the last tenth of the steps."""
    falls: bool | None = None
    spread: tuple[float, float] | None = None
    """encoder/token_std over the first and the last tenth."""
    rises: bool | None = None
    told: tuple[str, ...] = ()


def progress(curve: pd.DataFrame) -> Progress:
    """Gradient, loss and spread of one curve by the rules of `search_spaces.rules.frozen`."""
    told = []
    late = _tenth(curve, "grad/encoder_norm", last=True)
    gradient = flows = vanishes = None
    if len(late):
        gradient = float(late.mean())
        vanishes = gradient < rules.VANISHING
        stable = float(late.std()) <= rules.STABLE * gradient
        flows = not vanishes and stable
        word = "vanishing" if vanishes else "non-zero" + (", stable" if stable else ", unstable")
        told.append(f"grad/encoder_norm {gradient:.3g} ({word})")
    loss = _ends(curve, "train/lm_loss")
    falls = None
    if loss is not None:
        falls = loss[1] <= (1 - rules.LOSS_FALLS) * loss[0]
        told.append(f"lm_loss {loss[0]:.3g} to {loss[1]:.3g} ({'falls' if falls else 'flat'})")
    spread = _ends(curve, "encoder/token_std")
    rises = None
    if spread is not None:
        rises = spread[1] > spread[0]
        word = "rises" if rises else "does not rise"
        told.append(f"token_std {spread[0]:.3g} to {spread[1]:.3g} ({word})")
    return Progress(gradient, flows, vanishes, loss, falls, spread, rises, tuple(told))


def decide_frozen(view: View) -> list[Decision]:
    """One outcome per arm, the comparisons, and what next. Empty without an arm of the series."""
    names = [str(name) for name in dict.fromkeys(view.run.arms["experiment"])]
    names = [name for name in names if name.startswith("frozen/")]
    if not names:
        return []
    decisions = [_outcome(view, name) for name in names]
    family = [rule for rule in rules.COMPARISONS if view.has(rule.left)]
    decisions += [tested(view, rule, list(rules.COMPARISONS)) for rule in family]
    return [*decisions, _tree(view, decisions)]


def decoder_stayed(curves: list[pd.DataFrame]) -> tuple[bool | None, str]:
    """Whether the frozen decoder equals its checkpoint, in words; None when it was not measured.

    Reads ``decoder/tensors_equal``, ``decoder/tensors`` and ``decoder/max_difference`` of the last
    row that has them.
    """
    equal: list[float] = []
    total: list[float] = []
    most: list[float] = []
    for curve in curves:
        for column, found in (
            ("decoder/tensors_equal", equal),
            ("decoder/tensors", total),
            ("decoder/max_difference", most),
        ):
            values = curve[column].dropna() if column in curve else pd.Series(dtype=float)
            if len(values):
                found.append(float(values.iloc[-1]))
    if not equal and not most:
        return None, "whether the decoder stayed equal to its checkpoint was not measured"
    difference = f", largest difference {max(most):.2g}" if most else ""
    if equal and total:
        stayed = all(e == t for e, t in zip(equal, total, strict=True))
        return stayed, f"{min(equal):.0f}/{max(total):.0f} decoder tensors equal{difference}"
    stayed = bool(most) and max(most) <= rules.DECODER_TOLERANCE
    return stayed, f"decoder{difference.replace(', ', ' ', 1) or ' not compared'}"


def _outcome(view: View, name: str) -> Decision:
    arm = view[name]
    quoted = "; ".join(f"{outcome}: {text}" for outcome, text in rules.OUTCOMES.items())
    if arm.problem is not None:
        return undecided(arm.id, quoted, [arm], [arm.problem], after=AFTER)
    curves = view.curves(name)
    found = [progress(curve) for curve in curves]
    told = [arm.told, *found[0].told] if len(found) == 1 else [arm.told]
    if len(found) > 1:
        told += [f"seed {i}: {', '.join(one.told)}" for i, one in enumerate(found)]
    stayed, said = decoder_stayed(curves)
    told.append(said)
    frozen_all_along = not name.startswith(rules.STAGED)
    if stayed is False and frozen_all_along:
        reason = f"{'; '.join(told)}: the decoder moved, so this is no test of the encoder alone"
        return undecided(arm.id, quoted, [arm], [reason], after=AFTER)
    score = arm.numbers.get("held-out pass@1", math.nan)
    verdict = _verdict(found, score)
    if verdict is None:
        gaps = "; the gradient, the loss or held-out pass@1 was not measured"
        return undecided(arm.id, quoted, [arm], ["; ".join(told) + gaps], after=AFTER)
    baseline = arm.numbers.get("best trivial baseline", math.nan)
    told.append(f"held-out pass@1 {percent(score)} ({100 * GENERALISES:g} % asked, ours)")
    if not math.isnan(baseline) and not arm.value > baseline:
        told.append(f"train accuracy no better than the trivial baseline {percent(baseline)}")
    text = "; ".join(told)
    checks: tuple[str, ...] = ()
    if verdict in rules.OUTCOMES:
        text = f"{text}: {rules.OUTCOMES[verdict]}"
        checks = tuple(f"hypothesis {h} on {name}" for h in rules.NEXT_HYPOTHESES[verdict])
    else:
        text = f"{text}: none of the three outcomes, the document has no rule"
    kinds = {rules.LEARNS: "success", rules.STUCK: "drop"}
    return decided(
        arm.id, quoted, verdict, text, [arm],
        after=AFTER, kind=kinds.get(verdict, "note"), checks=checks,
    )  # fmt: skip


def _verdict(found: list[Progress], score: float) -> str | None:
    """None when something was not measured that decides; "no rule" for a mixture."""
    if any(one.vanishes is None or one.falls is None for one in found):
        return None
    if any(one.vanishes or not one.falls for one in found):
        return rules.STUCK if all(one.vanishes or not one.falls for one in found) else "no rule"
    if math.isnan(score):
        return None
    if score < GENERALISES:
        return rules.USELESS
    learns = all(one.flows and one.rises is not False for one in found)
    return rules.LEARNS if learns else "no rule"


def _tree(view: View, decisions: list[Decision]) -> Decision:
    """Which run comes next."""
    quoted = "frozen_decoder_correct better on held-out puzzles: full data; useless: prefix1 (ours)"
    start = [view[rules.AS_RUN], view[rules.CORRECT]]
    by_name = {decision.name: decision for decision in decisions}
    again = unfinished(view.run)
    if again is not None:
        return undecided(TREE, quoted, start, [again.why], after=AFTER, next=[again])
    absent = [name for name in (rules.AS_RUN, rules.CORRECT) if not view.has(name)]
    helped = by_name.get(rules.COMPARISONS[0].name)
    if helped is not None and helped.verdict == "better":
        steps = [full_data_step(view, view[rules.CORRECT], helped.text)]
        return decided(
            TREE, quoted, "full data", helped.text, start, after=AFTER, next=steps, tested=True
        )
    if absent:
        names = ", ".join(name.partition("/")[2] for name in absent)
        why = f"{names} not run yet"
        return undecided(
            TREE, quoted, start, [why], after=AFTER, next=[step(view.run, "frozen1", why)]
        )
    correct = by_name[view[rules.CORRECT].id]
    why = f"{rules.CORRECT.partition('/')[2]}: {correct.verdict}"
    if correct.verdict == rules.USELESS and not view.has(rules.PREFIX1):
        steps = [step(view.run, rules.PREFIX1, f"{why}: the context where the decoder knows it")]
        return decided(TREE, quoted, "run prefix1", why, start, after=AFTER, next=steps)
    if not correct.decided:
        return undecided(TREE, quoted, start, [correct.text], after=AFTER)
    return decided(TREE, quoted, correct.verdict, why, start, after=AFTER, checks=correct.checks)


def _tenth(curve: pd.DataFrame, metric: str, *, last: bool) -> npt.NDArray[np.float64]:
    if metric not in curve or curve.empty:
        return np.array([])
    steps, end = curve["step"], float(curve["step"].iloc[-1])
    inside = steps > 0.9 * end if last else steps <= max(0.1 * end, float(steps.iloc[0]))
    return curve[inside][metric].dropna().to_numpy(dtype=np.float64)


def _ends(curve: pd.DataFrame, metric: str) -> tuple[float, float] | None:
    first, last = (_tenth(curve, metric, last=late) for late in (False, True))
    if not len(first) or not len(last):
        return None
    return float(first.mean()), float(last.mean())
