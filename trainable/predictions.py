"""Predictions of one checkpoint on a few puzzles after every ACT step, for people to look at.

Training and held-out queries of the trial's data are answered in turns, un-augmented and without
voting, until all are, or `QUERIES` of each role, or a given time is over; of each role the solved,
nearly solved and failed ones are kept, in stored order, up to `MOST` together. ``tally`` counts all
that were answered.
"""

from __future__ import annotations

import itertools
import json
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from trainable.checkpoint import write_text_atomically
from trainable.data import ArcData
from trainable.data.batches import Row
from trainable.data.grids import FIRST_COLOUR, NUM_COLOURS, SIDE, Grid, crop_sizes
from trainable.data.sources import Pair
from trainable.errors import CheckpointError
from trainable.evaluate import evaluation_mode, to_tensors
from trainable.foreign import LoadedModel, load_model

FILE = "predictions.json"
MOST = 12
"""Puzzles kept."""
QUERIES = 64
"""Queries answered of each role, at most."""
NEARLY = 0.8
"""Share of right cells from which on a wrong answer is nearly solved (ours)."""
BATCH = 8
"""Queries answered together: few, so that a time limit is kept."""
ROLES = ("trained", "held out")
OUTCOMES = ("solved", "nearly solved", "failed")


@dataclass(frozen=True)
class _Query:
    role: str
    row: Row

    @property
    def pair(self) -> Pair:
        return self.row.group.pairs[self.row.pair]


def predict_puzzles(
    loaded: LoadedModel, *, most: int = MOST, seconds: float | None = None
) -> dict[str, Any]:
    """Content of ``predictions.json``: ``schema_version``, ``checkpoint``, ``weights``, ``step``,
    ``complete`` (not cut by `seconds`), ``tally`` (role → available, queries answered, solved,
    nearly solved, failed) and ``puzzles``.

    No batch is begun after `seconds`; the first one always is.

    A puzzle has ``task``, ``role``, ``outcome``, ``demos``, ``input``, ``output`` and ``steps``,
    one for each ACT step: ``grid`` (over the rectangle of the truth, −1 for no colour), ``size``
    of the answer, ``q`` (halting probability), ``accuracy`` (share of right cells), ``correct``.

    Raises `CheckpointError` for a file that does not tell which data it was trained on.
    """
    if loaded.trial is None:
        raise CheckpointError(
            f"{loaded.path} does not tell which puzzles it was trained on: give a checkpoint of a "
            f"run of ours"
        )
    data = ArcData.from_config(loaded.trial)
    piles = [list(_queries(data, role)) for role in ROLES]
    turns = itertools.zip_longest(*(pile[:QUERIES] for pile in piles))
    queries = [query for turn in turns for query in turn if query is not None]
    answered: list[dict[str, Any]] = []
    began = time.monotonic()
    for at in range(0, len(queries), BATCH):
        if at and seconds is not None and time.monotonic() - began > seconds:
            break
        part = queries[at : at + BATCH]
        for query, steps in zip(part, _answer(loaded, data, part), strict=True):
            answered.append(_told(query, steps))
    tally: dict[str, dict[str, int]] = {}
    for role, pile in zip(ROLES, piles, strict=True):
        mine = [one["outcome"] for one in answered if one["role"] == role]
        if pile:
            counts = {outcome: mine.count(outcome) for outcome in OUTCOMES}
            tally[role] = {"available": len(pile), "queries": len(mine)} | counts
    return {
        "schema_version": 1,
        "checkpoint": loaded.path.name,
        "weights": loaded.weights,
        "step": loaded.step,
        "complete": len(answered) == len(queries),
        "tally": tally,
        "puzzles": _choose(answered, most),
    }


def write_predictions(
    checkpoint: str | Path,
    folder: str | Path,
    *,
    most: int = MOST,
    seconds: float | None = None,
) -> Path:
    """`predict_puzzles` of a checkpoint as ``predictions.json`` in a trial's folder.

    Raises `CheckpointError` when the checkpoint cannot be loaded.
    """
    loaded = load_model(checkpoint, options={"forward_dtype": "float32"})
    if torch.cuda.is_available():
        loaded.model.to("cuda")
    threads = torch.get_num_threads()
    torch.set_num_threads(
        max(1, threads // 2)
    )  # a run beside it would make more wait for each other
    try:
        told = predict_puzzles(loaded, most=most, seconds=seconds)
    finally:
        torch.set_num_threads(threads)
    path = Path(folder) / FILE
    write_text_atomically(path, json.dumps(told, separators=(",", ":")) + "\n")
    return path


def _queries(data: ArcData, role: str) -> Iterator[_Query]:
    """Queries with a known solution: of the training puzzles, or of the held-out ones."""
    held_out = set(data.eval_ids)
    trained = [group for group in data.train_groups if group.puzzle.id not in held_out]
    for group in trained if role == ROLES[0] else data.eval_groups:
        plain = group.plain()
        wanted = {id(pair) for pair in group.puzzle.queries if pair.output is not None}
        for at in plain.rows:
            if id(plain.pairs[at]) in wanted:
                yield _Query(role, Row(plain, 0, at))


def _answer(
    loaded: LoadedModel, data: ArcData, queries: Sequence[_Query]
) -> list[list[dict[str, Any]]]:
    """Every query's answer after every ACT step."""
    model = loaded.model
    device = next(model.parameters()).device
    batch = to_tensors(data.build([query.row for query in queries]), device)
    answers: list[list[dict[str, Any]]] = [[] for _ in queries]
    with evaluation_mode(model):
        carry = model.initial_carry(batch)
        for step in range(1, model.config.halt_max_steps + 1):
            carry, outputs = model(carry, batch)
            tokens = outputs["logits"].argmax(-1).cpu().numpy()
            halting = outputs["q_halt_logits"].float().sigmoid().tolist()
            sizes = crop_sizes(tokens).tolist()
            for i, query in enumerate(queries):
                grid = _colours(tokens[i], query.pair.target.shape)
                right = grid == query.pair.target
                correct = bool(right.all()) and tuple(sizes[i]) == query.pair.target.shape
                answers[i].append(
                    {
                        "step": step,
                        "grid": grid.tolist(),
                        "size": sizes[i],
                        "q": round(halting[i], 4),
                        "accuracy": round(float(right.mean()), 4),
                        "correct": correct,
                    }
                )
    return answers


def _colours(tokens: np.ndarray[Any, Any], shape: tuple[int, ...]) -> np.ndarray[Any, Any]:
    """Colours of a token row (900) over a rectangle at the origin, −1 where there is none."""
    rows, columns = shape
    array = tokens.reshape(SIDE, SIDE)[:rows, :columns].astype(np.int64) - FIRST_COLOUR
    return np.where((array >= 0) & (array < NUM_COLOURS), array, -1)


def _told(query: _Query, steps: list[dict[str, Any]]) -> dict[str, Any]:
    puzzle, pair, last = query.row.group.puzzle, query.pair, steps[-1]
    nearly = "nearly solved" if last["accuracy"] >= NEARLY else "failed"
    return {
        "task": puzzle.id,
        "role": query.role,
        "outcome": "solved" if last["correct"] else nearly,
        "demos": [
            {"input": _rows(demo.input), "output": _rows(demo.target)} for demo in puzzle.demos
        ],
        "input": _rows(pair.input),
        "output": _rows(pair.target),
        "steps": steps,
    }


def _choose(answered: Sequence[dict[str, Any]], most: int) -> list[dict[str, Any]]:
    """Round by round one of each role and outcome: nearly solved ones best first, failed worst."""
    keys = [(role, outcome) for outcome in OUTCOMES for role in ROLES]
    piles = {key: [one for one in answered if (one["role"], one["outcome"]) == key] for key in keys}
    for (_, outcome), pile in piles.items():
        sign = {"solved": 0, "nearly solved": -1, "failed": 1}[outcome]
        pile.sort(key=lambda one: sign * one["steps"][-1]["accuracy"])
    chosen: list[dict[str, Any]] = []
    while len(chosen) < most and any(piles.values()):
        for key in keys:
            if piles[key] and len(chosen) < most:
                chosen.append(piles[key].pop(0))
    return chosen


def _rows(grid: Grid) -> list[list[int]]:
    found: list[list[int]] = grid.tolist()
    return found
