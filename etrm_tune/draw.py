"""Grids on the terminal: ARC's colours where they can be shown, digits where not."""

from __future__ import annotations

import os
from collections.abc import Sequence
from itertools import zip_longest
from typing import TextIO

Rows = Sequence[Sequence[int]]

PALETTE = (
    (0, 0, 0),
    (0, 116, 217),
    (255, 65, 54),
    (46, 204, 64),
    (255, 220, 0),
    (170, 170, 170),
    (240, 18, 190),
    (255, 133, 27),
    (127, 219, 255),
    (135, 12, 37),
)
"""Red, green and blue of colours 0 … 9, as the ARC testing interface shows them."""

RESET = "\x1b[0m"
EMPTY = "(empty)"


def shows_colour(stream: TextIO) -> bool:
    """Whether `stream` is a terminal on which colours are wanted (https://no-color.org)."""
    if os.environ.get("NO_COLOR") or os.environ.get("TERM") == "dumb":
        return False
    return stream.isatty()


def grid_lines(grid: Rows, *, colour: bool) -> list[str]:
    """One line per row: two coloured columns per cell, or a digit and a space."""
    if not len(grid) or not len(grid[0]):
        return [EMPTY]
    if not colour:
        return [" ".join(str(int(cell)) for cell in row) for row in grid]
    return ["".join(_cell(int(cell)) for cell in row) + RESET for row in grid]


def _cell(value: int) -> str:
    red, green, blue = PALETTE[value]
    return f"\x1b[48;2;{red};{green};{blue}m  "


def grid_width(grid: Rows, *, colour: bool) -> int:
    """Columns of the terminal that `grid_lines` takes."""
    if not len(grid) or not len(grid[0]):
        return len(EMPTY)
    return 2 * len(grid[0]) - (not colour)


def side_by_side(
    titled: Sequence[tuple[str, Rows]], *, colour: bool, columns: int = 100, gap: int = 3
) -> list[str]:
    """Lines of several grids under their titles, next to each other as far as `columns` allow."""
    widths = [max(len(title), grid_width(grid, colour=colour)) for title, grid in titled]
    lines: list[str] = []
    start = 0
    while start < len(titled):
        stop, used = start + 1, widths[start]
        while stop < len(titled) and used + gap + widths[stop] <= columns:
            used += gap + widths[stop]
            stop += 1
        blocks = [
            [title.ljust(width)]
            + [
                line + " " * (width - grid_width(grid, colour=colour))
                for line in grid_lines(grid, colour=colour)
            ]
            for (title, grid), width in zip(titled[start:stop], widths[start:stop], strict=True)
        ]
        blank = [" " * width for width in widths[start:stop]]
        for cells in zip_longest(*blocks):
            shown = [b if c is None else c for c, b in zip(cells, blank, strict=True)]
            lines.append((" " * gap).join(shown).rstrip())
        start = stop
    return lines
