"""Failed and diverged trials get another attempt; what cannot be retried is one line."""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from rich.console import Console

from analysis.rows import merge, read_attempts
from etrm_tune import cli, command
from etrm_tune.conductor import Conductor, settle
from etrm_tune.live import LiveTable
from etrm_tune.plan import Options, Plan, PlannedTrial
from etrm_tune.retry import reopen
from etrm_tune.run_folder import RunFolder
from etrm_tune.session import Signals
from trainable import checkpoint
from trainable.config import TrialConfig

TRIALS = ("overfit-E1a-s0", "overfit-E2a-s0", "overfit-E2b-s0")


@pytest.fixture
def folder(tmp_path: Path) -> RunFolder:
    """A run: one trial finished, one failed at step 7, one diverged at step 9."""
    folder = RunFolder(tmp_path / "run")
    entries = [{"trial_id": trial_id, "identity": "x"} for trial_id in TRIALS]
    options = {"target": "phase1", "profile": "laptop", "revision": "2026-01-21", "seeds": 1}
    folder.write_plan({"target": "phase1", "trials": entries, "options": options})
    for trial_id, status, steps in zip(
        TRIALS, ("finished", "failed", "diverged"), (9, 7, 9), strict=True
    ):
        home = folder.trial(trial_id)
        folder.write_config(trial_id, {"identity": "x"})
        lines = [{"kind": "start", "attempt": 1, "resumed_from": 0, "schema_version": 1}]
        lines += [
            {"kind": "row", "step": n, "epoch": n, "train/accuracy": None if n == 9 else 0.5}
            for n in range(1, steps + 1)
        ]
        lines += [{"kind": "end", "status": status, "reason": "why"}]
        text = "".join(json.dumps(line) + "\n" for line in lines)
        (home / "attempt-1.jsonl").write_text(text)
        for step in (3, 6):
            checkpoint.save(home / "checkpoints", step, {"x": torch.ones(1)}, keep=2)
        if status != "failed":
            result = {"schema_version": 1, "status": status, "reason": "why", "step": steps}
            (home / "result.json").write_text(json.dumps(result))
        folder.write_status(trial_id, status, "why", step=steps, attempt=1)
    return folder


def refused(capsys: pytest.CaptureFixture[str], *words: object) -> str:
    assert cli.main([str(word) for word in words]) == 2
    err = capsys.readouterr().err
    assert err.startswith("error: ") and len(err.strip().splitlines()) == 1, err
    return err


def planned(trial_id: str) -> PlannedTrial:
    return PlannedTrial(trial_id, "arm", TrialConfig(name="overfit/E2b"), "x")


@pytest.mark.parametrize("trial_id", TRIALS[1:])
def test_a_reopened_trial_goes_on_from_its_newest_checkpoint(
    folder: RunFolder, trial_id: str
) -> None:
    home = folder.trial(trial_id)
    assert reopen(folder, trial_id) == 6
    assert settle(folder, planned(trial_id), retry_failed=False) == "interrupted"
    assert [row["step"] for row in folder.rows(trial_id)] == [1, 2, 3, 4, 5, 6]
    assert not (home / "result.json").exists()
    kept = home / "result-before-attempt-2.json"
    assert kept.exists() == (trial_id == TRIALS[2])
    assert (home / "attempt-1.jsonl").read_text().count("\n") > 7, "nothing measured is deleted"


def test_a_damaged_result_is_written_anew_from_the_last_checkpoint(folder: RunFolder) -> None:
    finished, home = planned(TRIALS[0]), folder.trial(TRIALS[0])
    assert settle(folder, finished, retry_failed=False) == "finished"
    (home / "result.json").write_text('{"schema_version": 1, "sta')
    assert settle(folder, finished, retry_failed=False) == "interrupted"
    assert len(folder.rows(TRIALS[0])) == 9, "its rows stay"


def test_from_start_begins_anew_and_deletes_nothing(folder: RunFolder) -> None:
    assert reopen(folder, TRIALS[2], from_start=True) == 0
    home = folder.trial(TRIALS[2])
    assert merge(read_attempts(home, [])) == []
    assert checkpoint.newest(home / "checkpoints") is None
    assert len(list((home / "checkpoints-before-attempt-2").iterdir())) == 2


def test_the_command_runs_the_failed_and_diverged_ones(
    folder: RunFolder, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    seen: list[Any] = []

    def run(options: Any, folder: RunFolder, how: Any) -> int:
        seen.append((options.target, folder.path, how.reopen, how.from_start, how.again))
        return 0

    monkeypatch.setattr(command, "run", run)
    path = str(folder.path)
    assert cli.main(["retry", path]) == 0
    assert cli.main(["retry", path, TRIALS[1], "--from-start"]) == 0
    again = ("etrm-tune", "retry", path)
    assert seen == [
        ("phase1", folder.path, TRIALS[1:], False, again),
        ("phase1", folder.path, TRIALS[1:2], True, again),
    ]
    for trial_id in TRIALS[1:]:
        folder.write_status(trial_id, "finished")
    assert cli.main(["retry", path]) == 0
    assert "Nothing to retry" in capsys.readouterr().out
    assert len(seen) == 2


def test_what_cannot_be_retried_is_one_line(
    folder: RunFolder, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    assert "holds no run" in refused(capsys, "retry", tmp_path / "nowhere")
    assert f"give its run, {folder.path}" in refused(capsys, "retry", folder.trial(TRIALS[0]))
    wrong = refused(capsys, "retry", folder.path, "overfit-E2a-s1")
    assert "did you mean 'overfit-E2a-s0'" in wrong or "did you mean 'overfit-E1a-s0'" in wrong
    assert "is finished, not failed or diverged" in refused(capsys, "retry", folder.path, TRIALS[0])
    with folder.locked():
        assert "is in use by process" in refused(capsys, "retry", folder.path)
    folder.write_status(TRIALS[1], "failed", taken_from="../parent")
    assert f"retry {tmp_path / 'parent'}" in refused(capsys, "retry", folder.path)


def test_status_says_what_to_do_next(folder: RunFolder, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["status", str(folder.path)]) == 0
    shown = capsys.readouterr().out
    assert "not running" in shown and f"etrm-tune retry {folder.path}" in shown
    folder.write_status(TRIALS[0], "running")
    assert cli.main(["status", str(folder.path)]) == 0
    shown = capsys.readouterr().out
    assert "interrupted" in shown and "continue with: python -m etrm_tune.run phase1" in shown
    with folder.locked():
        assert cli.main(["status", str(folder.path), "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert told["running"] is True
    first, second, third = told["trials"]
    assert (first["status"], first["step"], first["checkpoint"]) == ("running", 9, 6)
    assert (second["status"], second["reason"], second["attempts"]) == ("failed", "why", 1)
    assert third["accuracy"] == 0.5
    assert "holds no run" in refused(capsys, "status", folder.path / "trials")


def test_what_a_killed_session_kept_of_ray_goes_also_when_nothing_is_left_to_train(
    folder: RunFolder,
) -> None:
    """A session killed after its last trial, in its summary: the next one has no stage to run."""
    left = folder.path / "ray" / "0123456789abcdef" / "tune"
    left.mkdir(parents=True)
    (left / "tuner.pkl").write_bytes(b"")
    trials = tuple(planned(trial_id) for trial_id in TRIALS)
    table = LiveTable(Console(file=io.StringIO()), trials, "run")
    plan = Plan(Options("phase1", "laptop", "2026-01-21", 1), trials)
    with folder.locked(), Signals() as signals:
        assert not Conductor(folder, plan, {}, signals, table).prepare()
    assert not (folder.path / "ray").exists()
