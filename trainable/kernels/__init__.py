"""Kernels for the CPU in C, compiled on first use: blocks whose activations stay in the cache.

Shape legend: N packed tokens, D width, H heads, C head width, I inner width of an MLP.

A block of a tiny model spends half its time outside matrix products when PyTorch runs it one
operation at a time. Here a residual branch (norm, projections, rotation, attention or SwiGLU,
residual, norm) is one call over tiles of tokens. Results equal PyTorch's to rounding, and are the
same bit for bit at a given number of threads.
"""

from __future__ import annotations

from trainable.kernels.branches import Norm, attention_branch, mlp_branch, usable
from trainable.kernels.build import description, library, why_not

__all__ = [
    "Norm",
    "attention_branch",
    "description",
    "library",
    "mlp_branch",
    "usable",
    "why_not",
]
