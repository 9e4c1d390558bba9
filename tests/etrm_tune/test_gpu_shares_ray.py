"""Trials that share a GPU, placed by Ray. Ray counts a GPU that is not there: nothing computes."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.etrm_tune import test_ray
from tests.etrm_tune.test_ray import E1A, E2A, E2B, HERE, run, status, trial

pytestmark = [pytest.mark.slow, pytest.mark.ray]


def times(folder: Path, experiment: str) -> tuple[float, float]:
    """When a trial's first and last rows were written."""
    rows = test_ray.rows(folder, experiment)
    return rows[0]["time"], rows[-1]["time"]


@pytest.mark.parametrize("forked", [True, False], ids=["forked", "trainer"])
def test_two_trials_share_a_gpu_and_the_third_waits(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, forked: bool
) -> None:
    environment = test_ray.environment()
    environment["PYTHONPATH"] = f"{HERE / 'one_gpu'}:{environment['PYTHONPATH']}"
    monkeypatch.setattr(test_ray, "environment", lambda: environment)
    folder = tmp_path / "run"
    settings = {"steps": 40, "step_s": 0.25}
    done = run(
        folder, trials=dict.fromkeys((E1A, E2A, E2B), settings), forked=forked,
        cpus=4, gpus=1, gpus_per_trial=0.5,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    ran = {name: times(folder, name) for name in (E1A, E2A, E2B)}
    first, second, third = sorted(ran, key=lambda name: ran[name][0])
    assert ran[second][0] < ran[first][1], "two at once"
    assert ran[third][0] > min(ran[first][1], ran[second][1]), "four CPUs, but half a GPU each"
    for name in ran:
        assert status(folder, name)["status"] == "finished"
        (told,) = (folder / "trials" / trial(name)).glob("gpu-*")
        assert json.loads(told.read_text()) == {
            "CUDA_VISIBLE_DEVICES": "0",
            "ONE_GPU_SHARE": "0.5",
        }
