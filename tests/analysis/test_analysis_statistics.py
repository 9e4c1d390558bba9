"""Paired statistics: known answers, and what they promise over many simulated experiments."""

from __future__ import annotations

import math

import numpy as np
import pytest
from scipy import stats

from analysis.statistics import (
    bootstrap_interval,
    holm,
    seeds_needed,
    sign_flip_p,
    smallest_effect,
    smallest_p,
)


@pytest.mark.parametrize(
    ("differences", "p"),
    [
        ([], 1.0),
        ([0.5], 1.0),
        ([1.0, 2.0, 3.0], 2 / 8),
        ([1.0, 2.0, -1.0], 6 / 8),  # |sum| >= 2: all patterns but ±(1 - 2 + 1)
        ([0.0, 0.0, 0.0, 0.0], 1.0),
        ([0.01] * 8, 2 / 256),
        ([-0.01] * 8, 2 / 256),
    ],
)
def test_sign_flip_by_hand(differences: list[float], p: float) -> None:
    assert sign_flip_p(differences) == pytest.approx(p, abs=1e-12)


def test_sign_flip_against_scipy() -> None:
    random = np.random.default_rng(3)
    for _ in range(5):
        d = random.normal(0.3, 1, 9)
        expected = stats.permutation_test(
            (d,), np.sum, permutation_type="samples", n_resamples=np.inf, vectorized=False
        )
        assert sign_flip_p(d.tolist()) == pytest.approx(expected.pvalue)


def test_sign_flip_beyond_enumeration_agrees_with_the_normal_approximation() -> None:
    d = np.random.default_rng(5).normal(0.3, 1, 40)
    z = d.sum() / math.sqrt((d**2).sum())
    assert sign_flip_p(d.tolist()) == pytest.approx(2 * stats.norm.sf(abs(z)), abs=0.01)
    assert sign_flip_p(d.tolist()) == sign_flip_p(d.tolist())


@pytest.mark.parametrize(("family", "n"), [(1, 6), (2, 7), (3, 7), (4, 8), (5, 8), (6, 8), (7, 9)])
def test_seeds_needed_is_the_first_that_can_pass(family: int, n: int) -> None:
    assert seeds_needed(family) == n
    assert smallest_p(n) <= 0.05 / family < smallest_p(n - 1)
    assert sign_flip_p([1.0] * n) == smallest_p(n)


def test_holm_by_hand() -> None:
    assert holm([0.01, 0.04, 0.03]) == pytest.approx([0.03, 0.06, 0.06])
    assert holm([0.5, 0.9]) == pytest.approx([1.0, 1.0])
    assert holm([0.01], comparisons=5) == pytest.approx([0.05])
    assert holm([]) == []


def test_bootstrap_against_scipy() -> None:
    d = np.random.default_rng(1).exponential(1, 15)
    low, high = bootstrap_interval(d.tolist())
    expected = stats.bootstrap(
        (d,), np.mean, method="BCa", n_resamples=9_999, rng=np.random.default_rng(2)
    ).confidence_interval
    assert low == pytest.approx(expected.low, abs=0.03)
    assert high == pytest.approx(expected.high, abs=0.05)
    assert high - d.mean() > d.mean() - low  # skewed data: BCa leans to the long tail


def test_bootstrap_of_few_or_equal_values() -> None:
    assert all(math.isnan(bound) for bound in bootstrap_interval([0.9]))
    assert all(math.isnan(bound) for bound in bootstrap_interval([0.9, math.nan]))
    assert bootstrap_interval([0.9, 0.9, 0.9]) == (pytest.approx(0.9), pytest.approx(0.9))
    low, high = bootstrap_interval([0.8, 0.9])
    assert 0.8 <= low < 0.85 < high <= 0.9


def test_smallest_effect_by_hand() -> None:
    d = [0.01, 0.03, 0.02, 0.02, 0.01, 0.03, 0.02, 0.02]
    spread = float(np.std(d, ddof=1))
    expected = (stats.t.ppf(1 - 0.05 / 8, 7) + stats.t.ppf(0.8, 7)) * spread / math.sqrt(8)
    assert smallest_effect(d, comparisons=4) == pytest.approx(expected)
    assert math.isinf(smallest_effect(d[:7], comparisons=4))  # no p-value of 7 seeds could pass
    assert math.isnan(smallest_effect(d[:1]))


def test_type_one_error_of_a_phase_stays_below_alpha() -> None:
    """Four arms that are no better than the control: rarely is any called different."""
    random = np.random.default_rng(11)
    runs, wrong = 400, 0
    for _ in range(runs):
        control = random.normal(0, 1, 8)
        arms = random.normal(0, 1, (4, 8)) - control  # correlated through the control
        adjusted = holm([sign_flip_p(arm.tolist()) for arm in arms])
        wrong += any(p <= 0.05 for p in adjusted)
    assert wrong / runs <= 0.05 + 2 * math.sqrt(0.05 * 0.95 / runs)


def test_the_smallest_effect_is_found_as_often_as_stated() -> None:
    random = np.random.default_rng(12)
    n, runs = 12, 300
    sized = random.normal(0, 0.02, n)
    sized = (sized - sized.mean()) / sized.std(ddof=1) * 0.02
    effect = smallest_effect(sized.tolist(), comparisons=1)
    found = sum(sign_flip_p(random.normal(effect, 0.02, n).tolist()) <= 0.05 for _ in range(runs))
    assert found / runs == pytest.approx(0.80, abs=0.08)


def test_coverage_of_the_interval() -> None:
    """BCa of ten normal values covers the mean somewhat less often than its 95 %."""
    random = np.random.default_rng(13)
    runs = 300
    hits = 0
    for _ in range(runs):
        low, high = bootstrap_interval(random.normal(0.5, 0.1, 10).tolist(), resamples=999)
        hits += low <= 0.5 <= high
    assert 0.86 <= hits / runs <= 0.98
