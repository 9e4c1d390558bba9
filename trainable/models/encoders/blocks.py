"""Residual blocks of the grid encoders, with pre- or post-norm and optional layer scale.

Shape legend: N packed tokens, D width, C head width.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from trainable import kernels
from trainable.config import ModelConfig
from trainable.models import varlen
from trainable.models.attention import Attention, attend, project
from trainable.models.layers import Linear, is_compiled, rms_norm
from trainable.models.layout import TokenLayout
from trainable.models.mlp import SwiGLU

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

    def projections(self) -> tuple[Linear, Linear]:
        """The layers before and behind attention."""
        raise TypeError(f"{type(self).__name__} must define projections()")

    def forward(self, h: Tensor, layout: TokenLayout, rope: Rope) -> Tensor:
        """(N, D) → (N, D)."""
        if varlen.usable(h, self.heads):
            return self.after(h, varlen.attention(self.before(h, rope), layout))
        if self.by_kernels(h):
            return self._fused(h, layout, rope)
        pre = self.norm_style == "pre"
        branch = self.mix(rms_norm(h, self.eps) if pre else h, layout, rope)
        h = residual(h, branch, self.gamma_1, pre=pre, eps=self.eps)
        return self.mlp_branch(h)

    def first_token(self, h: Tensor, layout: TokenLayout, rope: Rope) -> Tensor:
        """`forward` for the first token of each row alone: (N, D) → (B, D)."""
        if self.by_kernels(h):
            return self._fused(h, layout, rope, first_only=True)[torch.argsort(layout.order)]
        return self(h, layout, rope)[layout.first]  # type: ignore[no-any-return]

    def by_kernels(self, h: Tensor) -> bool:
        """Whether the CPU kernels compute this block."""
        fusible = self.qk_norm_eps is None and not is_compiled(self.mlp)
        return fusible and kernels.usable(h, heads=self.heads)

    def mlp_branch(self, h: Tensor) -> Tensor:
        """The block's second half: (N, D) → (N, D)."""
        pre = self.norm_style == "pre"
        branch = self.mlp(rms_norm(h, self.eps) if pre else h)
        return residual(h, branch, self.gamma_2, pre=pre, eps=self.eps)

    def before(self, h: Tensor, rope: Rope) -> Tensor:
        """What comes before attention on CUDA: (N, D) → (N, 3, H, C)."""
        if self.norm_style == "pre":
            h = rms_norm(h, self.eps)
        qkv_proj, _ = self.projections()
        return project(h, qkv_proj, heads=self.heads, rope=rope, qk_norm_eps=self.qk_norm_eps)

    def after(self, h: Tensor, attended: Tensor) -> Tensor:
        """What comes after attention on CUDA: the tokens and what they attended to, (N, D) both."""
        _, o_proj = self.projections()
        pre = self.norm_style == "pre"
        h = residual(h, o_proj(attended), self.gamma_1, pre=pre, eps=self.eps)
        return self.mlp_branch(h)

    def _fused(
        self, h: Tensor, layout: TokenLayout, rope: Rope, *, first_only: bool = False
    ) -> Tensor:
        """`forward` by the kernels; γ scales the rows of each branch's last projection."""
        norm: kernels.Norm = "pre" if self.norm_style == "pre" else "post"
        qkv_proj, o_proj = self.projections()
        h = kernels.attention_branch(
            h,
            qkv_proj.weight,
            _scaled(o_proj.weight, self.gamma_1),
            heads=self.heads,
            layout=layout,
            rope=rope,
            norm=norm,
            eps=self.eps,
            first_only=first_only,
        )
        down = _scaled(self.mlp.down_proj.weight, self.gamma_2)
        return kernels.mlp_branch(h, self.mlp.gate_up_proj.weight, down, norm=norm, eps=self.eps)


def _scaled(weight: Tensor, gamma: Tensor | None) -> Tensor:
    return weight if gamma is None else gamma[:, None] * weight


class GridBlock(_Branch):
    """Block of the pooled grid encoder: attention under `self_attn`."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__(config, norm_style=config.encoder_norm_style)
        self.self_attn = Attention(config.hidden_size, config.num_heads)

    def projections(self) -> tuple[Linear, Linear]:
        """Those of `self_attn`."""
        return self.self_attn.qkv_proj, self.self_attn.o_proj

    def mix(self, h: Tensor, layout: TokenLayout, rope: Rope) -> Tensor:
        """Self-attention."""
        return self.self_attn(h, layout, rope, self.qk_norm_eps)  # type: ignore[no-any-return]


class CLSBlock(_Branch):
    """Block of the class-token grid encoder: always pre-norm, projections at the top level."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__(config, norm_style="pre")
        self.qkv_proj = Linear(config.hidden_size, 3 * config.hidden_size)
        self.o_proj = Linear(config.hidden_size, config.hidden_size)

    def projections(self) -> tuple[Linear, Linear]:
        """Its own."""
        return self.qkv_proj, self.o_proj

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
