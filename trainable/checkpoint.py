"""Checkpoints: our own (enough to resume exactly), and those of the public implementations.

A file is read with ``weights_only=True`` and nothing else: tensors, numbers, strings and containers
of them. A stranger's file cannot run code.

Official TRM format: a plain mapping name → tensor under ``[module.][_orig_mod.]model.inner.…``,
with ``all_config.yaml`` beside it, since cycles and heads leave no trace in the tensors.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import json
import os
import pickle
import re
import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import yaml
from torch import Tensor

from trainable.config import SEMANTICS_VERSION, ModelConfig, TrialConfig
from trainable.errors import CheckpointError, UserError

FORMAT = "etrm-tune"
SCHEMA_VERSION = 1
_STEP = re.compile(r"step-(\d+)\.pt$")

State = dict[str, Any]


class StorageError(UserError):
    """A file cannot be written."""


# --- writing and reading files ---------------------------------------------------------------


def write_atomically(path: Path, state: Any) -> None:
    """`torch.save` to a temporary file, flushed to disk, then renamed over `path`."""
    temporary = path.with_name(f"{path.name}.{os.getpid()}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with temporary.open("wb") as file:
            torch.save(state, file)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    except (OSError, RuntimeError) as error:
        with contextlib.suppress(OSError):
            temporary.unlink()
        raise storage_error(path, error) from error


def storage_error(path: Path, error: Exception) -> StorageError:
    """One line for a failed write: a full disk, a read-only one, or the system's own words."""
    number = getattr(error, "errno", None)
    if number == errno.ENOSPC or "enospc" in str(error).lower():
        return StorageError(f"disk full while writing {path}: free space, then run again")
    if number in (errno.EROFS, errno.EACCES, errno.EPERM):
        return StorageError(f"cannot write {path} (read-only or no permission): choose --runs DIR")
    return StorageError(f"cannot write {path}: {str(error).splitlines()[0]}")


def read(path: str | Path) -> State:
    """Read a checkpoint onto the CPU. Raises `CheckpointError` for anything but plain tensors."""
    path = Path(path)
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


def save(folder: Path, step: int, state: State, *, keep: int) -> Path:
    """Write ``step-<n>.pt`` and drop all but the newest `keep` files."""
    path = folder / f"step-{step}.pt"
    write_atomically(path, {"format": FORMAT, "schema_version": SCHEMA_VERSION, **state})
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
    """Read a checkpoint of ours. Raises `CheckpointError` for another format or a newer schema."""
    state = read(path)
    if state.get("format") != FORMAT:
        raise CheckpointError(f"{path} is not a training checkpoint of etrm-tune")
    if state["schema_version"] > SCHEMA_VERSION:
        raise CheckpointError(f"{path} was written by a newer etrm-tune: upgrade to read it")
    return state


def stored_config(state: State) -> TrialConfig:
    """The configuration that a checkpoint of ours was trained with."""
    return TrialConfig(**json.loads(state["config"]))


def check_resume(state: State, config: TrialConfig, data_hash: str, path: Path) -> None:
    """Raise unless the checkpoint belongs to exactly this trial."""
    if state.get("semantics_version") != SEMANTICS_VERSION:
        raise CheckpointError(
            f"{path} was trained with semantics version {state.get('semantics_version')}, this is "
            f"{SEMANTICS_VERSION}: start the run under a new name"
        )
    if state["identity"] != config.identity(data_hash=data_hash):
        raise CheckpointError(
            f"{path} belongs to another configuration or data set: start the run under a new name"
        )


# --- decoders --------------------------------------------------------------------------------


def normalise(names: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Tensor names without leading ``module.``, ``_orig_mod.``, ``model.``."""
    result = {}
    for name, value in names.items():
        for prefix in ("module.", "_orig_mod.", "module.", "model."):
            name = name.removeprefix(prefix)
        result[name] = value
    return result


@dataclass(frozen=True)
class Decoder:
    """A decoder's tensors (names start with ``inner.``), and what is known of its training.

    `settings` are the model options found beside or inside the file; `exposure` is None for a
    foreign file; `ours` tells the format.
    """

    path: Path
    tensors: dict[str, Tensor]
    settings: dict[str, Any]
    exposure: dict[str, list[str]] | None
    ours: bool

    @property
    def hidden_size(self) -> int:
        """Width, from the tensors."""
        return int(self.tensors["inner.H_init"].shape[0])


def read_decoder(path: str | Path) -> Decoder:
    """Read a TRM (or ETRM) checkpoint of either format as a decoder, EMA weights first.

    Raises:
        CheckpointError: unreadable, or without the recursion's tensors.
    """
    path = Path(path)
    state = read(path)
    if state.get("format") == FORMAT:
        state = read_own(path)
        weights = {**state["model"], **(state["ema"] or {})}
        settings = stored_config(state).model.model_dump()
        exposure, ours = state["exposure"], True
    else:
        weights, settings, exposure, ours = state, _settings_beside(path), None, False
    strangers = [name for name, value in weights.items() if not isinstance(value, Tensor)]
    if strangers:
        raise CheckpointError(f"{path}: {strangers[0]!r} is not a tensor; give a TRM checkpoint")
    names = normalise(weights)
    tensors = {
        name: value
        for name, value in names.items()
        if name.startswith("inner.") and "puzzle_emb" not in name
    }
    if "inner.H_init" not in tensors or tensors["inner.H_init"].dim() != 1:
        raise CheckpointError(f"{path} has no tensor 'inner.H_init': it is not a TRM checkpoint")
    return Decoder(path, tensors, settings, exposure, ours)


def _settings_beside(path: Path) -> dict[str, Any]:
    """Model options from ``all_config.yaml`` beside an official file; empty where there is none."""
    file = path.with_name("all_config.yaml")
    if not file.is_file():
        return {}
    try:
        config = yaml.safe_load(file.read_text())
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise CheckpointError(f"{file} is not valid YAML: {str(error).splitlines()[0]}") from None
    arch = config.get("arch", config) if isinstance(config, dict) else {}
    if not isinstance(arch, dict):
        raise CheckpointError(
            f"{file} has no 'arch' section: give the file saved beside the weights"
        )
    return {key: value for key, value in arch.items() if key in ModelConfig.model_fields}


def decoder_reference(path: str | Path) -> str:
    """Content hash of a given decoder file (16 hex digits)."""
    digest = hashlib.sha256()
    try:
        with Path(path).open("rb") as file:
            while block := file.read(1 << 20):
                digest.update(block)
    except OSError as error:
        raise CheckpointError(f"cannot read {path}: {error.strerror}: check --decoder") from None
    return digest.hexdigest()[:16]


def decoder_options(path: str | Path) -> dict[str, Any]:
    """Options that a model must share with a decoder: sizes from its tensors, cycles if known."""
    decoder = read_decoder(path)
    known = (
        "num_heads",
        "expansion",
        "H_cycles",
        "L_cycles",
        "pos_encodings",
        "mlp_t",
        "canvas",
        "rope_theta",
    )
    options = {key: decoder.settings[key] for key in known if key in decoder.settings}
    layers = {name.split(".")[3] for name in decoder.tensors if name.startswith("inner.L_level")}
    return {"hidden_size": decoder.hidden_size, "L_layers": len(layers), **options}


def decoder_problem(
    path: str | Path, model: ModelConfig, *, l_cycles: int | None = None
) -> str | None:
    """Why a decoder cannot be used in `model`, in one line, or None.

    `l_cycles` states the decoder's cycles where no configuration lies beside the file.
    """
    try:
        decoder = read_decoder(path)
    except CheckpointError as error:
        return str(error)
    if decoder.hidden_size != model.hidden_size:
        return (
            f"decoder {path} is {decoder.hidden_size} wide, the model {model.hidden_size}: "
            f"set hidden_size={decoder.hidden_size}"
        )
    recorded = decoder.settings.get("L_cycles", l_cycles)
    if recorded is None:
        return (
            f"nothing beside {path} tells the decoder's L_cycles: put its all_config.yaml there, "
            f"or pass --decoder-l-cycles"
        )
    if l_cycles is not None and "L_cycles" in decoder.settings and recorded != l_cycles:
        return f"decoder {path} records L_cycles {recorded}, --decoder-l-cycles says {l_cycles}"
    if recorded != model.L_cycles:
        return (
            f"decoder {path} was trained with L_cycles {recorded}, the model has {model.L_cycles}: "
            f"set L_cycles={recorded}"
        )
    for option in ("H_cycles", "num_heads", "expansion", "pos_encodings", "mlp_t", "canvas"):
        theirs = decoder.settings.get(option)
        if theirs is not None and theirs != getattr(model, option):
            return (
                f"decoder {path} was trained with {option} {theirs}, the model has "
                f"{getattr(model, option)}: set {option}={theirs}"
            )
    return None


def load_decoder(module: torch.nn.Module, path: str | Path) -> Decoder:
    """Load every tensor of the recursion into ``module.inner``; all of them or an error."""
    decoder = read_decoder(path)
    own = {
        name: value
        for name, value in module.state_dict().items()
        if name.startswith("inner.") and "puzzle_emb" not in name
    }
    missing, extra = own.keys() - decoder.tensors.keys(), decoder.tensors.keys() - own.keys()
    if missing or extra:
        what = f"lacks {sorted(missing)[0]!r}" if missing else f"has {sorted(extra)[0]!r} besides"
        raise CheckpointError(
            f"decoder {path} {what} ({len(own) - len(missing)} of {len(own)} tensors match): "
            f"it belongs to another architecture"
        )
    for name, value in own.items():
        given = decoder.tensors[name]
        if given.shape != value.shape:
            raise CheckpointError(
                f"decoder {path}: {name} is {tuple(given.shape)}, the model needs "
                f"{tuple(value.shape)}: set the model's sizes to the decoder's"
            )
    module.load_state_dict(
        {name: decoder.tensors[name].to(value.dtype) for name, value in own.items()}, strict=False
    )
    return decoder


def decoder_difference(module: torch.nn.Module, decoder: Decoder) -> tuple[int, float]:
    """Decoder tensors equal within 1e-5, and the largest absolute difference."""
    state, equal, largest = module.state_dict(), 0, 0.0
    for name, value in decoder.tensors.items():
        difference = float((state[name].float() - value.float()).abs().max())
        equal += difference <= 1e-5
        largest = max(largest, difference)
    return equal, largest
