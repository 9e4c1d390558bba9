"""The ACT loss by contract.

Shape legend: B rows, K demonstration slots, S cells, P prefix tokens, L = P + S, D width.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from tests.trainable.small_models import (
    CELLS,
    assert_close,
    plain_batch,
    trm,
)
from trainable.losses import act_loss, row_scores, stablemax_cross_entropy
from trainable.models import Carry, Outputs


def test_stablemax_gradient_against_float64_autograd() -> None:
    rng = torch.Generator().manual_seed(0)
    start = torch.randn(5, 7, 12, generator=rng, dtype=torch.float64) * 4
    labels = torch.randint(0, 12, (5, 7), generator=rng)
    labels[0, :3] = -100
    ours, theirs = start.clone().requires_grad_(), start.clone().requires_grad_()
    weight = torch.rand(5, 7, generator=rng)
    (stablemax_cross_entropy(ours, labels) * weight).sum().backward()
    s = torch.where(theirs >= 0, theirs + 1, 1 / (1 - theirs.clamp_max(0)))
    nll = (s.sum(-1).log() - s.log().gather(-1, labels.clamp_min(0)[..., None])[..., 0]) * weight
    torch.where(labels == -100, 0.0, nll).sum().backward()
    assert ours.grad is not None and theirs.grad is not None
    assert_close(ours.grad, theirs.grad, 1e-12)
    assert bool((ours.grad[0, :3] == 0).all())


def scored(outputs: Outputs, labels: Tensor, **options: Any) -> tuple[Tensor, dict[str, Tensor]]:
    rows = len(labels)
    carry = Carry(
        inner=None,  # type: ignore[arg-type]
        steps=torch.full((rows,), 2),
        halted=options.pop("halted", torch.ones(rows, dtype=torch.bool)),
        current_data=options.pop("data", {}),
    )
    return act_loss(outputs, labels, carry=carry, **options)


def random_outputs(rows: int, seed: int = 0, **more: Tensor) -> Outputs:
    rng = torch.Generator().manual_seed(seed)
    return Outputs(
        logits=torch.randn(rows, CELLS, 12, generator=rng),
        q_halt_logits=torch.randn(rows, generator=rng),
        q_continue_logits=torch.randn(rows, generator=rng),
        **more,
    )


def test_every_row_weighs_one_whatever_its_size() -> None:
    labels = plain_batch(0, rows=2)["labels"]
    labels[1, 3:] = -100
    outputs = random_outputs(2)
    cells = stablemax_cross_entropy(outputs["logits"], labels)
    _, sums = scored(outputs, labels)
    assert_close(sums["lm_loss"], cells[0].mean() + cells[1, :3].mean(), 1e-9)


def test_kl_weight_is_per_row_whatever_the_batch() -> None:
    labels, kl = plain_batch(0)["labels"], torch.tensor([1.0, 2.0, 3.0, 4.0])
    once, sums = scored(random_outputs(4, kl_rows=kl), labels, kl_weight=0.1)
    plain, _ = scored(random_outputs(4), labels, kl_weight=0.1)
    assert_close(once - plain, torch.tensor(1.0), 1e-6)
    assert float(sums["kl_loss"]) == 10.0
    single = random_outputs(4, kl_rows=kl)
    doubled = Outputs(**{k: torch.cat([v, v]) for k, v in single.items()})
    twice, sums = scored(doubled, labels.repeat(2, 1), kl_weight=0.1)
    assert_close(twice, 2 * once, 1e-6)
    assert float(sums["kl_loss"]) == 20.0


def test_rows_that_do_not_fit_are_never_exact() -> None:
    labels = plain_batch(0, rows=3)["labels"]
    labels[2] = -100
    outputs = random_outputs(3)
    outputs["logits"] = F.one_hot(labels.clamp_min(0), 12).float()
    halted = torch.ones(3, dtype=torch.bool)
    _, all_fit = scored(outputs, labels, data={"fits": torch.ones(3, dtype=torch.bool)})
    _, one_not = scored(outputs, labels, data={"fits": torch.tensor([True, False, True])})
    assert float(all_fit["exact_accuracy"]) == 2 and float(one_not["exact_accuracy"]) == 1
    assert float(one_not["accuracy"]) == 2 == float(one_not["count"]), "trained on what is visible"
    _, few = scored(outputs, labels, halted=halted & torch.tensor([True, False, True]))
    assert float(few["count"]) == 1 and float(few["all_count"]) == 2
    assert float(few["steps"]) == 2 and float(few["all_steps"]) == 4


def test_the_labels_of_the_carry_are_scored_not_those_offered() -> None:
    model = trm(halt_max_steps=4).train()
    first, second = plain_batch(1), plain_batch(2)
    carry, _ = model(model.initial_carry(first), first)
    carry, outputs = model(carry, second)
    assert torch.equal(carry.current_data["labels"], first["labels"])
    loss, correct, count = row_scores(outputs, carry.current_data["labels"])
    assert torch.equal(loss, row_scores(outputs, first["labels"])[0])
    assert not torch.equal(loss, row_scores(outputs, second["labels"])[0])
    assert int(count.sum()) == 4 * CELLS and int(correct.sum()) <= int(count.sum())
