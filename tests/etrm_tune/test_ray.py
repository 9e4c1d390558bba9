"""Whole runs in Ray, with a loop that only counts: what stops, resumes, and stays behind.

Every run is a process of its own, watched from outside.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from etrm_tune.run_folder import RunFolder

HERE = Path(__file__).parent
ROOT = HERE.parents[1]

pytestmark = [pytest.mark.slow, pytest.mark.ray]

PATIENCE_S = float(os.environ.get("ETRM_PATIENCE", "300"))
"""For one run, however busy the machine."""

E1A, E2A, E2B = "overfit/E1a", "overfit/E2a", "overfit/E2b"


def environment() -> dict[str, str]:
    return os.environ | {"PYTHONPATH": f"{ROOT}:{HERE}", "OMP_NUM_THREADS": "1"}


def command(folder: Path, **asked: Any) -> list[str]:
    return [sys.executable, str(HERE / "run_fake.py"), str(folder), json.dumps(asked)]


def run(folder: Path, **asked: Any) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        command(folder, **asked),
        env=environment(),
        capture_output=True,
        text=True,
        timeout=PATIENCE_S,
        check=False,
    )


@contextmanager
def started(folder: Path, **asked: Any) -> Iterator[subprocess.Popen[str]]:
    process = subprocess.Popen(
        command(folder, **asked),
        env=environment(),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    try:
        yield process
    finally:
        if process.poll() is None:
            process.kill()
        process.communicate()


def wait_for(what: Callable[[], Any], seconds: float = 120) -> Any:
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        if found := what():
            return found
        time.sleep(0.1)
    raise AssertionError(f"not within {seconds} s")


def trial(experiment: str) -> str:
    return f"{experiment.replace('/', '-')}-s0"


def status(folder: Path, experiment: str) -> dict[str, Any]:
    return RunFolder(folder).read_status(trial(experiment))


def rows(folder: Path, experiment: str) -> list[dict[str, Any]]:
    return RunFolder(folder).rows(trial(experiment))


def steps(folder: Path, experiment: str) -> list[int]:
    return [row["step"] for row in rows(folder, experiment)]


def checkpoints(folder: Path, experiment: str) -> int:
    return len(list((RunFolder(folder).trial(trial(experiment)) / "checkpoints").glob("*.pt")))


def worker_pids(folder: Path) -> list[int]:
    return [int(p.read_text() or 0) for p in folder.glob("trials/*/pid-*")]


def alive(pid: int) -> bool:
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0]
    except FileNotFoundError:
        return False
    return state != "Z"


def descendants(pid: int) -> set[int]:
    """Living processes below ``pid``, now."""
    parents: dict[int, int] = {}
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            parents[int(stat.parent.name)] = int(stat.read_text().rsplit(")", 1)[1].split()[1])
        except OSError:
            continue
    found = {pid}
    while more := {child for child, parent in parents.items() if parent in found} - found:
        found |= more
    return found - {pid}


def test_decoder_then_two_arms_at_once_one_stopped_one_not_a_number(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    asked: dict[str, Any] = {
        "decoder": {"steps": 5},
        "trials": {
            E1A: {"steps": 80, "step_s": 0.4},  # longer than a start on a busy machine
            E2A: {"steps": 80, "step_s": 0.4, "accuracy": 0.1},
            E2B: {"steps": 80, "nan_at": 10},
        },
    }
    done = run(folder, **asked)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "Dashboard: http://127.0.0.1:" in done.stdout
    assert "get-auth-token" in done.stdout
    assert "All 4 trials are done" in done.stdout

    assert status(folder, E1A)["status"] == "finished"
    assert steps(folder, E1A) == list(range(1, 81))
    for experiment, words in ((E2A, "4.9 % <"), (E2B, "not a number")):
        told = status(folder, experiment)
        assert told["status"] == "stopped"
        assert told["reason"].startswith("bar: train/accuracy")
        assert words in told["reason"] or "5.0 % <" in told["reason"]
        assert max(steps(folder, experiment)) < 60
    judged = (folder / "trials" / trial(E2A) / "scheduler.jsonl").read_text().splitlines()
    assert json.loads(judged[-1])["stop"] is True

    # E2b started although two stopped or ran before it: nothing of the machine was lost. The first
    # two overlapped in time.
    first, second = rows(folder, E1A), rows(folder, E2A)
    assert max(first[0]["time"], second[0]["time"]) < min(first[-1]["time"], second[-1]["time"])
    assert not any(alive(pid) for pid in worker_pids(folder))
    assert not (folder / "ray").exists()
    for name in ("comparison.md", "decisions.json", "trials.parquet"):
        assert (folder / name).exists()

    again = run(folder, **asked)
    assert again.returncode == 0
    assert "All 4 trials are done" in again.stdout
    assert "Dashboard" not in again.stdout


def test_stopping_frees_processes_and_resources(tmp_path: Path) -> None:
    """Ray has everything back as soon as a trial was stopped, the experiment still running."""
    probe = subprocess.run(
        [sys.executable, str(HERE / "probe_stop.py"), str(tmp_path)],
        env=environment(),
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert probe.returncode == 0, probe.stdout + probe.stderr
    seen = json.loads(probe.stdout.splitlines()[-1])
    assert seen["outcomes"] == ["stopped"] * 3
    assert seen["cpus"] == 2.0
    assert seen["placement_groups"] == 0
    assert seen["workers_alive"] == 0


def test_a_killed_worker_comes_back_from_its_checkpoint(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    with started(folder, trials={E1A: {"steps": 100, "step_s": 0.1}}) as process:
        wait_for(lambda: checkpoints(folder, E1A) >= 4)
        os.kill(worker_pids(folder)[0], signal.SIGKILL)
        output, _ = process.communicate(timeout=200)
    assert process.returncode == 0, output
    assert status(folder, E1A)["status"] == "finished"
    assert status(folder, E1A)["attempt"] == 2
    assert steps(folder, E1A) == list(range(1, 101))
    lines = (folder / "trials" / trial(E1A) / "attempt-2.jsonl").read_text().splitlines()
    assert json.loads(lines[0])["resumed_from"] >= 20


def test_two_workers_of_one_trial(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    done = run(folder, trials={E1A: {}}, workers=2)
    assert done.returncode == 0, done.stdout + done.stderr
    assert steps(folder, E1A) == list(range(1, 21))
    assert len(set(worker_pids(folder))) == 2


@pytest.mark.parametrize(
    ("signum", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)], ids=["SIGINT", "SIGTERM"]
)
def test_interrupted_run_keeps_all_and_continues(
    tmp_path: Path, signum: signal.Signals, code: int
) -> None:
    folder = tmp_path / "run"
    asked = {"trials": {E1A: {"steps": 60, "step_s": 0.1}, E2A: {"steps": 60, "step_s": 0.1}}}
    with started(folder, **asked) as process:
        wait_for(lambda: checkpoints(folder, E1A) >= 2 and checkpoints(folder, E2A) >= 2)
        children = descendants(process.pid)
        process.send_signal(signum)
        output, _ = process.communicate(timeout=60)
    assert process.returncode == code, output
    assert "Continue with: again" in output
    assert (folder / "comparison.md").exists()
    assert [status(folder, e)["status"] for e in (E1A, E2A)] == ["interrupted"] * 2
    assert not [pid for pid in children if alive(pid)]

    done = run(folder, **asked)
    assert done.returncode == 0, done.stdout + done.stderr
    for experiment in (E1A, E2A):
        assert steps(folder, experiment) == list(range(1, 61))
        attempts = sorted((folder / "trials" / trial(experiment)).glob("attempt-*.jsonl"))
        assert len(attempts) == 2
        assert json.loads(attempts[1].read_text().splitlines()[0])["resumed_from"] >= 10


def test_killed_run_continues_at_once_and_a_second_one_is_refused(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    asked = {"trials": {E1A: {"steps": 80, "step_s": 0.1}}}
    with started(folder, **asked) as process:
        wait_for(lambda: checkpoints(folder, E1A) >= 2)
        refused = run(folder, **asked)
        assert refused.returncode == 2
        assert f"in use by process {process.pid}" in refused.stdout
        process.kill()
        process.wait()
    done = run(folder, **asked)
    assert done.returncode == 0, done.stdout + done.stderr
    assert status(folder, E1A)["status"] == "finished"
    assert steps(folder, E1A) == list(range(1, 81))


def test_failed_trial_is_kept_until_retried(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    done = run(folder, trials={E1A: {"crash_at": 7}})
    assert done.returncode == 1
    assert "failed: overfit-E1a-s0: ValueError: was told to crash" in done.stdout
    assert "--retry-failed" in done.stdout
    assert "Traceback" in (folder / "trials" / trial(E1A) / "log").read_text()
    untouched = run(folder, trials={E1A: {}})
    assert untouched.returncode == 1
    assert "Dashboard" not in untouched.stdout
    retried = run(folder, trials={E1A: {}}, retry_failed=True)
    assert retried.returncode == 0, retried.stdout + retried.stderr
    assert steps(folder, E1A) == list(range(1, 21))


def test_arms_wait_for_a_decoder_that_failed(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    done = run(folder, decoder={"crash_at": 1}, trials={E1A: {}})
    assert done.returncode == 1
    assert status(folder, E1A)["status"] == "pending"
    assert "waits for decoder-trm-s0, which is failed" in status(folder, E1A)["reason"]


@pytest.mark.parametrize("forked", [True, False], ids=["forked", "trainer"])
def test_one_trial_out_of_memory_and_the_others_go_on(tmp_path: Path, forked: bool) -> None:
    """A real `MemoryError`, a process killed at the same step every time, and a loss that is no
    number: each costs its own trial."""
    folder = tmp_path / "run"
    trials: dict[str, Any] = {E2A: {"memory_at": 7}, E1A: {"steps": 30}}
    if forked:  # a trainer takes a minute to give a trial up that is killed again and again
        trials |= {E2B: {"killed_at": 7}, "overfit/E2c": {"diverged_at": 7}}
    done = run(folder, trials=trials, forked=forked)
    assert done.returncode == 1, done.stdout + done.stderr
    assert status(folder, E1A)["status"] == "finished"
    assert steps(folder, E1A) == list(range(1, 31))
    assert status(folder, E2A)["status"] == "failed"
    assert status(folder, E2A)["reason"] == "out of memory"
    assert f"failed: {trial(E2A)}: out of memory" in done.stdout
    assert steps(folder, E2A) == list(range(1, 7)), "what it measured is kept"
    assert not any(alive(pid) for pid in worker_pids(folder))
    if forked:
        assert status(folder, E2B)["status"] == "failed"
        assert "killed by SIGKILL (by hand, or out of memory), 4 times" in done.stdout
        assert steps(folder, E2B) == list(range(1, 7))
        told = status(folder, "overfit/E2c")
        assert (told["status"], told["reason"]) == (
            "diverged",
            "train/loss is not finite at step 7",
        )


def resident_kb(pid: int) -> int:
    """Memory of a process, 0 when it has ended."""
    with contextlib.suppress(OSError, IndexError):
        text = Path(f"/proc/{pid}/status").read_text()
        return int(text.split("VmRSS:")[1].split()[0])
    return 0


SOAK = int(os.environ.get("ETRM_SOAK", "60"))
"""Trials of the soak: a quarter of them must take longer than a look at the memory takes; 200 is
the number that a release is tried with."""


@pytest.mark.timeout(300 + 10 * SOAK)
def test_a_soak_of_short_trials_leaves_memory_flat_and_nothing_behind(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    trials = {f"overfit/T{n:03}": {"steps": 5, "step_s": 0.01} for n in range(SOAK)}
    seen: list[tuple[int, int]] = []
    with started(folder, trials=trials, forked=True) as process:
        output = Drain(process)
        children: set[int] = set()
        while process.poll() is None:
            done = len(list(folder.glob("trials/*/result.json")))
            seen.append((done, resident_kb(process.pid)))
            children |= descendants(process.pid)
            time.sleep(0.05)
    assert process.returncode == 0, output.text()
    assert f"All {SOAK} trials are done" in output.text()
    for name in trials:
        assert status(folder, name)["status"] == "finished"
        assert steps(folder, name) == [1, 2, 3, 4, 5]
        assert len(list((folder / "trials" / trial(name)).glob("attempt-*.jsonl"))) == 1
    assert not [pid for pid in children if alive(pid)]
    assert not (folder / "ray").exists()
    early = [kb for done, kb in seen if SOAK * 0.25 <= done <= SOAK * 0.5 and kb]
    late = [kb for done, kb in seen if done >= SOAK * 0.75 and kb]
    told = f"main process: {min(early)} kB early, {max(late)} kB late, {SOAK} trials"
    print(told)
    # The last point is where the tables are made: pandas is loaded by then.
    assert sorted(late)[len(late) // 2] < 1.1 * max(early), told


class Drain:
    """Reads a process's output while it runs, so that it never waits for a reader."""

    def __init__(self, process: subprocess.Popen[str]) -> None:
        assert process.stdout is not None
        self._lines: list[str] = []
        self._thread = threading.Thread(target=self._read, args=[process.stdout], daemon=True)
        self._thread.start()

    def _read(self, stream: Any) -> None:
        with contextlib.suppress(ValueError):  # closed
            self._lines.extend(stream)

    def text(self) -> str:
        """What it has said so far."""
        self._thread.join(timeout=5)
        return "".join(self._lines)
