"""Order of an update over workers: sum in one buffer, measure, clip (defects A13, B8, F3)."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor

from tests.trainable.small_models import model_config
from trainable.config import TrialConfig
from trainable.models import build_model
from trainable.optim import EMA
from trainable.updates import Updater


def test_gradients_are_summed_in_one_buffer_then_measured_then_clipped(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Two workers stand in for by a reduction that trebles: the other worker holds twice as much.

    Clipped before the sum, the norm would be that of one rank, or never exceed the bound.
    """
    reduced: list[int] = []

    def all_reduce(buffer: Tensor) -> None:
        reduced.append(buffer.numel())
        buffer.mul_(3)

    monkeypatch.setattr("trainable.updates.dist.all_reduce", all_reduce)
    config = TrialConfig(model=model_config(), grad_clip_norm=0.5)
    model = build_model(config.model, seed=0)
    updater = Updater(model, config, total_steps=10, world=2)
    params = list(model.parameters())
    for p in params:
        p.grad = torch.ones_like(p)
    size = sum(p.numel() for p in params)
    updater._reduce()
    norms = updater._clip()
    assert reduced == [size], "one reduction of everything"
    assert float(norms["total_norm"]) == pytest.approx(3 * size**0.5, rel=1e-5)
    assert float(norms["clip_factor"]) == pytest.approx(0.5 / (3 * size**0.5), rel=1e-4)
    applied = torch.cat([p.grad.flatten() for p in params if p.grad is not None])
    assert float(applied.norm()) == pytest.approx(0.5, rel=1e-4), "the global gradient is clipped"


def test_the_moving_average_is_updated_in_place() -> None:
    model = build_model(model_config(), seed=0)
    ema = EMA(model, 0.9)
    before = {name: (value.data_ptr(), value.clone()) for name, value in ema.shadow.items()}
    with torch.no_grad():
        for p in model.parameters():
            p.add_(1.0)
    ema.update()
    for name, (address, value) in before.items():
        assert ema.shadow[name].data_ptr() == address
        assert torch.allclose(ema.shadow[name], value + 0.1, atol=1e-5), name
