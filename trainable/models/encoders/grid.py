"""Grid encoders: one demonstration pair in, one vector out.

Shape legend: U sets, K slots, S cells, M pairs, N packed tokens, V vocabulary, D width, C head
width.
"""

from __future__ import annotations

import math
from typing import ClassVar, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from trainable.config import ModelConfig
from trainable.models.attention import masked_attention, rope_table
from trainable.models.encoders.base import DemoSets
from trainable.models.encoders.blocks import CLSBlock, GridBlock, Rope
from trainable.models.encoders.packing import PackedPairs, pack_pairs
from trainable.models.inner import DTYPES
from trainable.models.layers import Embedding, Linear, rms_norm, truncated_normal_


class _PairEncoder(nn.Module):
    """Embedding, RoPE over the joint positions of a pair (input cells, then output cells), blocks.

    With `cls`, a class token stands before the cells: unscaled, not rotated.
    """

    effective: ClassVar[frozenset[str]] = frozenset(
        {"encoder_num_layers", "encoder_layer_scale_init", "encoder_qk_norm"}
    )

    def __init__(self, config: ModelConfig, *, cls: bool) -> None:
        super().__init__()
        self.config = config
        self.cls = cls
        self.dtype = DTYPES[config.forward_dtype]
        width = config.hidden_size
        self.embed_scale = math.sqrt(width)
        self.input_embed = Embedding(config.vocab_size, width, 1 / self.embed_scale)
        self.output_embed = Embedding(config.vocab_size, width, 1 / self.embed_scale)
        if cls:
            self.cls_token = nn.Parameter(torch.empty(1, 1, width))
        self.layers = nn.ModuleList()
        cos, sin = rope_table(2 * config.seq_len, config.head_dim, config.rope_theta)
        self.cos: Tensor
        self.sin: Tensor
        self.register_buffer("cos", cos, persistent=False)
        self.register_buffer("sin", sin, persistent=False)

    def init_(self, name: str, generator: torch.Generator) -> None:
        """`cls_token`, `pool_query`: truncated normal, std 0.02."""
        truncated_normal_(getattr(self, name), 0.02, generator)

    def table(self) -> Tensor:
        """Joint embedding table (2V, D), scaled by √D; with `cls` its token as row 2V."""
        both = (self.input_embed.embedding_weight, self.output_embed.embedding_weight)
        table = self.embed_scale * torch.cat(both).to(self.dtype)
        return torch.cat([table, self.cls_token[0].to(self.dtype)]) if self.cls else table

    def forward(self, sets: DemoSets) -> Tensor:
        """Vectors of slots (U, K, D), zero where there is no demonstration."""
        config = self.config
        pairs = pack_pairs(sets, vocab=config.vocab_size, cls=self.cls, every_slot=config.parity)
        if not len(pairs.slot):  # a rank's padding rows
            shape = *sets.mask.shape, config.hidden_size
            return torch.zeros(shape, dtype=self.dtype, device=sets.mask.device)
        h = F.embedding(pairs.row_of(2 * config.vocab_size), self.table())
        rope: Rope = (
            self.cos[pairs.position][:, None, None],
            self.sin[pairs.position][:, None, None],
        )
        for layer in list(self.layers)[:-1]:
            h = layer(h, pairs.layout, rope)
        last = cast(GridBlock | CLSBlock, self.layers[-1])
        read = last.first_token if self.cls else last  # nothing else of the last block is read
        h = read(h, pairs.layout, rope)
        return pairs.spread(self.summary(h, pairs), sets)

    def summary(self, h: Tensor, pairs: PackedPairs) -> Tensor:
        """Class tokens (M, D), or with other poolings all tokens (N, D) → pairs (M, D)."""
        return rms_norm(h, self.config.rms_norm_eps)


class PooledGridEncoder(_PairEncoder):
    """G-enc: blocks over all cells, then one vector of those that are not PAD, then `pool_proj`.

    `encoder_pooling_method`: "mean", "attention" (a learned query), "weighted" (softmax of learned
    scores), or "cls", which the references do not have: a class token, normalised.
    """

    effective: ClassVar[frozenset[str]] = _PairEncoder.effective | {
        "encoder_pooling_method",
        "encoder_norm_style",
    }

    def __init__(self, config: ModelConfig) -> None:
        super().__init__(config, cls=config.encoder_pooling_method == "cls")
        self.method = config.encoder_pooling_method
        width = config.hidden_size
        self.layers.extend(GridBlock(config) for _ in range(config.encoder_num_layers))
        if self.method == "attention":
            self.pool_query = nn.Parameter(torch.empty(1, width))
            self.pool_q_proj = Linear(width, width)
            self.pool_k_proj = Linear(width, width)
            self.pool_v_proj = Linear(width, width)
            self.pool_o_proj = Linear(width, width)
        elif self.method == "weighted":
            self.pool_weight_proj = Linear(width, 1)
        self.pool_proj = Linear(width, width)

    def summary(self, h: Tensor, pairs: PackedPairs) -> Tensor:
        """Class tokens (M, D), or with other poolings all tokens (N, D) → pairs (M, D)."""
        if self.cls:
            pooled = super().summary(h, pairs)
        else:
            filled = [part for _, part in pairs.layout.split(pairs.filled)]
            parts = [part for _, part in pairs.layout.split(h)]
            pieces = [self.pool(*both) for both in zip(parts, filled, strict=True)]
            pooled = torch.cat(pieces)[torch.argsort(pairs.layout.order)]
        return self.pool_proj(pooled)  # type: ignore[no-any-return]

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
    """CLS-enc: always pre-norm; the class token's normalised state is the pair's vector."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__(config, cls=True)
        self.layers.extend(CLSBlock(config) for _ in range(config.encoder_num_layers))
