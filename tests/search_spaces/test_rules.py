"""Decision rules: thresholds as written, every value covered, every name existing."""

from __future__ import annotations

import math

import pytest

import search_spaces
from search_spaces.rules import (
    DECISIONS,
    PHASE1,
    RED_FLAGS,
    SCENARIOS,
    STATUS_COUNTS,
    TRAIN_ACCURACY,
    Band,
    ThresholdRule,
    above,
    at_most,
    below,
    between,
)


def spoken(arm: str, value: float) -> set[str]:
    return {
        rule.name
        for rule in PHASE1
        if isinstance(rule, ThresholdRule) and arm in rule.arms and rule.band.contains(value)
    }


@pytest.mark.parametrize(
    ("arm", "value", "expected"),
    [
        ("E1a", 0.901, {"standard encoder validated"}),
        ("E1a", 0.90, {"baseline not validated"}),
        ("E1a", 0.1, {"baseline not validated"}),
        ("E2a", 0.93, {"deeper encoders help", "VAE compatible"}),
        ("E2a", 0.92, {"no rule between", "VAE compatible"}),
        ("E2a", 0.90, {"no rule between"}),
        ("E2a", 0.80, {"no rule between"}),
        ("E2a", 0.7999, {"variational encoder fails"}),
        ("E2b", 0.93, {"deeper encoders help"}),
        ("E2b", 0.506, {"variational encoder fails"}),
        ("E2c", 0.921, {"deeper encoders help"}),
        ("E2c", 0.5, {"hybrid depth fails"}),
    ],
)
def test_phase1_thresholds(arm: str, value: float, expected: set[str]) -> None:
    assert spoken(f"overfit/{arm}", value) == expected


def test_phase1_says_something_about_every_value() -> None:
    for arm in ("E1a", "E2a", "E2b", "E2c"):
        for value in [i / 1000 for i in range(1001)]:
            assert spoken(f"overfit/{arm}", value), (arm, value)
        assert spoken(f"overfit/{arm}", math.nan) == set()


@pytest.mark.parametrize(
    ("band", "text"),
    [
        (above(0.9), "> 90 %"),
        (below(0.8), "< 80 %"),
        (at_most(0.9), "≤ 90 %"),
        (between(0.8, 0.92), "80 % to 92 %"),
        (Band(low=0.9), "≥ 90 %"),
    ],
)
def test_band_text(band: Band, text: str) -> None:
    assert band.text == text


def test_rules_name_existing_experiments_and_targets() -> None:
    names = {e.name for e in search_spaces.experiments()}
    for rule in (*(r for rules in DECISIONS.values() for r in rules), *RED_FLAGS):
        arms = rule.arms if isinstance(rule, ThresholdRule) else (rule.left, rule.right)
        assert set(arms) <= names
        assert rule.measure is TRAIN_ACCURACY
        assert rule.after in search_spaces.targets()
        assert set(rule.next) <= set(search_spaces.targets())
    for phase, rules in DECISIONS.items():
        assert {rule.after for rule in rules} == {phase}
    assert [s.name for s in SCENARIOS] == ["A", "B", "C", "D"]


def test_a_run_stopped_by_the_bar_is_an_answer_and_a_crashed_one_is_not() -> None:
    assert STATUS_COUNTS["finished"] == "value"
    assert STATUS_COUNTS["stopped"] == "below"
    assert {STATUS_COUNTS[s] for s in ("failed", "diverged", "interrupted")} == {"undecided"}


@pytest.mark.parametrize(("value", "flag"), [(0.49, True), (0.5, False)])
def test_red_flag_2(value: float, flag: bool) -> None:
    assert RED_FLAGS[1].band.contains(value) is flag


def test_red_flag_1_is_none_above_80() -> None:
    assert RED_FLAGS[0].scope == "all"
    assert RED_FLAGS[0].band.contains(0.80)
    assert not RED_FLAGS[0].band.contains(0.801)
