"""Errors that a user can act on.

Every error a user may cause derives from :class:`UserError`; the command line prints its text as
one line and exits with a non-zero status. Programming errors are ``assert``s and keep their
traceback.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class UserError(ValueError):
    """Bad input. The text is one line and names the fix."""


class ConfigError(UserError):
    """A configuration contradicts itself or names something unknown."""


class DataError(UserError):
    """A puzzle file is missing, malformed or does not hold what the configuration asks for."""


class CheckpointError(UserError):
    """A checkpoint cannot be read, or does not fit the configuration."""


def nearest(name: str, known: Iterable[str]) -> str:
    """Return ``" (did you mean 'x'?)"`` for the closest known name, or an empty string."""
    close = difflib.get_close_matches(name, sorted(known), n=1, cutoff=0.5)
    return f" (did you mean {close[0]!r}?)" if close else ""
