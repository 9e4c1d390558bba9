"""Predictions for the report's puzzles, from a small untrained model."""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from synthetic_runs import FolderWriter, configuration

from etrm_tune.commands import report as command
from trainable import predictions
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


def test_a_time_limit_is_kept_after_the_first_batch(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(predictions, "BATCH", 2)
    told = predict_puzzles(small(), seconds=0)
    assert not told["complete"] and predict_puzzles(small())["complete"]
    counts = told["tally"].values()
    assert sum(one["queries"] for one in counts) == 2 < sum(o["available"] for o in counts)
    assert all(one["queries"] for one in counts), "roles take turns"


def finished(path: Path) -> list[str]:
    """A run of five arms and a decoder with checkpoints; its arms, best first."""
    writer = FolderWriter(path)
    for at, name in enumerate(("E1a", "E1b", "E2a", "E2b", "E2c")):
        folder = writer.add(f"overfit/{name}", 0.5 + 0.1 * at)
        (folder / "checkpoints").mkdir()
        for step in (300, 400):
            (folder / "checkpoints" / f"step-{step}.pt").touch()
    writer.add("overfit/E4a", 0.99, status="failed")
    folder = writer.add("decoder/trm", 0.8, role="decoder", options={"kind": "trm"})
    (folder / "checkpoints").mkdir()
    (folder / "checkpoints" / "step-400.pt").touch()
    return [f"overfit-{name}-s0" for name in ("E2c", "E2b", "E2a", "E1b", "E1a")]


def test_the_command_answers_puzzles_of_the_best_trials_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    best = finished(tmp_path / "run")
    asked: list[tuple[str, str, float | None]] = []

    def write(checkpoint: Path, folder: Path, *, seconds: float | None) -> None:
        asked.append((folder.name, checkpoint.name, seconds))
        if folder.name == best[1]:
            raise CheckpointError("damaged")
        told = {"puzzles": [], "step": 400, "tally": {}, "complete": seconds is None}
        (folder / "predictions.json").write_text(json.dumps(told))

    monkeypatch.setattr(predictions, "write_predictions", write)
    parser = argparse.ArgumentParser()
    command.add(parser.add_subparsers())

    def report(*options: str) -> list[tuple[str, str, float | None]]:
        asked.clear()
        args = parser.parse_args(["report", str(tmp_path / "run"), *options])
        assert args.action(args) == 0
        return list(asked)

    assert report("--no-puzzles") == []
    limit = float(command.SECONDS)
    assert report() == [(name, "step-400.pt", limit) for name in best[:3]]
    assert report() == [(best[1], "step-400.pt", limit)], "only what is missing"
    old = tmp_path / "run" / "trials" / best[0] / "predictions.json"
    old.write_text(old.read_text().replace("400", "300"))
    assert [name for name, *_ in report()] == best[:2], "and what is of an earlier checkpoint"
    everything = [(name, "step-400.pt", None) for name in [*best, "decoder-trm-s0"]]
    assert report("--puzzles") == everything, "those that were cut short again"
    assert report("--puzzles") == [(best[1], "step-400.pt", None)]
