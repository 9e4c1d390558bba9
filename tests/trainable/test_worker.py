"""What is told of a trial that ended with an exception, and its log."""

from __future__ import annotations

import errno
import pickle
from pathlib import Path

import pytest
import torch

from trainable.errors import FULL, StorageError, storage_error
from trainable.worker import Log, one_line, outcome_of


class Wrapped(Exception):
    """As Ray wraps what a worker raised."""

    def __init__(self, *causes: BaseException) -> None:
        super().__init__("a traceback\nof many lines")
        self.worker_failures = dict(enumerate(causes))


class Inner(Exception):
    """As Ray carries an exception from one process to another."""

    def __init__(self, cause: BaseException) -> None:
        super().__init__("a traceback")
        self._base_exc = cause


def full() -> StorageError:
    return storage_error(Path("x.pt"), OSError(errno.ENOSPC, "No space left on device"))


def test_a_full_disk_interrupts_whoever_met_it() -> None:
    text = "disk full while writing x.pt: free space, then run again"
    expected = {"status": "interrupted", "reason": text}
    other = ValueError("the other worker lost its peer")
    for error in (full(), Inner(full()), Wrapped(full()), Wrapped(Inner(other), Inner(full()))):
        assert outcome_of(error) == expected
    assert outcome_of(pickle.loads(pickle.dumps(full()))) == expected, "it crosses processes"
    for number in FULL:
        assert "disk full" in str(storage_error(Path("x"), OSError(number, "?")))


@pytest.mark.parametrize(
    ("error", "text"),
    [
        (MemoryError(), "out of memory"),
        (Inner(MemoryError()), "out of memory"),
        (Wrapped(Inner(MemoryError())), "worker 0: out of memory"),
        (torch.OutOfMemoryError("CUDA out of memory. Tried\nmore"), "out of memory: CUDA out of"),
        (ValueError("first\nlast line"), "ValueError: last line"),
    ],
    ids=str,
)
def test_what_failed_is_one_line(error: BaseException, text: str) -> None:
    assert one_line(error).startswith(text)
    assert "\n" not in one_line(error)
    assert outcome_of(error) == {"status": "failed", "reason": one_line(error)}


def test_a_log_without_room_is_no_reason_to_stop(tmp_path: Path) -> None:
    path = tmp_path / "log"
    for _ in range(2):
        with Log(path) as log:
            print("a line", file=log)
    assert path.read_text() == "a line\na line\n"
    path.unlink()
    path.symlink_to("/dev/full")
    with Log(path) as log:
        assert log.write("lost") == 4
    with Log(tmp_path / "nowhere" / "log") as log:
        print("lost", file=log)
