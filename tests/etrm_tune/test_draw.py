"""Grids on the terminal."""

from __future__ import annotations

import io
import re

import pytest

from etrm_tune.draw import PALETTE, grid_lines, shows_colour, side_by_side


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_colours_only_where_they_are_wanted(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("NO_COLOR", raising=False)
    monkeypatch.setenv("TERM", "xterm")
    assert shows_colour(Terminal()) and not shows_colour(io.StringIO())
    monkeypatch.setenv("NO_COLOR", "1")
    assert not shows_colour(Terminal())


def test_a_cell_is_a_digit_or_two_coloured_columns() -> None:
    assert grid_lines([[0, 9], [3, 4]], colour=False) == ["0 9", "3 4"]
    first, second = grid_lines([[0, 9], [3, 4]], colour=True)
    colours = re.findall(r"\x1b\[48;2;(\d+);(\d+);(\d+)m  ", first)
    assert [tuple(map(int, c)) for c in colours] == [PALETTE[0], PALETTE[9]]
    assert second.endswith("\x1b[0m"), "the background does not run on"
    assert grid_lines([], colour=True) == grid_lines([[]], colour=False) == ["(empty)"]


@pytest.mark.parametrize("colour", [False, True])
def test_grids_stand_side_by_side_as_far_as_they_fit(colour: bool) -> None:
    titled = [("one", [[1, 2, 3, 4]]), ("two", [[5], [6]]), ("three", [])]
    lines = [re.sub(r"\x1b\[[0-9;]*m", "", line) for line in side_by_side(titled, colour=colour)]
    assert lines[0].split() == ["one", "two", "three"] and len(lines) == 3
    assert lines[1].index("(empty)") == lines[0].index("three"), "columns line up"
    narrow = side_by_side(titled, colour=colour, columns=10)
    assert [line for line in narrow if "one" in line] != [line for line in narrow if "two" in line]
    assert any("three" in line for line in narrow)
