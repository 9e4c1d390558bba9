"""Dry runs of these tests measure nothing: times come from the speed of matrix products."""

from __future__ import annotations

import pytest


@pytest.fixture(autouse=True)
def _no_measurement(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("etrm_tune.costs.MEASURE_S", 0.0)
