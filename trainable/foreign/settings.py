"""The public configuration file ``all_config.yaml``: what it says about the model.

It lies beside the weights and is needed to use them: cycles and heads leave no trace in tensors.
Only plain YAML is read; a file with tags that would build objects is refused.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from trainable.config import ModelConfig
from trainable.errors import CheckpointError

CONFIG_FILE = "all_config.yaml"
OURS = "etrm_tune"
"""Section for what the public code has no name for; it ignores the section."""

CLASSES = {
    "trm": "recursive_reasoning.trm@TinyRecursiveReasoningModel_ACTV1",
    "etrm": "recursive_reasoning.etrm@TRMWithEncoder",
    "etrmtrm": "recursive_reasoning.etrmtrm@TRMWithRecurrentEncoder",
}
"""Model class of each kind, under ``arch.name``."""

FROM_DATA = ("batch_size", "seq_len", "vocab_size", "num_puzzle_identifiers")
"""Keys that the public code fills in from the data, and refuses under ``arch``."""

_SILENT = {"name", "loss", "causal", "freeze_encoder"}
_REFERENCE = re.compile(r"^\$\{\.(\w+)\}$")


@dataclass(frozen=True)
class Settings:
    """What a configuration file says.

    `options`: `ModelConfig` options; `training`: everything outside ``arch``; `loss`: the section
    ``arch.loss``; `notes`: keys that were not understood, in words; `file`: where it was read.
    """

    options: dict[str, Any]
    training: dict[str, Any] = field(default_factory=dict)
    loss: dict[str, Any] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)
    file: Path | None = None

    @property
    def ema(self) -> bool | None:
        """Whether the weights are averaged ones, where the file tells."""
        value = self.training.get("ema")
        return value if isinstance(value, bool) else None


def settings_beside(path: Path) -> Settings | None:
    """Settings from ``all_config.yaml`` in the folder of a weights file; None without one."""
    file = path.with_name(CONFIG_FILE)
    return read_settings(file) if file.is_file() else None


def read_settings(file: str | Path) -> Settings:
    """Read a configuration file: a whole one, or its ``arch`` section alone.

    Raises `CheckpointError` for a file that is missing, not plain YAML, or says nothing of a model.
    """
    file = Path(file)
    try:
        config = yaml.safe_load(file.read_text())
    except OSError as error:
        raise CheckpointError(
            f"cannot read {file}: {error.strerror}: give the {CONFIG_FILE} saved beside the weights"
        ) from None
    except yaml.constructor.ConstructorError as error:
        raise CheckpointError(
            f"{file} is not valid YAML of plain values ({error.problem}): nothing of it was "
            f"executed; write the values out"
        ) from None
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        first = (str(error).splitlines() or [type(error).__name__])[0]
        raise CheckpointError(f"{file} is not valid YAML: {first}") from None
    return settings_of(config, file)


def settings_of(config: Any, file: Path | None = None) -> Settings:
    """Settings of a configuration as read from YAML. Raises `CheckpointError` without ``arch``."""
    where = "the configuration" if file is None else str(file)
    whole = config if isinstance(config, Mapping) else {}
    arch = whole.get("arch", whole)
    if not isinstance(arch, Mapping) or not (arch.keys() & ModelConfig.model_fields.keys()):
        raise CheckpointError(
            f"{where} has no 'arch' section: give the {CONFIG_FILE} saved beside the weights"
        )
    ours = whole.get(OURS, {})
    extra = ours.get("model", {}) if isinstance(ours, Mapping) else {}
    options: dict[str, Any] = {}
    notes = []
    for key, given in (*arch.items(), *(extra.items() if isinstance(extra, Mapping) else ())):
        if key not in ModelConfig.model_fields:
            if key not in _SILENT:
                notes.append(f"{where}: arch.{key} is not known here and was ignored")
            continue
        value = _resolved(given, arch)
        if not isinstance(value, str | int | float | bool | None):
            raise CheckpointError(f"{where}: arch.{key} is not a plain value: write one value")
        options[key] = value
    loss = arch.get("loss", {})
    name = arch.get("name")
    known = {text: kind for kind, text in CLASSES.items()}
    if isinstance(name, str) and name in known:
        options["kind"] = known[name]
    return Settings(
        options=options,
        training={} if whole is arch else {k: v for k, v in whole.items() if k != "arch"},
        loss=dict(loss) if isinstance(loss, Mapping) else {},
        notes=notes,
        file=file,
    )


def _resolved(value: Any, arch: Mapping[Any, Any]) -> Any:
    """``${.key}`` of an architecture file stands for another key of the same section."""
    match = _REFERENCE.match(value) if isinstance(value, str) else None
    return arch.get(match[1]) if match else value
