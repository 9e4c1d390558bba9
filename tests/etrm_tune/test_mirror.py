"""A run folder at a URL: what arrives, in which order, and who may write. Stores in memory."""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import fsspec
import pytest
from stand_in import Outcomes

from etrm_tune import mirror as mirror_module
from etrm_tune.cli import main
from etrm_tune.mirror import Mirror, is_url, local_root, mirrored
from etrm_tune.run_folder import FolderInUseError, RunFolder, RunFolderError
from trainable import mirrored as mirrored_module
from trainable.errors import UserError
from trainable.mirrored import REMOTE, SESSION, Mirrored, MirrorError, elsewhere, is_shared
from trainable.worker import TrialSpec

URL = "memory://bucket/runs"


@pytest.fixture(autouse=True)
def store(monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    monkeypatch.setattr(mirrored_module, "PUSH_S", 0.02)
    monkeypatch.setattr(mirror_module, "SETTLE_S", 0.01)
    memory = fsspec.filesystem("memory")
    memory.store.clear()
    yield memory
    memory.store.clear()


def write(folder: Path, name: str, text: str) -> None:
    path = folder / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)


def at(store: Any, name: str) -> str:
    return str(store.cat_file(f"/bucket/runs/phase1/{name}").decode())


def test_a_url_has_a_local_folder_of_its_own(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert is_url("s3://bucket/runs") and not is_url("runs") and not is_url("/mnt/runs")
    monkeypatch.setenv("ETRM_TUNE_CACHE", str(tmp_path))
    one, other = local_root("s3://bucket/runs"), local_root("s3://other/runs")
    assert one.is_relative_to(tmp_path) and one != other
    assert "/" not in one.name and ":" not in one.name


def test_what_is_written_arrives_while_it_is_written(tmp_path: Path, store: Any) -> None:
    folder = RunFolder(tmp_path / "phase1")
    with folder.locked(), mirrored(folder, URL):
        write(folder.path, "trials/a/attempt-1.jsonl", '{"step": 1}\n')
        deadline = time.monotonic() + 10
        while not store.exists("/bucket/runs/phase1/trials/a/attempt-1.jsonl"):
            assert time.monotonic() < deadline
            time.sleep(0.01)
        write(folder.path, "trials/a/attempt-1.jsonl", '{"step": 1}\n{"step": 2}\n')
        write(folder.path, "trials/a/.status.json.1.tmp", "half")
        write(folder.path, "ray/scratch", "nobody reads it")
        write(folder.path, "plan.json", "{}")
    assert at(store, "trials/a/attempt-1.jsonl").count("\n") == 2
    assert at(store, "plan.json") == "{}"
    names = {str(name).rpartition("/")[2] for name in store.find("/bucket/runs")}
    assert names == {"attempt-1.jsonl", "plan.json", SESSION}


def test_another_machine_goes_on_with_it_and_the_first_sees_that(tmp_path: Path) -> None:
    here, there = RunFolder(tmp_path / "here/phase1"), RunFolder(tmp_path / "there/phase1")
    with here.locked(), mirrored(here, URL):
        write(here.path, "trials/a/attempt-1.jsonl", "one\n")
        write(here.path, "trials/a/checkpoints/step-1.pt", "old")
    with there.locked(), mirrored(there, URL):
        assert (there.path / "trials/a/attempt-1.jsonl").read_text() == "one\n"
        (there.path / "trials/a/checkpoints/step-1.pt").unlink()
        write(there.path, "trials/a/checkpoints/step-2.pt", "new")
    write(here.path, "trials/a/attempt-9.jsonl", "never sent, and overtaken\n")
    with here.locked(), mirrored(here, URL):
        checkpoints = list((here.path / "trials/a/checkpoints").iterdir())
        assert [path.name for path in checkpoints] == ["step-2.pt"]
        assert not (here.path / "trials/a/attempt-9.jsonl").exists()


def test_the_machine_that_wrote_last_keeps_what_was_not_sent_yet(tmp_path: Path) -> None:
    """Killed without warning: the local folder is ahead of the URL."""
    folder = RunFolder(tmp_path / "phase1")
    folder.path.mkdir()
    killed = Mirror(folder.path, f"{URL}/phase1")
    killed.begin(write=True)
    write(folder.path, "trials/a/attempt-1.jsonl", "not sent\n")
    with folder.locked(), mirrored(folder, URL):
        assert (folder.path / "trials/a/attempt-1.jsonl").read_text() == "not sent\n"


def test_rows_go_before_checkpoints_and_statuses_last(tmp_path: Path) -> None:
    for name in (
        "trials/a/status.json", "trials/a/result.json", "trials/a/checkpoints/step-5.pt",
        "trials/a/log", "trials/a/attempt-1.jsonl", "trials/a/config.json", "plan.json",
    ):  # fmt: skip
        write(tmp_path, name, name)
    mirror = Mirror(tmp_path, f"{URL}/phase1")
    assert mirror.push() == 7
    assert [name.rpartition("/")[2] for name in mirror.sent] == [
        "plan.json", "config.json", "attempt-1.jsonl", "log", "step-5.pt", "result.json",
        "status.json",
    ]  # fmt: skip
    assert mirror.push() == 0, "what has not changed does not go again"


def test_a_second_session_is_refused_until_the_first_is_silent(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    here, there = RunFolder(tmp_path / "here/phase1"), RunFolder(tmp_path / "there/phase1")
    here.path.mkdir(parents=True)
    Mirror(here.path, f"{URL}/phase1").begin(write=True)
    with (
        pytest.raises(FolderInUseError, match=r"is in use by process \d+ on .*--name"),
        there.locked(),
        mirrored(there, URL),
    ):
        pass
    monkeypatch.setattr(mirror_module, "LEASE_S", -1.0)
    with there.locked(), mirrored(there, URL):
        pass


def test_of_two_that_take_a_url_at_once_one_has_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = Mirror(tmp_path / "here/phase1", f"{URL}/phase1")
    second = Mirror(tmp_path / "there/phase1", f"{URL}/phase1")
    for mirror in (first, second):
        mirror.local.mkdir(parents=True)
    waits = []

    def meanwhile(seconds: float) -> None:
        waits.append(seconds)
        if len(waits) == 1:
            second._claim()

    monkeypatch.setattr(mirror_module.time, "sleep", meanwhile)
    with pytest.raises(FolderInUseError, match="in use by process"):
        first.begin(write=True)
    assert len(waits) == 2 and second._read_lease()["session"] == second.session
    monkeypatch.setattr(mirror_module.time, "sleep", waits.append)
    with pytest.raises(FolderInUseError):
        first.begin(write=True)
    second.begin(write=True)


def test_what_cannot_be_reached_is_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = RunFolder(tmp_path / "phase1")
    with pytest.raises(UserError, match=r"nosuch.*choose another --runs"):
        Mirror(folder.path, "nosuch://bucket")
    with (
        pytest.raises(RunFolderError, match=r"not everything is at memory://.*same command again"),
        folder.locked(),
        mirrored(folder, URL),
    ):
        write(folder.path, "plan.json", json.dumps({}))
        monkeypatch.setattr(Mirror, "push", _fails)
        monkeypatch.setattr(mirrored_module, "PAUSES_S", (0.0,))
    assert (folder.path / "plan.json").exists()


@pytest.mark.parametrize("failures", [2, 5])
def test_a_store_that_is_away_for_a_moment_ends_no_run(
    tmp_path: Path, store: Any, monkeypatch: pytest.MonkeyPatch, failures: int
) -> None:
    monkeypatch.setattr(mirrored_module, "PAUSES_S", (0.0, 0.0, 0.0))
    folder = RunFolder(tmp_path / "phase1")
    mirror, real, left = Mirror(folder.path, f"{URL}/phase1"), Mirrored.pull, [failures]

    def sometimes(self: Mirrored, below: str = "") -> None:
        left[0] -= 1
        if left[0] >= 0:
            write(folder.path, "trials/a/status.json", "half of it")
            raise ConnectionError("no route")
        real(self, below)

    monkeypatch.setattr(Mirrored, "pull", sometimes)
    write(folder.path, "trials/a/status.json", "running")
    store.pipe_file("/bucket/runs/phase1/trials/a/" + REMOTE, b"")
    store.pipe_file("/bucket/runs/phase1/trials/a/attempt-1.jsonl", b"1\n")
    if failures > 3:
        with pytest.raises(MirrorError, match=r"cannot be reached any more.*same command"):
            mirror.take("a")
    else:
        mirror.take("a")
        assert (folder.path / "trials/a/attempt-1.jsonl").read_text() == "1\n"
    assert (folder.path / "trials/a/status.json").read_text() == "running", "the conductor's own"


def _fails(self: Mirror) -> int:
    raise ConnectionError("no route")


def test_names_at_the_url_cannot_leave_the_folder(tmp_path: Path, store: Any) -> None:
    store.pipe_file(f"/bucket/runs/phase1/{SESSION}", b'{"session": "x"}')
    store.pipe_file("/bucket/runs/phase1/../../../evil", b"")
    mirror = Mirror(tmp_path / "phase1", f"{URL}/phase1")
    monkey = [*store.find("/bucket/runs/phase1"), "/bucket/runs/phase1/../../evil"]
    mirror.fs.find = lambda root: monkey
    try:
        with pytest.raises(UserError, match="outside its folder"):
            mirror.begin(write=False)
    finally:
        del mirror.fs.find


def test_a_worker_elsewhere_fetches_its_trial_and_sends_what_it_writes(
    tmp_path: Path, store: Any
) -> None:
    """Two paths stand for two nodes: the conductor's folder is not there on the worker's."""
    here = RunFolder(tmp_path / "here/phase1")
    trial = "trials/a"
    with here.locked(), mirrored(here, URL) as mirror:
        assert mirror is not None
        write(here.path, f"{trial}/attempt-1.jsonl", "1\n")
        write(here.path, f"{trial}/status.json", "running")
        write(here.path, f"{trial}/current_attempt", "2")
        write(here.path, "inputs/decoder.pt", "weights")
        mirror.send()
        there = tmp_path / "there/phase1"
        spec = TrialSpec(
            "a", str(there / trial), {"decoder": str(there / "inputs/decoder.pt"), "data": {}},
            "me", url=mirror.url, token=mirror.session,
        )  # fmt: skip
        with elsewhere(spec) as send_rows:
            assert (there / trial / "attempt-1.jsonl").read_text() == "1\n"
            assert (there / "inputs/decoder.pt").read_text() == "weights"
            write(there, f"{trial}/attempt-2.jsonl", "2\n")
            send_rows()
            assert at(store, f"{trial}/attempt-2.jsonl") == "2\n", "with its report"
            write(there, f"{trial}/checkpoints/step-2.pt", "new")
        write(here.path, f"{trial}/status.json", "running still")
        mirror.take("a")
        assert (here.path / trial / "checkpoints/step-2.pt").read_text() == "new"
        assert (here.path / trial / "status.json").read_text() == "running still"

        with elsewhere(spec):
            write(here.path, f"{trial}/current_attempt", "3")
            mirror.send()
            deadline = time.monotonic() + 60
            while (there / trial / "current_attempt").read_text() != "3":
                assert time.monotonic() < deadline, "the loop there is told"
                time.sleep(0.01)
            write(there, f"{trial}/attempt-2.jsonl", "2\ntoo late\n")
        assert (there / trial / "current_attempt").read_text() == "3", "the loop there quits"
        assert at(store, f"{trial}/attempt-2.jsonl") == "2\n"

        same = replace(spec, out_dir=str(here.path / trial))
        with elsewhere(same):
            assert is_shared(here.path, mirror.session)
        assert (here.path / trial / "attempt-2.jsonl").read_text() == "2\n"


def test_a_report_elsewhere_waits_for_a_store_that_is_away(
    tmp_path: Path, store: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(mirrored_module, "PAUSES_S", (0.0, 0.0, 0.0))
    monkeypatch.setattr(mirrored_module, "PUSH_S", 1000.0)
    home, url = tmp_path / "there/phase1/trials/a", f"{URL}/phase1"
    spec = TrialSpec("a", str(home), {"decoder": None, "data": {}}, "me", url=url, token="t")
    store.pipe_file("/bucket/runs/phase1/trials/a/config.json", b"{}")
    real, left = Mirrored.push, [0]

    def sometimes(self: Mirrored, ending: str = "") -> int:
        left[0] -= 1
        return _fails(self) if left[0] >= 0 else real(self, ending)  # type: ignore[arg-type]

    monkeypatch.setattr(Mirrored, "push", sometimes)
    with elsewhere(spec) as send_rows:
        write(home, "attempt-1.jsonl", "1\n")
        left[0] = 2
        send_rows()
        assert at(store, "trials/a/attempt-1.jsonl") == "1\n"
        left[0] = 5
        with pytest.raises(MirrorError, match="cannot be reached any more"):
            send_rows()
        left[0] = 0


def test_what_workers_sent_while_the_conductor_was_dead_is_fetched(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path / "phase1")
    folder.path.mkdir()
    killed = Mirror(folder.path, f"{URL}/phase1")
    killed.begin(write=True)
    write(folder.path, "trials/a/attempt-1.jsonl", "1\n")
    killed.send()
    spec = TrialSpec(
        "a", str(tmp_path / "there/phase1/trials/a"), {"decoder": None, "data": {}}, "me",
        url=killed.url, token=killed.session,
    )  # fmt: skip
    with elsewhere(spec):
        write(tmp_path, "there/phase1/trials/a/attempt-1.jsonl", "1\n2\n")
    with folder.locked(), mirrored(folder, URL):
        assert (folder.path / "trials/a/attempt-1.jsonl").read_text() == "1\n2\n"


def test_a_command_at_a_url_is_continued_where_nothing_is_left(
    tmp_path: Path, store: Any, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The command line's own way; training is stood in for."""
    trained = Outcomes()
    monkeypatch.setattr("etrm_tune.command.execute", trained.execute)
    monkeypatch.setenv("ETRM_TUNE_CACHE", str(tmp_path / "cache"))
    words = ["run", "overfit/E4a", "--profile", "laptop", "--runs", URL, "--name", "phase1"]
    assert main(words) == 0, capsys.readouterr().err
    assert json.loads(at(store, "plan.json"))["target"] == "overfit/E4a"
    assert "finished" in at(store, "trials/overfit-E4a-s0/status.json")
    shutil.rmtree(tmp_path / "cache")
    assert main(words) == 0, capsys.readouterr().err
    assert trained.trained == ["phase1/overfit-E4a-s0"], "the second time it was done"
    assert main([*words, "--seeds", "2"]) == 2
    assert "begun with --seeds 1" in capsys.readouterr().err
