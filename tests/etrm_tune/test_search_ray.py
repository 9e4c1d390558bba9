"""A whole search in Ray, with a loop that only counts: grown, killed, continued."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from etrm_tune.run_folder import FINAL, RunFolder

HERE = Path(__file__).parent
ROOT = HERE.parents[1]

pytestmark = [pytest.mark.slow, pytest.mark.ray]

ASKED: dict[str, Any] = {
    "trials": 8,
    "scheduler": "asha",
    "accuracy": {"4": 0.3, "8": 0.5, "16": 0.7, "32": 0.9},
    "nan": ["4"],
}


def started(folder: Path, log: Path) -> subprocess.Popen[bytes]:
    with log.open("wb") as out:
        return subprocess.Popen(
            [sys.executable, str(HERE / "run_fake_search.py"), str(folder), json.dumps(ASKED)],
            env=os.environ | {"PYTHONPATH": f"{ROOT}:{HERE}", "OMP_NUM_THREADS": "1"},
            stdout=out,
            stderr=subprocess.STDOUT,
        )


def points(folder: Path) -> list[Any]:
    plan = RunFolder(folder).read_plan() if (folder / "plan.json").exists() else None
    return list(plan["search"]["points"]) if plan else []


def test_a_search_that_is_killed_goes_on_and_tells_who_survived(tmp_path: Path) -> None:
    folder = tmp_path / "search"
    first = started(folder, tmp_path / "first")
    deadline = time.monotonic() + 500
    while len(points(folder)) < 7 and first.poll() is None and time.monotonic() < deadline:
        time.sleep(0.2)
    first.kill()
    first.wait()
    begun = points(folder)
    assert 7 <= len(begun) <= 8, (tmp_path / "first").read_text()

    second = started(folder, tmp_path / "second")
    code = second.wait(timeout=500)
    out = (tmp_path / "second").read_text()
    assert code == 0, out
    run = RunFolder(folder)
    plan = run.read_plan()
    assert plan is not None
    assert plan["search"]["points"][: len(begun)] == begun
    assert len(plan["search"]["points"]) == len(plan["trials"]) == 8
    statuses = {t["trial_id"]: run.read_status(t["trial_id"]) for t in plan["trials"]}
    assert {one["status"] for one in statuses.values()} <= FINAL
    for trial_id in statuses:
        steps = [row["step"] for row in run.rows(trial_id)]
        assert steps == list(range(1, len(steps) + 1)), trial_id
        size = json.loads((run.trial(trial_id) / "config.json").read_text())["config"]["model"]
        if size["halt_max_steps"] == 4:  # not a number: stopped on the first rung
            assert statuses[trial_id]["status"] == "stopped"
            assert statuses[trial_id]["reason"].startswith("halving:")
    assert any(one["status"] == "finished" for one in statuses.values())
    assert "n = 8 points" in out
    assert "rung (epochs)" in out
    assert "All 8 trials are done" in out
    assert not (folder / "ray").exists(), "the killed session's scratch folder is gone too"
