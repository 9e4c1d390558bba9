"""The folder of one run: plan, statuses, lock. The plan on disk is the truth.

Layout in docs/architecture.md. Everything this file writes is written whole: to a temporary
neighbour, flushed to the disk, renamed.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import json
import os
import socket
import tempfile
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import IO, Any

from analysis.rows import SCHEMA_VERSION, check_trial_id, merge, read_attempts, read_object
from trainable.errors import UserError

FINAL = frozenset({"finished", "stopped", "diverged"})
"""Statuses after which a trial is not touched again. ``failed`` is retried when asked."""

BEFORE_PLAN = frozenset({"lock", "run.log", "ray", "inputs", ".here", ".reach", ".session.json"})
"""What may lie in a run folder before it has a plan (`etrm_tune.mirror`, `etrm_tune.cluster`)."""


class RunFolderError(UserError):
    """A run folder cannot be used for this command."""


class FolderInUseError(RunFolderError):
    """Another process holds the lock."""


LOOK_S = 0.3
"""Seconds for which a lock may be held by someone who only looks (`RunFolder.in_use`)."""


def _take(file: IO[str]) -> bool:
    """Lock an open file; False when another process keeps it."""
    deadline = time.monotonic() + LOOK_S
    while True:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return True
        except BlockingIOError:
            if time.monotonic() > deadline:
                return False
            time.sleep(0.02)


def write_atomic(path: Path, text: str) -> None:
    """Replace a file's content as a whole; it survives a power cut or is as it was.

    Raises `RunFolderError` when the disk is full or not writable.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with temporary.open("w", encoding="utf-8") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    except OSError as error:
        with contextlib.suppress(OSError):
            temporary.unlink()
        raise disk_error(path, error) from None


def disk_error(path: Path, error: OSError) -> RunFolderError:
    """One line for what the operating system said about ``path``."""
    fixes = {
        errno.ENOSPC: "the disk is full: free some space, or choose another place with --runs DIR",
        errno.EFBIG: "the size allowed for a file is used up: raise ulimit -f",
        errno.EDQUOT: "the disk quota is used up: free some space, or use --runs DIR",
        errno.EROFS: "the disk is read-only: choose another place with --runs DIR",
        errno.EACCES: "no permission to write there: choose another place with --runs DIR",
        errno.ENOTDIR: "a file stands where a folder is needed: choose --runs DIR or --name NAME",
        errno.EEXIST: "a file stands where a folder is needed: choose --runs DIR or --name NAME",
    }
    fix = fixes.get(error.errno or 0, f"{error.strerror}: choose another place with --runs DIR")
    return RunFolderError(f"cannot write {path}: {fix}")


class RunFolder:
    """One ``runs/<name>`` folder."""

    def __init__(self, path: Path | str) -> None:
        self.path = Path(path).absolute()
        self._lock: IO[str] | None = None

    @property
    def name(self) -> str:
        """Last part of the path."""
        return self.path.name

    @property
    def log(self) -> Path:
        """What is not for the terminal."""
        return self.path / "run.log"

    def trial(self, trial_id: str) -> Path:
        """Folder of one trial. Raises `ResultsError` for a name that would lead elsewhere."""
        return self.path / "trials" / check_trial_id(trial_id, self.path / "plan.json")

    # The lock.

    @contextlib.contextmanager
    def locked(self) -> Iterator[RunFolder]:
        """Hold the folder; the operating system frees it when this process dies.

        Raises `FolderInUseError` naming the process that holds it.
        """
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            file = (self.path / "lock").open("a+", encoding="utf-8")
        except OSError as error:
            raise disk_error(self.path, error) from None
        with file:
            if not _take(file):
                raise FolderInUseError(self.in_use_text())
            file.truncate(0)
            now = time.strftime("%Y-%m-%d %H:%M")
            file.write(f"{os.getpid()}\n{socket.gethostname()}\n{now}\n")
            file.flush()
            self._lock = file
            try:
                yield self
            finally:
                self._lock = None
                with contextlib.suppress(OSError):
                    file.truncate(0)

    def holder(self) -> int | None:
        """Process that wrote itself into the lock, None when there is none."""
        with contextlib.suppress(OSError, ValueError, IndexError):
            return int((self.path / "lock").read_text().split()[0])
        return None

    def holder_text(self) -> str:
        """``process 123 on HOST since 2026-11-27 18:20``, as far as it is known."""
        lines: list[str] = []
        with contextlib.suppress(OSError):
            lines = (self.path / "lock").read_text(errors="replace").splitlines()
        if not lines:
            return "an unknown process"
        words = zip(("process", "on", "since"), lines, strict=False)
        return " ".join(f"{word} {value}" for word, value in words)

    def in_use_text(self) -> str:
        """One line for whoever finds the folder locked."""
        return (
            f"{self.path} is in use by {self.holder_text()}: wait for it, stop it, or start "
            f"another run with --name NAME"
        )

    def in_use(self) -> bool:
        """Whether a living process holds the lock."""
        try:
            with (self.path / "lock").open("r", encoding="utf-8") as file:
                try:
                    fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
                except BlockingIOError:
                    return True
        except OSError:
            pass
        return False

    # The plan.

    def read_plan(self) -> dict[str, Any] | None:
        """plan.json, upgraded from older versions; None in a folder without one.

        Raises `RunFolderError` for a folder that is not a run folder, or a damaged plan.
        """
        path = self.path / "plan.json"
        if not path.exists():
            strangers = {p.name for p in self.path.iterdir()} if self.path.is_dir() else set()
            strangers -= BEFORE_PLAN
            strangers = {name for name in strangers if not name.endswith(".tmp")}
            if strangers == {"trials"} and self._holds_only_taken():
                return None  # killed between taking a parent's results and writing the plan
            if strangers:
                raise RunFolderError(
                    f"{self.path} is not empty and holds no plan.json: choose another folder with "
                    f"--name NAME or --runs DIR"
                )
            return None
        plan = read_object(path)
        if plan is None:
            raise RunFolderError(
                f"{path} is damaged: restore it, or start a new run with --name NAME"
            )
        return plan

    def _holds_only_taken(self) -> bool:
        """Whether every trial is a copy of another run's (`etrm_tune.follow.take_results`)."""
        return all(
            home.name.startswith(".") or "taken_from" in (read_object(home / "status.json") or {})
            for home in (self.path / "trials").iterdir()
        )

    def write_plan(self, plan: Mapping[str, Any]) -> None:
        """Write plan.json."""
        write_atomic(self.path / "plan.json", _json({"schema_version": SCHEMA_VERSION, **plan}))

    def update_plan(self, **values: Any) -> None:
        """Replace entries of plan.json that do not decide the trials (estimate, sessions)."""
        plan = self.read_plan()
        assert plan is not None, "there is no plan yet"
        self.write_plan(plan | values)

    # Trials.

    def read_config(self, trial_id: str) -> dict[str, Any] | None:
        """The trial's config.json."""
        return read_object(self.trial(trial_id) / "config.json")

    def write_config(self, trial_id: str, values: Mapping[str, Any]) -> None:
        """Write the trial's config.json. A trial of another identity is refused.

        Raises `RunFolderError` naming the trial.
        """
        old = self.read_config(trial_id)
        if old is not None and old.get("identity") != values["identity"]:
            raise RunFolderError(
                f"{self.trial(trial_id)} was begun with another configuration, data or version "
                f"(identity {old.get('identity')}, now {values['identity']}): "
                f"start a new run with --name NAME"
            )
        write_atomic(
            self.trial(trial_id) / "config.json",
            _json({"schema_version": SCHEMA_VERSION, "trial_id": trial_id, **values}),
        )

    def read_status(self, trial_id: str) -> dict[str, Any]:
        """The trial's status.json; ``pending`` when there is none."""
        return read_object(self.trial(trial_id) / "status.json") or {"status": "pending"}

    def write_status(self, trial_id: str, status: str, reason: str = "", **more: Any) -> None:
        """Replace the trial's status, keeping what else was known (attempt, step)."""
        known = self.read_status(trial_id)
        values = known | {"status": status, "reason": reason, "time": time.time()} | more
        write_atomic(
            self.trial(trial_id) / "status.json",
            _json({"schema_version": SCHEMA_VERSION} | values),
        )

    def read_result(self, trial_id: str) -> dict[str, Any] | None:
        """The loop's result.json."""
        return read_object(self.trial(trial_id) / "result.json")

    def rows(self, trial_id: str) -> list[dict[str, Any]]:
        """Rows measured so far, attempts merged, by step."""
        folder = self.trial(trial_id)
        return merge(read_attempts(folder, [])) if folder.is_dir() else []


def _json(values: Mapping[str, Any]) -> str:
    return json.dumps(values, indent=1, allow_nan=False) + "\n"


def check_writable(folder: Path, needed_bytes: int) -> None:
    """Raise `RunFolderError` if ``folder`` cannot be written or has less than ``needed_bytes``.

    Creates nothing: a folder that does not exist yet is judged by the nearest one that does.
    """
    existing = next(path for path in (folder, *folder.parents) if path.exists())
    if not existing.is_dir():
        raise disk_error(folder, NotADirectoryError(errno.ENOTDIR, "not a directory"))
    try:
        with tempfile.TemporaryFile(dir=existing) as probe:
            probe.write(b"probe")
        room = os.statvfs(existing)
    except OSError as error:
        raise disk_error(folder, error) from None
    free = room.f_bavail * room.f_frsize
    if free < needed_bytes:
        raise RunFolderError(
            f"{folder} has {free / 1e9:.1f} GB free, this run needs {needed_bytes / 1e9:.1f} GB: "
            f"free some space, or choose another place with --runs DIR"
        )
