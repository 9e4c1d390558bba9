"""Packed tokens against a dense reference, on both canvases.

Shape legend: B rows, K demonstration slots, S cells, P prefix tokens, L = P + S, D width.
"""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from tests.trainable.small_models import (
    CELLS,
    ROWS,
    assert_close,
    model_config,
)
from tests.trainable.small_trials import batches, puzzle_folder, tiny
from trainable.config import ModelConfig
from trainable.errors import DataError
from trainable.losses import act_loss
from trainable.models import Carry, build_model


def reference_step(
    weights: dict[str, Tensor], config: ModelConfig, tokens: Tensor, prefix: Tensor, exists: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """One ACT step from the initial states, written plainly on dense (B, L, D) tensors.

    `exists` (B, L): tokens that are keys. Returns logits (B, S, V), q (B, 2), z_H (B, L, D).
    """
    heads, head, width = config.num_heads, config.head_dim, config.hidden_size
    rows, length = exists.shape
    frequency = config.rope_theta ** (-torch.arange(0, head, 2) / head)
    angle = torch.arange(length)[:, None] * torch.cat([frequency, frequency])
    cos, sin = angle.cos()[:, None], angle.sin()[:, None]

    def turn(x: Tensor) -> Tensor:
        half = torch.cat([-x[..., head // 2 :], x[..., : head // 2]], dim=-1)
        return x * cos + half * sin

    def rms(x: Tensor) -> Tensor:
        return x / torch.sqrt((x * x).mean(-1, keepdim=True) + config.rms_norm_eps)

    def block(h: Tensor, i: int) -> Tensor:
        at = f"inner.L_level.layers.{i}."
        qkv = h @ weights[at + "self_attn.qkv_proj.weight"].T
        q, k, v = qkv.view(rows, length, 3, heads, head).unbind(2)
        scores = torch.einsum("blhc,bmhc->bhlm", turn(q), turn(k)) / math.sqrt(head)
        scores = scores.masked_fill(~exists[:, None, None, :], -math.inf)
        mixed = torch.einsum("bhlm,bmhc->blhc", scores.softmax(-1), v).reshape(rows, length, width)
        h = rms(h + mixed @ weights[at + "self_attn.o_proj.weight"].T)
        gate, up = (h @ weights[at + "mlp.gate_up_proj.weight"].T).chunk(2, -1)
        hidden = gate / (1 + torch.exp(-gate)) * up
        return rms(h + hidden @ weights[at + "mlp.down_proj.weight"].T)

    def f(h: Tensor, u: Tensor) -> Tensor:
        h = h + u
        for i in range(config.L_layers):
            h = block(h, i)
        return h

    embedded = weights["inner.embed_tokens.embedding_weight"][tokens.long()]
    x = math.sqrt(width) * torch.cat([prefix, embedded], dim=1)
    z_H = weights["inner.H_init"].expand(rows, length, width)
    z_L = weights["inner.L_init"].expand(rows, length, width)
    for cycle in range(config.H_cycles):
        with torch.set_grad_enabled(cycle == config.H_cycles - 1):
            for _ in range(config.L_cycles):
                z_L = f(z_L, z_H + x)
            z_H = f(z_H, z_L)
    logits = z_H[:, config.prefix_len :] @ weights["inner.lm_head.weight"].T
    q = z_H[:, 0] @ weights["inner.q_head.weight"].T + weights["inner.q_head.bias"]
    return logits, q, z_H


def loss_of(logits: Tensor, q: Tensor, labels: Tensor) -> Tensor:
    """The step's loss, from its definition."""
    scored = labels != -100
    x = logits.double()
    s = torch.where(x >= 0, x + 1, 1 / (1 - x.clamp_max(0)))
    target = labels.clamp_min(0).long()[..., None]
    nll = s.sum(-1).log() - s.gather(-1, target)[..., 0].log()
    count = scored.sum(-1)
    right = ((logits.argmax(-1) == labels) & scored).sum(-1) == count
    lm = ((nll * scored).sum(-1) / count.clamp_min(1)).sum()
    return lm + 0.5 * F.binary_cross_entropy_with_logits(q[:, 0], right.float(), reduction="sum")


@pytest.mark.parametrize("canvas", ["full", "demos"])
@pytest.mark.parametrize("layers", [1, 2])
def test_packed_tokens_give_what_a_dense_reference_gives(
    canvas: str, layers: int, folder: Path
) -> None:
    if canvas == "full":
        config = model_config(L_layers=layers)
        rng = torch.Generator().manual_seed(0)
        batch = {
            "inputs": torch.randint(0, 12, (ROWS, CELLS), generator=rng),
            "labels": torch.randint(2, 12, (ROWS, CELLS), generator=rng),
        }
        batch["labels"][0, 3:] = -100
        exists = torch.ones(ROWS, 4 + CELLS, dtype=torch.bool)
    else:
        trial = tiny(folder, L_layers=layers)
        config, (batch,) = trial.model, batches(trial, 1)
        exists = torch.cat([torch.ones(4, 4), inside(batch["canvas"])], dim=1).bool()
        assert 4 < int(exists.sum(1).min()) < int(exists.sum(1).max()) < 100
    model = build_model(config, seed=1).train()
    with torch.no_grad():
        model.inner.q_head.weight.normal_(generator=torch.Generator().manual_seed(2))
    rows = len(batch["inputs"])
    prefix = torch.randn(rows, 4, 32, generator=torch.Generator().manual_seed(3)) / 6
    ours, theirs = prefix.clone().requires_grad_(), prefix.clone().requires_grad_()

    carry, outputs = model(model.initial_carry(batch), batch, context=ours)
    labels = carry.current_data["labels"]
    loss, _ = act_loss(outputs, labels, carry=carry)
    loss.backward()

    weights = {n: v.detach().clone() for n, v in model.state_dict().items() if "inner." in n}
    names = dict(model.inner.named_parameters())
    for name in names:
        weights[f"inner.{name}"].requires_grad_()
    logits, q, z_H = reference_step(weights, config, batch["inputs"], theirs, exists)
    expected = loss_of(logits, q, labels)
    expected.backward()

    cells = exists[:, 4:]
    assert_close(outputs["logits"][cells], logits[cells], 1e-5, "logits")
    assert_close(torch.stack([outputs.q_halt_logits, outputs.q_continue_logits], 1), q, 1e-5, "q")
    assert_close(carry.inner.z_H[exists], z_H[exists], 1e-5, "z_H")
    assert_close(loss, expected, 1e-5, "loss")
    assert ours.grad is not None and theirs.grad is not None
    assert_close(ours.grad, theirs.grad, 1e-5 * float(theirs.grad.abs().max()), "prefix")
    for name, parameter in names.items():
        theirs_grad = weights[f"inner.{name}"].grad
        assert parameter.grad is not None and theirs_grad is not None, name
        scale = max(1.0, float(theirs_grad.abs().max()))
        assert_close(parameter.grad, theirs_grad, 1e-5 * scale, name)


def inside(canvas: Tensor) -> Tensor:
    """(B, 900) bool: cells of each row's rectangle."""
    top, left, height, width = canvas.long().T[:, :, None, None]
    row, column = torch.arange(30)[:, None], torch.arange(30)[None, :]
    within = (row >= top) & (row < top + height) & (column >= left) & (column < left + width)
    return within.flatten(1)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return puzzle_folder(tmp_path_factory.mktemp("puzzles"))


@pytest.mark.parametrize("kind", ["etrm", "trm"])
@pytest.mark.parametrize("canvas", ["demos", "full"])
def test_a_row_does_not_depend_on_its_neighbours(folder: Path, kind: str, canvas: str) -> None:
    # one cycle: the recursion amplifies rounding, and the shapes of alone and together differ
    trial = tiny(
        folder,
        kind=kind,
        canvas=canvas,
        H_cycles=1,
        L_cycles=1,
        halt_max_steps=8,
        num_puzzle_identifiers=200,
    )
    first, second = batches(trial, 2)
    model = build_model(trial.model, seed=0)
    if kind == "trm":
        table = model.inner.puzzle_emb.weights
        table.normal_(generator=torch.Generator().manual_seed(4))
    halts = [[True] * 4, [False, True, False, False], [True, False, False, True], [False] * 4]

    def run(rows: slice) -> tuple[list[Tensor], Carry]:
        logits = []
        carry = model.initial_carry({k: v[rows] for k, v in first.items()})
        for at, halted in enumerate(halts):
            carry.halted = torch.tensor(halted[rows])
            offered = first if at == 0 else second
            carry, outputs = model(carry, {k: v[rows] for k, v in offered.items()})
            logits.append(outputs["logits"].detach())
        return logits, carry

    def near(actual: Tensor, expected: Tensor, what: str) -> None:
        assert_close(actual, expected, 1e-5 * max(1.0, float(expected.abs().max())), what)

    together, carry = run(slice(0, 4))
    for row in range(4):
        alone, single = run(slice(row, row + 1))
        for step, (mine, theirs) in enumerate(zip(together, alone, strict=True)):
            near(mine[row : row + 1], theirs, f"row {row}, step {step}")
        near(carry.inner.z_H[row : row + 1], single.inner.z_H, "z_H")
        near(carry.inner.z_L[row : row + 1], single.inner.z_L, "z_L")
    if canvas == "demos":
        cells = inside(carry.current_data["canvas"])
        for states in (carry.inner.z_H, carry.inner.z_L):
            assert bool((states[:, 4:][~cells] == 0).all())
            assert bool((states[:, 4:][cells].abs().sum(-1) > 0).all())


def test_canvas_is_derived_where_a_batch_lacks_it(folder: Path) -> None:
    trial = tiny(folder)
    (batch,) = batches(trial, 1)
    model = build_model(trial.model, seed=0).eval()
    bare = {k: v for k, v in batch.items() if k not in ("canvas", "fits")}
    with torch.no_grad():
        given = model(model.initial_carry(batch), batch)
        derived = model(model.initial_carry(bare), bare)
    assert torch.equal(given[0].current_data["canvas"], derived[0].current_data["canvas"])
    assert torch.equal(given[0].current_data["fits"], derived[0].current_data["fits"])
    assert torch.equal(given[1]["logits"], derived[1]["logits"])
    trm = build_model(trial.replace(kind="trm").model)
    plain = {k: batch[k] for k in ("inputs", "labels", "puzzle_identifiers")}
    with pytest.raises(DataError, match="canvas"):
        trm(trm.initial_carry(plain), plain)
