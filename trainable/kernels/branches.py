"""Residual branches of a block as one autograd function each, computed by the C kernels.

Shape legend: N packed tokens, D width, H heads, C head width, I inner width of an MLP, R rows.
"""

from __future__ import annotations

import ctypes
import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from itertools import pairwise
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from trainable.kernels.build import library, rounding

if TYPE_CHECKING:
    from trainable.models.layout import TokenLayout

Norm = Literal["none", "pre", "post", "alone"]
"""y = x + f(x), x + f(rms(x)), rms(x + f(x)), or f(x) without a residual."""
_NORMS: dict[Norm, int] = {"none": 0, "pre": 1, "post": 2, "alone": 3}

LANES = 16
"""Widths and head widths must be multiples of this."""
WIDEST = {1: 1024, 2: 512}
"""By `rounding`; not tried beyond."""
WIDEST_FLOAT32 = {16: 512, 8: 256, 4: 256}
"""By lanes of a vector. Beyond, a BLAS library is as quick or quicker (measured with 16 and 8)."""

Rope = tuple[Tensor, Tensor]


def usable(x: Tensor, *, heads: int = 1) -> bool:
    """Whether the kernels compute for activations `x` (…, D)."""
    width = x.shape[-1]
    return (
        x.device.type == "cpu"
        and x.dtype == torch.float32
        and width % LANES == 0
        and width % heads == 0
        and (width // heads) % LANES == 0
        and not torch.compiler.is_compiling()
        and (found := library()) is not None
        and width <= (WIDEST.get(rounding()) or WIDEST_FLOAT32[found.etrm_lanes()])
    )


def computes_again() -> bool:
    """Whether projections are computed again in the backward pass rather than kept: in tiles that
    is quicker than to write them to memory and to read them."""
    return rounding() == 2


def attention_branch(
    x: Tensor,
    qkv: Tensor,
    out: Tensor,
    *,
    heads: int,
    layout: TokenLayout,
    rope: Rope | None,
    norm: Norm,
    eps: float = 0.0,
    first_only: bool = False,
) -> Tensor:
    """Self-attention of packed tokens `x` (N, D) within their rows; weights (3D, D) and (D, D).

    With `first_only` only the first token of each row asks: the result is (R, D), rows as packed.
    """
    x = x.contiguous()
    table = layout.table
    assert not first_only or int(table[2].min()) > 0, "a row without tokens has no first one"
    cos, sin = (None, None) if rope is None else (part.reshape(len(x), -1) for part in rope)
    weights = qkv.contiguous(), out.contiguous()
    args = (x, *weights, cos, sin, table, heads, _NORMS[norm], eps, first_only)
    if torch.is_grad_enabled() and (x.requires_grad or qkv.requires_grad or out.requires_grad):
        return _Attention.apply(*args)  # type: ignore[no-any-return,no-untyped-call]
    return _attention(*args, keep=False)[0]


def mlp_branch(x: Tensor, gate_up: Tensor, down: Tensor, *, norm: Norm, eps: float = 0.0) -> Tensor:
    """SwiGLU of tokens `x` (N, D); `gate_up` (2I, D), `down` (D, I)."""
    args = (x.contiguous(), gate_up.contiguous(), down.contiguous(), _NORMS[norm], eps)
    if torch.is_grad_enabled() and (x.requires_grad or gate_up.requires_grad or down.requires_grad):
        return _MLP.apply(*args)  # type: ignore[no-any-return,no-untyped-call]
    return _mlp(*args, keep=False)[0]


def _attention(
    x: Tensor,
    w_qkv: Tensor,
    w_out: Tensor,
    cos: Tensor | None,
    sin: Tensor | None,
    table: Tensor,
    heads: int,
    norm: int,
    eps: float,
    first_only: bool,
    *,
    keep: bool,
) -> tuple[Tensor, Tensor | None, Tensor | None, Tensor | None, Tensor | None]:
    tokens, width = x.shape
    asking = table.shape[1] if first_only else tokens
    y = x.new_empty(asking, width)
    qkv = attended = sums = scale = None
    if keep:
        qkv = None if computes_again() else x.new_empty(tokens, 3 * width)
        attended = torch.empty_like(y)
        sums = x.new_empty(asking, 2 * heads)
        scale = x.new_empty(tokens) if norm in (1, 2) else None
    function = _function("etrm_attention_forward")

    def part(lo: int, hi: int, _: int) -> None:
        function(
            *_rows(table, lo, hi),
            *map(ctypes.c_long, (width, heads)),
            *map(ctypes.c_int, (first_only, norm, rounding())),
            ctypes.c_float(eps),
            *map(_at, (x, cos, sin, w_qkv, w_out)),
            *_kept(lo, first_only, norm, y, qkv, attended, sums, scale),
        )

    _spread(part, _row_parts(table))
    return y, qkv, attended, sums, scale


def _kept(
    lo: int,
    first_only: bool,
    norm: int,
    y: Tensor | None,
    qkv: Tensor | None,
    attended: Tensor | None,
    sums: Tensor | None,
    scale: Tensor | None,
) -> tuple[Any, ...]:
    """Addresses for rows from `lo` on: tensors of one line per row begin there."""
    row = lo if first_only else 0
    rows = (row, 0, row, row, row if norm == 2 else 0)
    return tuple(map(_at, (y, qkv, attended, sums, scale), rows))


class _Attention(torch.autograd.Function):
    """Keeps its input, the rotated projection (see `computes_again`), the attended values, softmax
    sums, norm factors."""

    @staticmethod
    def forward(ctx: Any, *args: Any) -> Tensor:
        x, w_qkv, w_out, cos, sin, table, heads, norm, _, first_only = args
        y, *kept = _attention(*args, keep=True)
        ctx.save_for_backward(x, w_qkv, w_out, cos, sin, table, y if norm == 2 else None, *kept)
        ctx.heads, ctx.norm, ctx.first_only = heads, norm, first_only
        return y

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        x, w_qkv, w_out, cos, sin, table, y, qkv, attended, sums, scale = ctx.saved_tensors
        grad = grads[0].contiguous()
        parts = _row_parts(table)
        need_x, need_qkv, need_out = ctx.needs_input_grad[:3]
        dx = torch.empty_like(x) if need_x else None
        d_qkv, d_out = _zeros(w_qkv, need_qkv, parts), _zeros(w_out, need_out, parts)
        function = _function("etrm_attention_backward")

        def part(lo: int, hi: int, at: int) -> None:
            function(
                *_rows(table, lo, hi),
                *map(ctypes.c_long, (x.shape[1], ctx.heads)),
                *map(ctypes.c_int, (ctx.first_only, ctx.norm, rounding())),
                *map(_at, (x, cos, sin, w_qkv, w_out)),
                *_kept(lo, ctx.first_only, ctx.norm, y, qkv, attended, sums, scale),
                _at(grad, lo if ctx.first_only else 0),
                _at(dx),
                *(_at(d, at) for d in (d_qkv, d_out)),
            )

        _spread(part, parts)
        return dx, _sum(d_qkv), _sum(d_out), *[None] * 7


def _mlp(
    x: Tensor, gate_up: Tensor, down: Tensor, norm: int, eps: float, *, keep: bool
) -> tuple[Tensor, Tensor | None, Tensor | None]:
    tokens, width = x.shape
    inner = down.shape[1]
    y = torch.empty_like(x)
    joint = x.new_empty(tokens, 2 * inner) if keep and not computes_again() else None
    scale = x.new_empty(tokens) if keep and norm in (1, 2) else None
    function = _function("etrm_mlp_forward")

    def part(lo: int, hi: int, _: int) -> None:
        function(
            *map(ctypes.c_long, (hi - lo, width, inner)),
            *map(ctypes.c_int, (norm, rounding())),
            ctypes.c_float(eps),
            *map(_at, (x, gate_up, down, y, joint, scale), (lo, 0, 0, lo, lo, lo)),
        )

    _spread(part, _token_parts(tokens))
    return y, joint, scale


class _MLP(torch.autograd.Function):
    """Keeps its input, the joint projection (N, 2I; see `computes_again`) and norm factors."""

    @staticmethod
    def forward(ctx: Any, *args: Any) -> Tensor:
        x, gate_up, down, norm, _ = args
        y, *kept = _mlp(*args, keep=True)
        ctx.save_for_backward(x, gate_up, down, y if norm == 2 else None, *kept)
        ctx.norm = norm
        return y

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        x, gate_up, down, y, joint, scale = ctx.saved_tensors
        grad = grads[0].contiguous()
        parts = _token_parts(x.shape[0])
        need_x, need_gate_up, need_down = ctx.needs_input_grad[:3]
        dx = torch.empty_like(x) if need_x else None
        d_gate_up, d_down = _zeros(gate_up, need_gate_up, parts), _zeros(down, need_down, parts)
        function = _function("etrm_mlp_backward")

        def part(lo: int, hi: int, at: int) -> None:
            function(
                *map(ctypes.c_long, (hi - lo, x.shape[1], down.shape[1])),
                *map(ctypes.c_int, (ctx.norm, rounding())),
                *map(
                    _at,
                    (x, gate_up, down, y, joint, scale, grad, dx, d_gate_up, d_down),
                    (lo, 0, 0, lo, lo, lo, lo, lo, at, at),
                ),
            )

        _spread(part, parts)
        return dx, _sum(d_gate_up), _sum(d_down), None, None


# --- calls ---------------------------------------------------------------------------------------


@cache
def _function(name: str) -> Any:
    found = library()
    assert found is not None
    function = getattr(found, name)
    function.restype = None
    return function


def _at(tensor: Tensor | None, index: int = 0) -> ctypes.c_void_p:
    """Address of `tensor[index]`; NULL for None."""
    if tensor is None:
        return ctypes.c_void_p(None)
    step = tensor.stride(0) * tensor.element_size()
    return ctypes.c_void_p(tensor.data_ptr() + index * step)


def _rows(table: Tensor, lo: int, hi: int) -> tuple[Any, ...]:
    """Number of rows lo … hi, and addresses of their starts, lengths and valid tokens."""
    first = table.data_ptr() + 8 * lo
    step = 8 * table.shape[1]
    return ctypes.c_long(hi - lo), *(ctypes.c_void_p(first + step * i) for i in range(3))


Part = tuple[int, int]


def _row_parts(table: Tensor) -> list[Part]:
    """Rows of each thread, with about the same number of tokens."""
    rows, threads = table.shape[1], torch.get_num_threads()
    if threads == 1 or rows < 2:
        return [(0, rows)]
    ends = table[1].cumsum(0)
    total = int(ends[-1])
    goals = torch.tensor([total * (i + 1) // threads for i in range(threads - 1)])
    cuts = torch.searchsorted(ends, goals).tolist()
    return _parts([0, *cuts, rows])


def _token_parts(tokens: int) -> list[Part]:
    threads = torch.get_num_threads()
    return _parts([tokens * i // threads for i in range(threads + 1)]) if tokens else [(0, 0)]


def _parts(cuts: list[int]) -> list[Part]:
    return [(lo, hi) for lo, hi in pairwise(cuts) if hi > lo]


def _zeros(weight: Tensor, needed: bool, parts: list[Part]) -> Tensor | None:
    """A gradient per thread."""
    return weight.new_zeros(len(parts), *weight.shape) if needed else None


def _sum(gradients: Tensor | None) -> Tensor | None:
    if gradients is None:
        return None
    return gradients[0] if len(gradients) == 1 else gradients.sum(0)


def _spread(work: Callable[[int, int, int], None], parts: list[Part]) -> None:
    """Do `work(lo, hi, index)` for every part, each in a thread of its own."""
    if len(parts) == 1:
        work(*parts[0], 0)
        return
    others = [_pool(os.getpid()).submit(work, *part, at) for at, part in enumerate(parts) if at]
    work(*parts[0], 0)
    for other in others:
        other.result()


@cache
def _pool(process: int) -> ThreadPoolExecutor:
    """Threads of this process: a forked child has none of its parent's."""
    return ThreadPoolExecutor(thread_name_prefix="kernels")
