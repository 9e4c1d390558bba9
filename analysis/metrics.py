"""Numbers that sum up one trial's curve. Each rule is stated where it is computed."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import numpy.typing as npt
import pandas as pd

from search_spaces import rules
from search_spaces.rules import Measure

WINDOWED: dict[str, Measure] = {
    "accuracy": rules.TRAIN_ACCURACY,
    "exact": rules.TRAIN_EXACT,
    "q_halt_accuracy": rules.Q_HALT_ACCURACY,
    "q_halt_base_rate": replace(rules.Q_HALT_ACCURACY, metric="train/q_halt_base_rate"),
    "steps": rules.STEPS,
    "loss": rules.TRAIN_LOSS,
    "lm_loss": rules.LM_LOSS,
    "encoder_gradient": rules.ENCODER_GRADIENT,
    "decoder_gradient": replace(rules.ENCODER_GRADIENT, metric="grad/decoder_norm"),
    "token_std": rules.TOKEN_STD,
}
"""Column of the trials table → how it is taken from the curve (`search_spaces.rules`)."""

_LAST_FAMILIES = ("eval/", "eval_raw/", "control/", "baseline/", "interface/", "drift/")


def measure(curve: pd.DataFrame, how: Measure) -> float:
    """One number from a curve, as `search_spaces.rules` says it is taken.

    The window holds the rows with ``step > (1 - window) * last step`` (0: the last row alone). Rows
    that did not measure the metric are left out; NaN when none did. Rows weigh equally.
    """
    if how.metric not in curve or curve.empty:
        return math.nan
    steps = _array(curve, "step")
    inside = steps > (1 - how.window) * steps[-1] if 0 < how.window < 1 else steps >= 0
    if how.window == 0:
        inside = steps == steps[-1]
    values = _array(curve, how.metric)[inside]
    values = values[~np.isnan(values)]
    if not len(values):
        return math.nan
    if how.summary == "last":
        return float(values[-1])
    return float(values.mean() if how.summary == "mean" else values.max())


def reached(
    curve: pd.DataFrame, level: float, *, metric: str = rules.TRAIN_ACCURACY.metric
) -> int | None:
    """Position of the first row from which on `CONVERGENCE_ROWS` measured rows are ≥ `level`.

    One lucky row is thus not a level reached. Rows without the metric do not count; None when the
    level was never held that long.
    """
    if metric not in curve or curve.empty:
        return None
    values = _array(curve, metric)
    rows = np.flatnonzero(~np.isnan(values))
    if len(rows) < rules.CONVERGENCE_ROWS:
        return None
    held = np.lib.stride_tricks.sliding_window_view(values[rows], rules.CONVERGENCE_ROWS)
    first = np.flatnonzero((held >= level).all(axis=1))
    return int(rows[first[0]]) if len(first) else None


def stability(curve: pd.DataFrame, metric: str = "train/loss") -> float:
    """Standard deviation of successive differences of `metric` over the last third of the steps.

    In units of the loss; smaller is smoother. A steady fall does not count as noise. NaN with
    fewer than three rows there.
    """
    if metric not in curve or curve.empty:
        return math.nan
    steps = _array(curve, "step")
    values = _array(curve, metric)[steps > steps[-1] * 2 / 3]
    values = values[~np.isnan(values)]
    return float(np.diff(values).std()) if len(values) >= 3 else math.nan


def summarize(curve: pd.DataFrame) -> dict[str, float]:
    """Every curve-derived column of the trials table for one trial's rows, sorted by step."""
    summary = {name: measure(curve, how) for name, how in WINDOWED.items()}
    summary["best_accuracy"] = measure(
        curve, replace(rules.TRAIN_ACCURACY, window=1.0, summary="best")
    )
    for level in rules.CONVERGENCE_LEVELS:
        row = reached(curve, level)
        for unit in ("step", "samples", "epoch"):
            known = row is not None and unit in curve
            name = f"{unit.removesuffix('s')}s_to_{100 * level:.0f}"
            summary[name] = float(_array(curve, unit)[row]) if known else math.nan
    summary["stability"] = stability(curve)
    for column in curve.columns:
        if str(column).startswith(_LAST_FAMILIES):
            values = _array(curve, str(column))
            values = values[~np.isnan(values)]
            summary[str(column)] = float(values[-1]) if len(values) else math.nan
    return summary


def _array(curve: pd.DataFrame, column: str) -> npt.NDArray[np.float64]:
    return curve[column].to_numpy(dtype=np.float64)
