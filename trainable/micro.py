"""Micro batches: a worker's rows in pieces that are small enough for its memory."""

from __future__ import annotations

import torch
from torch import Tensor

from trainable.errors import ConfigError


def micro_batches(rows: int, size: int | None) -> list[slice]:
    """Cut a worker's rows into micro batches of `size` rows; None: one of all rows.

    Raises `ConfigError` where `size` does not divide them.
    """
    size = rows if size is None else min(size, rows)
    if rows % size:
        raise ConfigError(
            f"micro_batch_size {size} does not divide the {rows} rows of a worker: choose a divisor"
        )
    return [slice(at, at + size) for at in range(0, rows, size)]


def joined(parts: list[Tensor]) -> Tensor:
    """Rows of micro batches, one after another."""
    return parts[0] if len(parts) == 1 else torch.cat(parts)


def added(a: dict[str, Tensor], b: dict[str, Tensor]) -> dict[str, Tensor]:
    """Sums of two micro batches; a KL term may be missing where nothing was encoded."""
    total = dict(a)
    for name, value in b.items():
        total[name] = total[name] + value if name in total else value
    return total
