"""Encode modes, recurrent encoders and micro batches: they train, resume bit for bit, and compute
what they say."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from tests.trainable.small_trials import (
    batches,
    comparable_rows,
    puzzle_folder,
    rows_of,
    same_state,
    tiny,
)
from trainable import checkpoint
from trainable.config import TrialConfig
from trainable.errors import ConfigError
from trainable.evaluate import evaluation_mode, run_act
from trainable.loop import train
from trainable.losses import act_loss
from trainable.models import build_model
from trainable.optim import AdamATan2
from trainable.random import RowGenerator, torch_generator
from trainable.trial import Trial

RECURRENT = ("recurrent_standard", "trm_style")
VARIATIONAL: dict[str, Any] = {"encoder_type": "lpn_variational", "kl_weight": 1e-3}
MODES: dict[str, dict[str, Any]] = {
    "cached": {"encode_mode": "cached"},
    "cached-variational": {"encode_mode": "cached", **VARIATIONAL},
    "cached-frozen-decoder": {"encode_mode": "cached", "freeze_decoder_steps": 3},
    "online": {"encode_mode": "online", "num_act_steps": 4},
    "online-full": {"encode_mode": "online", "num_act_steps": 2, "canvas": "full", "steps": 4},
    "online-trm": {"encode_mode": "online", "num_act_steps": 2, "kind": "trm"},
    "micro": {"micro_batch_size": 2},
    "micro-variational": {"micro_batch_size": 1, "encode_mode": "cached", **VARIATIONAL},
    "micro-trm": {"micro_batch_size": 2, "kind": "trm", "no_ACT_continue": False},
    "online-micro": {"encode_mode": "online", "num_act_steps": 2, "micro_batch_size": 2},
    **{name: {"kind": "etrmtrm", "recurrent_encoder_type": name} for name in RECURRENT},
    "etrmtrm-online": {
        "kind": "etrmtrm",
        "recurrent_encoder_type": "recurrent_standard",
        "encode_mode": "online",
    },
    "etrmtrm-micro": {
        "kind": "etrmtrm",
        "recurrent_encoder_type": "trm_style",
        "micro_batch_size": 2,
    },
    "prefix1": {"context_positions": 1},
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return puzzle_folder(tmp_path_factory.mktemp("puzzles"))


def final_state(out: Path) -> dict[str, Any]:
    found = checkpoint.newest(out / "checkpoints")
    assert found is not None
    return {k: v for k, v in found[1].items() if k not in ("wall_s", "last_row")}


@pytest.mark.parametrize("name", MODES)
def test_every_mode_trains_and_resumes_bit_for_bit(folder: Path, tmp_path: Path, name: str) -> None:
    options = {"steps": 6, "log_interval": 2, "max_eval_groups": 0, "halt_max_steps": 3}
    options |= {"checkpoint_interval": 1, "keep_checkpoints": 9}
    config = tiny(folder, **(options | MODES[name]))
    result = train(config, out_dir=tmp_path / "whole", progress=False)
    assert result.status == "finished"
    start = result.total_steps // 2
    path = tmp_path / "whole" / "checkpoints" / f"step-{start}.pt"
    train(config, out_dir=tmp_path / "parts", progress=False, resume_from=path)
    whole, parts = (comparable_rows(tmp_path / part) for part in ("whole", "parts"))
    assert parts == whole[-len(parts) :] and len(parts) >= 1
    same_state(final_state(tmp_path / "parts"), final_state(tmp_path / "whole"))
    rows = rows_of(tmp_path / "whole")
    assert all(math.isfinite(row["train/loss"]) for row in rows)
    for part in ("total",) if config.model.kind == "trm" else ("total", "encoder"):
        assert max(row[f"grad/{part}_norm"] for row in rows) > 0
