"""TRM variants in training against a plain restatement of the recursion: `mlp_t`, learned
positions, embeddings wider than the model, the continue head."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from tests.trainable.small_trials import TINY_MODEL
from trainable.config import ModelConfig
from trainable.losses import act_loss
from trainable.models import RecursiveModel, build_model

ROWS, CELLS = 3, 16
VARIANTS: dict[str, dict[str, Any]] = {
    "mlp_t": {"mlp_t": True, "pos_encodings": "none"},
    "learned": {"pos_encodings": "learned"},
    "wide": {"pos_encodings": "none", "puzzle_emb_ndim": 70, "puzzle_emb_len": 0},
    "none": {"pos_encodings": "none", "puzzle_emb_ndim": 0, "puzzle_emb_len": 2},
}
variants = pytest.mark.parametrize("name", VARIANTS)


def build(name: str, **options: Any) -> RecursiveModel:
    sizes = {"kind": "trm", "seq_len": CELLS, "num_puzzle_identifiers": 5, "L_layers": 2}
    config = ModelConfig(**(TINY_MODEL | sizes | VARIANTS[name] | options))
    model = build_model(config, seed=1).train()
    generator = torch.Generator().manual_seed(2)
    with torch.no_grad():
        model.inner.q_head.weight.normal_(generator=generator)
        model.inner.q_head.bias.zero_()
        if config.puzzle_emb_ndim:
            model.inner.puzzle_emb.weights.normal_(std=0.1, generator=generator)
    return model


def batch_of(seed: int) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return {
        "inputs": torch.randint(0, 12, (ROWS, CELLS), generator=generator),
        "labels": torch.randint(2, 12, (ROWS, CELLS), generator=generator),
        "puzzle_identifiers": torch.randint(1, 5, (ROWS,), generator=generator),
    }


# --- the restatement: dense float64, from the published description ------------------------------


def rms(x: Tensor) -> Tensor:
    return x / (x.square().mean(-1, keepdim=True) + 1e-5).sqrt()


def swiglu(x: Tensor, w: dict[str, Tensor], name: str) -> Tensor:
    gate, up = (x @ w[f"{name}.gate_up_proj.weight"].T).chunk(2, dim=-1)
    return (F.silu(gate) * up) @ w[f"{name}.down_proj.weight"].T


def block(h: Tensor, w: dict[str, Tensor], name: str, config: ModelConfig) -> Tensor:
    if config.mlp_t:
        turned = h.transpose(1, 2)
        h = rms(turned + swiglu(turned, w, f"{name}.mlp_t")).transpose(1, 2)
    else:
        qkv = h @ w[f"{name}.self_attn.qkv_proj.weight"].T
        q, k, v = qkv.unflatten(-1, (3, config.num_heads, -1)).permute(2, 0, 3, 1, 4)
        weights = (q @ k.transpose(-1, -2) / math.sqrt(config.head_dim)).softmax(-1)
        mixed = (weights @ v).transpose(1, 2).flatten(-2)
        h = rms(h + mixed @ w[f"{name}.self_attn.o_proj.weight"].T)
    return rms(h + swiglu(h, w, f"{name}.mlp"))


def embed(w: dict[str, Tensor], batch: dict[str, Tensor], rows: Tensor, c: ModelConfig) -> Tensor:
    """X (B, P + S, D) from puzzle rows (B, ndim)."""
    flat = torch.cat([rows, rows.new_zeros(ROWS, c.prefix_len * c.hidden_size - rows.shape[1])], 1)
    tokens = w["embed_tokens.embedding_weight"][batch["inputs"]]
    x = torch.cat([flat.view(ROWS, c.prefix_len, c.hidden_size), tokens], 1)
    if c.pos_encodings == "learned":
        x = 0.5**0.5 * (x + w["embed_pos.embedding_weight"])
    return c.hidden_size**0.5 * x


def cycles(
    z: tuple[Tensor, Tensor], x: Tensor, w: dict[str, Tensor], c: ModelConfig
) -> tuple[Tensor, Tensor]:
    def stack(h: Tensor) -> Tensor:
        for i in range(c.L_layers):
            h = block(h, w, f"L_level.layers.{i}", c)
        return h

    z_H, z_L = z
    for cycle in range(c.H_cycles):
        with torch.set_grad_enabled(cycle == c.H_cycles - 1):
            for _ in range(c.L_cycles):
                z_L = stack(z_L + z_H + x)
            z_H = stack(z_H + z_L)
    return z_H, z_L


def q_head(z_H: Tensor, w: dict[str, Tensor]) -> Tensor:
    return z_H[:, 0] @ w["q_head.weight"].T + w["q_head.bias"]


def restated(
    model: RecursiveModel, batch: dict[str, Tensor], w: dict[str, Tensor], rows: Tensor
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """First ACT step from the initial states: X, z_H, z_L and the cells' logits."""
    c = model.config
    x = embed(w, batch, rows, c)
    start = [getattr(model.inner, n).double().expand_as(x) for n in ("H_init", "L_init")]
    z_H, z_L = cycles((start[0], start[1]), x, w, c)
    return x, z_H, z_L, z_H[:, c.prefix_len :] @ w["lm_head.weight"].T


def weights_of(model: RecursiveModel) -> dict[str, Tensor]:
    return {n: p.detach().double().requires_grad_() for n, p in model.inner.named_parameters()}


def puzzle_rows(model: RecursiveModel, batch: dict[str, Tensor]) -> Tensor:
    if not model.config.puzzle_emb_ndim:
        return torch.zeros(ROWS, 0, dtype=torch.float64)
    table = model.inner.puzzle_emb.weights
    return table[batch["puzzle_identifiers"]].double().requires_grad_()


# --- tests ---------------------------------------------------------------------------------------


@variants
def test_logits_and_gradients_of_a_training_step(name: str) -> None:
    model, batch = build(name), batch_of(0)
    w, rows = weights_of(model), puzzle_rows(model, batch)
    _, z_H, _, logits = restated(model, batch, w, rows)
    _, outputs = model(model.initial_carry(batch), batch)
    assert torch.allclose(outputs["logits"].double(), logits, atol=1e-4)
    assert torch.allclose(outputs["q_halt_logits"].double(), q_head(z_H, w)[:, 0], atol=1e-4)
    pull = torch.randn(logits.shape, generator=torch.Generator().manual_seed(4))
    (outputs["logits"] * pull).sum().backward()
    (logits * pull.double()).sum().backward()
    for key, p in model.inner.named_parameters():
        if key.startswith("q_head"):
            continue
        expected = w[key].grad
        assert p.grad is not None and expected is not None, key
        error = float((p.grad.double() - expected).norm() / expected.norm())
        assert error < 1e-4, f"{key}: {error:.1e}"
    if model.config.puzzle_emb_ndim:
        local = model.inner.puzzle_emb.local_weights
        assert local is not None and local.grad is not None and rows.grad is not None
        assert torch.allclose(local.grad.double(), rows.grad, rtol=1e-3, atol=1e-3)


@variants
@pytest.mark.parametrize("last", [False, True])
def test_the_continue_head_against_one_more_step(name: str, last: bool) -> None:
    """Stop where halt exceeds continue; the target is the value of one further step (A12)."""
    model = build(
        name,
        no_ACT_continue=False,
        halt_max_steps=1 if last else 4,
        halt_exploration_prob=0.0,
    )
    batch = batch_of(1)
    w, rows = weights_of(model), puzzle_rows(model, batch)
    x, z_H, z_L, logits = restated(model, batch, w, rows)
    with torch.no_grad():
        q = q_head(z_H, w)
        ahead = q_head(cycles((z_H, z_L), x, w, model.config)[0], w)
        target = torch.sigmoid(ahead[:, 0] if last else ahead.amax(1))
        right = (logits.argmax(-1) == batch["labels"]).all(-1)
        halt = F.binary_cross_entropy_with_logits(q[:, 0], right.double(), reduction="sum")
        proceed = F.binary_cross_entropy_with_logits(q[:, 1], target, reduction="sum")
    carry, outputs = model(model.initial_carry(batch), batch)
    loss, sums = act_loss(outputs, carry.current_data["labels"], carry=carry)
    assert torch.allclose(outputs["target_q_continue"].double(), target, atol=1e-4)
    assert float(sums["q_continue_loss"]) == pytest.approx(float(proceed), rel=1e-4)
    assert float(sums["loss"]) == pytest.approx(
        float(sums["lm_loss"] + 0.5 * (halt + proceed)), rel=1e-4
    )
    stops = torch.ones(ROWS, dtype=torch.bool) if last else q[:, 0] > q[:, 1]
    assert torch.equal(carry.halted, stops)
    loss.backward()
    grad = model.inner.q_head.bias.grad
    assert grad is not None
    expected = 0.5 * (torch.sigmoid(q[:, 1]) - target).sum()
    assert float(grad[1]) == pytest.approx(float(expected), rel=1e-3, abs=1e-5)


def test_no_prefix_width_at_all_is_one_token_of_zeros() -> None:
    model = build("none", puzzle_emb_len=0)
    assert model.config.prefix_len == 1
    prefix = model.inner.puzzle_prefix(torch.tensor([1, 2]))
    assert prefix.shape == (2, 1, 32) and bool((prefix == 0).all())
    batch = batch_of(2)
    _, outputs = model(model.initial_carry(batch), batch)
    assert outputs["logits"].shape == (ROWS, CELLS, 12)
