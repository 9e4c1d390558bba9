"""A run at a URL whose machine is lost: another one, which has nothing, goes on with it."""

from __future__ import annotations

import json
import os
import shlex
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from etrm_tune.run_folder import RunFolder
from tests.test_random_kills import ROOT, SETTINGS, puzzles

__all__ = ["puzzles"]  # a fixture

pytestmark = [pytest.mark.slow, pytest.mark.ray]

TRIAL, NAME = "overfit-E4a-s0", "overfit-E4a"
PATIENCE_S = 400.0


def begin(home: Path, url: str, machine: str, data: Path) -> subprocess.Popen[str]:
    """The command on a machine, which is a cache folder of its own."""
    words = ["overfit/E4a", "--profile", "laptop", "--scheduler", "none", "--runs", url]
    settings = SETTINGS | {"epochs": 800}  # 100 steps
    words += ["--data", str(data), *(f"--set={name}={value}" for name, value in settings.items())]
    return subprocess.Popen(
        [sys.executable, "-m", "etrm_tune.run", *words],
        env=os.environ | {"PYTHONPATH": str(ROOT), "ETRM_TUNE_CACHE": str(home / machine)},
        cwd=home,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def done(process: subprocess.Popen[str]) -> tuple[int, str]:
    output, _ = process.communicate(timeout=PATIENCE_S)
    return process.returncode, f"{shlex.join(process.args)}\n{output}"  # type: ignore[arg-type]


def losses(url: str) -> dict[int, Any]:
    """Loss by step, as the rows at a URL tell it; each step once."""
    folder = RunFolder(Path(url.removeprefix("file://")) / NAME)
    rows = folder.rows(TRIAL)
    assert [row["step"] for row in rows] == list(range(1, 101))
    return {row["step"]: row["train/loss"] for row in rows}


def test_another_machine_goes_on_where_the_lost_one_was(tmp_path: Path, puzzles: Path) -> None:
    whole, url = f"file://{tmp_path}/whole", f"file://{tmp_path}/store"
    code, told = done(begin(tmp_path, whole, "first", puzzles))
    assert code == 0, told

    store = tmp_path / "store" / NAME
    lost = begin(tmp_path, url, "first", puzzles)
    deadline = time.monotonic() + PATIENCE_S
    # Two: a local folder as a store may keep half of the one that is being written.
    while len(list(store.glob(f"trials/{TRIAL}/checkpoints/*.pt"))) < 2:
        assert lost.poll() is None and time.monotonic() < deadline, done(lost)
        time.sleep(0.05)
    lost.kill()
    lost.wait()
    assert lost.stdout is not None
    lost.stdout.close()
    code, told = done(begin(tmp_path, url, "second", puzzles))
    assert code == 2 and "is in use by process" in told, told
    shutil.rmtree(tmp_path / "first")  # the machine, with all that had not been sent
    lease = json.loads((store / ".session.json").read_text())
    (store / ".session.json").write_text(json.dumps(lease | {"time": lease["time"] - 100}))

    code, told = done(begin(tmp_path, url, "second", puzzles))
    assert code == 0, told
    assert (tmp_path / "second").is_dir()
    attempts = sorted(store.glob(f"trials/{TRIAL}/attempt-*.jsonl"))
    assert json.loads(attempts[-1].read_text().splitlines()[0])["resumed_from"] >= 5
    assert losses(url) == losses(whole), "bit for bit"
