"""A trial as a checkpoint and back: enough to continue it bit for bit.

Rows of the carry are written in the order of the global batch, whatever the number of workers and
micro batches that held them; each takes its own when it reads them.
"""

from __future__ import annotations

import json
from contextlib import nullcontext
from pathlib import Path
from typing import TYPE_CHECKING

import torch
import torch.distributed as dist
from torch import Tensor

from trainable import checkpoint
from trainable.attempts import SupersededError
from trainable.collective import gather, together
from trainable.config import SEMANTICS_VERSION
from trainable.models import Carry, RecursiveModel
from trainable.models.carry import InnerCarry
from trainable.models.transfer import MIRRORED

if TYPE_CHECKING:
    from trainable.trial import Trial

_DATA, _STATE = "data/", "encoder_state/"


def save(trial: Trial, *, guard: checkpoint.Guard = nullcontext) -> bool:
    """Write everything that the rest of the curve depends on. Rows of all workers are gathered.

    Returns False, having written nothing, when `guard` says that a later attempt has begun.
    """
    parts = [_rows(carry) for carry in trial.carries]
    rows = {name: torch.cat([part[name] for part in parts]) for name in parts[0]}
    if trial.world > 1:
        rows = {name: gather(value) for name, value in rows.items()}
        sums = trial.sums.values.clone()
        dist.all_reduce(sums)
        sums[len(trial.sums.summed) :] = trial.sums.values[len(trial.sums.summed) :]
    else:
        sums = trial.sums.values
    late = together(lambda: trial.rank == 0 and not _write(trial, rows, sums, guard))
    return not trial.any(late)


def _write(trial: Trial, rows: dict[str, Tensor], sums: Tensor, guard: checkpoint.Guard) -> bool:
    ema = trial.updater.ema
    names: dict[str, str] = {}
    if trial.config.model.kind == "trm":  # rows of the puzzle table
        names["identifiers"] = trial.identifiers
    if trial.lineage:
        names["lineage"] = json.dumps(trial.lineage)
    state = {
        **names,
        "config": trial.config.model_dump_json(),
        "identity": trial.identity,
        "semantics_version": SEMANTICS_VERSION,
        "data_hash": trial.data.data_hash,
        "step": trial.step,
        "samples": trial.samples,
        "wall_s": trial.wall_s,
        "model": trial.model.state_dict(),
        "ema": None if ema is None else ema.shadow,
        "optimizer": trial.updater.optimizer.state_dict(),
        "carry": rows,
        "sums": sums,
        "generators": {name: g.get_state() for name, g in trial.generators.items()},
        "sampler": json.dumps(trial.sampler.state()),
        "exposure": trial.exposure,
        "tasks": json.dumps(trial.tasks),
        "last_row": json.dumps(trial.last_row),
    }
    folder = trial.out_dir / "checkpoints"
    try:
        checkpoint.save(folder, trial.step, state, keep=trial.config.keep_checkpoints, guard=guard)
    except SupersededError:
        return False
    return True


def resume(trial: Trial, source: str | Path | None) -> int:
    """Continue from a checkpoint; returns its step, 0 for a fresh start.

    `source` is a path, "auto" for the newest readable checkpoint in the trial's folder, or None.
    """
    if source is None:
        return 0
    state = together(lambda: _read(trial, source))
    if state is None:
        return 0
    trial.step, trial.samples, trial.wall_s = state["step"], state["samples"], state["wall_s"]
    trial.model.load_state_dict(state["model"])
    if trial.updater.ema is not None:
        for name, value in state["ema"].items():
            trial.updater.ema.shadow[name].copy_(value)
    trial.updater.optimizer.load_state_dict(state["optimizer"])
    for name, generator in trial.generators.items():
        generator.set_state(state["generators"][name])
    trial.sampler.restore(json.loads(state["sampler"]))
    trial.tasks = json.loads(state["tasks"])
    trial.last_row = json.loads(state.get("last_row", "{}"))
    trial.lineage = json.loads(state.get("lineage", "[]"))
    if trial.rank == 0:
        trial.sums.values.copy_(state["sums"])
    else:  # sums were reduced before they were saved; norms are equal everywhere
        trial.sums.values[len(trial.sums.summed) :] = state["sums"][len(trial.sums.summed) :]
    count = trial.rows
    mine = slice(trial.rank * count, (trial.rank + 1) * count)
    rows = {name: value[mine] for name, value in state["carry"].items()}
    trial.carries = [
        _carry({name: value[part] for name, value in rows.items()}, trial.model, trial.device)
        for part in trial.micro_batches
    ]
    return trial.step


def _read(trial: Trial, source: str | Path) -> checkpoint.State | None:
    """The checkpoint to continue from, checked to be this trial's; None where there is none."""
    if source == "auto":
        found = _newest(trial)
        if found is None:
            return None
        path, state = found
    else:
        path = Path(source)
        state = checkpoint.read_own(path)
    checkpoint.check_resume(state, trial.config, trial.data.data_hash, path)
    return state


def _newest(trial: Trial) -> tuple[Path, checkpoint.State] | None:
    """The newest readable checkpoint; rank 0 chooses, so that all workers take the same."""
    folder = trial.out_dir / "checkpoints"
    found = checkpoint.newest(folder) if trial.rank == 0 else None
    if trial.world > 1:
        chosen = [None if found is None else str(found[0])]
        dist.broadcast_object_list(chosen)
        if trial.rank > 0 and chosen[0] is not None:
            found = Path(chosen[0]), checkpoint.read_own(chosen[0])
    return found


def _rows(carry: Carry) -> dict[str, Tensor]:
    """A carry as tensors whose first axis is rows; states dense (B, P + S, D)."""
    rows = {
        "z_H": carry.inner.z_H,
        "z_L": carry.inner.z_L,
        "steps": carry.steps,
        "halted": carry.halted,
    }
    if carry.context is not None:
        rows["context"] = carry.context
    rows |= {f"{_STATE}{at}": value for at, value in enumerate(carry.encoder_state or ())}
    return rows | {_DATA + name: value for name, value in carry.current_data.items()}


def _carry(rows: dict[str, Tensor], model: RecursiveModel, device: torch.device) -> Carry:
    """Inverse of `_rows`, which may be on the host."""
    host = {n: rows[_DATA + n].cpu() for n in MIRRORED if _DATA + n in rows}
    rows = {name: value.to(device) for name, value in rows.items()}
    data = {n.removeprefix(_DATA): v for n, v in rows.items() if n.startswith(_DATA)}
    states = [rows[f"{_STATE}{at}"] for at in range(sum(n.startswith(_STATE) for n in rows))]
    layout = model.layout(data)
    return Carry(
        InnerCarry(layout.to_packed(rows["z_H"]), layout.to_packed(rows["z_L"]), layout),
        rows["steps"],
        rows["halted"],
        data,
        context=rows.get("context"),
        encoder_state=tuple(states) or None,
        host=host if device.type == "cuda" else None,
    )
