"""Reads the JSON lines of one trial: attempts merged into one curve.

For every step the row of the latest attempt is kept: rows of an attempt with a step greater than
the ``resumed_from`` of a later attempt were undone by that resume and are dropped. A torn last line
(a killed writer) is ignored; any other unreadable line is left out and noted.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from trainable.errors import UserError

SCHEMA_VERSION = 1
"""Version of the run folder that this reader writes about."""

UPGRADES: dict[int, Callable[[dict[str, Any]], dict[str, Any]]] = {}
"""Version → function that turns one of its objects into the next version's."""

_ATTEMPT = re.compile(r"attempt-(\d+)\.jsonl")


class ResultsError(UserError):
    """A run folder cannot be read. The text is one line and names the fix."""


def check_trial_id(trial_id: str, where: Path) -> str:
    """The name of a trial, which is the name of its folder and no way out of the run's.

    Raises `ResultsError` naming ``where`` it was read.
    """
    if trial_id in ("", ".", "..") or any(sign in trial_id for sign in "/\\\0"):
        raise ResultsError(
            f"{where} names a trial {trial_id!r}, which is no folder name: restore the file, or "
            f"run its command again into a new folder"
        )
    return trial_id


@dataclass
class Attempt:
    """One attempt's file: its ``start`` and ``end`` objects and its rows by step."""

    number: int
    start: dict[str, Any] = field(default_factory=dict)
    end: dict[str, Any] = field(default_factory=dict)
    rows: dict[int, dict[str, Any]] = field(default_factory=dict)

    @property
    def resumed_from(self) -> int | None:
        """Step of the checkpoint it continued; None while it has not said so."""
        step = self.start.get("resumed_from")
        return None if step is None else int(step)


def upgrade(values: dict[str, Any], path: Path) -> dict[str, Any]:
    """Bring an object of an older version to `SCHEMA_VERSION`.

    Raises `ResultsError` for a newer version, and for an older one that has no reader.
    """
    version = values.get("schema_version", SCHEMA_VERSION)
    if not isinstance(version, int) or version > SCHEMA_VERSION:
        raise ResultsError(
            f"{path} has schema version {version}, this etrm-tune reads up to {SCHEMA_VERSION}: "
            f"install the etrm-tune that wrote it, or a newer one"
        )
    while version < SCHEMA_VERSION:
        if version not in UPGRADES:
            raise ResultsError(
                f"{path} has schema version {version}, which was never released: "
                f"restore the file, or run its command again into a new folder"
            )
        values = UPGRADES[version](values)
        version += 1
    return values


def read_object(path: Path) -> dict[str, Any] | None:
    """The JSON object of a file, upgraded; None when it is missing, empty or not an object."""
    try:
        values = json.loads(path.read_text(encoding="utf-8", errors="replace"))
    except (FileNotFoundError, json.JSONDecodeError):
        return None
    return upgrade(values, path) if isinstance(values, dict) else None


def read_lines(path: Path, notes: list[str]) -> list[dict[str, Any]]:
    """Objects of a JSON-lines file. A torn last line is ignored, other bad lines are noted."""
    return parse_lines(path.read_bytes(), path, notes) if path.exists() else []


def parse_lines(content: bytes, path: Path, notes: list[str]) -> list[dict[str, Any]]:
    """`read_lines` of what was read from `path`."""
    lines = content.decode("utf-8", errors="replace").split("\n")
    objects: list[dict[str, Any]] = []
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        try:
            value = json.loads(line)
        except json.JSONDecodeError:
            value = None
        if isinstance(value, dict):
            objects.append(value)
        elif number < len(lines):  # the last piece lies behind the last newline: torn
            notes.append(f"{path}: line {number} is not a JSON object and is left out")
    return objects


def read_attempts(folder: Path, notes: list[str]) -> list[Attempt]:
    """Every attempt of a trial folder, in order."""
    found = [(match, path) for path in folder.iterdir() if (match := _ATTEMPT.fullmatch(path.name))]
    return [
        parse_attempt(int(match[1]), path.read_bytes(), path, notes)
        for match, path in sorted(found, key=lambda item: int(item[0][1]))
    ]


def parse_attempt(number: int, content: bytes, path: Path, notes: list[str]) -> Attempt:
    """One attempt from the content of its file."""
    attempt = Attempt(number)
    for value in parse_lines(content, path, notes):
        kind = value.get("kind")
        if kind == "start":
            attempt.start = upgrade(value, path)
        elif kind == "end":
            attempt.end = value
        elif kind == "row" and isinstance(value.get("step"), int):
            # Two reports at one step (say, a last evaluation) make one row.
            attempt.rows.setdefault(value["step"], {}).update(value)
    return attempt


def merge(attempts: list[Attempt]) -> list[dict[str, Any]]:
    """Rows of all attempts by the rule above, sorted by step, each with its ``attempt``."""
    kept: dict[int, dict[str, Any]] = {}
    for attempt in attempts:
        if attempt.resumed_from is not None:
            kept = {step: row for step, row in kept.items() if step <= attempt.resumed_from}
        kept |= {step: row | {"attempt": attempt.number} for step, row in attempt.rows.items()}
    return [kept[step] for step in sorted(kept)]
