"""Building blocks: linear layers, attention on packed tokens, SwiGLU, normalisation, RoPE.

Shape legend: N packed tokens, D width, H heads, C head width, I inner width of an MLP, V
vocabulary, B rows, L tokens of a row. Parameters are float32 and cast to the activations' dtype at
use.
"""

from __future__ import annotations

import math
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from trainable import kernels
from trainable.models import varlen
from trainable.models.layout import Bucket, TokenLayout

Rope = tuple[Tensor, Tensor]

_TRUNCATION_STD = 0.87962566103423978
"""Standard deviation of a unit normal cut at ±2."""


def truncated_normal_(
    tensor: Tensor, std: float, generator: torch.Generator | None = None
) -> Tensor:
    """Fill with a normal cut at two standard deviations, scaled so that the result has `std`."""
    with torch.no_grad():
        if std == 0:
            return tensor.zero_()
        sigma = std / _TRUNCATION_STD
        bound = math.erf(math.sqrt(2.0))
        values = torch.empty(tensor.shape, dtype=torch.float32)
        values.uniform_(-bound, bound, generator=generator)
        values.erfinv_().mul_(math.sqrt(2.0) * sigma).clamp_(-2 * sigma, 2 * sigma)
        return tensor.copy_(values)


class Linear(nn.Module):
    """`x @ weight.T + bias`; weight (out, in) float32, truncated normal with std 1/√in."""

    def __init__(self, in_features: int, out_features: int, *, bias: bool = False) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(out_features, in_features))
        self.bias = nn.Parameter(torch.zeros(out_features)) if bias else None

    def init_(self, name: str, generator: torch.Generator) -> None:
        """Initialise one tensor of this layer from its own generator."""
        if name == "weight":
            truncated_normal_(self.weight, 1 / math.sqrt(self.weight.shape[1]), generator)

    def forward(self, x: Tensor) -> Tensor:
        """Map (…, in) to (…, out) in the dtype of `x`."""
        bias = None if self.bias is None else self.bias.to(x.dtype)
        return F.linear(x, self.weight.to(x.dtype), bias)


class ZeroLinear(Linear):
    """A `Linear` whose weights start at zero and whose bias, if any, starts at `bias_start`."""

    def __init__(
        self, in_features: int, out_features: int, *, bias: bool = True, bias_start: float = 0.0
    ) -> None:
        super().__init__(in_features, out_features, bias=bias)
        self.bias_start = bias_start

    def init_(self, name: str, generator: torch.Generator) -> None:
        """Constant values: no draw."""
        nn.init.constant_(getattr(self, name), 0.0 if name == "weight" else self.bias_start)


class Embedding(nn.Module):
    """A table (rows, D) under the reference's name `embedding_weight`."""

    def __init__(self, rows: int, width: int, std: float) -> None:
        super().__init__()
        self.embedding_weight = nn.Parameter(torch.empty(rows, width))
        self.std = std

    def init_(self, name: str, generator: torch.Generator) -> None:
        """Truncated normal with this table's standard deviation."""
        truncated_normal_(self.embedding_weight, self.std, generator)


# --- normalisation -------------------------------------------------------------------------------


class _RMSNorm(torch.autograd.Function):
    """x · rsqrt(mean(x²) + eps) in float32, keeping only the result and the scale for backward."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, eps: float) -> Tensor:
        x32 = x.float()
        scale = torch.linalg.vector_norm(x32, dim=-1, keepdim=True)
        scale.square_().div_(x32.shape[-1]).add_(eps).rsqrt_()
        out: Tensor = (x32 * scale).to(x.dtype)
        ctx.save_for_backward(out, scale)
        return out

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None]:
        (grad,) = grads
        out, scale = ctx.saved_tensors
        grad32, out32 = grad.float(), out.float()
        projection = (grad32 * out32).mean(-1, keepdim=True)
        return torch.addcmul(grad32, out32, projection, value=-1).mul_(scale).to(grad.dtype), None


def rms_norm(x: Tensor, eps: float) -> Tensor:
    """`x / sqrt(mean(x²) + eps)` over the last axis, computed in float32, no learned scale."""
    if torch.compiler.is_compiling():
        x32 = x.float()
        return (x32 * (x32.square().mean(-1, keepdim=True) + eps).rsqrt()).to(x.dtype)
    return _RMSNorm.apply(x, eps)  # type: ignore[no-any-return,no-untyped-call]


def add_rms_norm(h: Tensor, branch: Tensor, eps: float) -> Tensor:
    """`rms_norm(h + branch)`: the post-norm residual step, (…, D) → (…, D)."""
    return rms_norm(h + branch, eps)


# --- rotary positions ----------------------------------------------------------------------------


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


# --- attention and MLP ---------------------------------------------------------------------------


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


def is_compiled(module: nn.Module) -> bool:
    """Whether `module.compile()` was called: its own code then computes."""
    return module._compiled_call_impl is not None


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


class PostNormBlock(nn.Module):
    """h ← rms(h + attention(h)); h ← rms(h + swiglu(h)): the block of the recursion."""

    def __init__(self, width: int, heads: int, expansion: float, eps: float) -> None:
        super().__init__()
        self.self_attn = Attention(width, heads)
        self.mlp = SwiGLU(width, expansion)
        self.eps = eps

    def forward(self, h: Tensor, layout: TokenLayout, rope: Rope | None) -> Tensor:
        """(N, D) → (N, D)."""
        if varlen.usable(h, self.self_attn.heads):
            return self.after(h, varlen.attention(self.before(h, rope), layout))
        attention, mlp = self.self_attn, self.mlp
        if kernels.usable(h, heads=attention.heads) and not is_compiled(mlp):
            h = kernels.attention_branch(
                h,
                attention.qkv_proj.weight,
                attention.o_proj.weight,
                heads=attention.heads,
                layout=layout,
                rope=rope,
                norm="post",
                eps=self.eps,
            )
            weights = mlp.gate_up_proj.weight, mlp.down_proj.weight
            return kernels.mlp_branch(h, *weights, norm="post", eps=self.eps)
        h = add_rms_norm(h, self.self_attn(h, layout, rope), self.eps)
        return add_rms_norm(h, self.mlp(h), self.eps)

    def before(self, h: Tensor, rope: Rope | None) -> Tensor:
        """What comes before attention on CUDA: (N, D) → (N, 3, H, C)."""
        own = self.self_attn
        return project(h, own.qkv_proj, heads=own.heads, rope=rope)

    def after(self, h: Tensor, attended: Tensor) -> Tensor:
        """What comes after attention on CUDA: the tokens and what they attended to, (N, D) both."""
        h = add_rms_norm(h, self.self_attn.o_proj(attended), self.eps)
        return add_rms_norm(h, self.mlp(h), self.eps)


class TokenMixingBlock(nn.Module):
    """`mlp_t`: SwiGLU over the token axis (rms over tokens as well), then over channels."""

    def __init__(self, width: int, length: int, expansion: float, eps: float) -> None:
        super().__init__()
        self.mlp_t = SwiGLU(length, expansion)
        self.mlp = SwiGLU(width, expansion)
        self.eps = eps

    def forward(self, h: Tensor, layout: TokenLayout, rope: Rope | None) -> Tensor:
        """(N, D) → (N, D); needs rows of equal length."""
        (bucket,) = layout.buckets
        mixed = h.view(bucket.rows, bucket.length, -1).transpose(1, 2).contiguous()
        mixed = add_rms_norm(mixed, self.mlp_t(mixed), self.eps)
        h = mixed.transpose(1, 2).reshape(h.shape)
        return add_rms_norm(h, self.mlp(h), self.eps)
