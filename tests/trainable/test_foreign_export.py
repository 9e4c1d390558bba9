"""Public formats and weights of ours: what is written reads back to the same numbers."""

from __future__ import annotations

import errno
import json
import os
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from tests.trainable.checkpoint_files import (
    edit,
    logits,
    one_line,
    own_file,
    published_file,
    small,
)
from trainable import checkpoint, decoder
from trainable.config import ModelConfig, TrialConfig
from trainable.encoder_options import RECURRENT_ENCODERS
from trainable.errors import CheckpointError, UserError
from trainable.foreign import load_model, open_weights
from trainable.foreign.export import Format, export
from trainable.models.encoders import ENCODERS

NAMES = ["<blank>", "a", "b", "c", "d", "e", "f"]
TRMS: dict[str, dict[str, Any]] = {
    "rope": {},
    "wide embedding": {"puzzle_emb_ndim": 48, "puzzle_emb_len": 0},
    "learned": {"pos_encodings": "learned"},
    "mlp_t": {"mlp_t": True, "pos_encodings": "none", "seq_len": 100},
    "small grid": {"seq_len": 144},
    "bfloat16": {"forward_dtype": "bfloat16"},
    "no embedding": {"puzzle_emb_ndim": 0},
}


def encoder_config(name: str, **options: Any) -> ModelConfig:
    if name in RECURRENT_ENCODERS:
        return small("etrmtrm", recurrent_encoder_type=name, **options)
    return small("etrm", encoder_type=name, **options)


def exported(tmp_path: Path, config: ModelConfig, **extra: Any) -> tuple[Path, Any, Any]:
    """A checkpoint of ours and its averaged weights in the fitting public format."""
    raw, averaged = own_file(tmp_path / "step-12.pt", config, **extra)
    format: Format = "trm" if config.kind == "trm" else "etrm"
    written, _ = export(open_weights(tmp_path / "step-12.pt"), format=format, out=tmp_path / "out")
    assert written[-1] == tmp_path / "out" / "step_12"
    assert sorted(tmp_path.joinpath("out").iterdir()) == sorted(written)
    return written[-1], raw, averaged


@pytest.mark.parametrize("name", TRMS)
def test_a_trm_of_ours_to_the_official_format_and_back(tmp_path: Path, name: str) -> None:
    config = small("trm", **TRMS[name])
    path, _, averaged = exported(tmp_path, config, identifiers=json.dumps(NAMES))
    loaded = load_model(path)
    assert (loaded.kind, loaded.weights, loaded.step) == ("trm", "ema", 12)
    assert loaded.identifiers == NAMES or config.puzzle_emb_ndim == 0
    assert loaded.config == config.model_copy(
        update={"num_puzzle_identifiers": loaded.config.num_puzzle_identifiers}
    )
    assert torch.equal(logits(loaded.model), logits(averaged))


@pytest.mark.parametrize("dtype", ["float32", pytest.param("bfloat16", marks=pytest.mark.slow)])
@pytest.mark.parametrize("name", ENCODERS)
def test_every_encoder_to_the_references_format_and_back(
    tmp_path: Path, name: str, dtype: str
) -> None:
    config = encoder_config(name, forward_dtype=dtype, encoder_layer_scale_init=0.1)
    path, _, averaged = exported(tmp_path, config)
    loaded = load_model(path)
    assert (loaded.kind, loaded.config.kind) == ("etrm", config.kind)
    assert loaded.config.encoder_name == name and not loaded.config.parity
    ours, theirs = logits(averaged), logits(loaded.model)
    assert torch.isfinite(ours).all() and ours.std() > 0
    assert torch.equal(ours, theirs)


def test_what_the_official_format_looks_like(tmp_path: Path) -> None:
    config = small("trm", forward_dtype="bfloat16", canvas="demos")
    path, raw, averaged = exported(tmp_path, config)
    tensors = torch.load(path, weights_only=True)
    assert len(tensors) == 15 and all(n.startswith("_orig_mod.model.inner.") for n in tensors)
    start = "_orig_mod.model.inner."
    assert tensors[start + "H_init"].dtype == torch.bfloat16
    assert tensors[start + "lm_head.weight"].dtype == torch.float32
    assert torch.equal(tensors[start + "lm_head.weight"], averaged.inner.lm_head.weight)
    assert torch.equal(tensors[start + "puzzle_emb.weights"], raw.inner.puzzle_emb.weights)
    text = path.with_name("all_config.yaml").read_text()
    assert "!!" not in text
    settings = yaml.safe_load(text)
    arch = settings["arch"]
    assert arch["name"] == "recursive_reasoning.trm@TinyRecursiveReasoningModel_ACTV1"
    assert arch["loss"] == {
        "name": "losses@ACTLossHead",
        "loss_type": "stablemax_cross_entropy",
    }
    # The public script passes these itself, and fails on a second value.
    assert not {"batch_size", "seq_len", "vocab_size", "num_puzzle_identifiers", "causal"} & {*arch}
    required = {"data_paths", "global_batch_size", "epochs", "lr", "lr_min_ratio", "beta1", "beta2"}
    required |= {"lr_warmup_steps", "weight_decay", "puzzle_emb_lr", "puzzle_emb_weight_decay"}
    assert required <= {*settings}
    assert settings["ema"] is True and type(settings["epochs"]) is int
    assert settings["etrm_tune"]["model"]["canvas"] == "demos"
    notes = export(open_weights(tmp_path / "step-12.pt"), format="trm", out=tmp_path / "two")[1]
    assert any("30 x 30" in note for note in notes)


def test_the_references_format_stores_query_tokens_in_the_forward_type(tmp_path: Path) -> None:
    config = small("etrm", encoder_type="hybrid_standard", forward_dtype="bfloat16")
    path, _, _ = exported(tmp_path, config)
    tensors = torch.load(path, weights_only=True)
    coarse = {
        name.removeprefix("_orig_mod.model.")
        for name, v in tensors.items()
        if v.dtype == torch.bfloat16
    }
    assert coarse == {
        "inner.H_init",
        "inner.L_init",
        "encoder.set_encoder.query_tokens",
        "encoder.grid_encoder.cls_token",
    }
    arch = yaml.safe_load(path.with_name("all_config.yaml").read_text())["arch"]
    assert arch["name"].endswith("etrm@TRMWithEncoder")
    assert arch["loss"]["kl_weight"] == 1e-4 and arch["puzzle_emb_ndim"] == 0


def test_raw_weights_and_averaged_ones_apart(tmp_path: Path) -> None:
    raw, averaged = own_file(tmp_path / "a.pt", small("etrm"))
    file = open_weights(tmp_path / "a.pt")
    for weights, model in (("raw", raw), ("ema", averaged)):
        export(file, format="etrm", out=tmp_path / weights, weights=weights)  # type: ignore[arg-type]
        loaded = load_model(tmp_path / weights / "step_12")
        assert loaded.weights == weights
        assert torch.equal(logits(loaded.model), logits(model))


def test_weights_of_ours_alone(tmp_path: Path) -> None:
    _, averaged = own_file(tmp_path / "a.pt", small("trm"), identifiers=json.dumps(NAMES))
    written, _ = export(open_weights(tmp_path / "a.pt"), format="etrm-tune", out=tmp_path / "b")
    assert [path.name for path in written] == ["step-12.pt"]
    loaded = load_model(written[0])
    assert (loaded.kind, loaded.weights) == ("etrm-tune", "ema") and loaded.trial is not None
    assert loaded.identifiers == NAMES and loaded.exposure == {
        "trained": ["aa", "bb"],
        "held_out": [],
    }
    assert torch.equal(logits(loaded.model), logits(averaged))
    with pytest.raises(CheckpointError, match="weights alone and cannot be resumed"):
        checkpoint.check_resume(
            checkpoint.read_own(written[0]), TrialConfig(), data_hash="", path=written[0]
        )
    assert decoder.decoder_problem(written[0], small("etrm")) is None

    (tmp_path / "public").mkdir()
    model = published_file(tmp_path / "public", small("etrm"), ema=False)
    file = open_weights(tmp_path / "public" / "step_5")
    written, _ = export(file, format="etrm-tune", out=tmp_path / "c")
    loaded = load_model(written[0])
    assert (loaded.weights, loaded.step, loaded.trial, loaded.exposure) == ("raw", 5, None, None)
    assert loaded.config.parity, "it was trained as the reference does"
    again = load_model(tmp_path / "public" / "step_5").model
    assert torch.equal(logits(loaded.model), logits(again)) and model.encoder is not None


def test_a_foreign_file_keeps_its_training_settings(tmp_path: Path) -> None:
    published_file(tmp_path, small("trm"), prefix="module.model.", loss={"name": "y", "z": 1})
    written, _ = export(open_weights(tmp_path / "step_5"), format="trm", out=tmp_path / "out")
    settings = yaml.safe_load((tmp_path / "out" / "all_config.yaml").read_text())
    assert settings["data_paths"] == ["data/arc"] and settings["global_batch_size"] == 768
    assert settings["arch"]["loss"]["z"] == 1 and settings["ema"] is True
    assert all(n.startswith("_orig_mod.") for n in torch.load(written[-1], weights_only=True))


def test_the_rest_of_a_storage_is_not_written(tmp_path: Path) -> None:
    published_file(tmp_path, small("trm"))

    def from_a_large_one(tensors: dict[str, torch.Tensor]) -> None:
        name = "_orig_mod.model.inner.puzzle_emb.weights"
        tensors[name] = torch.zeros(50_000, 32)[:7]

    edit(tmp_path / "step_5", from_a_large_one)
    assert (tmp_path / "step_5").stat().st_size > 5_000_000
    written, _ = export(open_weights(tmp_path / "step_5"), format="trm", out=tmp_path / "out")
    assert written[-1].stat().st_size < 500_000


def test_nothing_is_overwritten_or_half_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    own_file(tmp_path / "a.pt", small("trm"))
    file, out = open_weights(tmp_path / "a.pt"), tmp_path / "out"
    with pytest.raises(CheckpointError, match="--format trm"):
        export(file, format="etrm", out=out)
    assert not out.exists()

    def full(*_: Any) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", full)
        with pytest.raises(UserError, match=r"disk full.*free space") as caught:
            export(file, format="trm", out=out)
        one_line(caught.value)
    assert not any(out.iterdir())
    export(file, format="trm", out=out)
    before = {path: path.read_bytes() for path in out.iterdir()}
    with pytest.raises(CheckpointError, match=r"step_12 exists already: choose another folder"):
        export(file, format="trm", out=out)
    own_file(tmp_path / "b.pt", small("trm", H_cycles=3), step=13)
    with pytest.raises(CheckpointError, match=r"all_config.yaml exists already"):
        export(open_weights(tmp_path / "b.pt"), format="trm", out=out)
    assert {path: path.read_bytes() for path in out.iterdir()} == before
    blocked = tmp_path / "blocked"
    blocked.touch()
    with pytest.raises(UserError, match="blocked"):
        export(file, format="trm", out=blocked)
