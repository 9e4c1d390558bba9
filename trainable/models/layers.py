"""Building blocks: linear layers, embeddings, RMS normalisation, initialisation.

Parameters are float32 and cast to the activations' dtype at use.
"""

from __future__ import annotations

import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

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


def is_compiled(module: nn.Module) -> bool:
    """Whether `module.compile()` was called: its own code then computes."""
    return module._compiled_call_impl is not None
