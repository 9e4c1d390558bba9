"""Diagnostics of the context, and the meters of an interval."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch

from tests.trainable.small_trials import puzzle_folder, rows_of, tiny
from trainable.diagnostics import (
    context_diagnostics,
    posterior_diagnostics,
    state_diagnostics,
)
from trainable.loop import train
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
    assert found["token_spread"] == pytest.approx(float(c.std(1).mean()), rel=1e-5)
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


def test_within_group_variance_compares_augmentations_of_a_puzzle() -> None:
    """Rows of one puzzle under different augmentations differ; by identifier it would be 0 (B7)."""
    context = torch.tensor([[[0.0, 0.0]], [[2.0, 4.0]], [[5.0, 5.0]]])
    same_puzzle, by_identifier = torch.tensor([7, 7, 9]), torch.tensor([70, 71, 90])
    assert float(context_diagnostics(context, same_puzzle)["within_group_var"]) == 2.5
    assert math.isnan(context_diagnostics(context, by_identifier)["within_group_var"])


def test_a_collapsed_posterior_is_seen() -> None:
    generator = torch.Generator().manual_seed(0)
    mu = torch.zeros(32, 8)
    mu[:, :3] = torch.randn(32, 3, generator=generator)
    kl = 0.5 * mu.square().sum(1)
    found = {n: float(v) for n, v in posterior_diagnostics(mu, kl).items()}
    assert found["active_units"] == 3 / 8
    assert found["kl_per_dim"] == pytest.approx(float(kl.mean()) / 8)
    collapsed = posterior_diagnostics(1e-3 * mu, 1e-6 * kl)
    assert float(collapsed["active_units"]) == 0 and float(collapsed["kl_per_dim"]) < 1e-5
    assert math.isnan(posterior_diagnostics(mu[:1], kl[:1])["active_units"])
    half = posterior_diagnostics(mu.bfloat16(), kl.bfloat16())
    assert {value.dtype for value in half.values()} == {torch.float32}


def test_state_norm_and_change() -> None:
    old = torch.tensor([[[3.0, 4.0]], [[1.0, 0.0]], [[0.0, 2.0]]])
    new = torch.tensor([[[6.0, 8.0]], [[1.0, 1.0]], [[9.0, 9.0]]])
    went_on = torch.tensor([True, True, False])
    found = {n: float(v) for n, v in state_diagnostics([new], [old], went_on).items()}
    norms = [10.0, 2**0.5, 162**0.5]
    assert found["state_norm"] == pytest.approx(sum(norms) / 3)
    assert found["state_change"] == pytest.approx((1.0 + 1.0) / 2), "the third row has just begun"
    none = state_diagnostics([new], [old], torch.zeros(3, dtype=torch.bool))
    assert math.isnan(none["state_change"])
    both = state_diagnostics([new, old], [old, old], went_on)
    assert float(both["state_change"]) < 1.0, "a state of two tensors moves as a whole"


TRIALS: dict[str, tuple[dict[str, object], set[str]]] = {
    "static": ({}, set()),
    "variational": (
        {"encoder_type": "lpn_variational", "kl_weight": 1e-3},
        {"active_units", "kl_per_dim"},
    ),
    "recurrent": (
        {"kind": "etrmtrm", "recurrent_encoder_type": "trm_style"},
        {"state_norm", "state_change"},
    ),
    "micro": ({"kind": "etrmtrm", "micro_batch_size": 2}, {"state_norm", "state_change"}),
}


@pytest.mark.parametrize("name", TRIALS)
def test_rows_of_a_trial_have_the_diagnostics_of_its_encoder(tmp_path: Path, name: str) -> None:
    options, more = TRIALS[name]
    if options.get("kind") == "etrmtrm":
        options = {"recurrent_encoder_type": "recurrent_standard"} | options
    folder = puzzle_folder(tmp_path / "puzzles")
    config = tiny(folder, steps=3, max_eval_groups=0, halt_exploration_prob=0.0, **options)
    train(config, out_dir=tmp_path / "trial", progress=False)
    rows = rows_of(tmp_path / "trial")
    extra = {"active_units", "kl_per_dim", "state_norm", "state_change"}
    for row in rows:
        assert extra & {n.removeprefix("encoder/") for n in row} == more
        assert row["encoder/token_spread"] > 0 and row["encoder/output_norm"] > 0
    if "state_norm" in more:
        assert rows[0]["encoder/state_change"] is None, "every row has just begun"
        blend = config.model.recurrent_blend
        assert 0 < rows[1]["encoder/state_change"] < 10 * blend, "a tenth of the way to the new one"
        assert rows[1]["encoder/state_norm"] > 0


def test_nothing_is_fetched_from_the_device_while_diagnostics_are_made(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Every value is a tensor: a row fetches them all at once."""

    def refuse(*args: object) -> float:
        raise AssertionError("a host synchronisation")

    for method in ("item", "tolist", "__float__", "__bool__", "__int__"):
        monkeypatch.setattr(torch.Tensor, method, refuse)
    rows = torch.randn(4, 3, 8)
    found = context_diagnostics(rows, torch.tensor([0, 0, 1, 2]))
    found |= posterior_diagnostics(rows[:, 0], rows[:, 0, 0])
    found |= state_diagnostics([rows], [rows], torch.ones(4, dtype=torch.bool))
    assert all(isinstance(value, torch.Tensor) for value in found.values())
