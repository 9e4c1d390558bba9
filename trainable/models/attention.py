"""Attention on packed tokens and between sets, with rotary positions.

Shape legend: N packed tokens, D width, H heads, C head width, B rows, L tokens of a row, T
queries, K keys.
"""

from __future__ import annotations

from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from trainable.models import varlen
from trainable.models.layers import Linear, rms_norm
from trainable.models.layout import Bucket, TokenLayout

Rope = tuple[Tensor, Tensor]


def rope_table(length: int, head_dim: int, theta: float) -> tuple[Tensor, Tensor]:
    """Cosine and sine, each (length + 1, head_dim / 2) float32; the last row does not rotate."""
    frequencies = theta ** (-torch.arange(0, head_dim, 2, dtype=torch.float32) / head_dim)
    angles = torch.outer(torch.arange(length, dtype=torch.float32), frequencies)
    angles = torch.cat([angles, torch.zeros(1, head_dim // 2)])
    return angles.cos(), angles.sin()


class _Rotate(torch.autograd.Function):
    """Rotate q and k of a packed (N, 3D) projection in place; v is left alone."""

    @staticmethod
    def forward(ctx: Any, qkv: Tensor, cos: Tensor, sin: Tensor, heads: int) -> Tensor:
        ctx.save_for_backward(cos, sin)
        ctx.heads = heads
        ctx.mark_dirty(qkv)
        _rotate_(qkv.view(qkv.shape[0], 3, heads, -1), cos, sin)
        return qkv

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None, None, None]:
        cos, sin = ctx.saved_tensors
        grad = grads[0].clone(memory_format=torch.contiguous_format)
        _rotate_(grad.view(grad.shape[0], 3, ctx.heads, -1), cos, -sin)
        return grad, None, None, None


def _rotate_(qkv: Tensor, cos: Tensor, sin: Tensor) -> None:
    half = qkv.shape[-1] // 2
    first, second = qkv[:, :2, :, :half], qkv[:, :2, :, half:]
    x1, x2 = first.float(), second.float()
    rotated = torch.addcmul(x2 * cos, x1, sin)
    first.copy_(torch.addcmul(x1 * cos, x2, sin, value=-1))
    second.copy_(rotated)


def rotate(qkv: Tensor, rope: tuple[Tensor, Tensor], heads: int) -> Tensor:
    """Apply RoPE to q and k of (N, 3D), in place; `rope` holds cos and sin (N, 1, 1, C/2).

    In a compiled graph the result is a new tensor, and its gradient the compiler's.
    """
    if torch.compiler.is_compiling():
        qk, v = torch.split(qkv.view(qkv.shape[0], 3, heads, -1), [2, 1], dim=1)
        x1, x2 = qk.float().chunk(2, dim=-1)
        cos, sin = rope
        rotated = torch.cat([x1 * cos - x2 * sin, x2 * cos + x1 * sin], dim=-1)
        return torch.cat([rotated.to(v.dtype), v], dim=1).flatten(1)
    return _Rotate.apply(qkv, *rope, heads)  # type: ignore[no-any-return,no-untyped-call]


_FLASH = "_scaled_dot_product_flash_attention_for_cpu"

_HAS_CPU_FLASH = hasattr(torch.ops.aten, _FLASH) and hasattr(torch.ops.aten, f"{_FLASH}_backward")


class _CPUAttention(torch.autograd.Function):
    """Projection, RoPE and attention of packed float32 tokens on the CPU, without copies.

    The rows of the projection are permuted so that the two elements that RoPE rotates together are
    neighbours: the rotation is then one complex product in place, and scores do not change.
    """

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, weight: Tensor, rope: Rope | None, heads: int, layout: TokenLayout
    ) -> Tensor:
        turn = None if rope is None else torch.complex(*rope)
        paired = weight if turn is None else _pair_rows(weight, heads)
        qkv = x @ paired.T
        if turn is not None:
            _complex_qk(qkv, heads).mul_(turn)
        out = torch.empty_like(x)
        sums = []
        for bucket in layout.buckets:
            q, k, v = _heads(qkv, bucket, heads)
            mask = bucket.attention_mask(x.dtype)
            piece, logsumexp = getattr(torch.ops.aten, _FLASH)(q, k, v, attn_mask=mask)
            out[bucket.start : bucket.stop].view(bucket.rows, bucket.length, heads, -1).copy_(
                piece.transpose(1, 2)
            )
            sums.append(logsumexp)
        ctx.save_for_backward(x, paired, qkv, out, *sums)
        ctx.turn, ctx.heads, ctx.layout = turn, heads, layout
        return out

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, Tensor | None, None, None, None]:
        x, paired, qkv, out, *sums = ctx.saved_tensors
        heads, grad = ctx.heads, grads[0].contiguous()
        d_qkv = torch.empty_like(qkv)
        for bucket, logsumexp in zip(ctx.layout.buckets, sums, strict=True):
            q, k, v = _heads(qkv, bucket, heads)
            piece, d_piece = (
                t[bucket.start : bucket.stop]
                .view(bucket.rows, bucket.length, heads, -1)
                .transpose(1, 2)
                for t in (out, grad)
            )
            found = getattr(torch.ops.aten, f"{_FLASH}_backward")(
                d_piece,
                q,
                k,
                v,
                piece,
                logsumexp,
                0.0,
                False,
                attn_mask=bucket.attention_mask(x.dtype),
            )
            for target, value in zip(_heads(d_qkv, bucket, heads), found, strict=True):
                target.copy_(value)
        if ctx.turn is not None:
            _complex_qk(d_qkv, heads).mul_(ctx.turn.conj())
        d_x = d_qkv @ paired if ctx.needs_input_grad[0] else None
        d_weight = None
        if ctx.needs_input_grad[1]:
            d_weight = d_qkv.T @ x
            if ctx.turn is not None:
                d_weight = _unpair_rows(d_weight, heads)
        return d_x, d_weight, None, None, None


def _pair_rows(weight: Tensor, heads: int) -> Tensor:
    """(3D, D) with rows i and i + C/2 of every q and k head made neighbours."""
    split = 2 * weight.shape[0] // 3
    qk = weight[:split].view(2 * heads, 2, -1, weight.shape[1]).transpose(1, 2)
    return torch.cat([qk.reshape(split, -1), weight[split:]])


def _unpair_rows(weight: Tensor, heads: int) -> Tensor:
    """Inverse of `_pair_rows`."""
    split = 2 * weight.shape[0] // 3
    qk = weight[:split].view(2 * heads, -1, 2, weight.shape[1]).transpose(1, 2)
    return torch.cat([qk.reshape(split, -1), weight[split:]])


def _complex_qk(qkv: Tensor, heads: int) -> Tensor:
    """q and k of (N, 3D) as complex numbers (N, 2, H, C/2), a view."""
    pairs = qkv.view(qkv.shape[0], 3, heads, -1, 2)
    return torch.view_as_complex(pairs)[:, :2]


def _heads(qkv: Tensor, bucket: Bucket, heads: int) -> tuple[Tensor, ...]:
    """q, k, v of a bucket, each a view (rows, H, L, C)."""
    part = qkv[bucket.start : bucket.stop].view(bucket.rows, bucket.length, 3, heads, -1)
    return part.permute(2, 0, 3, 1, 4).unbind(0)


def project(
    x: Tensor,
    qkv_proj: Linear,
    *,
    heads: int,
    rope: Rope | None,
    qk_norm_eps: float | None = None,
) -> Tensor:
    """Queries, keys and values (N, 3, H, C) of tokens (N, D), rotated."""
    qkv: Tensor = qkv_proj(x)
    if qk_norm_eps is not None:
        split = qkv.view(x.shape[0], 3, heads, -1)
        qkv = torch.cat([rms_norm(split[:, :2], qk_norm_eps), split[:, 2:]], dim=1).flatten(1)
    if rope is not None:
        qkv = rotate(qkv, rope, heads)
    return qkv.view(x.shape[0], 3, heads, -1)


def attend(
    x: Tensor,
    qkv_proj: Linear,
    o_proj: Linear,
    *,
    heads: int,
    layout: TokenLayout,
    rope: Rope | None,
    qk_norm_eps: float | None = None,
) -> Tensor:
    """Self-attention of packed tokens (N, D) within their rows.

    `qk_norm_eps` normalises every head's query and key before the rotation (QK-norm).
    """
    by_hand = _HAS_CPU_FLASH and x.device.type == "cpu" and x.dtype == torch.float32
    if by_hand and not qk_norm_eps and not torch.compiler.is_compiling():
        attended: Tensor = _CPUAttention.apply(  # type: ignore[no-untyped-call]
            x, qkv_proj.weight, rope, heads, layout
        )
        return cast(Tensor, o_proj(attended))
    qkv = project(x, qkv_proj, heads=heads, rope=rope, qk_norm_eps=qk_norm_eps)
    if varlen.usable(x, heads):
        return cast(Tensor, o_proj(varlen.attention(qkv, layout)))
    outputs = []
    for bucket, part in layout.split(qkv):
        q, k, v = part.permute(2, 0, 3, 1, 4)  # each (rows, H, L, C)
        out = F.scaled_dot_product_attention(q, k, v, attn_mask=bucket.attention_mask(q.dtype))
        outputs.append(out.transpose(1, 2).reshape(bucket.rows * bucket.length, -1))
    return cast(Tensor, o_proj(outputs[0] if len(outputs) == 1 else torch.cat(outputs)))


class Attention(nn.Module):
    """Self-attention with the reference's names `qkv_proj` (3D, D) and `o_proj` (D, D)."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.qkv_proj = Linear(width, 3 * width)
        self.o_proj = Linear(width, width)

    def forward(
        self,
        x: Tensor,
        layout: TokenLayout,
        rope: Rope | None,
        qk_norm_eps: float | None = None,
    ) -> Tensor:
        """(N, D) → (N, D)."""
        return attend(
            x,
            self.qkv_proj,
            self.o_proj,
            heads=self.heads,
            layout=layout,
            rope=rope,
            qk_norm_eps=qk_norm_eps,
        )


class CrossAttention(nn.Module):
    """Queries (B, T, D) attend to keys (B, K, D); a row without any valid key gives zeros."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.q_proj = Linear(width, width)
        self.k_proj = Linear(width, width)
        self.v_proj = Linear(width, width)
        self.o_proj = Linear(width, width)

    def forward(self, queries: Tensor, keys: Tensor, valid: Tensor) -> Tensor:
        """`valid` (B, K) bool marks the keys that exist."""
        return masked_attention(
            self.q_proj(queries),
            self.k_proj(keys),
            self.v_proj(keys),
            valid,
            self.heads,
            self.o_proj,
        )


def masked_attention(
    q: Tensor, k: Tensor, v: Tensor, valid: Tensor, heads: int, o_proj: Linear
) -> Tensor:
    """Multi-head attention of (B, T, D) over (B, K, D) with a key mask; nothing valid gives 0."""
    some = valid.any(dim=-1)
    mask = (valid | ~some[:, None])[:, None, None, :]
    width = q.shape[-1] // heads
    q, k, v = (x.view(*x.shape[:2], heads, width).transpose(1, 2) for x in (q, k, v))
    out: Tensor = F.scaled_dot_product_attention(q, k, v, attn_mask=mask)
    out = o_proj(out.transpose(1, 2).flatten(-2))
    return out * some[:, None, None].to(out.dtype)
