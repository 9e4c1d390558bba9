"""Diagnostics of the context, and the meters of an interval."""

from __future__ import annotations

import math

import pytest
import torch

from trainable.diagnostics import context_diagnostics
from trainable.meters import NORMS, IntervalSums, interval_metrics


def test_context_diagnostics_against_their_definitions() -> None:
    context = torch.randn(6, 4, 8, generator=torch.Generator().manual_seed(0))
    base = torch.tensor([7, 3, 7, 7, 1, 3])
    found = {n: float(v) for n, v in context_diagnostics(context, base).items()}
    c = context.double()
    assert found["output_mean"] == pytest.approx(float(c.mean()), abs=1e-6)
    assert found["output_std"] == pytest.approx(float(c.std()), rel=1e-5)
    assert found["output_norm"] == pytest.approx(float(c.norm(dim=-1).mean()), rel=1e-5)
    spread = ((c - c.mean(0)) ** 2).mean()
    assert found["cross_sample_var"] == pytest.approx(float(spread), rel=1e-5)
    groups = [c[base == g] for g in (7, 3)]
    within = sum(float(((g - g.mean(0)) ** 2).mean()) for g in groups) / 2
    assert found["within_group_var"] == pytest.approx(within, rel=1e-5)
    assert found["token_std"] == pytest.approx(float(c.std(0).mean()), rel=1e-5)
    cosines = [
        float(torch.cosine_similarity(c[i].flatten(), c[j].flatten(), dim=0))
        for i in range(6)
        for j in range(6)
        if base[i] != base[j]
    ]
    assert found["similarity"] == pytest.approx(sum(cosines) / len(cosines), abs=1e-6)


def test_what_cannot_be_measured_is_nan_and_bfloat16_is_computed_in_float32() -> None:
    one = context_diagnostics(torch.ones(1, 2, 4), torch.tensor([0]))
    undefined = {"cross_sample_var", "within_group_var", "token_std", "similarity"}
    assert {n for n, v in one.items() if math.isnan(float(v))} == undefined
    context = torch.randn(4, 4, 8, generator=torch.Generator().manual_seed(0)).bfloat16()
    context.requires_grad_()
    half = context_diagnostics(context, torch.arange(4))
    full = context_diagnostics(context.float(), torch.arange(4))
    for name, value in half.items():
        assert value.dtype == torch.float32 and not value.requires_grad
        assert torch.equal(value, full[name]) or name == "within_group_var"


def sums_of(correct: float) -> dict[str, torch.Tensor]:
    values = {"loss": 8.0, "lm_loss": 6.0, "q_halt_loss": 4.0}
    for prefix, count in (("", 2.0), ("all_", 4.0)):
        values |= {prefix + "count": count, prefix + "accuracy": correct * count}
        values |= {prefix + "exact_accuracy": 0.0, prefix + "q_halt_accuracy": count}
        values |= {prefix + "steps": 3 * count}
    return {name: torch.tensor(value) for name, value in values.items()}


def test_interval_means_over_rows_and_halted_rows() -> None:
    meter = IntervalSums(4, torch.device("cpu"))
    halted, steps = torch.tensor([True, True, False, False]), torch.tensor([4, 2, 1, 3])
    for correct in (0.5, 1.0):
        meter.add(
            sums_of(correct),
            began=~halted,
            halted=halted,
            steps=steps,
            norms={name: torch.tensor(2.0 * correct) for name in NORMS},
        )
    total = meter.read()
    assert total["rows"] == 8 and total["began"] == 4
    row = interval_metrics(total, losses={"loss", "lm_loss", "q_halt_loss"})
    assert row["train/loss"] == 2.0 and row["train/q_halt_loss"] == 1.0
    assert row["train/accuracy"] == row["train/all_accuracy"] == 0.75
    assert row["train/steps"] == 3 and row["train/exact_accuracy"] == 0
    assert row["train/q_halt_base_rate"] == 1.0, "always saying no would be right"
    hist = [row[f"train/steps_hist/{k}"] for k in range(1, 5)]
    assert hist == [0, 0.5, 0, 0.5]
    assert row["grad/total_norm"] == 1.5 and "train/kl_loss" not in row
    assert set(meter.read().values()) == {0.0}, "reading starts a new interval"


def test_without_halted_rows_their_metrics_are_absent() -> None:
    meter = IntervalSums(4, torch.device("cpu"))
    none = torch.zeros(4, dtype=torch.bool)
    sums = sums_of(1.0)
    sums |= {n: torch.tensor(0.0) for n in ("count", "accuracy", "q_halt_accuracy", "steps")}
    norms = {name: torch.tensor(1.0) for name in NORMS}
    meter.add(sums, began=none, halted=none, steps=torch.ones(4), norms=norms)
    row = interval_metrics(meter.read(), losses={"loss"})
    assert "train/accuracy" not in row and "train/steps_hist/1" not in row
    assert row["train/all_accuracy"] == 1.0 and row["train/loss"] == 2.0
