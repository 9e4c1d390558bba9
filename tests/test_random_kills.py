"""Kills without warning at moments that a seed decides: the run continues, bit for bit.

``ETRM_KILLS`` is the number of kills (3), ``ETRM_KILL_SEED`` their seed (0).
"""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import time
import uuid
from collections.abc import Iterator
from itertools import count
from pathlib import Path

import pandas as pd
import pytest

import analysis
from analysis.rows import read_attempts
from etrm_tune.conductor import TRIAL_RESTARTS, WORKER_RESTARTS
from etrm_tune.run_folder import RunFolder
from trainable.checkpoint import list_steps

KILLS = int(os.environ.get("ETRM_KILLS", "3"))
SEED = int(os.environ.get("ETRM_KILL_SEED", "0"))
ROOT = Path(__file__).parents[1]

STEPS = {"overfit-E4a-s0": 30, "debug-E3_lpn_var-s0": 30}
SETTINGS = {
    "epochs": 240,
    "max_train_groups": 4,
    "max_eval_groups": 1,
    "num_aug": 0,
    "eval_num_aug": 0,
    "eval_interval": 100_000,
    "hidden_size": 32,
    "num_heads": 2,
    "puzzle_emb_ndim": 32,
    "log_interval": 1,
    "checkpoint_interval": 5,
}
WORDS = ["overfit/E4a,debug/E3_lpn_var", "--profile", "laptop", "--scheduler", "none"]
WORDS += ["--short-trials", "off"]

WORKER, TRIAL, MAIN = "train worker", "trial", "main"
TITLES = {WORKER: "ray::RayTrainWorker", TRIAL: "ray::ResourceTrainable"}
"""What Ray calls them in their command lines; Tune wraps a trial that asks for resources."""
RESTARTS = {WORKER: WORKER_RESTARTS, TRIAL: TRIAL_RESTARTS}
"""Kills that one session may survive, if they all hit the same trial."""
PATIENCE_S = 1200.0
"""For one session, however busy the machine."""
GONE_S = 120.0
"""Seconds within which Ray ends what a killed main process left behind."""

Process = tuple[int, str]
"""Number and start time: numbers are used again."""


class Watch:
    """Every process of this test's sessions, orphans too.

    They are the children of those already known, and whoever has this test's mark in its
    environment: Ray overwrites the environment of some, and the parents of others may be gone.
    """

    def __init__(self) -> None:
        self.mark = f"ETRM_KILL_TEST={uuid.uuid4().hex}"
        self.known: set[Process] = set()

    def living(self) -> dict[Process, int]:
        """Living processes of every session, each with its parent's number."""
        table: dict[Process, int] = {}
        for folder in Path("/proc").glob("[0-9]*"):
            try:
                words = (folder / "stat").read_text().rsplit(")", 1)[1].split()
                marked = self.mark.encode() in (folder / "environ").read_bytes()
            except OSError:
                continue
            process = int(folder.name), words[19]
            if words[0] not in "ZX":
                table[process] = int(words[1])
                if marked and process[0] != os.getpid():
                    self.known.add(process)
        while True:
            parents = {pid for pid, _ in self.known & table.keys()}
            more = {one for one, parent in table.items() if parent in parents} - self.known
            if not more:
                return {one: parent for one, parent in table.items() if one in self.known}
            self.known |= more

    def below(self, pid: int) -> list[int]:
        """Living processes below ``pid``, in order."""
        table = self.living()
        found = {pid}
        while more := {p for (p, _), parent in table.items() if parent in found} - found:
            found |= more
        return sorted(found - {pid})

    def victims(self, kind: str, main: int) -> list[int]:
        """Processes of this kind that the living session ``main`` started."""
        if kind == MAIN:
            return [main]
        return [pid for pid in self.below(main) if title(pid).startswith(TITLES[kind])]


def title(pid: int) -> str:
    try:
        return Path(f"/proc/{pid}/cmdline").read_text()
    except OSError:
        return ""


@pytest.fixture
def watch() -> Iterator[Watch]:
    watch = Watch()
    yield watch
    for pid, _ in watch.living():
        os.kill(pid, signal.SIGKILL)


@pytest.fixture
def puzzles(tmp_path: Path) -> Path:
    """Eight training puzzles and one held-out puzzle of 2 × 2 cells: swap the colours."""
    folder = tmp_path / "puzzles"
    folder.mkdir()
    for subset, number in (("training", 8), ("evaluation", 1)):
        challenges, solutions = {}, {}
        for index in range(number):
            pairs = [{"input": [[index, n], [n, 1]], "output": [[n, 1], [1, n]]} for n in range(3)]
            name = f"{subset[:2]}{index:03d}"
            challenges[name] = {"train": pairs[:2], "test": [{"input": pairs[2]["input"]}]}
            solutions[name] = [pairs[2]["output"]]
        (folder / f"arc-agi_{subset}_challenges.json").write_text(json.dumps(challenges))
        (folder / f"arc-agi_{subset}_solutions.json").write_text(json.dumps(solutions))
    return folder


class Command:
    """The command, as a user types it in `folder`; `begin` again continues the run."""

    def __init__(self, folder: Path, data: Path, watch: Watch) -> None:
        self.folder, self.data, self.watch = folder, data, watch

    def begin(self, name: str) -> subprocess.Popen[bytes]:
        settings = [f"--set={key}={value}" for key, value in SETTINGS.items()]
        words = [*WORDS, "--name", name, "--data", str(self.data), *settings]
        mark = dict([self.watch.mark.split("=")])
        # Into a file: orphans would hold a pipe open.
        with self.output(name).open("ab") as out:
            return subprocess.Popen(
                [sys.executable, "-m", "etrm_tune.run", *words],
                cwd=self.folder,
                env=os.environ | mark | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"},
                stdout=out,
                stderr=subprocess.STDOUT,
            )

    def output(self, name: str) -> Path:
        return self.folder / f"{name}.out"

    def path(self, name: str) -> Path:
        return self.folder / "runs" / name


class Killer:
    """Kills `left` processes, at random moments of a session.

    Args:
        watch: knows the processes.
        left: kills to come.
        training_s: seconds from the first row to the last in an undisturbed run.
        session_s: seconds of that run in all.
    """

    def __init__(self, watch: Watch, left: int, training_s: float, session_s: float) -> None:
        self.watch, self.left = watch, left
        self.spans = {WORKER: training_s, TRIAL: training_s, MAIN: session_s}
        self.random = random.Random(SEED)
        self.done: list[str] = []

    def attend(self, session: subprocess.Popen[bytes]) -> int:
        """Kill within one session until it ends; returns its exit code."""
        hits = dict.fromkeys(RESTARTS, 0)
        while self.left > 0 and session.poll() is None:
            kind = self.random.choice([WORKER, TRIAL, MAIN])
            if kind != MAIN and hits[kind] == RESTARTS[kind]:
                kind = MAIN
            # Two thirds within training, the others from the victim's own first moment on.
            since = self.random.choice([kind, WORKER, WORKER])
            share = self.random.random()
            if not self._target(since, session):
                break
            self._pass(share * self.spans[since], session)
            victims = self.watch.victims(kind, session.pid)
            if not victims or session.poll() is not None:
                continue
            try:
                os.kill(self.random.choice(victims), signal.SIGKILL)
            except ProcessLookupError:
                continue
            self.left -= 1
            self.done.append(kind)
            if kind == MAIN:
                break
            hits[kind] += 1
        return session.wait(timeout=PATIENCE_S)

    def _target(self, kind: str, session: subprocess.Popen[bytes]) -> bool:
        """Wait for a process of this kind; False when the session ended without one."""
        while session.poll() is None:
            if self.watch.victims(kind, session.pid):
                return True
            time.sleep(0.1)
        return False

    def _pass(self, seconds: float, session: subprocess.Popen[bytes]) -> None:
        """Let time pass, and keep knowing every process: of an orphan the parent may be gone."""
        end = time.monotonic() + seconds
        while session.poll() is None and (left := end - time.monotonic()) > 0:
            self.watch.living()
            time.sleep(min(left, 0.25))


def check_kept(path: Path, expected: pd.DataFrame) -> None:
    """Right after a kill, orphans still alive: every row up to the last checkpoint is there once,
    and each attempt goes on where the checkpoint that it took ends."""
    for trial_id in STEPS:
        home = RunFolder(path).trial(trial_id)
        saved = list_steps(home / "checkpoints")  # before the rows: a row comes first
        last = saved[-1][0] if saved else 0
        rows = {row["step"]: row for row in RunFolder(path).rows(trial_id)}
        whole = expected[expected["trial_id"] == trial_id].set_index("step")
        for step in range(1, last + 1):
            assert step in rows, f"{trial_id}: step {step} of {last} is lost"
            assert rows[step]["train/loss"] == whole.loc[step, "train/loss"], (trial_id, step)
        for attempt in read_attempts(home, []) if home.is_dir() else []:
            begin = (attempt.resumed_from or 0) + 1
            assert list(attempt.rows) == list(range(begin, begin + len(attempt.rows)))


def curves(path: Path) -> pd.DataFrame:
    """What every trial measured, by step, without times."""
    table = analysis.load(path).curves.sort_values(["trial_id", "step"], ignore_index=True)
    measured = [name for name in map(str, table) if name.startswith(("train/", "grad/", "eval/"))]
    return table[["trial_id", "step", "samples", *sorted(measured)]]


@pytest.mark.slow
@pytest.mark.ray
@pytest.mark.timeout(1800 + 240 * KILLS)
def test_random_kills_change_nothing(tmp_path: Path, puzzles: Path, watch: Watch) -> None:
    command = Command(tmp_path, puzzles, watch)
    began = time.monotonic()
    whole = command.begin("undisturbed")
    assert whole.wait(timeout=PATIENCE_S) == 0, command.output("undisturbed").read_text()
    session_s = time.monotonic() - began
    expected = curves(command.path("undisturbed"))
    for trial_id, steps in STEPS.items():
        assert list(expected["step"][expected["trial_id"] == trial_id]) == list(range(1, steps + 1))
    assert {"train/loss", "train/accuracy"} <= set(expected)
    times = analysis.load(command.path("undisturbed")).curves["time"]
    killer = Killer(watch, KILLS, float(times.max() - times.min()), session_s)

    for attempt in count(1):
        name = f"disturbed-{attempt}"
        while (code := killer.attend(command.begin(name))) == -signal.SIGKILL:
            check_kept(command.path(name), expected)  # and the next one starts at once
        print(f"{name}: killed {killer.done}", flush=True)
        told = f"kills: {', '.join(killer.done)}\n{command.output(name).read_text()}"
        assert code == 0, told
        run = analysis.load(command.path(name))
        assert set(run.trials["status"]) == {"finished"}, told
        pd.testing.assert_frame_equal(curves(command.path(name)), expected, check_exact=True)
        assert not RunFolder(command.path(name)).in_use(), told
        assert not (command.path(name) / "ray").exists(), "notes of killed sessions are cleared"
        if killer.left == 0:
            break

    deadline = time.monotonic() + GONE_S
    while (left := watch.living()) and time.monotonic() < deadline:
        time.sleep(0.5)
    assert not left, {pid: title(pid) for pid, _ in left}
