"""Shared fixtures: the golden files, and the whole set where the developers' folder is present."""

from __future__ import annotations

import json
import os
from dataclasses import dataclass, field
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import settings
from safetensors.torch import load_file

os.environ.pop("COLUMNS", None)  # a terminal's width, as workers of pytest-xdist are told it
settings.register_profile("no clock", deadline=None)  # a busy machine is no failure
settings.load_profile("no clock")

GOLDEN = Path(__file__).parent / "golden"
WHOLE = Path(os.environ.get("ETRM_GOLDEN", Path(__file__).parents[2] / "shared" / "golden"))
"""Every golden file: the developers' folder, beside the repository or where the variable says."""

SHARED_WORK = ("test_workers.py", "test_evaluate_workers.py")


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


def pytest_ignore_collect(collection_path: Path) -> bool | None:
    """Without Ray (a machine that has torch alone) the tests that need it are not collected."""
    if find_spec("ray") is not None or collection_path.suffix != ".py":
        return None
    needs = collection_path.parent.name == "etrm_tune" or "etrm_tune" in collection_path.read_text()
    return True if needs and collection_path != Path(__file__) else None


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Modules that share a minute of work come first: the halves that two processes begin with stay
    whole, while a module that is reached last is divided, and its work done twice."""
    items.sort(key=lambda item: item.path.name not in SHARED_WORK)


@pytest.fixture
def golden() -> Any:
    """Return the loader of golden files."""
    return load_golden


@pytest.fixture(autouse=True)
def _plain_torch() -> None:
    """What trials set for their process."""
    torch.set_num_threads(1)
    torch.set_float32_matmul_precision("highest")
