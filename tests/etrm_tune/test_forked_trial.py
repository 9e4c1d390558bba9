"""A Tune trial that forks its process: when it begins, what handing it on leaves. No cluster."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.trainable.counting_loop import SETTINGS
from tests.trainable.test_forked import spec, wait_until_gone
from trainable.ray_adapter import ForkedTrial

pytestmark = pytest.mark.slow


@pytest.fixture
def params(tmp_path: Path) -> dict[str, Any]:
    return {"trial_id": "a", "specs": {name: spec(tmp_path / name).to_json() for name in "ab"}}


@pytest.fixture
def trial(params: dict[str, Any]) -> Iterator[ForkedTrial]:
    trial = ForkedTrial(params)
    yield trial
    trial.stop()


def test_an_actor_that_never_steps_begins_no_trial(
    trial: ForkedTrial, params: dict[str, Any], tmp_path: Path
) -> None:
    """Tune makes actors for trials that another actor then runs."""
    assert trial.nursery is not None and trial.child is None
    assert trial.reset(params | {"trial_id": "b"})
    assert not list(tmp_path.glob("*/attempt")) and trial.child is None
    assert trial.train()["step"] == 1
    assert [path.parent.name for path in tmp_path.glob("*/attempt")] == ["b"]


def test_one_actor_runs_trial_after_trial(
    trial: ForkedTrial, params: dict[str, Any], tmp_path: Path
) -> None:
    assert trial.train()["step"] == 1
    assert trial.child is not None
    first = trial.child.pid
    assert trial.reset(params | {"trial_id": "b"})
    wait_until_gone(first)
    rows = [trial.train() for _ in range(SETTINGS["steps"] + 1)]
    assert [row["step"] for row in rows[:-1]] == [1, 2, 3] and rows[-1]["done"]
    assert rows[-1]["outcome_status"] == "finished"
