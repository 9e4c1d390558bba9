"""How commands print: a console of readable width, and values as a person writes them."""

from __future__ import annotations

from typing import Any

from rich.console import Console

WIDTH = 100
"""Columns of piped output, and at most of a terminal's."""


def console() -> Console:
    """A console of at most `WIDTH` columns; exactly as many where the output is piped."""
    own = Console(highlight=False)
    if own.is_terminal:
        return Console(highlight=False, width=min(own.width, WIDTH))
    return Console(highlight=False, width=WIDTH)


def shown(value: Any) -> str:
    """A value of an option: ``0.0001``, ``20000``, ``training, concept``, ``–`` for None."""
    if value is None:
        return "–"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float):
        return f"{int(value)}" if value == int(value) and abs(value) >= 1 else f"{value:g}"
    if isinstance(value, list | tuple):
        return ", ".join(map(str, value))
    return str(value)
