"""Analytic counts against torch's own counter, on the real models and real batches."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from tests.trainable.small_trials import puzzle_folder, tiny
from trainable import kernels
from trainable.data import ArcData
from trainable.evaluate import evaluation_mode, run_act, to_tensors
from trainable.flops import (
    batch_tokens,
    count_parameters,
    evaluation_flops,
    step_flops,
    trial_work,
)
from trainable.losses import act_loss
from trainable.models import build_model
from trainable.models.encoders import ENCODERS


@pytest.fixture(autouse=True)
def _without_kernels(monkeypatch: pytest.MonkeyPatch) -> None:
    """PyTorch's counter sees its own operations alone."""
    monkeypatch.setattr(kernels, "usable", lambda *_, **__: False)


SIZES = {"hidden_size": 64, "num_heads": 2, "L_layers": 2, "L_cycles": 3, "encoder_num_layers": 2}
TOLERANCE = 0.03


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return puzzle_folder(tmp_path_factory.mktemp("puzzles"))


def _mm(a: Any, b: Any, *args: Any, out_shape: Any = None, **kwargs: Any) -> int:
    return int(2 * a[0] * a[1] * b[1])


def _addmm(c: Any, a: Any, b: Any, *args: Any, out_shape: Any = None, **kwargs: Any) -> int:
    return _mm(a, b)


def _attention(q: Any, k: Any, v: Any, *args: Any, out_shape: Any = None, **kwargs: Any) -> int:
    return int(2 * q[0] * q[1] * q[2] * k[2] * (q[3] + v[3]))


def _attention_backward(
    grad: Any, q: Any, k: Any, v: Any, *args: Any, out_shape: Any = None, **kwargs: Any
) -> int:
    return _attention(q, k, v) * 5 // 2


def counted(what: Any) -> int:
    """Operations that torch sees, with the CPU's attention and in-place products added."""
    mapping: dict[Any, Any] = {torch.ops.aten.addmm_: _addmm}
    flash = "_scaled_dot_product_flash_attention_for_cpu"
    mapping[getattr(torch.ops.aten, flash)] = _attention
    mapping[getattr(torch.ops.aten, f"{flash}_backward")] = _attention_backward
    with FlopCounterMode(display=False, custom_mapping=mapping) as counter:
        what()
    return counter.get_total_flops()


VARIANTS: list[Any] = [
    {"kind": "trm"},
    {"kind": "trm", "canvas": "full"},
    pytest.param({"kind": "trm", "canvas": "full", "mlp_t": True}, marks=pytest.mark.slow),
    {"encoder_pooling_method": "attention"},
    {"encoder_pooling_method": "weighted", "freeze_encoder": True},
    {"freeze_decoder_steps": 10},
]


@pytest.mark.parametrize("options", VARIANTS, ids=lambda o: "-".join(map(str, o.values())))
def test_training_step(folder: Path, options: dict[str, Any]) -> None:
    check_step(folder, options)


@pytest.mark.parametrize("encoder", sorted(ENCODERS))
def test_every_encoder(folder: Path, encoder: str) -> None:
    from trainable.encoder_options import RECURRENT_ENCODERS, VARIATIONAL_ENCODERS

    options: dict[str, Any] = {"encoder_type": encoder}
    if encoder in VARIATIONAL_ENCODERS:
        options["kl_weight"] = 1e-4
    if encoder in RECURRENT_ENCODERS:
        options = {"kind": "etrmtrm", "recurrent_encoder_type": encoder}
    check_step(folder, options)


def check_step(folder: Path, options: dict[str, Any]) -> None:
    config = tiny(folder, global_batch_size=8, **(SIZES | options))
    data = ArcData.from_config(config)
    sized = config.replace(num_puzzle_identifiers=data.num_puzzle_identifiers)
    model = build_model(sized.model, seed=0)
    names = {"encoder.": config.freeze_encoder, "inner.": config.freeze_decoder_steps > 0}
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(not any(name.startswith(n) and f for n, f in names.items()))
    arrays = data.train_sampler(8).next_batch()
    batch = to_tensors(arrays, torch.device("cpu"))
    carry = model.initial_carry(batch)

    def step() -> None:
        after, outputs = model(carry, batch)
        loss, _ = act_loss(
            outputs, after.current_data["labels"], carry=after, kl_weight=config.kl_weight
        )
        loss.backward()

    tokens = batch_tokens(sized.model, arrays)
    assert step_flops(sized, tokens) == pytest.approx(counted(step), rel=TOLERANCE)
    found = count_parameters(sized.model)
    assert found.decoder == sum(p.numel() for p in model.inner.parameters())
    encoder = 0 if model.encoder is None else sum(p.numel() for p in model.encoder.parameters())
    assert found.encoder == encoder


@pytest.mark.parametrize(
    ("kind", "parity"),
    [("trm", False), ("etrm", False), pytest.param("etrm", True, marks=pytest.mark.slow)],
)
def test_evaluation(folder: Path, kind: str, parity: bool) -> None:
    config = tiny(folder, kind=kind, parity=parity, **SIZES)
    data = ArcData.from_config(config)
    sized = config.replace(num_puzzle_identifiers=data.num_puzzle_identifiers)
    model = build_model(sized.model, seed=0)
    arrays = next(data.eval_batches(8))
    batch = to_tensors(arrays, torch.device("cpu"))
    model.requires_grad_(False)  # the counter follows modules by hooks on gradients

    def evaluate() -> None:
        with evaluation_mode(model):
            run_act(model, batch)

    expected = counted(evaluate)
    assert evaluation_flops(sized.model, batch_tokens(sized.model, arrays)) == pytest.approx(
        expected, rel=TOLERANCE
    )


def test_work_of_a_trial(folder: Path) -> None:
    config = tiny(folder, steps=12, **SIZES)
    data = ArcData.from_config(config)
    work = trial_work(config, data)
    assert work.steps == 12
    assert work.total == pytest.approx(12 * work.step + work.evaluation)
    assert work.step_equivalents > 12
    more = trial_work(config.replace(eval_num_aug=2), data)
    fewer = trial_work(config.replace(eval_interval=config.epochs / 4), data)
    assert fewer.evaluation > work.evaluation
    assert more.evaluation == work.evaluation, "the data decides how many rows are evaluated"
    cached = trial_work(config.replace(encode_mode="cached"), data)
    assert cached.step < work.step
