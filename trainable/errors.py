"""Errors that a user can act on.

Every error a user may cause derives from :class:`UserError`; the command line prints its text as
one line and exits with a non-zero status. Programming errors are ``assert``s and keep their
traceback.
"""

from __future__ import annotations

import difflib
import errno
from collections.abc import Iterable
from pathlib import Path


class UserError(ValueError):
    """Bad input. The text is one line and names the fix."""


class ConfigError(UserError):
    """A configuration contradicts itself or names something unknown."""


class DataError(UserError):
    """A puzzle file is missing, malformed or does not hold what the configuration asks for."""


class CheckpointError(UserError):
    """A checkpoint cannot be read, or does not fit the configuration."""


FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
"""The disk, a quota, or the size allowed for a file."""


class StorageError(UserError):
    """A file cannot be written: not the trial's fault, it goes on when there is room."""


def storage_error(path: Path, error: Exception) -> StorageError:
    """One line for a failed write: a full disk, a read-only one, or the system's own words."""
    number = getattr(error, "errno", None)
    if number in FULL or "enospc" in str(error).lower():
        return StorageError(f"disk full while writing {path}: free space, then run again")
    if number in (errno.EROFS, errno.EACCES, errno.EPERM):
        return StorageError(
            f"cannot write {path} (read-only or no permission): choose another folder "
            f"(--runs DIR, --out FOLDER)"
        )
    return StorageError(f"cannot write {path}: {str(error).splitlines()[0]}")


def nearest(name: str, known: Iterable[str]) -> str:
    """Return ``" (did you mean 'x'?)"`` for the closest known name, or an empty string."""
    close = difflib.get_close_matches(name, sorted(known), n=1, cutoff=0.5)
    return f" (did you mean {close[0]!r}?)" if close else ""
