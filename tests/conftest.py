"""Shared fixtures: the golden files, and the whole set where the developers' folder is present."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

GOLDEN = Path(__file__).parent / "golden"


@dataclass(frozen=True)
class Golden:
    """One golden file: configuration, scalars, and its tensors by name."""

    name: str
    config: dict[str, Any]
    scalars: dict[str, Any]
    tensors: dict[str, torch.Tensor]

    def group(self, prefix: str) -> dict[str, torch.Tensor]:
        """Tensors whose name starts with ``prefix/``, without it."""
        head = prefix + "/"
        return {k[len(head) :]: v for k, v in self.tensors.items() if k.startswith(head)}


def load_golden(name: str) -> Golden:
    """Read ``tests/golden/<name>``; a missing file is a failure, not a skip."""
    description = json.loads((GOLDEN / f"{name}.json").read_text())
    tensors = load_file(GOLDEN / f"{name}.safetensors")
    return Golden(name, description["config"], description["scalars"], tensors)


@pytest.fixture
def golden() -> Any:
    """Return the loader of golden files."""
    return load_golden


@pytest.fixture(autouse=True)
def _one_thread() -> None:
    torch.set_num_threads(1)
