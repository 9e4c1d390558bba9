"""Paired statistics over seeds: exact sign-flip test, bootstrap interval, Holm, smallest effect.

All functions are pure and deterministic (random draws have a fixed seed). Differences are paired:
one number per seed, left arm minus right arm.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
from scipy.special import ndtr, ndtri
from scipy.stats import t as student

from search_spaces.rules import ALPHA, CONFIDENCE, POWER, RESAMPLES

EXACT_UP_TO = 20
"""Seeds up to which all 2^n sign patterns are enumerated; beyond, as many are drawn."""
DRAWN = 100_000

_SEED = 20260121
_TIE = 1e-12


def sign_flip_p(differences: Sequence[float]) -> float:
    """Two-sided p-value of the paired permutation test: is the mean difference zero?

    Under the null hypothesis each pair's sign is as likely as its opposite (the arms are
    exchangeable within a seed). p is the share of the 2^n sign patterns whose |mean| is at least
    the observed one: exact up to `EXACT_UP_TO` seeds, then (1 + hits) / (1 + draws). It can never
    be below `smallest_p`. 1.0 without a pair.

    Source: Fisher's randomization test for paired data (The Design of Experiments, 1935, §21).

    >>> sign_flip_p([1.0, 2.0, 3.0])
    0.25
    """
    d = np.asarray(differences, dtype=np.float64)
    n = len(d)
    if n == 0:
        return 1.0
    observed = abs(float(d.sum()))
    slack = _TIE * max(1.0, float(np.abs(d).sum()))
    if n <= EXACT_UP_TO:
        sums = np.zeros(1)
        for value in d:  # 2^n sums, doubled one difference at a time
            sums = np.concatenate([sums + value, sums - value])
        return float((np.abs(sums) >= observed - slack).mean())
    signs = np.random.default_rng(_SEED).integers(0, 2, size=(DRAWN, n), dtype=np.int8) * 2 - 1
    hits = int((np.abs(signs @ d) >= observed - slack).sum())
    return (1 + hits) / (1 + DRAWN)


def smallest_p(n: int) -> float:
    """The smallest p-value that `n` pairs can give: 2 / 2^n (1 for none or one)."""
    return min(1.0, 2.0 ** (1 - n))


def seeds_needed(comparisons: int, *, alpha: float = ALPHA) -> int:
    """The fewest seeds with which one of `comparisons` tests can pass Holm's first step, alpha / m.

    >>> seeds_needed(1), seeds_needed(5)
    (6, 8)
    """
    n = 1
    while smallest_p(n) > alpha / max(1, comparisons):
        n += 1
    return n


def holm(p_values: Sequence[float], *, comparisons: int | None = None) -> list[float]:
    """Holm-adjusted p-values in the given order; reject those that are at most alpha.

    `comparisons` is the size of the family where it is larger than the p-values at hand: planned
    comparisons that could not be made count as well.

    Source: Holm, Scandinavian Journal of Statistics 6 (1979).

    >>> holm([0.01, 0.04, 0.03])
    [0.03, 0.06, 0.06]
    """
    m = max(len(p_values), comparisons or 0)
    adjusted = [1.0] * len(p_values)
    highest = 0.0
    for rank, i in enumerate(sorted(range(len(p_values)), key=lambda i: p_values[i])):
        highest = max(highest, min(1.0, (m - rank) * p_values[i]))
        adjusted[i] = highest
    return adjusted


def bootstrap_interval(
    values: Sequence[float], *, confidence: float = CONFIDENCE, resamples: int = RESAMPLES
) -> tuple[float, float]:
    """BCa bootstrap interval of the mean (bias-corrected and accelerated), with a fixed seed.

    (NaN, NaN) with fewer than two values; (x, x) when all are equal. Below ten values it is shorter
    than its confidence says, as every bootstrap is; n stands beside it for that reason.

    Source: Efron, Journal of the American Statistical Association 82 (1987).
    """
    x = np.asarray(values, dtype=np.float64)
    n = len(x)
    if n < 2 or not np.isfinite(x).all():
        return math.nan, math.nan
    mean = float(x.mean())
    if np.ptp(x) <= _TIE * max(1.0, abs(mean)):
        return mean, mean
    drawn = np.random.default_rng(_SEED).integers(0, n, size=(resamples, n))
    means: npt.NDArray[np.float64] = x[drawn].mean(axis=1)
    # Ties with the observed mean count half, else small samples bias the correction.
    below = (np.sum(means < mean - _TIE) + np.sum(means <= mean + _TIE)) / (2 * resamples)
    bias = float(ndtri(np.clip(below, 1 / resamples, 1 - 1 / resamples)))
    centred = mean - (x.sum() - x) / (n - 1)  # jackknife
    acceleration = float((centred**3).sum() / (6 * (centred**2).sum() ** 1.5))
    bounds = []
    for tail in ((1 - confidence) / 2, (1 + confidence) / 2):
        z = bias + float(ndtri(tail))
        level = float(ndtr(bias + z / (1 - acceleration * z)))
        bounds.append(float(np.quantile(means, min(max(level, 0.0), 1.0))))
    return bounds[0], bounds[1]


def smallest_effect(
    differences: Sequence[float],
    *,
    comparisons: int = 1,
    alpha: float = ALPHA,
    power: float = POWER,
) -> float:
    """The smallest true difference that this many pairs find with `power`, in the unit of the data.

    ``(t[1 - alpha / 2m, n - 1] + t[power, n - 1]) * s / sqrt(n)`` with s the standard deviation of
    the differences and m the comparisons of the phase: the formula of the paired t-test at Holm's
    first step, an approximation for the sign-flip test. Infinite below `seeds_needed`, where no
    difference could pass; NaN with fewer than two pairs.
    """
    n = len(differences)
    if n < 2:
        return math.nan
    if n < seeds_needed(comparisons, alpha=alpha):
        return math.inf
    spread = float(np.std(np.asarray(differences, dtype=np.float64), ddof=1))
    quantiles = student.ppf([1 - alpha / (2 * comparisons), power], n - 1)
    return float(quantiles.sum()) * spread / math.sqrt(n)
