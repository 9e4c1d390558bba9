"""Schedule, clipping, optimizers, moving average."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn

from tests.trainable.small_trials import TINY_MODEL
from trainable.config import ModelConfig
from trainable.models import build_model
from trainable.optim import (
    EMA,
    AdamATan2,
    clip_,
    grad_norm,
    learning_rate,
    sign_sgd_,
)


def test_schedule() -> None:
    rate = lambda s, **o: learning_rate(s, base=2.0, warmup=10, total=110, **o)  # noqa: E731
    assert [rate(s) for s in (1, 5, 9)] == pytest.approx([0.2, 1.0, 1.8])
    assert {rate(s) for s in (10, 60, 110, 500)} == {2.0}, "constant after warm-up by default"
    for step in range(10, 111):
        cosine = 0.5 * (1 + math.cos(math.pi * (step - 10) / 100))
        assert rate(step, min_ratio=0.1) == pytest.approx(2.0 * (0.1 + 0.9 * cosine))
    assert rate(110, min_ratio=0.1) == pytest.approx(0.2) == rate(10_000, min_ratio=0.1)
    assert rate(110, min_ratio=0.0) == 0.0
    assert learning_rate(1, base=1.0, warmup=0, total=1) == 1.0
    assert learning_rate(5, base=1.0, warmup=10, total=3) == 0.5


def parameters(seed: int = 0) -> list[nn.Parameter]:
    rng = torch.Generator().manual_seed(seed)
    found = [nn.Parameter(torch.randn(3, 2, generator=rng)) for _ in range(3)]
    for p in found[:2]:
        p.grad = torch.randn(p.shape, generator=rng)
    return found


def test_clipping_the_global_norm() -> None:
    found = parameters()
    grads = [p.grad.clone() for p in found[:2] if p.grad is not None]
    norm = grad_norm(found)
    assert float(norm) == pytest.approx(float(torch.cat(grads).norm()), rel=1e-6)
    assert float(grad_norm([])) == 0.0
    assert float(clip_(found, norm, 0.0)) == 1.0 and torch.equal(found[0].grad, grads[0])
    assert float(clip_(found, norm, 100.0)) == 1.0 and torch.equal(found[0].grad, grads[0])
    factor = clip_(found, norm, 0.5)
    assert float(factor) == pytest.approx(0.5 / float(norm), rel=1e-5)
    assert float(grad_norm(found)) == pytest.approx(0.5, rel=1e-5)


def test_adam_atan2_against_its_formula() -> None:
    lr, wd, b1, b2 = 0.01, 0.1, 0.9, 0.95
    (p, *_), rng = parameters(), torch.Generator().manual_seed(1)
    optimizer = AdamATan2([p], lr, (b1, b2), wd)
    value, m, v = p.detach().double(), torch.zeros(3, 2), torch.zeros(3, 2)
    for t in range(1, 6):
        g = torch.randn(3, 2, generator=rng)
        p.grad = g.clone()
        optimizer.step()
        m, v = b1 * m + (1 - b1) * g.double(), b2 * v + (1 - b2) * g.double() ** 2
        step = torch.atan2(m, v.sqrt() / math.sqrt(1 - b2**t))
        value = value * (1 - lr * wd) - lr / (1 - b1**t) * step
        assert float((p.detach() - value).abs().max()) < 1e-6


def test_parameters_without_a_gradient_are_skipped_entirely() -> None:
    found = parameters()
    before = found[2].detach().clone()
    optimizer = AdamATan2(found, 0.1, weight_decay=0.5)
    optimizer.step()
    assert torch.equal(found[2], before) and not optimizer.state[found[2]]
    first = found[0].detach().clone()
    found[0].grad = None
    found[2].grad = torch.ones(3, 2)
    optimizer.step()
    assert torch.equal(found[0], first), "no decay either"
    steps = [optimizer.state[p]["step"] for p in found]
    assert steps == [1, 2, 1], "each parameter counts its own updates"
    # the late one moves as a first step does: lr / (1 - β1) · atan2(1 - β1, 1), after the decay
    assert torch.allclose(found[2], before * 0.95 - math.atan(0.1))


@pytest.mark.parametrize(
    "options", [{"lr": -1.0}, {"betas": (0.9, 1.0)}, {"weight_decay": -0.1}], ids=str
)
def test_out_of_range_is_refused(options: dict[str, float]) -> None:
    with pytest.raises(ValueError, match="out of range"):
        AdamATan2(parameters(), **options)  # type: ignore[arg-type]


def test_sign_sgd_sums_per_identifier_and_leaves_others() -> None:
    table = torch.ones(4, 2)
    ids = torch.tensor([2, 0, 2], dtype=torch.int32)
    grad = torch.tensor([[3.0, 1.0], [-1.0, 0.0], [-1.0, -1.0]])
    sign_sgd_(table, ids, grad, lr=0.1, weight_decay=0.5)
    kept = 1 - 0.05
    expected = torch.tensor([[kept + 0.1, kept], [1, 1], [kept - 0.1, kept], [1, 1]])
    assert torch.allclose(table, expected)


def test_moving_average_swaps_in_place_and_back() -> None:
    model = build_model(ModelConfig(kind="trm", seq_len=16, **TINY_MODEL), seed=0)
    ema = EMA(model, 0.9)
    start = {n: p.detach().clone() for n, p in model.named_parameters()}
    with torch.no_grad():
        for p in model.parameters():
            p += 1.0
    ema.update()
    raw = {n: v.clone() for n, v in model.state_dict().items()}
    identity = [id(p) for p in model.parameters()]
    with pytest.raises(RuntimeError, match="inside"), ema.applied():
        for name, p in model.named_parameters():
            assert torch.allclose(p, start[name] + 0.1, atol=1e-6), name
        for name, value in model.named_buffers():
            assert name not in raw or torch.equal(value, raw[name])
        raise RuntimeError("inside")
    assert identity == [id(p) for p in model.parameters()]
    for name, value in model.state_dict().items():
        assert torch.equal(value, raw[name]), "weights are back bit for bit, also after an error"
    assert ema.shadow.keys() == start.keys() and "inner.H_init" not in ema.shadow
