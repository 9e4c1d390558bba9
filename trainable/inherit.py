"""Copying one trial's state into another: the exploit step of population-based training.

The copy is a checkpoint like any other, written whole, so that a resume has one source: the newest
checkpoint in a trial's folder. It carries where it came from (``lineage``), which the first line of
the next attempt repeats.
"""

from __future__ import annotations

import contextlib
import json
from pathlib import Path
from typing import Any

from trainable import checkpoint
from trainable.config import TrialConfig
from trainable.errors import CheckpointError


def lineage(folder: Path) -> list[dict[str, Any]]:
    """Copies that the newest checkpoint of a trial's folder went through, oldest first."""
    found = checkpoint.newest(folder / "checkpoints")
    return [] if found is None else list(json.loads(found[1].get("lineage", "[]")))


def state_at(folder: Path, step: int) -> checkpoint.State | None:
    """A trial's checkpoint of exactly this step; None where there is none that can be read."""
    with contextlib.suppress(CheckpointError):
        return checkpoint.read_own(folder / "checkpoints" / f"step-{step}.pt")
    return None


def inherit(
    parent: Path, child: Path, step: int, *, config: TrialConfig, identity: str
) -> list[dict[str, Any]]:
    """Make the parent's state at a step the child's only checkpoint; returns its lineage.

    Done twice, it changes nothing more. What the child had learned is dropped; its rows stay.
    Raises `CheckpointError` when the parent's checkpoint of that step is gone or damaged.
    """
    state = state_at(parent, step)
    if state is None:
        raise CheckpointError(
            f"{parent / 'checkpoints' / f'step-{step}.pt'} is gone or damaged, and {child.name} "
            f"continues from it: restore it, or start a new search with --name NAME"
        )
    told = [*json.loads(state.get("lineage", "[]")), {"trial_id": parent.name, "step": step}]
    own = {
        "config": config.model_dump_json(),
        "identity": identity,
        "lineage": json.dumps(told),
    }
    folder = child / "checkpoints"
    for later, path in checkpoint.list_steps(folder):
        if later > step:
            path.unlink(missing_ok=True)
    checkpoint.save(folder, step, state | own, keep=1)
    for name in ("result.json",):  # of a member that had diverged
        (child / name).unlink(missing_ok=True)
    return told
