"""Halting, exploration, and what trains at which ACT step.

Shape legend: B rows, K demonstration slots, S cells, P prefix tokens, L = P + S, D width.
"""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from tests.trainable.small_models import (
    assert_close,
    plain_batch,
    trm,
)
from tests.trainable.small_trials import batches, puzzle_folder, tiny
from trainable.errors import DataError
from trainable.losses import act_loss
from trainable.models import RecursiveModel, build_model
from trainable.optim import SignSGDEmbedding
from trainable.random import torch_generator


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return puzzle_folder(tmp_path_factory.mktemp("puzzles"))


def eager(model: RecursiveModel) -> RecursiveModel:
    """A model whose halting head always says stop."""
    with torch.no_grad():
        model.inner.q_head.bias.fill_(5.0)
    return model


def test_only_halted_rows_take_new_data() -> None:
    model = trm(halt_max_steps=4).train()
    first, second = plain_batch(1), plain_batch(2)
    carry, _ = model(model.initial_carry(first), first)
    assert carry.steps.tolist() == [1] * 4 and not carry.halted.any()
    before = carry.inner.z_H.clone()
    carry.halted = torch.tensor([True, False, False, True])
    carry, outputs = model(carry, second)
    assert carry.steps.tolist() == [1, 2, 2, 1]
    for name in first:
        assert torch.equal(carry.current_data[name][1:3], first[name][1:3]), name
        assert torch.equal(carry.current_data[name][::3], second[name][::3]), name
    fresh, fresh_outputs = model(model.initial_carry(second), second)
    assert_close(outputs["logits"][::3], fresh_outputs["logits"][::3], 1e-5, "restarted rows")
    difference = (outputs["logits"][1:3] - fresh_outputs["logits"][1:3]).detach().abs().max()
    assert float(difference) > 1e-3
    assert not torch.equal(before, carry.inner.z_H) and fresh.steps.tolist() == [1] * 4
    with pytest.raises(DataError, match="start from initial_carry"):
        model(carry, second | {"fits": torch.ones(4)})


def test_last_step_halts_and_evaluation_runs_them_all() -> None:
    for training in (True, False):
        model = trm(halt_max_steps=3, halt_exploration_prob=0.0).train(training)
        if not training:
            eager(model)
        carry, batch = model.initial_carry(plain_batch(1)), plain_batch(1)
        halted = []
        for _ in range(4):
            carry, _ = model(carry, batch)
            halted.append(bool(carry.halted.all()))
            assert bool(carry.halted.all()) == bool(carry.halted.any())
        assert halted == [False, False, True, False]


def test_exploration_is_drawn_from_its_generator() -> None:
    batch = plain_batch(1, rows=16)

    def run(seed: int, probability: float) -> list[list[bool]]:
        model = eager(trm(halt_max_steps=6, halt_exploration_prob=probability)).train()
        carry, generator = model.initial_carry(batch), torch_generator(seed, "halting")
        seen = []
        for _ in range(5):
            carry, _ = model(carry, batch, generator=generator)
            seen.append(carry.halted.tolist())
        return seen

    assert all(all(row) for row in run(0, 0.0)), "without exploration every row stops at once"
    explored = run(0, 1.0)
    assert not any(explored[0]), "an exploring row makes at least two steps"
    assert any(map(any, explored)) and explored == run(0, 1.0) and explored != run(1, 1.0)


def test_gradients_do_not_cross_steps() -> None:
    model = trm(halt_max_steps=4).train()
    batch = plain_batch(1)
    carry, outputs = model(model.initial_carry(batch), batch)
    assert outputs["logits"].requires_grad
    for state in (carry.inner.packed_H, carry.inner.packed_L):
        assert not state.requires_grad
    carry, outputs = model(carry, batch)
    loss, _ = act_loss(outputs, carry.current_data["labels"], carry=carry)
    loss.backward()


def test_the_continue_head_trains_only_when_asked() -> None:
    batch = plain_batch(1)
    for off in (True, False):
        model = trm(no_ACT_continue=off).train()
        with torch.no_grad():
            model.inner.q_head.weight.normal_(generator=torch.Generator().manual_seed(2))
        carry, outputs = model(model.initial_carry(batch), batch)
        loss, sums = act_loss(outputs, carry.current_data["labels"], carry=carry)
        loss.backward()
        halt, proceed = model.inner.q_head.bias.grad
        assert halt != 0 and (proceed == 0) == off
        assert ("q_continue_loss" in sums) != off
        expected = sums["lm_loss"] + 0.5 * sums["q_halt_loss"]
        if not off:
            assert sums["q_continue_loss"] > 0
            expected = expected + 0.5 * sums["q_continue_loss"]
            target = outputs["target_q_continue"]
            assert not target.requires_grad and bool(((target > 0) & (target < 1)).all())
        assert_close(loss, expected, 1e-9, "total")


def test_without_no_act_continue_rows_stop_when_halt_exceeds_continue() -> None:
    model = trm(no_ACT_continue=False, halt_exploration_prob=0.0, halt_max_steps=9).train()
    batch = plain_batch(1)
    for bias, stops in (((-6.0, -5.0), False), ((-5.0, -6.0), True)):
        with torch.no_grad():
            model.inner.q_head.bias.copy_(torch.tensor(bias))
        carry, _ = model(model.initial_carry(batch), batch)
        assert bool(carry.halted.all()) == stops == bool(carry.halted.any())


def test_the_puzzle_table_gets_only_its_sparse_update() -> None:
    model = trm().train()
    assert not any("puzzle_emb" in name or "init" in name for name, _ in model.named_parameters())
    batch = plain_batch(1)
    before = {n: model.get_buffer(f"inner.{n}").clone() for n in ("H_init", "L_init")}
    carry, outputs = model(model.initial_carry(batch), batch)
    loss, _ = act_loss(outputs, carry.current_data["labels"], carry=carry)
    loss.backward()
    SignSGDEmbedding(model.inner.puzzle_emb, lr=0.1, weight_decay=0.0).step()
    torch.optim.SGD(model.parameters(), lr=0.1).step()
    table = model.inner.puzzle_emb.weights
    used = set(batch["puzzle_identifiers"].tolist())
    for row in range(9):
        assert (set(table[row].unique().tolist()) <= {0.0}) == (row not in used)
        assert bool((table[row].abs() - 0.1 * (row in used)).abs().max() < 1e-6)
    for name, value in before.items():
        assert torch.equal(model.get_buffer(f"inner.{name}"), value)


def test_evaluation_encodes_once_and_agrees_with_encoding_every_step(folder: Path) -> None:
    trial = tiny(folder)
    (batch,) = batches(trial, 1)
    model = build_model(trial.model, seed=0).eval()
    assert model.encoder is not None
    calls = []
    model.encoder.register_forward_hook(lambda *_: calls.append(1))
    with torch.no_grad():
        carry = again = model.initial_carry(batch)
        for _ in range(3):
            carry, outputs = model(carry, batch)
            again.encoded = None
            again, plain = model(again, batch)
    assert len(calls) == 1 + 3
    assert torch.equal(outputs["logits"], plain["logits"])


def test_parity_encodes_at_every_step_of_an_evaluation(folder: Path) -> None:
    trial = tiny(folder, parity=True)
    (batch,) = batches(trial, 1)
    model = build_model(trial.model, seed=0).eval()
    assert model.encoder is not None
    calls = []
    model.encoder.register_forward_hook(lambda *_: calls.append(1))
    with torch.no_grad():
        carry = model.initial_carry(batch)
        for _ in range(3):
            carry, _ = model(carry, batch)
    assert len(calls) == 3
