"""Golden loss curves: a refactoring leaves them as they are, an intended change re-records them."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.trainable.record_curves import (
    CASES,
    STEPS,
    TOLERANCE,
    Curve,
    curve,
    difference,
    stored,
)
from tests.trainable.small_trials import puzzle_folder
from trainable.config import SEMANTICS_VERSION

HOW = (
    "If the change is intended: raise SEMANTICS_VERSION in trainable/config.py, run `python -m "
    "tests.trainable.record_curves --write`, and commit both alone, with the printed difference."
)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return puzzle_folder(tmp_path_factory.mktemp("puzzles"))


def outside(expected: Curve, found: Curve) -> dict[str, float]:
    """What differs by more than its tolerance."""
    return {n: d for n, d in difference(expected, found).items() if d > TOLERANCE[n]}


@pytest.mark.parametrize(
    "case",
    [pytest.param(c, marks=pytest.mark.slow if c.endswith("/parity") else ()) for c in CASES],
)
def test_curve(folder: Path, case: str) -> None:
    expected, found = stored()["curves"][case], curve(case, folder)
    changed = outside(expected, found)
    assert not changed, f"{case} differs (relative): {changed}. {HOW}"
    assert all(value > 0 for value in expected["loss"]) and len(expected["loss"]) == STEPS
    assert expected["loss"][-1] < expected["loss"][0], "it learns"


@pytest.mark.parametrize("options", [{"lr": 1.1e-4}, {"beta2": 0.9}, {"seed": 2}])
def test_a_change_of_numerics_is_seen(folder: Path, options: dict[str, float]) -> None:
    case = "etrm-standard/default"
    assert "loss" in outside(stored()["curves"][case], curve(case, folder, **options))


def test_curves_are_of_this_semantics_version() -> None:
    assert stored()["semantics_version"] == SEMANTICS_VERSION, HOW
    assert set(stored()["curves"]) == set(CASES), HOW
