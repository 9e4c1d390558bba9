"""What the rooms' sources never contain (defects G1 and G2)."""

from __future__ import annotations

import ast
from pathlib import Path

ROOT = Path(__file__).parents[2]
SOURCES = [
    path
    for room in ("trainable", "search_spaces", "etrm_tune", "analysis")
    for path in sorted((ROOT / room).rglob("*.py"))
]


def test_nothing_is_caught_without_a_name() -> None:
    found = [
        f"{path}:{node.lineno}"
        for path in SOURCES
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.ExceptHandler) and node.type is None
    ]
    assert not found and len(SOURCES) > 50


def test_no_room_holds_tests_or_prints_in_its_library() -> None:
    found = []
    for path in SOURCES:
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.FunctionDef) and node.name.startswith("test_"):
                found.append(f"{path}:{node.lineno}")
            library = path.parts[len(ROOT.parts)] != "etrm_tune"  # the command line may print
            if (
                library
                and isinstance(node, ast.Call)
                and isinstance(node.func, ast.Name)
                and node.func.id == "print"
            ):
                found.append(f"{path}:{node.lineno}")
    assert not found
