"""The recursion of TRM: two states, one shared block stack, gradients through the last cycle only.

With f(h, u) the block stack applied to h + u, one cycle is `L_cycles` times z_L ← f(z_L, z_H + X),
then z_H ← f(z_H, z_L). `H_cycles − 1` cycles run without gradient, the last one with.

Shape legend: N packed tokens, D width, B rows, P prefix tokens, S cells, V vocabulary.
"""

from __future__ import annotations

import math
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from trainable.config import ModelConfig
from trainable.models.attention import rope_table
from trainable.models.blocks import PostNormBlock, TokenMixingBlock
from trainable.models.layers import Embedding, Linear, ZeroLinear, truncated_normal_
from trainable.models.layout import TokenLayout

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}
Q_HALT_BIAS = -5.0

Rope = tuple[Tensor, Tensor]


class Stack(nn.Module):
    """`layers.{i}`: the shared block stack f(h, u) = blocks(h + u)."""

    def __init__(self, config: ModelConfig, length: int) -> None:
        super().__init__()
        width, eps = config.hidden_size, config.rms_norm_eps
        self.layers = nn.ModuleList(
            TokenMixingBlock(width, length, config.expansion, eps)
            if config.mlp_t
            else PostNormBlock(width, config.num_heads, config.expansion, eps)
            for _ in range(config.L_layers)
        )

    def forward(self, h: Tensor, u: Tensor, layout: TokenLayout, rope: Rope | None) -> Tensor:
        """(N, D), (N, D) → (N, D)."""
        h = h + u
        for layer in self.layers:
            h = layer(h, layout, rope)
        return h


def recur(
    stack: Stack,
    z_H: Tensor,
    z_L: Tensor,
    x: Tensor,
    layout: TokenLayout,
    rope: Rope | None,
    *,
    H_cycles: int,
    L_cycles: int,
) -> tuple[Tensor, Tensor]:
    """`H_cycles` cycles of `stack` on packed states (N, D), the last one with gradient."""
    with torch.no_grad():
        for _ in range(H_cycles - 1):
            for _ in range(L_cycles):
                z_L = stack(z_L, z_H + x, layout, rope)
            z_H = stack(z_H, z_L, layout, rope)
    for _ in range(L_cycles):
        z_L = stack(z_L, z_H + x, layout, rope)
    z_H = stack(z_H, z_L, layout, rope)
    return z_H, z_L


class PuzzleEmbedding(nn.Module):
    """A table (identifiers, ndim) that its own sparse optimizer trains.

    In training the rows of a batch are copied into `local_weights` (B, ndim), a leaf that receives
    their gradients; `local_ids` (B) names them. Neither is stored.
    """

    def __init__(self, rows: int, width: int) -> None:
        super().__init__()
        self.weights: Tensor
        self.register_buffer("weights", torch.zeros(rows, width))
        self.local_weights: Tensor | None = None
        self.local_ids: Tensor | None = None

    def forward(self, identifiers: Tensor) -> Tensor:
        """Rows (B, ndim) of the identifiers (B)."""
        rows = self.weights[identifiers.long()]
        if not (self.training and torch.is_grad_enabled()):
            return rows
        self.local_weights = rows.detach().clone().requires_grad_()
        self.local_ids = identifiers.to(torch.int32)
        return self.local_weights


class Inner(nn.Module):
    """Embeddings, recursion and heads of TRM, under the reference's tensor names."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.config = config
        self.dtype = DTYPES[config.forward_dtype]
        width, prefix = config.hidden_size, config.prefix_len
        self.length = prefix + config.seq_len
        self.embed_scale = math.sqrt(width)
        self.embed_tokens = Embedding(config.vocab_size, width, 1 / self.embed_scale)
        self.lm_head = Linear(width, config.vocab_size)
        self.q_head = ZeroLinear(width, 2, bias_start=Q_HALT_BIAS)
        if config.kind == "trm" and config.puzzle_emb_ndim > 0:
            self.puzzle_emb = PuzzleEmbedding(config.num_puzzle_identifiers, config.puzzle_emb_ndim)
        if config.pos_encodings == "learned":
            self.embed_pos = Embedding(self.length, width, 1 / self.embed_scale)
        self.L_level = Stack(config, self.length)
        self.H_init: Tensor
        self.L_init: Tensor
        self.register_buffer("H_init", torch.zeros(width, dtype=self.dtype))
        self.register_buffer("L_init", torch.zeros(width, dtype=self.dtype))
        self.cos: Tensor | None
        self.sin: Tensor | None
        cos, sin = None, None
        if config.pos_encodings == "rope":
            cos, sin = rope_table(self.length, config.head_dim, config.rope_theta)
        self.register_buffer("cos", cos, persistent=False)
        self.register_buffer("sin", sin, persistent=False)

    def init_(self, name: str, generator: torch.Generator) -> None:
        """Initial states: truncated normal with standard deviation 1, never trained."""
        truncated_normal_(getattr(self, name), 1.0, generator)

    def rope(self, layout: TokenLayout) -> Rope | None:
        """Cosine and sine of every packed token, each (N, 1, 1, C/2)."""
        if self.cos is None or self.sin is None:
            return None
        return self.cos[layout.position][:, None, None], self.sin[layout.position][:, None, None]

    def puzzle_prefix(self, identifiers: Tensor) -> Tensor:
        """Prefix (B, P, D) from the puzzle table: its row, padded with zeros to P · D."""
        config = self.config
        rows, prefix = identifiers.shape[0], config.prefix_len
        if config.puzzle_emb_ndim == 0:
            return self.lm_head.weight.new_zeros(rows, prefix, config.hidden_size)
        embedding = self.puzzle_emb(identifiers)
        missing = prefix * config.hidden_size - config.puzzle_emb_ndim
        return F.pad(embedding, (0, missing)).view(rows, prefix, config.hidden_size)

    def input_embedding(self, tokens: Tensor, prefix: Tensor, layout: TokenLayout) -> Tensor:
        """X (N, D): the scaled prefix (B, P, D) and token embeddings, with learned positions.

        `tokens` (B, S) are looked up together with the prefix, as one table.
        """
        rows, prefix_len, width = prefix.shape
        index = torch.empty(rows, self.length, dtype=torch.int64, device=tokens.device)
        index[:, prefix_len:] = tokens
        prefix_rows = torch.arange(rows * prefix_len, device=tokens.device)
        index[:, :prefix_len] = prefix_rows.view(rows, prefix_len) + self.config.vocab_size
        table = torch.cat(
            [
                self.embed_tokens.embedding_weight.to(self.dtype),
                prefix.to(self.dtype).reshape(-1, width),
            ]
        )
        packed = layout.to_packed(index)
        if layout.valid is not None:
            packed = packed * layout.valid  # padding reads the PAD token
        x = F.embedding(packed, table)
        if self.config.pos_encodings == "learned":
            positions = self.embed_pos.embedding_weight.to(self.dtype)[layout.position]
            x = math.sqrt(0.5) * (x + positions)
        return self.embed_scale * x

    def recur(
        self, z_H: Tensor, z_L: Tensor, x: Tensor, layout: TokenLayout, rope: Rope | None
    ) -> tuple[Tensor, Tensor]:
        """One ACT step on packed states (N, D)."""
        H_cycles, L_cycles = self.config.H_cycles, self.config.L_cycles
        return recur(self.L_level, z_H, z_L, x, layout, rope, H_cycles=H_cycles, L_cycles=L_cycles)

    def q_logits(self, z_H: Tensor, layout: TokenLayout) -> Tensor:
        """(B, 2) float32 from prefix position 0: [halt, continue]."""
        return cast(Tensor, self.q_head(z_H[layout.first])).float()
