"""The page of differences names every defect once, and only tests that exist."""

from __future__ import annotations

import ast
import re
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PAGE = (ROOT / "docs" / "differences.md").read_text()
COUNTS = {"A": 20, "B": 9, "C": 10, "D": 11, "E": 6, "F": 5, "G": 6}
NUMBERS = [f"{letter}{n}" for letter, count in COUNTS.items() for n in range(1, count + 1)]
ROWS = {
    cells[0]: cells
    for line in PAGE.splitlines()
    if re.match(r"\| [A-G]\d+ \|", line)
    for cells in [[cell.strip() for cell in line.strip("| ").split(" | ")]]
}
NAMED = sorted(set(re.findall(r"tests/[\w/]+\.py::test_\w+", PAGE)))


@cache
def functions_in(path: Path) -> frozenset[str]:
    """Names of the test functions of a file, without running it."""
    body = ast.parse(path.read_text()).body
    return frozenset(node.name for node in body if isinstance(node, ast.FunctionDef))


def test_every_defect_stands_there_once_and_in_order() -> None:
    assert re.findall(r"^\| ([A-G]\d+) \|", PAGE, re.MULTILINE) == NUMBERS


@pytest.mark.parametrize("number", NUMBERS)
def test_every_defect_is_answered_and_shown(number: str) -> None:
    cells = ROWS[number]
    assert len(cells) == 5 and all(cells), "number, public code, here, back, tests"
    assert "::test_" in cells[4], "a defect without a test"


def test_every_named_test_exists() -> None:
    missing = []
    for name in NAMED:
        path, function = name.split("::")
        if not (ROOT / path).exists() or function not in functions_in(ROOT / path):
            missing.append(name)
    assert not missing and len(NAMED) > 60


def test_named_files_exist() -> None:
    for path in re.findall(r"tests/[\w/]+\.py", PAGE):
        assert (ROOT / path).exists(), path
