"""Answers on disk: Kaggle's ``submission.json`` and the table of per-puzzle outcomes."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from trainable.data.grids import NUM_COLOURS, SIDE
from trainable.errors import DataError, storage_error

Answers = Mapping[str, Sequence[Mapping[str, Any]]]
"""Puzzle id → one ``{"attempt_1": grid, "attempt_2": grid}`` per test input."""

ATTEMPTS = ("attempt_1", "attempt_2")


def check_submission(answers: Answers, test_inputs: Mapping[str, int]) -> None:
    """Raise `DataError` unless `answers` are complete and in Kaggle's format.

    Every puzzle of `test_inputs` (id → number of test inputs) has one entry per test input with two
    attempts, each a rectangle of colours 0 … 9 of at most 30 × 30, or an empty list: the model drew
    no grid.
    """
    for puzzle, count in test_inputs.items():
        entries = answers.get(puzzle)
        if entries is None or len(entries) != count:
            found = "no" if entries is None else len(entries)
            raise DataError(f"submission: {puzzle!r} has {found} of {count} entries: add them")
        for at, entry in enumerate(entries):
            for name in ATTEMPTS:
                if not _is_grid(entry.get(name)):
                    raise DataError(
                        f"submission: {name} of {puzzle!r}, test input {at}, is no grid of colours "
                        f"0 to 9: correct it"
                    )
    if strangers := answers.keys() - test_inputs.keys():
        raise DataError(f"submission: {min(strangers)!r} was not asked: leave it out")


def _is_grid(cells: Any) -> bool:
    if cells == []:
        return True
    try:
        grid = np.asarray(cells)
    except ValueError:  # rows of different lengths
        return False
    return (
        grid.ndim == 2
        and grid.size > 0
        and max(grid.shape) <= SIDE
        and grid.dtype.kind in "iu"
        and bool((grid >= 0).all() and (grid < NUM_COLOURS).all())
    )


def write_submission(path: Path, answers: Answers) -> None:
    """Write ``submission.json``. Raises `StorageError` where that is not possible."""
    text = json.dumps(answers, separators=(",", ":"))
    _write(path, lambda temporary: temporary.write_text(text, encoding="utf-8"))


def write_tasks(folder: Path, tasks: Sequence[Mapping[str, Any]]) -> None:
    """Write ``tasks.parquet`` and ``tasks.csv``: one row per scheduled puzzle."""
    import pandas as pd

    table = pd.DataFrame.from_records(list(tasks))
    if "best_rank" in table:  # None where the true output is missing
        table["best_rank"] = table["best_rank"].astype("Int64")
    _write(folder / "tasks.parquet", table.to_parquet)
    _write(folder / "tasks.csv", lambda temporary: table.to_csv(temporary, index=False))


def _write(path: Path, write: Callable[[Path], object]) -> None:
    temporary = path.with_name(f".{path.name}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write(temporary)
        temporary.replace(path)
    except OSError as error:
        raise storage_error(path, error) from error
