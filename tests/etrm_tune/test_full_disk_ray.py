"""A disk that fills up while a run trains on it: told in a line, nothing lost, continued."""

from __future__ import annotations

import json
import os
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from etrm_tune.run_folder import RunFolder
from tests.test_end_to_end import command
from tests.test_random_kills import SETTINGS, puzzles

__all__ = ["puzzles"]  # a fixture

TRIAL = "overfit-E4a-s0"
ALONE = ["unshare", "-m"] if os.geteuid() == 0 else ["unshare", "-rm"]
"""A mount namespace of its own, in which a disk may be mounted."""


def mounts() -> bool:
    """Whether this user may mount a disk for himself."""
    test = "mount -t tmpfs tmpfs /mnt"
    try:
        return subprocess.run([*ALONE, "sh", "-c", test], capture_output=True).returncode == 0
    except OSError:
        return False


@pytest.mark.slow
@pytest.mark.ray
@pytest.mark.skipif(not mounts(), reason="needs to mount a small disk (unshare)")
@pytest.mark.parametrize("short", ["on", "off"])
def test_a_disk_that_fills_up_interrupts_and_loses_nothing(
    tmp_path: Path, puzzles: Path, short: str
) -> None:
    settings = SETTINGS | {"epochs": 1600}  # 200 steps: the disk is full long before the end
    words = ["overfit/E4a", "--profile", "laptop", "--scheduler", "none", "--short-trials", short]
    words += ["--data", str(puzzles), *(f"--set={k}={v}" for k, v in settings.items())]
    whole = command(tmp_path, *words, "--name", "whole")
    assert whole.returncode == 0, whole.stdout + whole.stderr
    expected = {
        row["step"]: row["train/loss"] for row in RunFolder(tmp_path / "runs" / "whole").rows(TRIAL)
    }
    assert len(expected) == 200

    disk, probe = tmp_path / "disk", Path(__file__).with_name("probe_full.py")
    disk.mkdir()
    inner = [sys.executable, str(probe), str(disk), str(tmp_path), *words]
    mount = f"mount -t tmpfs -o size=130m tmpfs {shlex.quote(str(disk))}"
    done = subprocess.run(
        [*ALONE, "sh", "-c", f"{mount} && exec {shlex.join(inner)}"],
        env=os.environ | {"PYTHONPATH": str(Path(__file__).parents[2]), "NO_COLOR": "1"},
        capture_output=True,
        text=True,
        timeout=1000,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    seen = json.loads(done.stdout)
    assert "early" not in seen, seen["early"]
    told = seen["output"]
    assert seen["code"] != 0 and "Traceback" not in told, told
    assert "full" in told and "free some space" in told, told
    assert seen["rows"] == list(range(1, len(seen["rows"]) + 1)) and len(seen["rows"]) < 200
    assert seen["saved"], "checkpoints from before"
    assert seen["again"] == 0, seen["again_output"]
    assert seen["status"] == "finished"
    assert {int(step): loss for step, loss in seen["loss"].items()} == expected, "bit for bit"
