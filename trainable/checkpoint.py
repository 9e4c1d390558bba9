"""Our own checkpoints, enough to resume exactly; and how every checkpoint file is read.

A file is read with ``weights_only=True`` and nothing else: tensors, numbers, strings and containers
of them. A stranger's file cannot run code. Files of the public implementations are the subject of
`trainable.foreign`, decoders that of `trainable.decoder`.
"""

from __future__ import annotations

import contextlib
import json
import os
import pickle
import re
import warnings
import zipfile
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any, BinaryIO

import torch

from trainable.attempts import SupersededError
from trainable.config import SEMANTICS_VERSION, ModelConfig, TrialConfig
from trainable.errors import CheckpointError, storage_error

FORMAT = "etrm-tune"
SCHEMA_VERSION = 1
_STEP = re.compile(r"step-(\d+)\.pt$")

State = dict[str, Any]
Guard = Callable[[], AbstractContextManager[object]]


# --- writing and reading files ---------------------------------------------------------------


def write_atomically(path: Path, state: Any, *, guard: Guard = nullcontext) -> None:
    """`torch.save` to a temporary file, flushed to disk, then renamed inside `guard`."""
    _replace(path, lambda file: torch.save(state, file), guard)


def write_text_atomically(path: Path, text: str) -> None:
    """The same for text in UTF-8."""
    _replace(path, lambda file: file.write(text.encode()), nullcontext)


def _replace(path: Path, write: Callable[[BinaryIO], object], guard: Guard) -> None:
    temporary = path.with_name(f"{path.name}.{os.getpid()}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with temporary.open("wb") as file:
            write(file)
            file.flush()
            os.fsync(file.fileno())
        with guard():
            temporary.replace(path)
    except SupersededError:
        with contextlib.suppress(OSError):
            temporary.unlink()
        raise
    except (OSError, RuntimeError) as error:
        with contextlib.suppress(OSError):
            temporary.unlink()
        raise storage_error(path, error) from error


def read(path: str | Path) -> State:
    """Read a checkpoint onto the CPU. Raises `CheckpointError` for anything but plain tensors."""
    path = Path(path)
    if path.is_dir():
        raise CheckpointError(f"{path} is a folder: give a checkpoint file in it")
    if not path.is_file():
        raise CheckpointError(f"no checkpoint at {path}: check the path")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of pickle protocols: a refusal follows anyway
            state = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        reason = "it holds pickled code" if "Unsupported" in str(error) else "it is damaged"
        raise CheckpointError(
            f"{path} was not loaded: {reason}; only files of plain tensors are read"
        ) from None
    except Exception as error:  # garbage can make the reader fail in any way
        first = (str(error).splitlines() or [type(error).__name__])[0][:200]
        raise CheckpointError(f"{path} is not a readable checkpoint: {first}") from None
    if not isinstance(state, dict):
        raise CheckpointError(f"{path} holds a {type(state).__name__}, not a mapping of tensors")
    return state


# --- our own ---------------------------------------------------------------------------------


def save(
    folder: Path,
    step: int,
    state: State,
    *,
    keep: int,
    guard: Guard = nullcontext,
) -> Path:
    """Write ``step-<n>.pt``; drop all but the newest `keep` files, and what a killed writer left.

    Args:
        folder: of the trial's checkpoints.
        step: optimizer steps done.
        state: what to write.
        keep: how many files stay.
        guard: gives what is held while files change (`trainable.attempts.holding`).

    Raises `StorageError` for a full or read-only disk; the files that were there stay. What `guard`
    raises passes.
    """
    path = folder / f"step-{step}.pt"
    with guard():
        for torn in folder.glob("step-*.pt.*.tmp"):
            torn.unlink(missing_ok=True)
    whole = {"format": FORMAT, "schema_version": SCHEMA_VERSION, **state}
    write_atomically(path, whole, guard=guard)
    with guard():
        for old in list_steps(folder)[:-keep]:
            old[1].unlink(missing_ok=True)
    return path


def list_steps(folder: Path) -> list[tuple[int, Path]]:
    """(step, path) of every checkpoint in a folder, oldest first."""
    found = []
    for path in folder.glob("step-*.pt"):
        if match := _STEP.search(path.name):
            found.append((int(match[1]), path))
    return sorted(found)


def newest(folder: Path) -> tuple[Path, State] | None:
    """The newest checkpoint that can be read; a damaged one falls back to the one before."""
    for _, path in reversed(list_steps(folder)):
        try:
            return path, read_own(path)
        except CheckpointError:
            continue
    return None


def read_own(path: str | Path) -> State:
    """Read a checkpoint of ours, every byte checked against its checksum (torch does not).

    Raises `CheckpointError` for a damaged file, another format or a newer schema.
    """
    state = read(path)
    with contextlib.suppress(zipfile.BadZipFile, OSError), zipfile.ZipFile(path) as archive:
        if (damaged := _first_damaged(archive)) is not None:
            raise CheckpointError(
                f"{path} is damaged (checksum of {damaged}): restore it, or give another checkpoint"
            )
    if state.get("format") != FORMAT:
        raise CheckpointError(f"{path} is not a training checkpoint of etrm-tune")
    if not isinstance(version := state.get("schema_version"), int):
        raise CheckpointError(f"{path} has no schema version: give the file as it was written")
    if version > SCHEMA_VERSION:
        raise CheckpointError(f"{path} was written by a newer etrm-tune: upgrade to read it")
    return state


def _first_damaged(archive: zipfile.ZipFile) -> str | None:
    try:
        return archive.testzip()
    except Exception as error:  # garbage can make the reader fail in any way
        return str(error) or type(error).__name__


def stored_config(state: State) -> TrialConfig | None:
    """The configuration that a checkpoint of ours was trained with; None where only its model is
    known (weights that came from elsewhere)."""
    config = _config(state)
    return None if config.keys() == {"model"} else TrialConfig(**config)


def stored_model(state: State) -> ModelConfig:
    """The model options in a checkpoint of ours, a whole one or weights alone."""
    return ModelConfig(**_config(state)["model"])


def _config(state: State) -> dict[str, Any]:
    try:
        config = json.loads(state["config"])
        if isinstance(config["model"], dict):
            return dict(config)
    except (KeyError, TypeError, ValueError, RecursionError):
        pass
    raise CheckpointError("a checkpoint lacks its configuration: give the file as it was written")


def check_resume(state: State, config: TrialConfig, data_hash: str, path: Path) -> None:
    """Raise unless the checkpoint belongs to exactly this trial."""
    if "optimizer" not in state:
        raise CheckpointError(
            f"{path} holds weights alone and cannot be resumed: give a checkpoint of this trial"
        )
    if state.get("semantics_version") != SEMANTICS_VERSION:
        raise CheckpointError(
            f"{path} was trained with semantics version {state.get('semantics_version')}, this is "
            f"{SEMANTICS_VERSION}: start the run under a new name"
        )
    if state["identity"] != config.identity(data_hash=data_hash):
        raise CheckpointError(
            f"{path} belongs to another configuration or data set: start the run under a new name"
        )
