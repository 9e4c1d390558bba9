"""Precision and devices: float32 and bfloat16 on the CPU and on CUDA, every kind of model and mode.

Parameters, gradients, optimizer state and moving averages are float32 whatever the forward dtype;
states, contexts and what is carried are in the forward dtype.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from unittest import mock

import pytest
import torch
from torch import Tensor

from tests.trainable.small_trials import puzzle_folder, tiny
from trainable.encoder_options import ENCODER_FACTS
from trainable.models import Carry
from trainable.models.inner import DTYPES
from trainable.trial import Trial

STEPS = 6
LEARNT = 0.8 * math.log(12)
"""Loss that an untrained model, whose tokens are equally likely, does not reach: it has ln 12."""


def of_encoder(name: str) -> dict[str, Any]:
    """Options of the kind of model that has this encoder."""
    facts = ENCODER_FACTS[name]
    if facts.recurrent:
        return {"kind": "etrmtrm", "recurrent_encoder_type": name}
    return {"encoder_type": name} | ({"kl_weight": 1e-3} if facts.variational else {})


ONLINE: dict[str, Any] = {"encode_mode": "online", "num_act_steps": 2}
CACHED: dict[str, Any] = {"encode_mode": "cached"}
MODELS: dict[str, dict[str, Any]] = {
    "trm": {"kind": "trm"},
    "trm-no-rope": {"kind": "trm", "pos_encodings": "none", "no_ACT_continue": False},
    "standard-online-continue": of_encoder("standard") | ONLINE | {"no_ACT_continue": False},
    **{name: of_encoder(name) for name in ENCODER_FACTS},
    "standard-qk-norm": {"encoder_qk_norm": True, "encoder_layer_scale_init": 0.1},
    **{
        f"{name}-{mode}": of_encoder(name) | options
        for name in ("standard", "hybrid_variational", "lpn_variational")
        for mode, options in (("cached", CACHED), ("online", ONLINE))
    },
    **{f"{name}-online": of_encoder(name) | ONLINE for name in ("recurrent_standard", "trm_style")},
}
TINIER: dict[str, Any] = {
    "steps": STEPS,
    "lr": 3e-3,
    "lr_warmup_steps": 0,
    "global_batch_size": 2,
    "H_cycles": 1,
    "num_aug": 0,
    "translate": False,
    "max_demos": 2,
}
every_model = pytest.mark.parametrize("model", MODELS)
every_dtype = pytest.mark.parametrize("dtype", DTYPES)
on_cuda = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs CUDA")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return puzzle_folder(tmp_path_factory.mktemp("puzzles"), training=2, evaluation=1)


@pytest.fixture
def cpu() -> Iterator[None]:
    with mock.patch("torch.cuda.is_available", return_value=False):
        yield


def carried(carry: Carry) -> Iterator[tuple[str, Tensor]]:
    """Every tensor of numbers that goes from one ACT step to the next."""
    yield "z_H", carry.inner.packed_H
    yield "z_L", carry.inner.packed_L
    if carry.context is not None:
        yield "context", carry.context
    for at, state in enumerate(carry.encoder_state or ()):
        yield f"state {at}", state


def losses_of(trial: Trial, steps: int = STEPS) -> list[float]:
    """`train/lm_loss` of every step; the weights stay finite."""
    losses = []
    for _ in range(steps):
        trial.train_step()
        losses.append(float(trial.measure()["train/lm_loss"]))
    assert trial.updater.weights_are_finite()
    return losses


def assert_float32_where_it_counts(trial: Trial, dtype: torch.dtype) -> None:
    """Masters in float32, activations in `dtype`."""
    own = dict(trial.model.named_parameters())
    assert {p.dtype for p in own.values()} == {torch.float32}
    state = trial.updater.optimizer.state
    assert len(state) == len(own), "every parameter was updated"
    for values in state.values():
        assert values["exp_avg"].dtype == values["exp_avg_sq"].dtype == torch.float32
    assert trial.updater.ema is not None
    assert {value.dtype for value in trial.updater.ema.shadow.values()} == {torch.float32}
    (carry,) = trial.carries
    for name, value in carried(carry):
        assert value.dtype == dtype and bool(value.isfinite().all()), name
    (seen,) = trial.seen
    if "context" in seen:
        assert seen["context"].dtype == dtype
    if "kl_rows" in seen:
        assert seen["kl_rows"].dtype == seen["mu"].dtype == torch.float32


def assert_evaluation_is_finite(trial: Trial) -> None:
    """All but pass@k where fewer than k answers can be."""
    found = trial.evaluate()
    assert found["eval/rows"] > 0 and math.isfinite(found["eval/pass@1"])
    wrong = {n: v for n, v in found.items() if "pass@" not in n and not math.isfinite(v)}
    assert not wrong


@every_model
@pytest.mark.parametrize("dtype", ["float32", pytest.param("bfloat16", marks=pytest.mark.slow)])
@pytest.mark.usefixtures("cpu")
def test_every_model_and_mode_learns(folder: Path, tmp_path: Path, model: str, dtype: str) -> None:
    trial = Trial(tiny(folder, **(TINIER | MODELS[model] | {"forward_dtype": dtype})), tmp_path)
    losses = losses_of(trial)
    assert sum(losses[-2:]) / 2 < LEARNT, losses
    assert_float32_where_it_counts(trial, DTYPES[dtype])
    assert_evaluation_is_finite(trial)


@pytest.mark.parametrize("model", ["trm", "standard", "lpn_variational-cached", "trm_style-online"])
@pytest.mark.usefixtures("cpu")
def test_bfloat16_is_float32_with_less_precision(folder: Path, tmp_path: Path, model: str) -> None:
    """The first step, before anything amplifies the difference."""
    rows = []
    for dtype in DTYPES:
        config = tiny(folder, **(TINIER | MODELS[model] | {"forward_dtype": dtype}))
        trial = Trial(config.replace(num_act_steps=1), tmp_path)
        trial.train_step()
        rows.append(trial.measure())
    exact, rounded = rows
    assert rounded["train/loss"] == pytest.approx(exact["train/loss"], rel=1e-2)
    assert rounded["grad/total_norm"] == pytest.approx(exact["grad/total_norm"], rel=0.15)
    assert rounded["train/loss"] != exact["train/loss"], "it really was another precision"


# --- CUDA ----------------------------------------------------------------------------------------


@pytest.mark.gpu
@on_cuda
@every_model
def test_cuda_agrees_with_the_cpu_in_float32(folder: Path, tmp_path: Path, model: str) -> None:
    """Loss, gradient norms and context of a first step, with the same draws on both."""
    config = tiny(folder, **(TINIER | MODELS[model])).replace(num_act_steps=1)
    on_gpu = Trial(config, tmp_path)
    with mock.patch("torch.cuda.is_available", return_value=False):
        on_cpu = Trial(config, tmp_path)
    assert (on_gpu.device.type, on_cpu.device.type) == ("cuda", "cpu")
    rows = []
    for trial in (on_cpu, on_gpu):
        trial.train_step()
        rows.append(trial.measure())
    expected, found = rows
    for name in ("train/loss", "train/lm_loss", "grad/encoder_norm", "grad/decoder_norm"):
        assert found[name] == pytest.approx(expected[name], rel=1e-3, abs=1e-6), name
    for name, value in on_cpu.seen[0].items():
        if value.is_floating_point():
            mine = on_gpu.seen[0][name].cpu()
            assert float((mine - value).abs().max()) <= 1e-3 * max(1.0, float(value.abs().max()))


@pytest.mark.gpu
@on_cuda
@every_model
@every_dtype
def test_every_model_and_mode_learns_on_cuda(
    folder: Path, tmp_path: Path, model: str, dtype: str
) -> None:
    trial = Trial(tiny(folder, **(TINIER | MODELS[model] | {"forward_dtype": dtype})), tmp_path)
    assert trial.device.type == "cuda"
    losses = losses_of(trial)
    assert sum(losses[-2:]) / 2 < LEARNT, losses
    assert_float32_where_it_counts(trial, DTYPES[dtype])
    assert_evaluation_is_finite(trial)
