"""Shared fixtures: the golden files, and the whole set where the developers' folder is present."""

from __future__ import annotations

import json
import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

GOLDEN = Path(__file__).parent / "golden"
WHOLE = Path(os.environ.get("ETRM_GOLDEN", Path(__file__).parents[2] / "shared" / "golden"))
"""Every golden file: the developers' folder, beside the repository or where the variable says."""


@dataclass(frozen=True)
class Golden:
    """One golden file: configuration, scalars, and its tensors by name."""

    name: str
    config: dict[str, Any]
    scalars: dict[str, Any]
    tensors: dict[str, torch.Tensor]
    notes: list[str] = field(default_factory=list)

    def group(self, prefix: str) -> dict[str, torch.Tensor]:
        """Tensors whose name starts with ``prefix/``, without it."""
        head = prefix + "/"
        return {k[len(head) :]: v for k, v in self.tensors.items() if k.startswith(head)}


def load_golden(name: str, folder: Path = GOLDEN) -> Golden:
    """Read ``tests/golden/<name>``; a missing file is a failure, not a skip.

    With ``folder=WHOLE`` the test is skipped where that folder is absent.
    """
    if folder == WHOLE and not folder.is_dir():
        pytest.skip("the developers' folder of golden files is not here")
    about = json.loads((folder / f"{name}.json").read_text())
    tensors = load_file(folder / f"{name}.safetensors")
    return Golden(name, about["config"], about["scalars"], tensors, about.get("notes", []))


@pytest.fixture
def golden() -> Any:
    """Return the loader of golden files."""
    return load_golden


@pytest.fixture(autouse=True)
def _one_thread() -> None:
    torch.set_num_threads(1)
