"""``search --scheduler pbt`` from its words to its tables: everything but Ray, with real trials."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest

from etrm_tune import command
from etrm_tune import run as run_module
from etrm_tune.cli import main as etrm_tune
from etrm_tune.conductor import Conductor
from etrm_tune.plan import PlannedTrial
from tests.trainable.small_trials import comparable_rows, puzzle_folder, rows_of
from trainable.worker import TrialSpec, run_loop

pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("default")]

SETTINGS = {
    "pretrained_decoder": "false", "epochs": 6, "halt_max_steps": 1, "hidden_size": 32,
    "L_layers": 1, "log_interval": 2, "eval_num_aug": 0, "max_eval_groups": 1,
    "global_batch_size": 4, "puzzle_emb_ndim": 32, "lr_min_ratio": 1.0, "eval_raw": "false",
}  # fmt: skip


class Killed(BaseException):
    """In place of a signal that nobody can catch."""


class Here:
    """Runs a stage's trials in this process, one after the other, as Ray would at once."""

    def __init__(self, kill_at: int | None = None) -> None:
        self.reports, self.kill_at = 0, kill_at

    def stage(
        self, conductor: Conductor, stage: Sequence[PlannedTrial], trials: Sequence[PlannedTrial]
    ) -> None:
        for trial in trials:
            spec = conductor._begin(trial, "owner", Path(), conductor.allotments["arm"])
            attempt = int((conductor.folder.trial(trial.trial_id) / "current_attempt").read_text())
            done = run_loop(TrialSpec.from_json(spec), attempt, self.report)
            assert done["status"] in ("paused", "finished", "diverged"), done
            status = "interrupted" if done["status"] == "paused" else done["status"]
            conductor.finish(trial, status, done["reason"])

    def report(self, row: dict[str, Any]) -> bool:
        self.reports += 1
        if self.reports == self.kill_at:
            raise Killed
        return False


@contextlib.contextmanager
def no_ray(*_: Any, **__: Any) -> Iterator[str]:
    yield ""


def go(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, *words: str, kill_at: int = -1
) -> int:
    here = Here(kill_at)
    monkeypatch.setattr(command, "ray_session", no_ray)
    monkeypatch.setattr(Conductor, "_run_stage", lambda c, s, t: here.stage(c, s, t))
    settings = [w for option, v in SETTINGS.items() for w in ("--set", f"{option}={v}")]
    return run_module.main(
        ["search", "--space", "lr", "--scheduler", "pbt", "--trials", "4", "--profile", "laptop",
         "--data", str(tmp_path / "data"), "--allow", "pretrained_decoder", *settings,
         "--runs", str(tmp_path), "--name", name, *words]
    )  # fmt: skip


def test_a_population_by_command(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    puzzle_folder(tmp_path / "data")
    assert go(tmp_path, monkeypatch, "whole") == 0
    out = " ".join(capsys.readouterr().out.split())
    plan = json.loads((tmp_path / "whole" / "plan.json").read_text())
    rounds = plan["search"]["population"]
    copies = [m for one in rounds for m in one["members"] if m["parent"]]
    assert copies, rounds
    assert f"{copies[0]['trial_id']}: " in out
    assert f"copies {copies[0]['parent']}" in out
    assert "who copied whom, and which rate followed" in out
    assert "rates behind " in out
    assert "--allow lr" in out, "the schedule that was found can be trained"
    assert "n = 4 points (4 finished)" in out

    # Killed in the middle and given again: the same judgements, the same rows bit for bit.
    with pytest.raises(Killed):
        go(tmp_path, monkeypatch, "cut", kill_at=9)
    assert go(tmp_path, monkeypatch, "cut") == 0
    again = json.loads((tmp_path / "cut" / "plan.json").read_text())
    assert again["search"]["population"] == rounds
    for trial in plan["trials"]:
        mine, theirs = (tmp_path / n / "trials" / trial["trial_id"] for n in ("whole", "cut"))
        assert comparable_rows(mine) == comparable_rows(theirs)
        steps = [row["step"] for row in rows_of(mine)]
        assert steps == sorted(set(steps))
    capsys.readouterr()

    assert etrm_tune(["status", str(tmp_path / "cut")]) == 0
    told = " ".join(capsys.readouterr().out.split())
    assert f"copies {copies[0]['parent']}" in told
    assert etrm_tune(["status", str(tmp_path / "cut"), "--json"]) == 0
    values = json.loads(capsys.readouterr().out)
    assert values["population"] == rounds
    assert values["rungs"][0]["rule"] == "pbt"

    # A population keeps its size; a copied member's own configuration does not tell its curve.
    assert go(tmp_path, monkeypatch, "cut", "--trials", "6") == 2
    assert "a population keeps its 4 members" in capsys.readouterr().err
    child = tmp_path / "cut" / "trials" / copies[0]["trial_id"]
    assert etrm_tune(["reproduce", str(child)]) == 2
    assert "took over another trial's state at step" in capsys.readouterr().err
