"""Residual blocks of the grid encoders, with pre- or post-norm and optional layer scale.

Shape legend: N packed tokens, D width, C head width.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from trainable.config import ModelConfig
from trainable.models.layers import Attention, Linear, SwiGLU, attend, rms_norm
from trainable.models.layout import TokenLayout

Rope = tuple[Tensor, Tensor]


def layer_scale(config: ModelConfig) -> nn.Parameter | None:
    """A float32 scale γ (D) of a branch, all `encoder_layer_scale_init`; None where that is 0."""
    if config.encoder_layer_scale_init == 0:
        return None
    return nn.Parameter(torch.full((config.hidden_size,), config.encoder_layer_scale_init))


def residual(
    h: Tensor, branch: Tensor, gamma: nn.Parameter | None, *, pre: bool, eps: float
) -> Tensor:
    """h + γ · branch, normalised afterwards unless `pre`."""
    if gamma is not None:
        branch = branch * gamma.to(branch.dtype)
    return h + branch if pre else rms_norm(h + branch, eps)


class _Branch(nn.Module):
    """Residual block with pre- or post-norm and optional layer scale, over packed tokens."""

    def __init__(self, config: ModelConfig, *, norm_style: str) -> None:
        super().__init__()
        self.norm_style = norm_style
        self.eps = config.rms_norm_eps
        self.heads = config.num_heads
        self.qk_norm_eps = self.eps if config.encoder_qk_norm and not config.parity else None
        self.mlp = SwiGLU(config.hidden_size, config.expansion)
        self.gamma_1 = layer_scale(config)
        self.gamma_2 = layer_scale(config)

    def mix(self, h: Tensor, layout: TokenLayout, rope: Rope) -> Tensor:
        raise TypeError(f"{type(self).__name__} must define mix()")

    def forward(self, h: Tensor, layout: TokenLayout, rope: Rope) -> Tensor:
        """(N, D) → (N, D)."""
        pre = self.norm_style == "pre"
        branch = self.mix(rms_norm(h, self.eps) if pre else h, layout, rope)
        h = residual(h, branch, self.gamma_1, pre=pre, eps=self.eps)
        branch = self.mlp(rms_norm(h, self.eps) if pre else h)
        return residual(h, branch, self.gamma_2, pre=pre, eps=self.eps)


class GridBlock(_Branch):
    """Block of the pooled grid encoder: attention under `self_attn`."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__(config, norm_style=config.encoder_norm_style)
        self.self_attn = Attention(config.hidden_size, config.num_heads)

    def mix(self, h: Tensor, layout: TokenLayout, rope: Rope) -> Tensor:
        """Self-attention."""
        return self.self_attn(h, layout, rope, self.qk_norm_eps)  # type: ignore[no-any-return]


class CLSBlock(_Branch):
    """Block of the class-token grid encoder: always pre-norm, projections at the top level."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__(config, norm_style="pre")
        self.qkv_proj = Linear(config.hidden_size, 3 * config.hidden_size)
        self.o_proj = Linear(config.hidden_size, config.hidden_size)

    def mix(self, h: Tensor, layout: TokenLayout, rope: Rope) -> Tensor:
        """Self-attention."""
        return attend(
            h,
            self.qkv_proj,
            self.o_proj,
            heads=self.heads,
            layout=layout,
            rope=rope,
            qk_norm_eps=self.qk_norm_eps,
        )
