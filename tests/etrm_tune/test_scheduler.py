"""The scheduler asks the rule, records rungs and keeps reasons; no Ray is started."""

from __future__ import annotations

import json
import math
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from search_spaces.stopping import StoppingRule, phase_rule

pytestmark = pytest.mark.filterwarnings("default")  # Ray's imports warn about their own parts

ID = "overfit-E1a-s0"


@pytest.fixture
def trial(tmp_path: Path) -> Any:
    (tmp_path / ID).mkdir()
    return SimpleNamespace(trial_id="a1", config={"trial_id": ID})


def scheduler(tmp_path: Path, trial: Any, rule: StoppingRule | None) -> Any:
    from etrm_tune.scheduler import RuleScheduler

    made = RuleScheduler(rule, tmp_path)
    made.on_trial_add(None, trial)
    return made


def report(made: Any, trial: Any, epoch: float, accuracy: float | None) -> str:
    result = {"epoch": epoch, "step": int(epoch)}
    if accuracy is not None:
        result["train/accuracy"] = accuracy
    return str(made.on_trial_result(None, trial, result))


def test_bar_stops_with_its_reason(tmp_path: Path, trial: Any) -> None:
    made = scheduler(tmp_path, trial, phase_rule(100))
    assert report(made, trial, 49, 0.0) == "CONTINUE"
    assert report(made, trial, 51, 0.19) == "STOP"
    assert made.reasons[ID].startswith("bar: train/accuracy 19.0 % < 20 %")
    line = json.loads((tmp_path / ID / "scheduler.jsonl").read_text())
    assert (line["rung"], line["epoch"], line["value"], line["stop"]) == (50, 51, 0.19, True)


def test_nan_fails_the_bar_and_is_null_in_the_file(tmp_path: Path, trial: Any) -> None:
    made = scheduler(tmp_path, trial, phase_rule(100))
    assert report(made, trial, 50, math.nan) == "STOP"
    assert json.loads((tmp_path / ID / "scheduler.jsonl").read_text())["value"] is None


def test_a_missing_metric_takes_the_last_measured_one(tmp_path: Path, trial: Any) -> None:
    made = scheduler(tmp_path, trial, phase_rule(100))
    assert report(made, trial, 45, 0.5) == "CONTINUE"
    assert report(made, trial, 52, None) == "CONTINUE"
    assert made.reasons == {}


def test_every_rung_that_a_late_report_reaches_has_its_line(tmp_path: Path, trial: Any) -> None:
    from search_spaces.schedulers import search_rule

    made = scheduler(tmp_path, trial, search_rule("asha", 80))
    assert report(made, trial, 41, 0.5) == "CONTINUE"
    lines = [json.loads(x) for x in (tmp_path / ID / "scheduler.jsonl").read_text().splitlines()]
    assert [(x["rule"], x["rung"]) for x in lines] == [
        ("bar", 40),
        ("halving", 10),
        ("halving", 30),
    ]
    assert all(f"(rung {x['rung']:g}, first report at epoch 41)" in x["reason"] for x in lines)


def test_halving_is_off_in_phases(tmp_path: Path, trial: Any) -> None:
    made = scheduler(tmp_path, trial, phase_rule(100))
    second = SimpleNamespace(trial_id="a2", config={"trial_id": "overfit-E2a-s0"})
    (tmp_path / "overfit-E2a-s0").mkdir()
    made.on_trial_add(None, second)
    for epoch in range(1, 101):
        assert report(made, trial, epoch, 0.99) == "CONTINUE"
        assert report(made, second, epoch, 0.21) == "CONTINUE"


def test_without_a_rule_nothing_is_stopped(tmp_path: Path, trial: Any) -> None:
    made = scheduler(tmp_path, trial, None)
    assert report(made, trial, 1e6, 0.0) == "CONTINUE"
    made.on_trial_complete(None, trial, {})
    made.on_trial_remove(None, trial)
