"""Who may write into a trial's folder: attempts are numbered, and each has one owner.

Worker processes can outlive a killed main process by a minute. So every run that starts a trial
names itself its owner first; only workers of that owner begin an attempt, and a worker whose number
is no longer the one in ``current_attempt`` quits. Checkpoints and results are put in place
`holding` the trial, so that none appears behind the back of a later attempt.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
from collections.abc import Iterator
from pathlib import Path

from trainable.errors import storage_error


class SupersededError(RuntimeError):
    """Another run has taken this trial over."""


@contextlib.contextmanager
def _locked(out_dir: Path) -> Iterator[None]:
    try:
        file = (out_dir / "attempt.lock").open("w")
    except OSError as error:
        raise storage_error(out_dir, error) from error
    with file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def _write(path: Path, text: str) -> None:
    temporary = path.with_name(f"{path.name}.{os.getpid()}.tmp")
    try:
        temporary.write_text(text)
        temporary.replace(path)
    except OSError as error:
        with contextlib.suppress(OSError):
            temporary.unlink()
        raise storage_error(path, error) from error


def last_attempt(out_dir: Path) -> int:
    """Largest attempt number given out or written so far, 0 for none."""
    numbers = [path.stem.removeprefix("attempt-") for path in out_dir.glob("attempt-*.jsonl")]
    found = [int(number) for number in numbers if number.isdigit()]
    with contextlib.suppress(FileNotFoundError, ValueError):
        found.append(int((out_dir / "current_attempt").read_text()))
    return max(found, default=0)


def begin_attempt(out_dir: Path, owner: str) -> int:
    """Take the trial over for ``owner``: workers of every earlier owner see a larger number."""
    try:
        out_dir.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise storage_error(out_dir, error) from error
    with _locked(out_dir):
        attempt = last_attempt(out_dir) + 1
        _write(out_dir / "attempt_owner", owner)
        _write(out_dir / "current_attempt", str(attempt))
    return attempt


def claim_attempt(out_dir: Path, owner: str) -> int:
    """Number under which a worker of ``owner`` writes: a new one if the current one was used.

    Raises `SupersededError` when the trial belongs to another owner by now.
    """
    with _locked(out_dir):
        if (out_dir / "attempt_owner").read_text() != owner:
            raise SupersededError(f"{out_dir.name} was taken over by another run")
        attempt = last_attempt(out_dir)
        if (out_dir / f"attempt-{attempt}.jsonl").exists():
            attempt += 1
            _write(out_dir / "current_attempt", str(attempt))
    return attempt


def is_current(out_dir: Path, attempt: int) -> bool:
    """Whether no later attempt of this trial has begun."""
    try:
        return int((out_dir / "current_attempt").read_text()) <= attempt
    except (FileNotFoundError, ValueError):
        return True


@contextlib.contextmanager
def holding(out_dir: Path, attempt: int) -> Iterator[None]:
    """No later attempt begins inside: what is put in place here, it will find.

    A checkpoint that an orphan put in place *after* a later attempt had chosen its own would break
    the curve: the attempt after both would continue from it, without the rows before it.

    Raises `SupersededError` when a later attempt has begun already.
    """
    with _locked(out_dir):
        if not is_current(out_dir, attempt):
            raise SupersededError(f"a later attempt of {out_dir.name} has begun")
        yield
