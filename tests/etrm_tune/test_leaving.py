"""The status of a process whose libraries crash on their way out is that of its command."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
LIBRARY_THAT_CRASHES = """
import ctypes
libc = ctypes.CDLL(None)
libc.__cxa_atexit(ctypes.cast(libc.abort, ctypes.c_void_p), None, None)
"""
STATUS = "import sys; from etrm_tune.leaving import ended_by; ended_by(main)"


def run(folder: Path, *words: str) -> subprocess.CompletedProcess[str]:
    """Python with a library that aborts the process when it is unloaded."""
    (folder / "sitecustomize.py").write_text(LIBRARY_THAT_CRASHES)
    path = os.pathsep.join((str(folder), str(ROOT)))
    return subprocess.run(
        [sys.executable, *words],
        cwd=folder,
        env=os.environ | {"PYTHONPATH": path},
        capture_output=True,
        text=True,
        timeout=120,
    )


def test_the_library_crashes(tmp_path: Path) -> None:
    assert run(tmp_path, "-c", "print('done')").returncode == -6


@pytest.mark.parametrize(
    ("words", "status"),
    [
        (["-m", "etrm_tune", "list"], 0),
        (["-m", "etrm_tune", "lst"], 2),
        (["-m", "etrm_tune", "--help"], 0),
        (["-m", "etrm_tune.run", "phse1"], 2),
        (["-m", "etrm_tune.run", "--help"], 0),
        (["-c", "from etrm_tune.cli import console; console()"], 2),
    ],
)
def test_a_command_ends_with_its_own_status(tmp_path: Path, words: list[str], status: int) -> None:
    ended = run(tmp_path, *words)
    assert ended.returncode == status, ended.stderr
    assert ended.stdout or ended.stderr


def test_exit_handlers_run_and_what_was_printed_arrives(tmp_path: Path) -> None:
    main = """
import atexit, logging, threading, time
def main():
    atexit.register(print, 'handler')
    threading.Thread(target=lambda: (time.sleep(0.2), print('thread'))).start()
    print('main')
    return 3
"""
    ended = run(tmp_path, "-c", main + STATUS)
    assert ended.returncode == 3
    assert ended.stdout.split() == ["main", "thread", "handler"]


def test_an_exception_is_shown_as_always(tmp_path: Path) -> None:
    ended = run(tmp_path, "-c", "def main():\n    raise KeyError('lost')\n" + STATUS)
    assert "KeyError: 'lost'" in ended.stderr


def test_a_full_disk_is_not_taken_for_success(tmp_path: Path) -> None:
    words = "def main():\n    sys.stdout = open('/dev/full', 'w')\n    print('x')\n    return 0\n"
    assert run(tmp_path, "-c", words + STATUS).returncode == 1
