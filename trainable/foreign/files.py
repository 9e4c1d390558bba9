"""One view of every checkpoint file: ours, official TRM, ETRM reference.

`open_weights` reads a file without building a model: its tensors under our names (raw, averaged,
or both), the model options it was trained with, and what it records of its training.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from torch import Tensor

from trainable import checkpoint
from trainable.config import ModelConfig, TrialConfig
from trainable.errors import CheckpointError
from trainable.foreign.names import PUZZLE_TABLE, model_tensors, plain_tensors
from trainable.foreign.settings import Settings, read_settings, settings_beside, settings_of

Weights = Literal["ema", "raw"]
Kind = Literal["etrm-tune", "trm", "etrm"]

IDENTIFIERS_FILE = "identifiers.json"
_STEP = re.compile(r"step[_-](\d+)(?:\.pt)?$")


@dataclass(frozen=True, eq=False)
class WeightsFile:
    """A checkpoint as read.

    `sets` has the tensors by kind of weights: "raw", "ema", or "unknown" where a single set does
    not tell; `options` are model options, None where no configuration is known; `exposure` and
    `trial` are None for foreign files; `identifiers` are names by row of the puzzle table.
    """

    path: Path
    kind: Kind
    sets: dict[str, dict[str, Tensor]]
    options: dict[str, Any] | None
    settings: Settings | None = None
    trial: TrialConfig | None = None
    step: int | None = None
    exposure: dict[str, list[str]] | None = None
    identifiers: list[str] | None = None
    notes: list[str] = field(default_factory=list)

    def choose(self, weights: Weights | None = None) -> tuple[str, dict[str, Tensor]]:
        """Kind and tensors of the weights asked for; None takes averaged ones where there are any.

        Raises `CheckpointError` when the file has only the other kind.
        """
        label: str
        if weights is None:
            label = next(kind for kind in ("ema", "unknown", "raw") if kind in self.sets)
        elif weights in self.sets:
            label = weights
        elif "unknown" in self.sets:
            label = "unknown"
        else:
            has = next(iter(self.sets))
            raise CheckpointError(f"{self.path} holds {has} weights only: ask for weights {has!r}")
        return label, self.sets[label]

    @property
    def tensors(self) -> dict[str, Tensor]:
        """The weights that `choose()` takes."""
        return self.choose()[1]


def open_weights(
    path: str | Path,
    *,
    config: ModelConfig | Mapping[str, Any] | str | Path | None = None,
    identifiers: str | Path | None = None,
) -> WeightsFile:
    """Read any checkpoint.

    Args:
        path: the file.
        config: for a foreign file, in place of the ``all_config.yaml`` beside it: another such
            file, its content, or a `ModelConfig`.
        identifiers: an ``identifiers.json`` in place of the one beside the file.

    Raises:
        CheckpointError: unreadable, another kind of file, or names that do not fit the table.
    """
    path = Path(path)
    state = checkpoint.read(path)
    if state.get("format") == checkpoint.FORMAT:
        return _own(path, checkpoint.read_own(path))
    return _foreign(path, state, config, identifiers)


def _own(path: Path, state: checkpoint.State) -> WeightsFile:
    raw, averaged = state.get("model"), state.get("ema")
    if not isinstance(raw, dict):
        raise CheckpointError(f"{path} holds no model: give a file that the training loop wrote")
    sets = {"raw": model_tensors(raw, path)}
    if averaged:
        sets = {"ema": {**sets["raw"], **plain_tensors(averaged, path)}, **sets}
    elif state.get("weights") in ("ema", "unknown"):
        sets = {state["weights"]: sets["raw"]}
    names = state.get("identifiers")
    return WeightsFile(
        path=path,
        kind="etrm-tune",
        sets=sets,
        options=checkpoint.stored_model(state).model_dump(),
        trial=checkpoint.stored_config(state),
        step=state.get("step"),
        exposure=state.get("exposure"),
        identifiers=None if names is None else json.loads(names),
    )


def _foreign(
    path: Path,
    state: Mapping[Any, Any],
    config: ModelConfig | Mapping[str, Any] | str | Path | None,
    identifiers: str | Path | None,
) -> WeightsFile:
    settings = None
    if config is None:
        settings = settings_beside(path)
    elif isinstance(config, ModelConfig):
        settings = Settings(options=config.model_dump())
    elif isinstance(config, Mapping):
        settings = settings_of(config)
    else:
        settings = read_settings(config)
    notes = list(settings.notes) if settings else []
    step = None
    if match := _STEP.search(path.name):
        step = int(match[1])
    if isinstance(state.get("model"), dict):  # later public versions keep optimizers in the file
        sets = {"raw": model_tensors(state["model"], path)}
        if isinstance(averaged := state.get("ema_helper"), dict):
            sets = {"ema": {**sets["raw"], **plain_tensors(averaged, path)}, **sets}
        step = state["step"] if isinstance(state.get("step"), int) else step
    else:
        averaged_weights = None if settings is None else settings.ema
        label = {True: "ema", False: "raw", None: "unknown"}[averaged_weights]
        sets = {label: model_tensors(state, path)}
        if label == "unknown":
            notes.append(f"nothing tells whether {path.name} holds averaged or raw weights")
    tensors = next(iter(sets.values()))
    encodes = any(name.startswith("encoder.") for name in tensors)
    table = tensors.get(PUZZLE_TABLE)
    names, note = _identifiers_of(path, identifiers, None if table is None else len(table))
    return WeightsFile(
        path=path,
        kind="etrm" if encodes else "trm",
        sets=sets,
        options=None if settings is None else settings.options,
        settings=settings,
        step=step,
        identifiers=names,
        notes=notes + note,
    )


def _identifiers_of(
    path: Path, given: str | Path | None, rows: int | None
) -> tuple[list[str] | None, list[str]]:
    """Names by row of the puzzle table, from the given file or the one beside; and a note."""
    file = Path(given) if given is not None else path.with_name(IDENTIFIERS_FILE)
    if rows is None or (given is None and not file.is_file()):
        return None, []
    names = read_identifiers(file)
    if len(names) == rows:
        return names, []
    problem = f"{file} names {len(names)} identifiers, the puzzle table of {path} has {rows} rows"
    if given is not None:
        raise CheckpointError(f"{problem}: give the file of the data it was trained on")
    return None, [f"{problem}: it was ignored"]


def read_identifiers(file: str | Path) -> list[str]:
    """The list in an ``identifiers.json``. Raises `CheckpointError` for anything else."""
    file = Path(file)
    try:
        names = json.loads(file.read_text())
    except OSError as error:
        raise CheckpointError(
            f"cannot read identifiers from {file}: {error.strerror}: check the path"
        ) from None
    except (ValueError, RecursionError):
        raise CheckpointError(f"{file} is not JSON: give the data set's identifiers.json") from None
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        raise CheckpointError(f"{file} is not a list of names: give the data's identifiers.json")
    return names
