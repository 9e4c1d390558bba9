"""Statistics of tensors, taken in pieces."""

from __future__ import annotations

import math

import pytest
import torch

from trainable import inspection


@pytest.mark.parametrize("chunk", [1, 7, 1 << 20])
def test_statistics_do_not_depend_on_the_pieces(
    monkeypatch: pytest.MonkeyPatch, chunk: int
) -> None:
    monkeypatch.setattr(inspection, "CHUNK", chunk)
    value = 100 + torch.randn(23, 3, generator=torch.Generator().manual_seed(0))
    stats = inspection.tensor_stats("x", value)
    assert stats.mean == pytest.approx(float(value.double().mean()), rel=1e-12)
    assert stats.std == pytest.approx(float(value.double().std(correction=0)), rel=1e-9)
    assert (stats.min, stats.max) == (float(value.min()), float(value.max()))
    value[3] = math.nan
    value[5, 0], value[6, 1] = math.inf, -math.inf
    stats = inspection.tensor_stats("x", value)
    finite = value[value.isfinite()].double()
    assert (stats.nan, stats.inf) == (3, 2)
    assert stats.mean == pytest.approx(float(finite.mean()), rel=1e-12)
    assert stats.std == pytest.approx(float(finite.std(correction=0)), rel=1e-9)


@pytest.mark.parametrize("value", [torch.tensor(2.0), torch.ones(0, 3), torch.full((2,), math.nan)])
def test_statistics_of_little(value: torch.Tensor) -> None:
    stats = inspection.tensor_stats("x", value)
    assert stats.shape == tuple(value.shape)
    assert (stats.mean == 2.0 and stats.std == 0.0) or math.isnan(stats.mean)
