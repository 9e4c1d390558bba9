"""Does a training row carry what its identifier says? Checks of a few rows, without torch.

The rows are built as training builds them, and compared with the original grids, augmented one by
one. Hypothesis H5 (a wrong data set) reads the counts.
"""

from __future__ import annotations

from collections.abc import Collection

import numpy as np
from numpy.typing import NDArray

from trainable.data.augment import Augmentation, parse_identifier
from trainable.data.batches import Batch, Row
from trainable.data.dataset import ArcData
from trainable.data.grids import FIRST_COLOUR, SIDE, Grid

SAMPLED = 32
"""Puzzles of which rows are checked at most, evenly spaced; two augmentations of each."""


def data_checks(data: ArcData, *, known: Collection[str] | None = None) -> dict[str, float]:
    """Counts over a sample of training rows; the same on every worker.

    Args:
        data: the trial's puzzles.
        known: puzzle ids that the decoder's own table names, where it must name the trial's.

    Returns:
        ``data/identifier_mismatches``: rows whose identifier names another puzzle than the row's,
        or one that is not `known`; ``data/augmentation_mismatches``: rows of which some grid
        (demonstration, query or its output) is not the original under the colours and the transform
        that the identifier names; and ``data/demos_per_row``, mean number of demonstrations, not
        for a TRM.
    """
    rows = _sample(data)
    batch = data.build(rows)
    names = [data.identifier_names[i] for i in batch["puzzle_identifiers"].tolist()]
    identifiers = augmentations = 0
    for r, (row, name) in enumerate(zip(rows, names, strict=True)):
        puzzle, augmentation = parse_identifier(name)
        right = puzzle == row.group.puzzle.id and batch["base_puzzle"][r] == row.group.index
        identifiers += not right or (known is not None and puzzle not in known)
        augmentations += not _consistent(row, batch, r, augmentation)
    checks = {
        "data/identifier_mismatches": float(identifiers),
        "data/augmentation_mismatches": float(augmentations),
    }
    if "demo_mask" in batch:
        checks["data/demos_per_row"] = float(batch["demo_mask"].sum(1).mean())
    return checks


def _sample(data: ArcData) -> list[Row]:
    groups = [group for group in data.train_groups if group.rows]
    rows = []
    for group in groups[:: -(-len(groups) // SAMPLED)]:
        last = len(group.augmentations) - 1
        rows += [Row(group, at, group.rows[-1]) for at in sorted({last // 2, last})]
    return rows


def _consistent(row: Row, batch: Batch, r: int, augmentation: Augmentation) -> bool:
    """Whether every grid of row `r` is its original under one augmentation."""
    pair = row.group.pairs[row.pair]
    shown = [(batch["inputs"][r], pair.input)]
    if batch["fits"][r]:  # else some of the output lies outside the canvas
        shown.append((batch["labels"][r], pair.target))
    if "demo_mask" in batch:
        slots = np.flatnonzero(batch["demo_mask"][r])
        if len(slots) != len(row.group.shown):
            return False
        for slot, at in zip(slots, row.group.shown, strict=True):
            demo = row.group.pairs[at]
            shown.append((batch["demo_inputs"][r, slot], demo.input))
            shown.append((batch["demo_labels"][r, slot], demo.target))
    return all(np.array_equal(_colours(t), augmentation.apply(grid)) for t, grid in shown)


def _colours(tokens: NDArray[np.integer]) -> Grid:
    """The smallest rectangle with every colour of (900,) tokens; 255 where it has a hole."""
    array = tokens.reshape(SIDE, SIDE)
    colour = array >= FIRST_COLOUR
    rows, columns = np.flatnonzero(colour.any(1)), np.flatnonzero(colour.any(0))
    if not len(rows):
        return np.zeros((0, 0), np.uint8)
    inside = slice(rows[0], rows[-1] + 1), slice(columns[0], columns[-1] + 1)
    return np.where(colour[inside], array[inside] - FIRST_COLOUR, 255).astype(np.uint8)
