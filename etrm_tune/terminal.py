"""How commands print: a console of readable width, and values as a person writes them."""

from __future__ import annotations

import os
from typing import IO, Any

from rich.console import Console
from rich.padding import Padding
from rich.text import Text

WIDTH = 100
"""Columns of piped output where COLUMNS does not ask for fewer, and at most of a terminal's."""
WIDE = 200
"""Columns of piped output where no name may be broken."""


def console(file: IO[str] | None = None, *, wide: bool = False) -> Console:
    """A console of at most `WIDTH` columns, with `wide` of all that a terminal has (piped: `WIDE`).

    Wide are tables whose rows are searched by name, and the one that is redrawn.
    """
    own = Console(file=file, highlight=False)
    if wide:
        return own if own.is_terminal else Console(file=file, highlight=False, width=WIDE)
    known = own.is_terminal or os.environ.get("COLUMNS", "").isdigit()
    return Console(file=file, highlight=False, width=min(own.width, WIDTH) if known else WIDTH)


def say(out: Console, text: str, style: str = "") -> None:
    """One line, as long as it is: what is copied or searched for is not broken."""
    out.print(Text(text, style=style), soft_wrap=True)


def note(out: Console, text: str, style: str = "") -> None:
    """A paragraph, indented by two columns, in lines that fit."""
    out.print(Padding(Text(text, style=style), (0, 0, 0, 2), expand=False))


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
