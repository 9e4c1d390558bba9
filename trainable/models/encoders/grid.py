"""Grid encoders: one demonstration pair in, one vector out.

A pair is the input grid's cells followed by the output grid's. By default only cells that hold
something (colours and EOS) of demonstrations that exist become tokens, packed by length; in
`parity` every slot and every PAD cell is encoded, as the references do.

Shape legend: U sets, K slots, S cells, M pairs, N packed tokens, D width, H heads.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from trainable.config import ModelConfig
from trainable.models.encoders.base import DemoSets
from trainable.models.inner import DTYPES
from trainable.models.layers import (
    Attention,
    Embedding,
    Linear,
    SwiGLU,
    attend,
    masked_attention,
    rms_norm,
    rope_table,
    truncated_normal_,
)
from trainable.models.layout import TokenLayout, full_layout, ragged_layout

Rope = tuple[Tensor, Tensor]
CLS = -1
"""Marks the class token in a pair's token list."""


@dataclass(frozen=True, eq=False)
class PackedPairs:
    """Tokens of M pairs.

    `token` (N) index into the joint table [input tokens; output tokens], `CLS` for the class token;
    `filled` (N) bool: a cell that is not PAD, so that it counts in pooling; `slot` (M) index of
    each pair into (U · K).
    """

    layout: TokenLayout
    token: Tensor
    filled: Tensor
    position: Tensor
    slot: Tensor


def pack_pairs(sets: DemoSets, *, vocab: int, cls: bool, every_slot: bool) -> PackedPairs:
    """Choose and pack the tokens of all pairs. `every_slot`: all slots and all cells (parity)."""
    slots = sets.mask.numel()
    cells = sets.inputs.shape[-1]
    pair = torch.cat([sets.inputs.reshape(slots, cells), sets.labels.reshape(slots, cells)], dim=1)
    pair, head = pair.long(), int(cls)
    shift = torch.zeros(2 * cells, dtype=torch.int64, device=pair.device)
    shift[cells:] = vocab
    device = pair.device
    if every_slot:
        layout = full_layout(slots, head + 2 * cells, device)
        token = pair + shift
        filled = pair != 0
        if cls:
            token = F.pad(token, (1, 0), value=CLS)
            filled = F.pad(filled, (1, 0), value=False)
        slot = torch.arange(slots, device=device)
        position = layout.position - head
        position = torch.where(position < 0, 2 * cells, position)
        return PackedPairs(layout, token.flatten(), filled.flatten(), position, slot)
    slot = sets.mask.flatten().nonzero()[:, 0]
    pair = pair[slot]
    present = pair != 0
    if cls:
        present = F.pad(present, (1, 0), value=True)
    lengths = present.sum(1)
    column = present.nonzero()[:, 1]
    layout = ragged_layout(
        lengths.cpu().numpy(), column.cpu().numpy(), width=head + 2 * cells, device=device
    )
    exists = layout.dense >= 0
    row = layout.dense.clamp_min(0) // layout.width
    column = layout.position - head
    is_cell = exists & (column >= 0)
    at = column.clamp_min(0)
    cell_token = pair[row, at] + shift[at]
    if cls:
        cell_token = torch.where(exists & (column < 0), CLS, cell_token)
    token = torch.where(exists, cell_token, 0)
    position = torch.where(is_cell, column, 2 * cells)
    return PackedPairs(layout, token, is_cell, position, slot)


class _Branch(nn.Module):
    """Residual block with pre- or post-norm and optional layer scale, over packed tokens."""

    def __init__(self, config: ModelConfig, *, norm_style: str) -> None:
        super().__init__()
        self.norm_style = norm_style
        self.eps = config.rms_norm_eps
        self.heads = config.num_heads
        self.qk_norm_eps = self.eps if config.encoder_qk_norm and not config.parity else None
        self.mlp = SwiGLU(config.hidden_size, config.expansion)
        self.gamma_1: nn.Parameter | None = None
        self.gamma_2: nn.Parameter | None = None
        if config.encoder_layer_scale_init > 0:
            scale = torch.full((config.hidden_size,), config.encoder_layer_scale_init)
            self.gamma_1 = nn.Parameter(scale.clone())
            self.gamma_2 = nn.Parameter(scale.clone())

    def mix(self, h: Tensor, layout: TokenLayout, rope: Rope) -> Tensor:
        raise TypeError(f"{type(self).__name__} must define mix()")

    def forward(self, h: Tensor, layout: TokenLayout, rope: Rope) -> Tensor:
        """(N, D) → (N, D)."""
        pre = self.norm_style == "pre"
        branch = self.mix(rms_norm(h, self.eps) if pre else h, layout, rope)
        h = residual(h, branch, self.gamma_1, pre=pre, eps=self.eps)
        branch = self.mlp(rms_norm(h, self.eps) if pre else h)
        return residual(h, branch, self.gamma_2, pre=pre, eps=self.eps)


def residual(
    h: Tensor, branch: Tensor, gamma: nn.Parameter | None, *, pre: bool, eps: float
) -> Tensor:
    """h + γ · branch, normalised afterwards unless `pre`."""
    if gamma is not None:
        branch = branch * gamma.to(branch.dtype)
    return h + branch if pre else rms_norm(h + branch, eps)


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


class _PairEncoder(nn.Module):
    """Embedding and RoPE over the joint positions of a pair (input cells, then output cells)."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.config = config
        self.dtype = DTYPES[config.forward_dtype]
        width = config.hidden_size
        self.embed_scale = math.sqrt(width)
        self.input_embed = Embedding(config.vocab_size, width, 1 / self.embed_scale)
        self.output_embed = Embedding(config.vocab_size, width, 1 / self.embed_scale)
        cos, sin = rope_table(2 * config.seq_len, config.head_dim, config.rope_theta)
        self.cos: Tensor
        self.sin: Tensor
        self.register_buffer("cos", cos, persistent=False)
        self.register_buffer("sin", sin, persistent=False)

    def rope(self, pairs: PackedPairs) -> Rope:
        """Cosine and sine (N, 1, 1, C/2); the class token is not rotated."""
        return self.cos[pairs.position][:, None, None], self.sin[pairs.position][:, None, None]

    def table(self) -> Tensor:
        """Joint embedding table (2V, D), scaled by √D."""
        both = (self.input_embed.embedding_weight, self.output_embed.embedding_weight)
        return self.embed_scale * torch.cat(both).to(self.dtype)

    def nothing(self, sets: DemoSets) -> Tensor:
        """Vectors of a batch without any demonstration (a rank's padding rows): zeros (U, K, D)."""
        shape = *sets.mask.shape, self.config.hidden_size
        return torch.zeros(shape, dtype=self.dtype, device=sets.mask.device)

    def spread(self, vectors: Tensor, pairs: PackedPairs, sets: DemoSets) -> Tensor:
        """Vectors of pairs (M, D) → slots (U, K, D), zero where there is no demonstration."""
        rows, slots = sets.mask.shape
        if pairs.slot.shape[0] == rows * slots:
            vectors = vectors.view(rows, slots, -1)
            return vectors * sets.mask[..., None].to(vectors.dtype)
        flat = vectors.new_zeros(rows * slots, vectors.shape[-1])
        return flat.index_copy(0, pairs.slot, vectors).view(rows, slots, -1)


class PooledGridEncoder(_PairEncoder):
    """G-enc: blocks over all cells, then pooling over cells that are not PAD."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__(config)
        width = config.hidden_size
        self.layers = nn.ModuleList(GridBlock(config) for _ in range(config.encoder_num_layers))
        self.method = config.encoder_pooling_method
        if self.method == "attention":
            self.pool_query = nn.Parameter(torch.empty(1, width))
            self.pool_q_proj = Linear(width, width)
            self.pool_k_proj = Linear(width, width)
            self.pool_v_proj = Linear(width, width)
            self.pool_o_proj = Linear(width, width)
        elif self.method == "weighted":
            self.pool_weight_proj = Linear(width, 1)
        self.pool_proj = Linear(width, width)

    def init_(self, name: str, generator: torch.Generator) -> None:
        """`pool_query`: truncated normal, std 0.02."""
        truncated_normal_(getattr(self, name), 0.02, generator)

    def forward(self, sets: DemoSets) -> Tensor:
        """Vectors of slots (U, K, D), zero where there is no demonstration."""
        pairs = pack_pairs(
            sets, vocab=self.config.vocab_size, cls=False, every_slot=self.config.parity
        )
        if not len(pairs.slot):
            return self.nothing(sets)
        h = F.embedding(pairs.token, self.table())
        rope = self.rope(pairs)
        for layer in self.layers:
            h = layer(h, pairs.layout, rope)
        filled = [part for _, part in pairs.layout.split(pairs.filled)]
        parts = [part for _, part in pairs.layout.split(h)]
        pooled = [self.pool(*both) for both in zip(parts, filled, strict=True)]
        inverse = torch.argsort(pairs.layout.order)
        return self.spread(self.pool_proj(torch.cat(pooled)[inverse]), pairs, sets)

    def pool(self, h: Tensor, filled: Tensor) -> Tensor:
        """(rows, L, D) → (rows, D) over the `filled` (rows, L) cells; none filled gives 0."""
        if self.method == "mean":
            weight = filled.to(h.dtype)[..., None]
            return (h * weight).sum(1) / filled.sum(1, keepdim=True).clamp_min(1).to(h.dtype)
        if self.method == "attention":
            query = self.pool_q_proj(self.pool_query.to(h.dtype)).expand(h.shape[0], 1, -1)
            k, v = self.pool_k_proj(h), self.pool_v_proj(h)
            heads = self.config.num_heads
            return masked_attention(query, k, v, filled, heads, self.pool_o_proj)[:, 0]
        scores = self.pool_weight_proj(h)[..., 0].float()
        scores = scores.masked_fill(~filled, torch.finfo(scores.dtype).min)
        weight = torch.softmax(scores, dim=-1) * filled
        return torch.einsum("rl,rld->rd", weight.to(h.dtype), h)


class CLSGridEncoder(_PairEncoder):
    """CLS-enc: a class token before the cells; its normalised state is the pair's vector."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__(config)
        self.cls_token = nn.Parameter(torch.empty(1, 1, config.hidden_size))
        self.layers = nn.ModuleList(CLSBlock(config) for _ in range(config.encoder_num_layers))

    def init_(self, name: str, generator: torch.Generator) -> None:
        """`cls_token`: truncated normal, std 0.02."""
        truncated_normal_(getattr(self, name), 0.02, generator)

    def forward(self, sets: DemoSets) -> Tensor:
        """Vectors of slots (U, K, D), zero where there is no demonstration."""
        vocab = self.config.vocab_size
        pairs = pack_pairs(sets, vocab=vocab, cls=True, every_slot=self.config.parity)
        if not len(pairs.slot):
            return self.nothing(sets)
        table = torch.cat([self.table(), self.cls_token[0].to(self.dtype)])
        h = F.embedding(torch.where(pairs.token == CLS, 2 * vocab, pairs.token), table)
        rope = self.rope(pairs)
        for layer in self.layers:
            h = layer(h, pairs.layout, rope)
        vectors = rms_norm(h[pairs.layout.first], self.config.rms_norm_eps)
        return self.spread(vectors, pairs, sets)
