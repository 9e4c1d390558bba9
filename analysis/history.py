"""One trial's rows as columns, read fast: what `analysis.rows` means, without an object per row.

A file that is as training writes it (numbers, one row per step) is parsed by Arrow; any other goes
through `analysis.rows`, line by line. Both give the same columns.
"""

from __future__ import annotations

import hashlib
import io
import json
import math
import os
import re
import time
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd
import pyarrow as pa
from pyarrow import compute
from pyarrow import json as arrow_json

from analysis.metrics import summarize
from analysis.rows import Attempt, merge, parse_attempt, upgrade

Values = npt.NDArray[Any]
Columns = dict[str, "Values | pd.Series[Any]"]
"""Column → its values by row; what is not a number is a Series."""

PLACE = ("step", "epoch", "samples", "wall_s")
"""Fields of the last row that the trials table shows."""

KEY = ("run", "trial_id", "experiment", "seed")
"""Columns of a table that name the trial; a row's own fields of these names do not count."""

ATTEMPT_FILE = re.compile(r"attempt-(\d+)\.jsonl")

_SETTLED_NS = 2_000_000_000
"""A file younger than this when it was read may change again within one tick of its clock."""


@dataclass(frozen=True)
class FileRecord:
    """What a file was when it was read: enough to see, mostly without reading, if it still is."""

    size: int
    mtime_ns: int
    ctime_ns: int
    settled: bool
    digest: str

    @classmethod
    def of(cls, content: bytes, told: os.stat_result, now_ns: int) -> FileRecord:
        """Record of `content`, read after `told`."""
        settled = now_ns - max(told.st_mtime_ns, told.st_ctime_ns) > _SETTLED_NS
        digest = hashlib.sha256(content).hexdigest()
        return cls(len(content), told.st_mtime_ns, told.st_ctime_ns, settled, digest)

    def holds(self, path: Path) -> bool:
        """Whether the file still has this content: by size and times, else by its digest."""
        try:
            told = path.stat()
            if told.st_size != self.size:
                return False
            if self.settled and (told.st_mtime_ns, told.st_ctime_ns) == (
                self.mtime_ns,
                self.ctime_ns,
            ):
                return True
            with path.open("rb") as file:
                return hashlib.file_digest(file, "sha256").hexdigest() == self.digest
        except OSError:
            return False


@dataclass
class Facts:
    """What a trial's attempts say, its rows summed up. Small: goes into the cache as JSON."""

    files: dict[str, FileRecord] = field(default_factory=dict)
    attempts: list[Attempt] = field(default_factory=list)
    """Starts and ends; the rows are not kept here."""
    rows: int = 0
    last: dict[str, float] = field(default_factory=dict)
    """`PLACE` of the last row."""
    summary: dict[str, float] = field(default_factory=dict)
    """`analysis.metrics.summarize` of the curve."""
    notes: list[str] = field(default_factory=list)

    def to_json(self) -> dict[str, Any]:
        """For the cache."""
        return asdict(self)

    @classmethod
    def from_json(cls, values: dict[str, Any]) -> Facts:
        """Back from the cache."""
        files = {name: FileRecord(**record) for name, record in values.pop("files").items()}
        attempts = [Attempt(**attempt) for attempt in values.pop("attempts")]
        return cls(files=files, attempts=attempts, **values)


def attempt_files(folder: Path) -> list[tuple[int, Path]]:
    """Attempt files of a trial folder by number; none when there is no folder."""
    try:
        with os.scandir(folder) as entries:
            names = [entry.name for entry in entries]
    except (FileNotFoundError, NotADirectoryError):
        return []
    found = [
        (int(match[1]), folder / match[0]) for match in map(ATTEMPT_FILE.fullmatch, names) if match
    ]
    return sorted(found)


def read_history(folder: Path) -> tuple[Facts, Columns]:
    """Read every attempt of a trial folder and merge them."""
    facts, parsed = Facts(), []
    for number, path in attempt_files(folder):
        now = time.time_ns()
        with path.open("rb") as file:
            told = os.fstat(file.fileno())
            content = file.read()
        facts.files[path.name] = FileRecord.of(content, told, now)
        parsed.append((number, path, content))
    fast = [_parse(number, path, content) for number, path, content in parsed]
    known = [one for one in fast if one is not None]
    if len(known) == len(parsed):
        facts.attempts = [attempt for attempt, _ in known]
        columns = _merged(known)
    else:
        slow = [parse_attempt(n, content, path, facts.notes) for n, path, content in parsed]
        columns = _columns(pd.DataFrame(merge(slow)).drop(columns="kind", errors="ignore"))
        facts.attempts = [Attempt(a.number, a.start, a.end) for a in slow]
    for name in KEY:
        columns.pop(name, None)
    facts.rows = len(columns["step"]) if columns else 0
    if facts.rows:
        facts.last = {name: _last(columns[name]) for name in PLACE if name in columns}
        curve = {name: v for name, v in columns.items() if "/" in name or name in PLACE}
        facts.summary = summarize(pd.DataFrame(curve, copy=False))
    return facts, columns


def _parse(number: int, path: Path, content: bytes) -> tuple[Attempt, Columns] | None:
    """Start, end and columns of one file by Arrow; None for what only `analysis.rows` can read."""
    attempt = Attempt(number)
    body = content[: content.rfind(b"\n") + 1]
    tail = content[len(body) :]
    if tail.strip() and _object(tail) is not None:
        return None  # a whole last line without its newline
    first, _, rest = body.partition(b"\n")
    start = _object(first)
    if start is None or start.get("kind") != "start":
        return None
    attempt.start = upgrade(start, path)
    if rest:
        cut = rest.rfind(b"\n", 0, len(rest) - 1) + 1
        end = _object(rest[cut:])
        if end is not None and end.get("kind") == "end":
            attempt.end, rest = end, rest[:cut]
    if not rest:
        return attempt, {}
    try:
        options = arrow_json.ReadOptions(use_threads=False, block_size=len(rest) + 1)
        table = arrow_json.read_json(io.BytesIO(rest), read_options=options)
    except (pa.ArrowInvalid, pa.ArrowNotImplementedError):
        return None
    names = table.column_names
    if len(set(names)) != len(names) or "kind" not in names or "step" not in names:
        return None
    if not compute.all(compute.equal(table["kind"], "row"), min_count=0).as_py():
        return None
    if table["kind"].null_count or table["step"].null_count or table["step"].type != pa.int64():
        return None
    columns: Columns = {}
    for name in names:
        if name == "kind":
            continue
        type_ = table[name].type
        if not (
            pa.types.is_floating(type_) or pa.types.is_integer(type_) or pa.types.is_null(type_)
        ):
            return None
        columns[name] = _numbers(table[name], metric="/" in name)
    steps = columns["step"]
    if len(steps) > 1 and not bool((np.diff(np.asarray(steps)) > 0).all()):
        return None
    return attempt, columns


def _object(line: bytes) -> dict[str, Any] | None:
    try:
        value = json.loads(line)
    except ValueError:  # also bytes that are not UTF-8
        return None
    return value if isinstance(value, dict) else None


def _numbers(values: Any, *, metric: bool) -> Values:
    if metric or values.null_count:
        values = values.cast(pa.float64())
        return np.asarray(compute.fill_null(values, math.nan).to_numpy())
    return np.asarray(values.to_numpy())


def _merged(parsed: list[tuple[Attempt, Columns]]) -> Columns:
    """`analysis.rows.merge` on columns."""
    pieces: list[Columns] = []
    for position, (attempt, columns) in enumerate(parsed):
        if not columns:
            continue
        steps = np.asarray(columns["step"])
        keep = np.ones(len(steps), dtype=bool)
        for later, theirs in parsed[position + 1 :]:
            if later.resumed_from is not None:
                keep &= steps <= later.resumed_from
            if theirs:
                keep &= ~np.isin(steps, np.asarray(theirs["step"]))
        numbered: Columns = {"attempt": np.full(len(steps), attempt.number, dtype=np.int64)}
        numbered |= columns
        pieces.append(numbered if keep.all() else {n: v[keep] for n, v in numbered.items()})
    pieces = [piece for piece in pieces if len(piece["step"])]
    columns = joined(pieces)
    if len(pieces) > 1:
        order = np.argsort(np.asarray(columns["step"]), kind="stable")
        columns = {name: np.asarray(values)[order] for name, values in columns.items()}
    return columns


def _columns(frame: pd.DataFrame) -> Columns:
    """A frame's columns, metrics as float64."""
    columns: Columns = {}
    for name in map(str, frame.columns):
        values = frame[name]
        if "/" in name:  # a metric: numbers, null or absent
            values = pd.to_numeric(values, errors="coerce").astype("float64")
        columns[name] = values.to_numpy() if values.dtype.kind in "if" else values
    return columns


def joined(pieces: list[Columns]) -> Columns:
    """Pieces below each other; NaN where a piece lacks a column. Empties `pieces` as it goes."""
    if len(pieces) == 1:
        return pieces[0]
    lengths = [len(piece["step"]) for piece in pieces]
    names = list(dict.fromkeys(name for piece in pieces for name in piece))
    columns: Columns = {}
    for name in names:
        parts = [
            piece.pop(name) if name in piece else np.full(length, math.nan)
            for piece, length in zip(pieces, lengths, strict=True)
        ]
        if all(isinstance(part, np.ndarray) for part in parts):
            columns[name] = np.concatenate(parts)
        else:
            columns[name] = pd.concat([pd.Series(part) for part in parts], ignore_index=True)
    return columns


def _last(values: Values | pd.Series[Any]) -> float:
    value = np.asarray(values)[-1]
    return float(value) if isinstance(value, int | float | np.number) else math.nan
