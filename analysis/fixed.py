"""Every trial at one place of its curve: a step, a number of samples or an epoch."""

from __future__ import annotations

import math
from collections.abc import Hashable, Mapping, Sequence

import numpy as np
import pandas as pd

from analysis.load import Run
from analysis.rows import ResultsError
from trainable.errors import nearest

KEY = ("run", "trial_id", "experiment", "seed")


def values_at(
    run: Run,
    *,
    step: float | None = None,
    samples: float | None = None,
    epoch: float | None = None,
    metrics: Sequence[str] | None = None,
    window: float = 0.0,
) -> pd.DataFrame:
    """One row per trial: its last measured values at or before a place of the curve.

    Args:
        step, samples, epoch: the place; give exactly one. Arms of different batch sizes are
            compared fairly at equal samples.
        metrics: columns of the curves table (default: every metric).
        window: 0 takes the last value that was measured at or before the place; otherwise the mean
            over the rows of the last `window` (a share, such as 0.1) of the way there.

    A trial that never got there has NaN in its metrics and ``reached`` False: a curve is not
    carried on beyond its end. A metric that was not measured up to there (or within the window) is
    NaN. ``step``, ``samples`` and ``epoch`` are those of the row that was taken. Raises
    `ResultsError` for no place or several, and for a column that no curve has.

    >>> analysis.values_at(run, samples=50_000, window=0.1)          # doctest: +SKIP
    """
    given = {
        n: v for n, v in (("step", step), ("samples", samples), ("epoch", epoch)) if v is not None
    }
    if len(given) != 1:
        raise ResultsError("values_at needs one place: give step=, samples= or epoch=")
    [(unit, place)] = given.items()
    if not 0 <= window < 1:
        raise ResultsError(f"window {window}: give a share from 0 to below 1, such as 0.1")
    known = [str(column) for column in run.curves.columns if "/" in str(column)]
    wanted = list(known if metrics is None else metrics)
    for metric in wanted:
        if metric not in known:
            raise ResultsError(f"no curve has {metric!r}{nearest(metric, known)}")
    rows = [
        _row(trial, run.curve(trial["run"], trial["trial_id"]), unit, place, wanted, window)
        for trial in run.trials[list(KEY)].to_dict("records")
    ]
    return pd.DataFrame(rows, columns=[*KEY, "reached", "step", "samples", "epoch", *wanted])


def _row(
    trial: Mapping[Hashable, object],
    curve: pd.DataFrame,
    unit: str,
    place: float,
    metrics: list[str],
    window: float,
) -> dict[str, object]:
    at = curve[unit].to_numpy(dtype=np.float64)
    reached = bool(len(at) and np.nanmax(at) >= place)
    row: dict[str, object] = {**{str(k): v for k, v in trial.items()}, "reached": reached}
    rows = curve[at <= place]
    for name in ("step", "samples", "epoch"):
        row[name] = float(rows[name].iloc[-1]) if reached and len(rows) else math.nan
    for metric in metrics:
        row[metric] = math.nan
        if not reached or rows.empty:
            continue
        inside = rows if window == 0 else rows[rows[unit] > (1 - window) * place]
        values = inside[metric].dropna()
        if len(values):
            row[metric] = float(values.mean() if window else values.iloc[-1])
    return row
