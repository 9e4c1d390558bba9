"""The run folder: lock, whole writes, statuses, refusals."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from analysis import rows as analysis_rows
from etrm_tune import run_folder
from etrm_tune.run_folder import FolderInUseError, RunFolder, RunFolderError, check_writable
from trainable.errors import UserError

ROOT = Path(__file__).parents[2]

HOLD = """
import sys
from etrm_tune.run_folder import RunFolder
with RunFolder(sys.argv[1]).locked():
    print("held", flush=True)
    sys.stdin.read()
"""


def test_second_process_is_refused_by_pid_and_death_frees_the_lock(tmp_path: Path) -> None:
    with subprocess.Popen(
        [sys.executable, "-c", HOLD, str(tmp_path)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        cwd=ROOT,
    ) as other:
        assert other.stdout is not None
        assert other.stdout.readline() == b"held\n"
        folder = RunFolder(tmp_path)
        assert folder.in_use()
        with pytest.raises(FolderInUseError, match=f"process {other.pid}"), folder.locked():
            pass
        other.kill()
        other.wait()
    assert not folder.in_use()
    with folder.locked():
        assert folder.holder() is not None


def test_plan_round_trip_and_newer_version_is_refused(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path)
    assert folder.read_plan() is None
    folder.write_plan({"target": "phase1"})
    assert folder.read_plan() == {"schema_version": 1, "target": "phase1"}
    (tmp_path / "plan.json").write_text(json.dumps({"schema_version": 99}))
    with pytest.raises(UserError, match="schema version 99"):
        folder.read_plan()


def test_plan_of_an_older_version_is_upgraded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "plan.json").write_text(json.dumps({"schema_version": 0, "goal": "phase1"}))
    upgrades = {0: lambda old: {"schema_version": 1, "target": old["goal"]}}
    monkeypatch.setattr(analysis_rows, "UPGRADES", upgrades)
    assert RunFolder(tmp_path).read_plan() == {"schema_version": 1, "target": "phase1"}


def test_damaged_plan_and_strange_folder_are_refused(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(RunFolderError, match="not empty"):
        RunFolder(tmp_path).read_plan()
    (tmp_path / "plan.json").write_text('{"schema_ver')
    with pytest.raises(RunFolderError, match="damaged"):
        RunFolder(tmp_path).read_plan()


def test_folder_of_a_run_killed_at_once_is_taken_as_new(tmp_path: Path) -> None:
    (tmp_path / "lock").write_text("123\n")
    (tmp_path / "run.log").write_text("")
    (tmp_path / ".plan.json.123.tmp").write_text("{")
    assert RunFolder(tmp_path).read_plan() is None


def test_trial_of_another_identity_is_refused(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path)
    folder.write_config("overfit-E1a-s0", {"identity": "a"})
    folder.write_config("overfit-E1a-s0", {"identity": "a"})
    with pytest.raises(RunFolderError, match="identity a, now b"):
        folder.write_config("overfit-E1a-s0", {"identity": "b"})


def test_status_keeps_what_else_was_known(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path)
    assert folder.read_status("t")["status"] == "pending"
    folder.write_status("t", "running", attempt=3)
    folder.write_status("t", "stopped", "bar: …")
    status = folder.read_status("t")
    assert (status["status"], status["reason"], status["attempt"]) == ("stopped", "bar: …", 3)
    assert status["schema_version"] == 1


def test_a_failed_write_leaves_the_old_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "status.json"
    run_folder.write_atomic(path, "old")

    def full(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(run_folder.os, "fsync", full)
    with pytest.raises(RunFolderError, match="the disk is full"):
        run_folder.write_atomic(path, "new")
    assert path.read_text() == "old"
    assert [p.name for p in tmp_path.iterdir()] == ["status.json"]


def test_too_little_room_and_a_file_in_the_way(tmp_path: Path) -> None:
    check_writable(tmp_path / "runs" / "phase1", 1)
    assert not (tmp_path / "runs").exists()
    with pytest.raises(RunFolderError, match="GB free"):
        check_writable(tmp_path, 10**18)
    (tmp_path / "file").write_text("")
    with pytest.raises(RunFolderError, match="a file stands"):
        check_writable(tmp_path / "file" / "phase1", 1)
