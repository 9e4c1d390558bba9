"""Parameter groups: freezing, rates, decay and clipping of encoder and decoder."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from tests.trainable.small_trials import puzzle_folder, rows_of, tiny
from trainable import checkpoint
from trainable import trial as trial_module
from trainable.config import TrialConfig
from trainable.loop import TrainResult, train


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return puzzle_folder(tmp_path_factory.mktemp("puzzles"))


def run(config: TrialConfig, out_dir: Path, **options: Any) -> TrainResult:
    return train(config, out_dir=out_dir, progress=False, **options)


def weights_by_step(config: TrialConfig, out_dir: Path) -> list[dict[str, torch.Tensor]]:
    run(config, out_dir)
    return [
        checkpoint.read_own(path)["model"]
        for _, path in checkpoint.list_steps(out_dir / "checkpoints")
    ]


def moved(before: dict[str, torch.Tensor], after: dict[str, torch.Tensor], part: str) -> set[bool]:
    names = [n for n in before if n.startswith(part) and not n.endswith("_init")]
    return {not torch.equal(before[n], after[n]) for n in names}


@pytest.mark.parametrize("scale", [0.0, 0.5])
def test_freezing_is_per_group(folder: Path, tmp_path: Path, scale: float) -> None:
    """With `encoder_lr_scale` 0 the encoder takes the decoder's rate and freezes all the same."""
    options = {"checkpoint_interval": 1, "keep_checkpoints": 9, "max_eval_groups": 0}
    options |= {"encoder_lr_scale": scale, "weight_decay": 0.1, "lr_warmup_steps": 0}

    config = tiny(folder, steps=4, freeze_decoder_steps=2, **options)
    w = weights_by_step(config, tmp_path / "decoder")
    assert moved(w[0], w[1], "inner.") == {False} and moved(w[0], w[1], "encoder.") == {True}
    assert moved(w[1], w[2], "inner.") == {True} == moved(w[1], w[2], "encoder.")
    rows = rows_of(tmp_path / "decoder")
    assert [row["train/decoder_frozen"] for row in rows] == [1, 1, 0, 0]
    assert [row["grad/decoder_norm"] == 0 for row in rows] == [True, True, False, False]
    assert all(row["grad/encoder_norm"] > 0 for row in rows)

    config = tiny(folder, steps=4, encoder_freeze_steps=2, **options)
    w = weights_by_step(config, tmp_path / "encoder")
    assert moved(w[0], w[1], "inner.") == {True} and moved(w[0], w[1], "encoder.") == {False}
    assert moved(w[1], w[2], "inner.") == {True} == moved(w[1], w[2], "encoder.")
    rows = rows_of(tmp_path / "encoder")
    assert [row["train/encoder_frozen"] for row in rows] == [1, 1, 0, 0]
    assert [row["grad/encoder_norm"] == 0 for row in rows] == [True, True, False, False]

    config = tiny(folder, steps=3, freeze_encoder=True, **options)
    w = weights_by_step(config, tmp_path / "never")
    assert moved(w[0], w[2], "encoder.") == {False} and moved(w[0], w[2], "inner.") == {True}
    assert [row["train/encoder_frozen"] for row in rows_of(tmp_path / "never")] == [1, 1, 1]


def test_frozen_gradients_do_not_enter_the_clip_norm(folder: Path, tmp_path: Path) -> None:
    options = {"grad_clip_norm": 1e-3, "max_eval_groups": 0, "steps": 1}
    run(tiny(folder, encoder_freeze_steps=1, **options), tmp_path)
    (row,) = rows_of(tmp_path)
    assert row["grad/total_norm"] == row["grad/decoder_norm"] > 0
    assert row["grad/clip_factor"] == pytest.approx(1e-3 / row["grad/total_norm"], rel=1e-3)


def test_the_encoder_has_its_own_rate(folder: Path, tmp_path: Path) -> None:
    run(tiny(folder, steps=3, encoder_lr_scale=0.25, max_eval_groups=0), tmp_path)
    for row in rows_of(tmp_path):
        assert row["train/encoder_lr"] == pytest.approx(0.25 * row["train/lr"])
    assert [row["train/lr"] for row in rows_of(tmp_path)] == pytest.approx([5e-4, 1e-3, 1e-3])


def test_a_group_that_thaws_is_warmed_up_if_asked(folder: Path, tmp_path: Path) -> None:
    """By default it joins at the full rate, as in the reference (A16)."""
    options = {"max_eval_groups": 0, "lr_warmup_steps": 0, "steps": 8, "encoder_lr_scale": 0.5}
    for warmup, thawed in ((0, [1, 1, 1, 1, 1]), (4, [0.25, 0.5, 0.75, 1, 1])):
        for group, name in (("freeze_decoder_steps", "lr"), ("encoder_freeze_steps", "encoder_lr")):
            out = tmp_path / f"{warmup}-{name}"
            frozen = {group: 3} | ({"unfreeze_warmup_steps": warmup} if warmup else {})
            run(tiny(folder, **frozen, **options), out)
            rows, rates = rows_of(out), {"lr": 1e-3, "encoder_lr": 5e-4}
            base = rates.pop(name)
            assert [row[f"train/{name}"] / base for row in rows[3:]] == pytest.approx(thawed)
            ((other, rate),) = rates.items()
            assert all(row[f"train/{other}"] == pytest.approx(rate) for row in rows)


def test_the_encoder_has_its_own_decay(folder: Path, tmp_path: Path) -> None:
    """Explicit, never a silent tenth (A20): one step with zero gradient shows lr · decay."""
    for given, expected in ((None, 0.2), (0.05, 0.05), (0.0, 0.0)):
        config = tiny(
            folder,
            steps=1,
            lr=0.1,
            lr_warmup_steps=0,
            weight_decay=0.2,
            encoder_weight_decay=given,
            encoder_lr_scale=0.5,
        )
        updater = trial_module.Trial(config, tmp_path).updater
        for params, rate, decay in (
            (updater.decoder_params, 0.1, 0.2),
            (updater.encoder_params, 0.05, expected),
        ):
            before = [p.detach().clone() for p in params]
            for p in params:
                p.grad = torch.zeros_like(p)
            updater.update(1)
            for p, old in zip(params, before, strict=True):
                assert torch.allclose(p, old * (1 - rate * decay), rtol=1e-6, atol=0)


def test_staged_training_freezes_then_joins(folder: Path, tmp_path: Path) -> None:
    """The staged configuration with one rate for both (`encoder_lr_scale` 0; defect A4)."""
    config = tiny(
        folder,
        steps=6,
        freeze_decoder_steps=3,
        encoder_lr_scale=0.0,
        checkpoint_interval=1,
        keep_checkpoints=9,
        max_eval_groups=0,
    )
    w = weights_by_step(config, tmp_path)
    for step in range(1, 6):
        assert moved(w[step - 1], w[step], "encoder.") == {True}
        assert moved(w[step - 1], w[step], "inner.") == {step >= 3}
    rows = rows_of(tmp_path)
    assert all(row["train/lr"] == row["train/encoder_lr"] for row in rows)
