"""Predictions for the report's puzzles, from a small untrained model."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from synthetic_runs import configuration

from trainable.data.grids import grid_tokens
from trainable.errors import CheckpointError
from trainable.foreign import LoadedModel
from trainable.models import build_model
from trainable.predictions import _choose, _colours, predict_puzzles


def small(**more: Any) -> LoadedModel:
    """An untrained encoder and decoder over four training and two held-out puzzles."""
    trial = configuration(
        "overfit/E1a", hidden_size=16, num_heads=2, puzzle_emb_ndim=16, halt_max_steps=2,
        L_cycles=1, H_cycles=1, L_layers=1, encoder_num_layers=1, max_train_groups=4,
        max_eval_groups=2, max_grid_side=5, train_subsets=("training",),
        canvas="demos", forward_dtype="float32",
    )  # fmt: skip
    values: dict[str, Any] = {
        "path": Path("step-1.pt"), "model": build_model(trial.model, seed=0), "kind": "etrm-tune",
        "config": trial.model, "weights": "ema", "exposure": None, "identifiers": None, "step": 1,
        "trial": trial, "notes": [],
    }  # fmt: skip
    return LoadedModel(**(values | more))


def test_every_step_of_every_query_is_answered() -> None:
    told = predict_puzzles(small())
    assert set(told["tally"]) == {"trained", "held out"}
    assert told["tally"]["trained"]["queries"] >= 4 and told["tally"]["held out"]["queries"] >= 2
    assert 0 < len(told["puzzles"]) <= 12
    for one in told["puzzles"]:
        assert [step["step"] for step in one["steps"]] == [1, 2] and one["demos"]
        shape = np.shape(one["output"])
        for step in one["steps"]:
            assert np.shape(step["grid"]) == shape and 0 <= step["q"] <= 1
            right = np.mean(np.array(step["grid"]) == np.array(one["output"]))
            assert step["accuracy"] == pytest.approx(right, abs=1e-4)
            assert step["correct"] == (right == 1 and tuple(step["size"]) == shape)
    with pytest.raises(CheckpointError, match="a run of ours"):
        predict_puzzles(small(trial=None))


def test_colours_of_a_rectangle() -> None:
    tokens = grid_tokens(np.array([[7, 8], [9, 0]], np.uint8))
    assert _colours(tokens, (2, 3)).tolist() == [[7, 8, -1], [9, 0, -1]]


def test_each_role_and_outcome_has_its_turn() -> None:
    def one(role: str, outcome: str, accuracy: float) -> dict[str, Any]:
        return {"role": role, "outcome": outcome, "steps": [{"accuracy": accuracy}]}

    answered = [one("trained", "failed", share) for share in (0.3, 0.1, 0.2)]
    answered += [one("held out", "nearly solved", share) for share in (0.8, 0.95)]
    answered += [one("trained", "solved", 1.0)]
    chosen = _choose(answered, 4)
    assert [(c["outcome"], c["steps"][-1]["accuracy"]) for c in chosen] == [
        ("solved", 1.0), ("nearly solved", 0.95), ("failed", 0.1), ("nearly solved", 0.8),
    ]  # fmt: skip
    assert len(_choose(answered, 12)) == 6
