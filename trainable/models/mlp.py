"""SwiGLU of packed tokens; on the CPU in pieces that stay in a core's cache.

Shape legend: N packed tokens, D width, I inner width.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from trainable.models.layers import Linear


def swiglu_inner(width: int, expansion: float) -> int:
    """Inner width of a SwiGLU: 2/3 of `expansion * width`, rounded up to a multiple of 256."""
    return -(-round(expansion * width * 2 / 3) // 256) * 256


CHUNK = 512
"""Tokens per piece of a fused MLP: its temporaries then stay in a core's L2 cache."""


class _SwiGLU(torch.autograd.Function):
    """down(silu(x·gateᵀ) · x·upᵀ) in pieces of `CHUNK` tokens; keeps the joint projection."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, gate_up: Tensor, down: Tensor) -> Tensor:
        tokens, inner = x.shape[0], down.shape[1]
        joint = x.new_empty(tokens, 2 * inner)
        out = x.new_empty(tokens, down.shape[0])
        hidden = x.new_empty(min(tokens, CHUNK), inner)
        for piece in _pieces(tokens):
            torch.mm(x[piece], gate_up.T, out=joint[piece])
            gate, up = joint[piece].chunk(2, dim=-1)
            act = hidden[: gate.shape[0]]
            torch.ops.aten.silu.out(gate, out=act)
            act.mul_(up)
            torch.mm(act, down.T, out=out[piece])
        ctx.save_for_backward(x, joint, gate_up, down)
        return out

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
        grad = grads[0].contiguous()
        x, joint, gate_up, down = ctx.saved_tensors
        need_x, need_gate_up, need_down = ctx.needs_input_grad
        tokens, inner = x.shape[0], down.shape[1]
        d_x = torch.empty_like(x) if need_x else None
        d_gate_up = torch.zeros_like(gate_up) if need_gate_up else None
        d_down = torch.zeros_like(down) if need_down else None
        size = min(tokens, CHUNK)
        buffers = x.new_empty(3, size, inner)
        d_joint_buffer = x.new_empty(size, 2 * inner)
        for piece in _pieces(tokens):
            gate, up = joint[piece].chunk(2, dim=-1)
            n = gate.shape[0]
            d_act, sigmoid, silu = buffers[:, :n]
            d_joint = d_joint_buffer[:n]
            d_gate, d_up = d_joint.chunk(2, dim=-1)
            torch.mm(grad[piece], down, out=d_act)
            torch.sigmoid(gate, out=sigmoid)
            torch.mul(gate, sigmoid, out=silu)
            torch.mul(d_act, silu, out=d_up)
            # silu' = sigmoid · (1 + gate − silu)
            torch.sub(gate, silu, out=d_gate)
            d_gate.add_(1).mul_(sigmoid).mul_(up).mul_(d_act)
            if d_down is not None:
                d_down.addmm_(grad[piece].T, silu.mul_(up))
            if d_gate_up is not None:
                d_gate_up.addmm_(d_joint.T, x[piece])
            if d_x is not None:
                torch.mm(d_joint, gate_up, out=d_x[piece])
        return d_x, d_gate_up, d_down


def _pieces(tokens: int) -> list[slice]:
    return [slice(at, min(at + CHUNK, tokens)) for at in range(0, tokens, CHUNK)]


def _forward_mlp(x: Tensor, gate_up: Tensor, down: Tensor) -> Tensor:
    """`_SwiGLU` without a backward pass: equal bit for bit, and no joint projection is kept."""
    tokens, inner = x.shape[0], down.shape[1]
    out = x.new_empty(tokens, down.shape[0])
    gates, ups = x.new_empty(2, min(tokens, CHUNK), inner)
    for piece in _pieces(tokens):
        part = x[piece]
        gate, up = gates[: len(part)], ups[: len(part)]
        torch.mm(part, gate_up[:inner].T, out=gate)
        torch.mm(part, gate_up[inner:].T, out=up)
        torch.ops.aten.silu_(gate)
        torch.mm(gate.mul_(up), down.T, out=out[piece])
    return out


def gated_mlp(x: Tensor, gate_up: Tensor, down: Tensor) -> Tensor:
    """SwiGLU of packed tokens: x (N, D), `gate_up` (2I, D), `down` (D, I) → (N, D)."""
    if x.device.type == "cpu" and not torch.compiler.is_compiling():
        if not torch.is_grad_enabled():
            return _forward_mlp(x, gate_up, down)
        return _SwiGLU.apply(x, gate_up, down)  # type: ignore[no-any-return,no-untyped-call]
    gate, up = F.linear(x, gate_up).chunk(2, dim=-1)
    return F.linear(F.silu(gate) * up, down)


class SwiGLU(nn.Module):
    """`down_proj(silu(gate) * up)` with a joint `gate_up_proj` (2I, D)."""

    def __init__(self, width: int, expansion: float) -> None:
        super().__init__()
        inner = swiglu_inner(width, expansion)
        self.gate_up_proj = Linear(width, 2 * inner)
        self.down_proj = Linear(inner, width)

    def forward(self, x: Tensor) -> Tensor:
        """(…, D) → (…, D)."""
        flat = x.reshape(-1, x.shape[-1])
        weights = self.gate_up_proj.weight.to(x.dtype), self.down_proj.weight.to(x.dtype)
        return gated_mlp(flat, *weights).view(x.shape)
