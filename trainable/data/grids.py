"""Grids and tokens: layout on the 30 × 30 array, cropping, hashes.

A grid is a (rows, columns) uint8 array of colours 0 … 9. Its tokens are PAD 0, EOS 1 and
colour + 2, flattened row-major from 30 × 30 to 900 (TRM, arXiv:2510.04871, and its published data
builder). The grid's top-left lies at an offset (a, b); one row of EOS below it and one column of
EOS right of it, along its own extent and only where the array has room; the corner stays PAD.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

SIDE = 30
"""Rows and columns of the array that a grid is laid on."""
CELLS = SIDE * SIDE
PAD, EOS, FIRST_COLOUR = 0, 1, 2
NUM_COLOURS = 10
IGNORE = -100
"""Label of a cell that is not scored."""

STRIDE = SIDE + 1
"""Row length of the scratch array: its last row and column catch end markers without room."""
SCRATCH = STRIDE * STRIDE
EOS_VALUE = 10
"""Stands for EOS among colour values 0 … 9, before the lookup into tokens."""

Grid = NDArray[np.uint8]
IntArray = NDArray[np.int64]


@lru_cache(maxsize=CELLS)
def scratch_positions(rows: int, columns: int) -> NDArray[np.int32]:
    """Cells of a (rows, columns) grid, its EOS row and EOS column, in scratch coordinates."""
    row, column = np.arange(rows), np.arange(columns)
    parts = (
        (row[:, None] * STRIDE + column).ravel(),
        rows * STRIDE + column,
        row * STRIDE + columns,
    )
    return np.concatenate(parts).astype(np.int32)


def grid_values(grid: Grid) -> Grid:
    """Values in the order of `scratch_positions`: colours, then `EOS_VALUE` for end markers."""
    markers = np.full(sum(grid.shape), EOS_VALUE, np.uint8)
    return np.concatenate([grid.ravel(), markers])


def grid_tokens(grid: Grid, offset: tuple[int, int] = (0, 0)) -> Grid:
    """Tokens (900,) uint8 of one grid at ``offset`` (row, column).

    The slow and plain form of what `trainable.data.batches` does for a whole batch.
    Raises ValueError if the grid leaves the array.
    """
    (rows, columns), (top, left) = grid.shape, offset
    if min(top, left) < 0 or top + rows > SIDE or left + columns > SIDE:
        raise ValueError(f"a {rows} x {columns} grid at {offset} leaves {SIDE} x {SIDE}")
    array = np.full((SIDE, SIDE), PAD, np.uint8)
    array[top : top + rows, left : left + columns] = grid + FIRST_COLOUR
    if top + rows < SIDE:
        array[top + rows, left : left + columns] = EOS
    if left + columns < SIDE:
        array[top : top + rows, left + columns] = EOS
    return array.reshape(CELLS)


def crop_sizes(tokens: NDArray[np.integer]) -> IntArray:
    """Size (rows, columns) of the grid at the top-left of each of (B, 900) token rows.

    With c(r) the colour cells that lead every one of the first r rows, the r that maximises
    r · c(r) is taken, the smaller r on ties; (0, 0) if the first cell is no colour. Returns (B, 2).
    """
    array = np.asarray(tokens).reshape(-1, SIDE, SIDE)
    colour = (array >= FIRST_COLOUR) & (array < FIRST_COLOUR + NUM_COLOURS)
    leading = np.logical_and.accumulate(colour, axis=2).sum(axis=2)
    width = np.minimum.accumulate(leading, axis=1)
    area = width * np.arange(1, SIDE + 1)
    best = area.argmax(axis=1)
    each = np.arange(len(array))
    some = area[each, best] > 0
    return np.stack([np.where(some, best + 1, 0), np.where(some, width[each, best], 0)], axis=1)


def crop(tokens: NDArray[np.integer]) -> Grid:
    """The grid (rows, columns) of colours in one token row (900,), by the rule of `crop_sizes`."""
    return crop_all(np.asarray(tokens)[None])[0]


def crop_all(tokens: NDArray[np.integer]) -> list[Grid]:
    """`crop` of every row of (B, 900)."""
    array = np.asarray(tokens).reshape(-1, SIDE, SIDE)
    # uint8 wraps outside the crop (PAD, EOS), which is cut away
    colours = (array - FIRST_COLOUR).astype(np.uint8)
    sizes = crop_sizes(tokens).tolist()
    return [
        np.ascontiguousarray(colours[i, :rows, :columns]) for i, (rows, columns) in enumerate(sizes)
    ]


def grid_hash(grid: Grid) -> str:
    """SHA-256, hex, over one byte of rows, one byte of columns and the cells row-major."""
    return hashlib.sha256(
        bytes(grid.shape) + grid.astype(np.uint8, copy=False).tobytes()
    ).hexdigest()


def puzzle_hash(pairs: Iterable[tuple[Grid, Grid]]) -> str:
    """SHA-256 over the sorted ``input hash|output hash`` of all pairs; their order is no part."""
    parts = sorted(f"{grid_hash(source)}|{grid_hash(target)}" for source, target in pairs)
    return hashlib.sha256("|".join(parts).encode()).hexdigest()
