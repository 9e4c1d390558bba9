"""The two blocks that the recursion repeats: attention or mixing over tokens, then a SwiGLU.

Shape legend: N packed tokens, D width, H heads, C head width.
"""

from __future__ import annotations

from torch import Tensor, nn

from trainable import kernels
from trainable.models import varlen
from trainable.models.attention import Attention, Rope, project
from trainable.models.layers import add_rms_norm, is_compiled
from trainable.models.layout import TokenLayout
from trainable.models.mlp import SwiGLU


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
