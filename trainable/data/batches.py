"""Batches: token arrays for rows chosen elsewhere, built for a whole batch at once.

A `Group` is one puzzle with its augmentations in one split; a `Row` is (group, augmentation,
pair). For every (group, dihedral id) the grids' values are laid out once; a batch joins those
pieces, looks their tokens up in the augmentations' colour tables and scatters them at the rows'
offsets.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

from trainable.data import canvas as canvas_rules
from trainable.data.augment import SWAPS_SIDES, AugmentationTable, dihedral
from trainable.data.grids import (
    CELLS,
    IGNORE,
    PAD,
    SCRATCH,
    SIDE,
    STRIDE,
    Grid,
    grid_values,
    scratch_positions,
)
from trainable.data.sources import Pair, Puzzle
from trainable.errors import DataError
from trainable.random import numpy_generator

Batch = dict[str, NDArray[Any]]
CanvasKind = Literal["full", "demos"]

_Piece = tuple[NDArray[np.int32], Grid]
"""Scratch positions at offset (0, 0), and values, of one grid under one transform."""


@dataclass(slots=True, eq=False)
class Group:
    """One puzzle in one split.

    Attributes:
        puzzle: the original.
        index: number of the original puzzle in the data set (`base_puzzle`).
        first_identifier: identifier of the original; augmentation a has first_identifier + a.
        augmentations: row 0 is the original.
        pairs: what is laid out, in stored order (it decides the stream of the offsets).
        rows: positions in ``pairs`` of the pairs that become rows.
        shown: positions in ``pairs`` of the demonstrations that a row carries (ETRM).
        extents: most rows and columns over the demonstrations, which bound the canvas.
        offsets: (A, len(pairs), 2) uint8, or None without translation.
    """

    puzzle: Puzzle
    index: int
    first_identifier: int
    augmentations: AugmentationTable
    pairs: tuple[Pair, ...]
    rows: tuple[int, ...]
    shown: tuple[int, ...]
    extents: tuple[int, int]
    offsets: NDArray[np.uint8] | None = None
    _layouts: dict[int, list[tuple[_Piece, _Piece]]] = field(default_factory=dict)

    def layout(self, transform: int) -> list[tuple[_Piece, _Piece]]:
        """Input and output piece of every pair under one dihedral transform, made once."""
        pieces = self._layouts.get(transform)
        if pieces is None:
            pieces = [
                (_piece(pair.input, transform), _piece(pair.target, transform))
                for pair in self.pairs
            ]
            self._layouts[transform] = pieces
        return pieces

    def plain(self) -> Group:
        """The same puzzle and rows, un-augmented and untranslated."""
        return Group(
            self.puzzle,
            self.index,
            self.first_identifier,
            self.augmentations.head(1),
            self.pairs,
            self.rows,
            self.shown,
            self.extents,
        )


def _piece(grid: Grid, transform: int) -> _Piece:
    if grid.size == 0:  # no solution is known: no cells, no end markers
        return np.zeros(0, np.int32), np.zeros(0, np.uint8)
    image = dihedral(grid, transform)
    return scratch_positions(*image.shape), grid_values(np.ascontiguousarray(image))


class Row(NamedTuple):
    """One row of a batch; ``pair`` is a position in ``group.pairs``."""

    group: Group
    augmentation: int
    pair: int


def free_space(group: Group) -> NDArray[np.int64]:
    """Largest offsets (A, pairs, 2): 30 − the larger of input's and output's size, per axis."""
    sizes = np.asarray(
        [np.maximum(pair.input.shape, pair.target.shape) for pair in group.pairs], np.int64
    )
    swaps = np.asarray(SWAPS_SIDES)[group.augmentations.dihedral]
    return SIDE - np.where(swaps[:, None, None], sizes[None, :, ::-1], sizes[None])


def draw_offsets(group: Group, *, seed: int) -> NDArray[np.uint8]:
    """Offsets (A, pairs, 2), from a stream of the puzzle's own; one pair per puzzle stays at 0."""
    rng = numpy_generator(seed, "translate", group.puzzle.id)
    count, pairs = len(group.augmentations), len(group.pairs)
    uniform = rng.random((count, 1 + 2 * pairs))
    offsets = (uniform[:, 1:].reshape(count, pairs, 2) * (free_space(group) + 1)).astype(np.uint8)
    exempt = (uniform[:, 0] * pairs).astype(np.int64)
    offsets[np.arange(count), exempt] = 0
    return offsets


def draw_offsets_legacy(group: Group, rng: np.random.RandomState) -> NDArray[np.uint8]:
    """As `draw_offsets`, from the published builder's generator: exempt pair, then a, b of each."""
    space = free_space(group).tolist()
    offsets = np.zeros((len(group.augmentations), len(group.pairs), 2), np.uint8)
    for augmentation, limits in enumerate(space):
        exempt = int(rng.randint(0, len(limits)))
        for pair, (rows, columns) in enumerate(limits):
            if pair != exempt:
                offsets[augmentation, pair, 0] = rng.randint(0, rows + 1)
                offsets[augmentation, pair, 1] = rng.randint(0, columns + 1)
    return offsets


def build_batch(
    rows: Sequence[Row],
    size: int,
    *,
    canvas: CanvasKind,
    max_demos: int | None,
) -> Batch:
    """Arrays for ``rows``, padded to ``size`` rows.

    ``max_demos`` is the number K of demonstration slots, None for a TRM batch, which has no
    demonstration arrays. Rows beyond ``len(rows)`` have identifier 0, PAD inputs, labels −100, no
    demonstrations, `demo_key` and `base_puzzle` −1.

    Returns a dictionary: ``inputs`` (B, 900) uint8; ``labels`` (B, 900) int16, −100 where nothing
    is scored; ``puzzle_identifiers`` (B) int32; ``base_puzzle`` (B) int32; ``demo_key`` (B) int64;
    ``canvas`` (B, 4) int16; ``fits`` (B) bool; and ``demo_inputs``, ``demo_labels`` (B, K, 900)
    uint8, ``demo_mask`` (B, K) bool. Equal `demo_key`s mean equal demonstrations within a batch.
    """
    n = len(rows)
    assert n <= size
    positions: list[NDArray[np.int32]] = []
    values: list[Grid] = []
    starts: list[int] = []  # scratch position of each piece
    tables: list[NDArray[np.uint8]] = []  # colour table of each distinct (group, augmentation)
    which_table: list[int] = []  # table of each piece

    identifiers = np.zeros(size, np.int32)
    base = np.full(size, -1, np.int32)
    demo_key = np.full(size, -1, np.int64)
    boxes = np.empty((size, 4), np.int16)
    boxes[:] = canvas_rules.FULL if canvas == "full" else canvas_rules.NOTHING
    fitting = np.ones(size, np.bool_)
    clipped: list[tuple[int, int, int]] = []  # rows whose labels may leave the rectangle

    variants: dict[int, int] = {}  # identifier -> its table
    laid: dict[int, int] = {}  # identifier -> first demonstration slot in the scratch
    shown: list[int] = []  # first demonstration slot of each row
    slots = 2 * n  # inputs, then labels, then demonstration pairs
    demo_groups: list[tuple[Group, int, list[tuple[_Piece, _Piece]], int, int]] = []

    for r, (group, augmentation, pair) in enumerate(rows):
        identifier = group.first_identifier + augmentation
        transform = int(group.augmentations.dihedral[augmentation])
        pieces = group.layout(transform)
        table = variants.get(identifier)
        if table is None:
            table = variants[identifier] = len(tables)
            tables.append(group.augmentations.tokens[augmentation])
        top, left = (0, 0) if group.offsets is None else group.offsets[augmentation, pair].tolist()
        for slot, (places, content) in ((r, pieces[pair][0]), (n + r, pieces[pair][1])):
            positions.append(places)
            values.append(content)
            starts.append(slot * SCRATCH + top * STRIDE + left)
            which_table.append(table)
        identifiers[r] = identifier
        base[r] = group.index
        if canvas == "demos":
            source, target = group.pairs[pair].input.shape, group.pairs[pair].target.shape
            most = max(source[0], group.extents[0]), max(source[1], group.extents[1])
            if SWAPS_SIDES[transform]:
                most, target = most[::-1], target[::-1]
            box = canvas_rules.rectangle(*most, (top, left))
            boxes[r] = box
            if target[0] >= box[2] or target[1] >= box[3]:
                clipped.append((r, box[0] + box[2], box[1] + box[3]))
                fitting[r] = canvas_rules.fits(target, box[2], box[3])
        if max_demos is not None:
            demo_key[r] = identifier
            if identifier not in laid:
                laid[identifier] = slots
                demo_groups.append((group, augmentation, pieces, slots, table))
                slots += 2 * len(group.shown)
            shown.append(laid[identifier])

    for group, augmentation, pieces, slot, table in demo_groups:
        for pair in group.shown:
            top, left = (
                (0, 0) if group.offsets is None else group.offsets[augmentation, pair].tolist()
            )
            offset = top * STRIDE + left
            for places, content in pieces[pair]:
                positions.append(places)
                values.append(content)
                starts.append(slot * SCRATCH + offset)
                which_table.append(table)
                slot += 1

    grids = _scatter(positions, values, starts, tables, which_table, slots)
    inputs = np.zeros((size, CELLS), np.uint8)
    inputs[:n] = grids[:n].reshape(n, CELLS)
    labels = np.full((size, CELLS), IGNORE, np.int16)
    target_tokens = grids[n : 2 * n].reshape(n, CELLS)
    np.copyto(labels[:n], target_tokens, where=target_tokens != PAD)
    for r, bottom, right in clipped:
        square = labels[r].reshape(SIDE, SIDE)
        square[bottom:] = IGNORE
        square[:, right:] = IGNORE

    batch: Batch = {
        "inputs": inputs,
        "labels": labels,
        "puzzle_identifiers": identifiers,
        "base_puzzle": base,
        "demo_key": demo_key,
        "canvas": boxes,
        "fits": fitting,
    }
    if max_demos is not None:
        counts = [len(row.group.shown) for row in rows]
        batch |= _demonstrations(grids, shown, counts, size, max_demos)
    return batch


def _scatter(
    positions: list[NDArray[np.int32]],
    values: list[Grid],
    starts: list[int],
    tables: list[NDArray[np.uint8]],
    which_table: list[int],
    slots: int,
) -> NDArray[np.uint8]:
    """Token grids (slots, 30, 30): every piece looked up in its table and laid at its start."""
    scratch = np.zeros(slots * SCRATCH, np.uint8)
    if positions:
        piece = np.repeat(
            np.arange(len(positions), dtype=np.int32), [len(places) for places in positions]
        )
        lookup = np.stack(tables)
        row_start = np.asarray(which_table, np.int32) * lookup.shape[1]
        tokens = lookup.ravel()[row_start[piece] + np.concatenate(values)]
        where = np.asarray(starts, np.int32)[piece]
        where += np.concatenate(positions)
        scratch[where] = tokens
    return scratch.reshape(slots, STRIDE, STRIDE)[:, :SIDE, :SIDE]


def _demonstrations(
    grids: NDArray[np.uint8], first: list[int], counts: list[int], size: int, max_demos: int
) -> Batch:
    """Demonstration arrays from the scratch, where pairs lie as input, output, input, output …"""
    mask = np.zeros((size, max_demos), np.bool_)
    demo_inputs = np.zeros((size, max_demos, SIDE, SIDE), np.uint8)
    demo_labels = np.zeros((size, max_demos, SIDE, SIDE), np.uint8)
    if max(counts, default=0) > max_demos:
        raise DataError(f"a puzzle shows more than {max_demos} demonstrations: raise max_demos")
    for r, (start, count) in enumerate(zip(first, counts, strict=True)):
        mask[r, :count] = True
        demo_inputs[r, :count] = grids[start : start + 2 * count : 2]
        demo_labels[r, :count] = grids[start + 1 : start + 2 * count : 2]
    return {
        "demo_inputs": demo_inputs.reshape(size, max_demos, CELLS),
        "demo_labels": demo_labels.reshape(size, max_demos, CELLS),
        "demo_mask": mask,
    }


def rank_slice(batch: Batch, rank: int, world: int) -> Batch:
    """Rows rank · B … (rank + 1) · B − 1 of a global batch of world · B rows (views).

    Raises `DataError` if the rows do not divide evenly.
    """
    rows = len(batch["inputs"])
    if rows % world:
        raise DataError(
            f"a batch of {rows} rows does not divide by {world} workers: choose a multiple"
        )
    share = rows // world
    return {name: array[rank * share : (rank + 1) * share] for name, array in batch.items()}
