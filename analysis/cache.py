"""The rows of a run folder, kept parsed: ``cache/curves.arrow`` and ``cache/curves.json``.

The JSON lines stay the truth. A trial is taken from here only while each of its attempt files is
byte for byte the one that was parsed (`FileRecord.holds`: size and times, else the digest; a copied
folder is thus read once and recognised), no attempt file came or went, and the code that sums up a
curve is the same. Anything else, damage included, is read from the JSON lines again.

The columns lie uncompressed, one contiguous piece each, so that a large file is mapped into memory
rather than read: a column costs time and memory when it is first used.
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import json
import os
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa

from analysis import history, metrics, rows
from analysis.history import Columns, Facts, FileRecord, attempt_files, joined, read_history
from search_spaces import rules

FOLDER = "cache"
MAPPED = 64 * 2**20
"""Files of at least this many bytes are mapped, smaller ones are read."""

THREADS = min(8, os.cpu_count() or 1)


@dataclass(frozen=True)
class RunRows:
    """The rows of a run folder: trials below each other in the order asked for."""

    facts: dict[str, Facts]
    columns: Columns
    cached: bool
    """Whether everything came from the cache."""


def read_rows(folder: Path, trial_ids: list[str]) -> RunRows:
    """Rows of these trials, from the cache where it is up to date."""
    kept = _Kept.open(folder)

    def one(trial_id: str) -> tuple[Facts, Columns | None]:
        place = folder / "trials" / trial_id
        facts = kept.facts.get(trial_id) if kept else None
        if facts is not None and _unchanged(place, facts):
            return facts, None
        return read_history(place)

    with ThreadPoolExecutor(THREADS) as pool:
        read = dict(zip(trial_ids, pool.map(one, trial_ids), strict=True))
    facts = {trial_id: found for trial_id, (found, _) in read.items()}
    if kept and all(columns is None for _, columns in read.values()) and kept.order == trial_ids:
        return RunRows(facts, kept.columns, cached=True)
    pieces = []
    for trial_id, (found, columns) in read.items():
        piece = kept.slice(trial_id) if kept and columns is None else columns
        if found.rows and piece:
            pieces.append(piece)
    read.clear()
    return RunRows(facts, joined(pieces) if pieces else {}, cached=False)


def write_rows(folder: Path, found: RunRows) -> None:
    """Keep what was read. Does nothing where a column has no plain type, or is there already."""
    if found.cached:
        return
    plain = all(isinstance(v, np.ndarray) and v.dtype.kind in "if" for v in found.columns.values())
    place = folder / FOLDER
    data, index = place / "curves.arrow", place / "curves.json"
    if not plain or not found.columns:
        for path in (index, data):
            path.unlink(missing_ok=True)
        return
    place.mkdir(exist_ok=True)
    arrays = [pa.array(values) for values in found.columns.values()]  # NaN stays NaN: no copy
    batch = pa.record_batch(arrays, names=list(found.columns))

    def write_data(path: Path) -> None:
        with pa.OSFile(str(path), "wb") as sink, pa.ipc.new_file(sink, batch.schema) as writer:
            writer.write_batch(batch)

    _replace(data, write_data)
    told = data.stat()
    with data.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    record = FileRecord(told.st_size, told.st_mtime_ns, told.st_ctime_ns, True, digest)
    values = {
        "code": _code(),
        "data": asdict(record),
        "order": list(found.facts),
        "written": time.time(),
        "trials": {trial_id: facts.to_json() for trial_id, facts in found.facts.items()},
    }
    _replace(index, lambda path: path.write_text(json.dumps(values)))


@dataclass(frozen=True)
class _Kept:
    """An open cache."""

    order: list[str]
    facts: dict[str, Facts]
    columns: Columns
    starts: dict[str, int]

    @classmethod
    def open(cls, folder: Path) -> _Kept | None:
        """The cache of a run folder; None without one, or when it cannot be trusted."""
        place = folder / FOLDER
        try:
            values = json.loads((place / "curves.json").read_text())
            if values["code"] != _code():
                return None
            data = place / "curves.arrow"
            if not FileRecord(**values["data"]).holds(data):
                return None
            facts = {name: Facts.from_json(told) for name, told in values["trials"].items()}
            columns = _open(data)
            starts, at = {}, 0
            for trial_id in values["order"]:
                starts[trial_id] = at
                at += facts[trial_id].rows
            if at != len(columns["step"]):
                return None
            return cls(values["order"], facts, columns, starts)
        except (OSError, ValueError, TypeError, KeyError, AttributeError, pa.ArrowException):
            return None

    def slice(self, trial_id: str) -> Columns:
        """Rows of one trial, without columns that it never measured."""
        rows = slice(self.starts[trial_id], self.starts[trial_id] + self.facts[trial_id].rows)
        pieces = {name: values[rows] for name, values in self.columns.items()}
        return {
            name: values
            for name, values in pieces.items()
            if values.dtype.kind != "f" or not np.isnan(values).all()
        }


def _unchanged(folder: Path, facts: Facts) -> bool:
    files = attempt_files(folder)
    if {path.name for _, path in files} != set(facts.files):
        return False
    return all(facts.files[path.name].holds(path) for _, path in files)


def _open(path: Path) -> Columns:
    """Columns of an Arrow file as NumPy arrays over its memory."""
    if path.stat().st_size >= MAPPED:
        source = pa.memory_map(str(path))
    else:
        source = pa.BufferReader(path.read_bytes())
    batch = pa.ipc.open_file(source).get_batch(0)
    return {
        name: column.to_numpy(zero_copy_only=True)
        for name, column in zip(batch.schema.names, batch.columns, strict=True)
    }


@functools.cache
def _code() -> str:
    """Digest of the code whose results are kept, and of pandas, which computes some."""
    own = [Path(str(module.__file__)) for module in (history, metrics, rows)]
    judged = sorted(Path(str(rules.__file__)).parent.glob("*.py"))
    digest = hashlib.sha256(pd.__version__.encode())
    for path in (*own, Path(__file__), *judged):
        digest.update(path.read_bytes())
    return digest.hexdigest()


def _replace(path: Path, write: Callable[[Path], object]) -> None:
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        write(temporary)
        temporary.replace(path)
    finally:
        with contextlib.suppress(OSError):
            temporary.unlink()
