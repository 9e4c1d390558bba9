"""Attention of packed tokens on CUDA: one kernel for all rows, whatever their lengths.

PyTorch's own kernels take the starts of runs of tokens (`TokenLayout.runs`): FlashAttention in
bfloat16, the memory-efficient kernel in float32. Padding behind a row is a run of its own, so that
no mask is read and nothing is computed across rows. The bucketed calls that the CPU makes need a
call per bucket and layer, and a mask.

Shape legend: N packed tokens, H heads, C head width.
"""

from __future__ import annotations

import os
from functools import lru_cache

import torch
from torch import Tensor

from trainable.models.layout import TokenLayout

OFF = "ETRM_TUNE_BUCKETED_ATTENTION"
"""Environment variable: set, CUDA computes attention bucket by bucket (for comparison)."""


@lru_cache(maxsize=8)
def _has_kernels(device: torch.device) -> bool:
    names = ("_flash_attention_forward", "_efficient_attention_forward")
    return all(hasattr(torch.ops.aten, name) for name in names) and (
        torch.cuda.get_device_capability(device) >= (8, 0)
    )


def usable(x: Tensor, heads: int) -> bool:
    """Whether the kernels serve tokens (N, D) of this type and device with so many heads."""
    if x.device.type != "cuda" or torch.compiler.is_compiling():
        return False  # a whole compiled stack has rows of equal length
    head_dim = x.shape[-1] // heads
    return (
        x.dtype in (torch.bfloat16, torch.float32)
        and head_dim % 8 == 0
        and head_dim <= 256
        and not os.environ.get(OFF)
        and _has_kernels(x.device)
    )


def attention(qkv: Tensor, layout: TokenLayout) -> Tensor:
    """(N, 3, H, C) attended within the layout's runs → (N, D)."""
    q, k, v = qkv.unbind(1)
    runs, longest = layout.runs, layout.longest
    out: Tensor
    if q.dtype == torch.bfloat16:
        out = torch.ops.aten._flash_attention_forward(
            q, k, v, runs, runs, longest, longest, 0.0, False, False
        )[0]
        return out.flatten(1)
    out = torch.ops.aten._efficient_attention_forward(
        q[None],
        k[None],
        v[None],
        None,
        runs,
        runs,
        longest,
        longest,
        0.0,
        0,
        torch.is_grad_enabled() and q.requires_grad,
    )[0]
    return out[0].flatten(1)
