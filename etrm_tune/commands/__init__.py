"""Commands of ``etrm-tune``, one module each, in the order of ``--help``.

A module has ``add(commands)``, which adds its parser and sets ``action``: a function of the parsed
arguments that returns the exit status. Heavy imports belong inside the action.
"""

from __future__ import annotations

from importlib import import_module
from types import ModuleType

MODULES: tuple[str, ...] = (
    "listing", "validate", "following", "search", "status", "retry", "reproduce", "checkpoint",
    "evaluate", "predict", "report", "replay", "watch",
)  # fmt: skip
"""Modules of this package that are commands."""


def modules() -> list[ModuleType]:
    """The command modules, imported."""
    return [import_module(f"{__name__}.{name}") for name in MODULES]
