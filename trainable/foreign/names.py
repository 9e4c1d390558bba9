"""Tensor names of the public formats.

A published file names its tensors ``_orig_mod.model.inner.…`` (saved from a compiled model) or
``model.inner.…``; distributed wrappers put ``module.`` in front. Read: any of them. Written by
us: ``_orig_mod.model.…``, since that is the only form which the public code can load and resize.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from trainable.errors import CheckpointError

WRITTEN_PREFIX = "_orig_mod.model."
PUZZLE_TABLE = "inner.puzzle_emb.weights"
_LEADING = ("module.", "_orig_mod.", "model.")


def normalise(names: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Tensors under ``inner.…`` and ``encoder.…``: wrappers' prefixes are taken off, leading only.

    Raises `CheckpointError` when two names become one.
    """
    result: dict[str, Tensor] = {}
    for name, value in names.items():
        short = name
        while prefix := next((p for p in _LEADING if short.startswith(p)), ""):
            short = short.removeprefix(prefix)
        if short in result:
            raise CheckpointError(f"two tensors are both called {short!r}: give an unmixed file")
        result[short] = value
    return result


def plain_tensors(values: Mapping[Any, Any], path: Path) -> dict[str, Tensor]:
    """The normalised tensors of a mapping read from `path`.

    Raises `CheckpointError` unless every value is a plain tensor of real numbers.
    """
    for name, value in values.items():
        if not isinstance(name, str) or not isinstance(value, Tensor):
            raise CheckpointError(
                f"{path}: {name!r} is not a tensor; give a TRM or ETRM checkpoint"
            )
        if value.layout != torch.strided or not value.is_floating_point():
            raise CheckpointError(
                f"{path}: {name!r} is {value.dtype}, {value.layout}, not a plain tensor of real "
                f"numbers; give a TRM or ETRM checkpoint"
            )
    return normalise(values)


def model_tensors(values: Mapping[Any, Any], path: Path) -> dict[str, Tensor]:
    """`plain_tensors` of a whole model: raises also when the recursion is not among them."""
    tensors = plain_tensors(values, path)
    start = tensors.get("inner.H_init")
    if start is None or start.dim() != 1:
        raise CheckpointError(f"{path} has no tensor 'inner.H_init': it is not a TRM checkpoint")
    return tensors


def part_of(name: str) -> str:
    """``decoder``, ``encoder``, ``puzzle table`` or ``other``: the part a tensor belongs to."""
    if name.startswith("inner.puzzle_emb."):
        return "puzzle table"
    if name.startswith("inner."):
        return "decoder"
    return "encoder" if name.startswith("encoder.") else "other"
