"""Encoder against puzzle embeddings: the identity loss and the interface metrics."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.trainable.small_trials import puzzle_folder, rows_of, tiny
from trainable import checkpoint
from trainable.config import TrialConfig
from trainable.errors import CheckpointError
from trainable.interface import encode_puzzles, frechet_diagonal, moments, read_interface
from trainable.loop import train
from trainable.trial import Trial

KINDS = ("norm", "mean", "std", "skew", "kurtosis")
METRICS = {
    f"interface/{name}{suffix}"
    for name in ("frechet", *(f"{who}_{k}" for who in ("encoder", "puzzle") for k in KINDS))
    for suffix in ("", "_all")
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return puzzle_folder(tmp_path_factory.mktemp("puzzles"))


@pytest.fixture(scope="module")
def decoder(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A TRM trained on the same puzzles for a few steps."""
    out = tmp_path_factory.mktemp("decoder")
    config = tiny(folder, kind="trm", steps=30, log_interval=30, puzzle_emb_lr=0.1)
    result = train(config, out_dir=out, progress=False)
    assert result.final_checkpoint is not None
    return out / result.final_checkpoint


def etrm(folder: Path, decoder: Path, **options: Any) -> TrialConfig:
    given = {"pretrained_decoder": True, "decoder": str(decoder), "decoder_puzzles": "same"}
    return tiny(folder, **(given | options))


def test_the_target_is_the_embedding_of_the_rows_own_identifier(
    folder: Path, decoder: Path, tmp_path: Path
) -> None:
    trial = Trial(etrm(folder, decoder, identity_weight=1.0), tmp_path)
    assert trial.interface is not None and trial.interface.targets is not None
    state = checkpoint.read_own(decoder)
    names, table = json.loads(state["identifiers"]), state["model"]["inner.puzzle_emb.weights"]
    assert len(names) == len(table) == len(set(names))
    ours = trial.data.identifier_names
    group = trial.data.train_groups[3]
    for i in range(group.first_identifier, group.first_identifier + len(group.augmentations)):
        assert torch.equal(trial.interface.targets[i], table[names.index(ours[i])]), ours[i]
    # its mean squared error over the prefix, position 0 holding the embedding, zeros behind it
    identifiers = torch.tensor([group.first_identifier, 1])
    context = torch.randn(2, 4, 32)
    expected = torch.zeros(2, 4, 32)
    expected[:, 0] = trial.interface.targets[identifiers]
    error = (context - expected).square().mean((1, 2))
    assert torch.allclose(trial.interface.distance(context, identifiers), error)


def test_the_identity_loss_pulls_the_context(folder: Path, decoder: Path, tmp_path: Path) -> None:
    """With the decoder frozen and the pull strong, the distance falls; without it, it is absent.

    The encoder is one whose context is free: that of the set encoders has norm √D by construction.
    """
    common: dict[str, Any] = {"steps": 25, "lr": 3e-3, "max_eval_groups": 0}
    free: dict[str, Any] = {"encoder_type": "lpn_standard", "context_positions": 1}
    config = etrm(folder, decoder, identity_weight=50.0, freeze_decoder_steps=99, **common, **free)
    train(config, out_dir=tmp_path / "with", progress=False)
    rows = rows_of(tmp_path / "with")
    losses = [row["train/identity_loss"] for row in rows]
    assert all(loss > 0 for loss in losses)
    assert sum(losses[-5:]) < 0.5 * sum(losses[:5])
    first = rows[0]
    expected = first["train/lm_loss"] + 0.5 * first["train/q_halt_loss"]
    assert first["train/loss"] == pytest.approx(expected + 50 * losses[0], rel=1e-6)
    train(
        etrm(folder, decoder, steps=1, max_eval_groups=0, **free),
        out_dir=tmp_path / "without",
        progress=False,
    )
    (row,) = rows_of(tmp_path / "without")
    assert "train/identity_loss" not in row
    assert row["train/lm_loss"] == pytest.approx(first["train/lm_loss"], rel=1e-6)


@pytest.mark.parametrize("mode", [{"encode_mode": "cached"}, {"micro_batch_size": 2}])
def test_the_identity_loss_in_other_modes(
    folder: Path, decoder: Path, tmp_path: Path, mode: dict[str, Any]
) -> None:
    common: dict[str, Any] = {"steps": 1, "max_eval_groups": 0, "identity_weight": 2.0}
    found = []
    for name, options in (("plain", {}), ("mode", mode)):
        out = tmp_path / name
        train(etrm(folder, decoder, **common, **options), out_dir=out, progress=False)
        found.append(rows_of(out)[0])
    for key in ("train/identity_loss", "train/loss", "grad/encoder_norm"):
        assert found[0][key] == pytest.approx(found[1][key], rel=1e-4), key


def test_a_decoder_without_the_embeddings_is_refused(
    folder: Path, decoder: Path, tmp_path: Path
) -> None:
    def refused(path: Path, text: str, **options: Any) -> None:
        with pytest.raises(CheckpointError, match=text) as caught:
            Trial(etrm(folder, path, identity_weight=1.0, **options), tmp_path)
        assert "\n" not in str(caught.value) and "same puzzles" in str(caught.value)

    refused(decoder, "no embedding of .* identifiers", num_aug=5)
    refused(decoder, "no embedding of .* identifiers", seed=1)
    state = checkpoint.read_own(decoder)
    without = {k: v for k, v in state.items() if k != "identifiers"}
    torch.save(without, tmp_path / "step-1.pt")
    refused(tmp_path / "step-1.pt", "records no identifier names")
    model = {n: v for n, v in state["model"].items() if "puzzle_emb" not in n}
    torch.save(state | {"model": model}, tmp_path / "step-2.pt")
    refused(tmp_path / "step-2.pt", "has no puzzle embeddings")
    config = etrm(folder, tmp_path / "step-2.pt", steps=1)
    train(config, out_dir=tmp_path / "plain", progress=False)
    assert not any(key.startswith("interface/") for key in rows_of(tmp_path / "plain")[-1])


def test_interface_metrics_come_with_every_evaluation(
    folder: Path, decoder: Path, tmp_path: Path
) -> None:
    config = etrm(folder, decoder, steps=4)
    config = config.replace(eval_interval=config.epochs / 2)
    train(config, out_dir=tmp_path, progress=False)
    rows = rows_of(tmp_path)
    for row in rows:
        assert {k for k in row if k.startswith("interface/")} == (
            METRICS if "eval/accuracy" in row else set()
        )
    assert sum("interface/frechet" in row for row in rows) >= 2
    last = rows[-1]
    state = checkpoint.read_own(decoder)
    table = state["model"]["inner.puzzle_emb.weights"]
    seen = table[table.abs().sum(1) > 0]
    assert last["interface/puzzle_norm"] == pytest.approx(float(seen.norm(dim=1).mean()), rel=1e-5)
    assert last["interface/puzzle_std"] == pytest.approx(float(seen.std(correction=0)), rel=1e-5)
    assert last["interface/puzzle_norm_all"] == pytest.approx(last["interface/puzzle_norm"] / 4)
    trial = Trial(config, tmp_path)
    trial.model.load_state_dict(
        checkpoint.read_own(tmp_path / "checkpoints" / "step-4.pt")["model"]
    )
    context = encode_puzzles(trial.model, trial.data, 5, device=trial.device)
    assert context is not None
    assert context.shape == (6, 4, 32) and trial.model.training
    norm = float(context[:, 0].norm(dim=-1).mean())
    assert last["interface/encoder_norm"] == pytest.approx(norm, rel=1e-5)


def test_recurrent_contexts_are_those_before_the_last_act_step(
    folder: Path, decoder: Path, tmp_path: Path
) -> None:
    config = etrm(
        folder, decoder, kind="etrmtrm", recurrent_encoder_type="recurrent_standard", steps=1
    )
    trial = Trial(config, tmp_path)
    three = encode_puzzles(trial.model, trial.data, 64, device=trial.device)
    one = encode_puzzles(
        Trial(config.replace(halt_max_steps=1), tmp_path).model, trial.data, 64, device=trial.device
    )
    assert three is not None and one is not None
    assert three.shape == one.shape and not torch.allclose(three, one, atol=1e-3)


def test_moments_and_distance_against_known_distributions() -> None:
    generator = torch.Generator().manual_seed(0)
    normal = 2 + 3 * torch.randn(4000, 1, 16, generator=generator)
    found = moments(normal)
    expected = {"mean": 2.0, "std": 3.0, "skew": 0.0, "kurtosis": 0.0}
    for name, value in expected.items():
        assert found[name] == pytest.approx(value, abs=0.05)
    exponential = torch.empty(4000, 1, 16).exponential_(generator=generator)
    found = moments(exponential)
    assert found["skew"] == pytest.approx(2, abs=0.2)
    assert found["kurtosis"] == pytest.approx(6, abs=1.5)
    assert found["norm"] == pytest.approx(math.sqrt(32), rel=0.05)
    a, b = normal[:, 0], 5 * torch.randn(3000, 16, generator=generator)
    assert frechet_diagonal(a, b) == pytest.approx(16 * (2**2 + (5 - 3) ** 2), rel=0.05)
    assert frechet_diagonal(a, a) == 0


def test_a_decoder_without_a_table_has_no_interface(
    folder: Path, decoder: Path, tmp_path: Path
) -> None:
    """An ETRM's checkpoint can be a decoder too; it knows no puzzle embeddings."""
    out = tmp_path / "etrm"
    train(tiny(folder, steps=1, max_eval_groups=0), out_dir=out, progress=False)
    trial = Trial(etrm(folder, decoder), tmp_path)
    path = out / "checkpoints" / "step-1.pt"
    found = read_interface(
        path, trial.config.model, trial.data, identity=False, device=trial.device
    )
    assert found is None
