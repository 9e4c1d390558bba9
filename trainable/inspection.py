"""What a checkpoint file holds, as plain data: for the command line, for scripts, for tests.

Nothing is built or executed; the numbers are those of the tensors as stored.
"""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor

from trainable.decoder import TOLERANCE, Decoder, compare
from trainable.errors import UserError
from trainable.foreign.files import WeightsFile
from trainable.foreign.load import config_for
from trainable.foreign.names import part_of

CHUNK = 1 << 20
"""Values looked at together: a puzzle table has 455 million."""

MAIN_OPTIONS = (
    "kind",
    "hidden_size",
    "num_heads",
    "expansion",
    "H_cycles",
    "L_cycles",
    "L_layers",
    "pos_encodings",
    "mlp_t",
    "puzzle_emb_ndim",
    "puzzle_emb_len",
    "halt_max_steps",
    "forward_dtype",
    "canvas",
    "parity",
)
ENCODER_OPTIONS = (
    "encoder_type",
    "recurrent_encoder_type",
    "encoder_num_layers",
    "encoder_set_layers",
    "encoder_pooling_method",
    "encoder_norm_style",
    "encoder_layer_scale_init",
)


@dataclass(frozen=True)
class TensorStats:
    """One tensor. `mean`, `std` (divisor n), `min` and `max` are over its finite values, NaN where
    it has none; `nan` and `inf` count the others."""

    name: str
    shape: tuple[int, ...]
    dtype: str
    mean: float
    std: float
    min: float
    max: float
    nan: int
    inf: int


def tensor_stats(name: str, value: Tensor) -> TensorStats:
    """Statistics in float64, in pieces of about `CHUNK` values, which are then put together (Chan,
    Golub and LeVeque 1979)."""
    rows = value.detach().reshape(1) if value.dim() == 0 else value.detach()
    length = max(1, CHUNK * len(rows) // max(1, rows.numel()))
    nan = inf = count = 0
    mean, squares, low, high = 0.0, 0.0, math.inf, -math.inf
    for piece in torch.split(rows, length):
        if not bool(piece.isfinite().all()):
            nan += int(piece.isnan().sum())
            inf += int(piece.isinf().sum())
            piece = piece[piece.isfinite()]
        if not (more := piece.numel()):
            continue
        least, most = piece.aminmax()
        low, high = min(low, float(least)), max(high, float(most))
        variance, its_mean = torch.var_mean(piece.double(), correction=0)
        step = float(its_mean) - mean
        squares += float(variance) * more + step**2 * count * more / (count + more)
        count += more
        mean += step * more / count
    return TensorStats(
        name=name,
        shape=tuple(value.shape),
        dtype=str(value.dtype).removeprefix("torch."),
        mean=mean if count else math.nan,
        std=math.sqrt(squares / count) if count else math.nan,
        min=low if count else math.nan,
        max=high if count else math.nan,
        nan=nan,
        inf=inf,
    )


def count_parameters(tensors: dict[str, Tensor]) -> dict[str, int]:
    """Values by part: decoder, encoder, puzzle table, and the untrained initial states."""
    counts = dict.fromkeys(("decoder", "encoder", "puzzle table", "initial states", "other"), 0)
    for name, value in tensors.items():
        part = "initial states" if name.endswith("_init") else part_of(name)
        counts[part] += value.numel()
    return {part: count for part, count in counts.items() if count}


def inspect(file: WeightsFile) -> dict[str, Any]:
    """Everything that ``checkpoint inspect`` tells, as plain data."""
    tensors = file.tensors
    notes = list(file.notes)
    options: dict[str, Any] | None = None
    try:
        config, found = config_for(file, tensors, {})
        notes += found
        keys = MAIN_OPTIONS + (() if config.kind == "trm" else ENCODER_OPTIONS)
        options = {key: getattr(config, key) for key in keys}
    except UserError as error:
        notes.append(str(error))
    stats = {
        label: [tensor_stats(name, value) for name, value in weights.items()]
        for label, weights in file.sets.items()
    }
    for label, rows in stats.items():
        broken = [row.name for row in rows if row.nan or row.inf]
        if broken:
            notes.append(
                f"{len(broken)} tensors of the {label} weights are not finite: {broken[0]}"
            )
    where = file.settings.file if file.settings else None
    trial = file.trial
    return {
        "path": str(file.path),
        "format": file.kind,
        "step": file.step,
        "weights": list(file.sets),
        "config_file": "inside" if file.kind == "etrm-tune" else where and str(where),
        "config": options,
        "trial": trial
        and {"name": trial.name, "seed": trial.seed, "profile": trial.profile, "lr": trial.lr},
        "parameters": count_parameters(tensors),
        "exposure": file.exposure and {role: len(ids) for role, ids in file.exposure.items()},
        "identifiers": None if file.identifiers is None else len(file.identifiers),
        "tensors": {label: [asdict(row) for row in rows] for label, rows in stats.items()},
        "notes": notes,
    }


def verify_decoder(
    file: WeightsFile, source: Decoder, weights: dict[str, Tensor]
) -> dict[str, Any]:
    """Compare the decoder in `weights` of `file` with its source, tensor by tensor.

    The verdict is "frozen: equal" when every tensor of the source is there, none besides, and all
    lie within 1e-5; otherwise "drifted".
    """
    mine = {name: value for name, value in weights.items() if part_of(name) == "decoder"}
    found = compare(mine, source.tensors)
    missing = sorted(source.tensors.keys() - mine.keys())
    unexpected = sorted(mine.keys() - source.tensors.keys())
    equal = not missing and not unexpected and all(row.equal for row in found)
    return {
        "path": str(file.path),
        "source": str(source.path),
        "verdict": "frozen: equal" if equal else "drifted",
        "equal": sum(row.equal for row in found),
        "tensors": [asdict(row) | {"equal": row.equal} for row in found],
        "of": len(source.tensors),
        "tolerance": TOLERANCE,
        "missing": missing,
        "unexpected": unexpected,
    }
