"""The set encoder: query tokens read the demonstration vectors by cross-attention.

Shape legend: U sets, K slots, T context tokens, D width.
"""

from __future__ import annotations

from typing import ClassVar

import torch
from torch import Tensor, nn

from trainable.config import ModelConfig
from trainable.models.attention import CrossAttention
from trainable.models.encoders.blocks import layer_scale, residual
from trainable.models.layers import rms_norm, truncated_normal_
from trainable.models.mlp import SwiGLU


class SetLayer(CrossAttention):
    """Cross-attention from queries to demonstrations, then SwiGLU; the demonstrations stay."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__(config.hidden_size, config.num_heads)
        self.mlp = SwiGLU(config.hidden_size, config.expansion)
        self.pre = config.encoder_norm_style == "pre"
        self.eps = config.rms_norm_eps
        self.gamma_1 = layer_scale(config)
        self.gamma_2 = layer_scale(config)

    def forward(self, queries: Tensor, keys: Tensor, valid: Tensor) -> Tensor:
        """(U, T, D), (U, K, D), (U, K) → (U, T, D)."""
        normed = rms_norm(queries, self.eps) if self.pre else queries
        branch = super().forward(normed, keys, valid)
        queries = residual(queries, branch, self.gamma_1, pre=self.pre, eps=self.eps)
        normed = rms_norm(queries, self.eps) if self.pre else queries
        return residual(queries, self.mlp(normed), self.gamma_2, pre=self.pre, eps=self.eps)


class SetEncoder(nn.Module):
    """`query_tokens` (T, D) and `encoder_set_layers` layers; the result is normalised."""

    effective: ClassVar[frozenset[str]] = frozenset(
        {"encoder_set_layers", "encoder_norm_style", "encoder_layer_scale_init"}
    )

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.query_tokens = nn.Parameter(torch.empty(config.prefix_len, config.hidden_size))
        self.layers = nn.ModuleList(SetLayer(config) for _ in range(config.encoder_set_layers))
        self.eps = config.rms_norm_eps

    def init_(self, name: str, generator: torch.Generator) -> None:
        """`query_tokens`: truncated normal, std 0.02."""
        truncated_normal_(getattr(self, name), 0.02, generator)

    def forward(self, demos: Tensor, valid: Tensor) -> Tensor:
        """(U, K, D), (U, K) bool → (U, T, D)."""
        h = self.query_tokens.to(demos.dtype).expand(demos.shape[0], -1, -1)
        for layer in self.layers:
            h = layer(h, demos, valid)
        return rms_norm(h, self.eps)
