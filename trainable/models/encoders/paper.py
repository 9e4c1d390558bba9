"""`lpn`, `lpn_var`: the small encoder of the latent program network paper, always float32.

Fixed at 128 wide, 8 heads, 2 layers, MLP 512, on grids of at most 30 × 30. Tokens are sums of
colour, row, column and channel (input or output); no RoPE. Source: Bonnet & Macfarlane 2024,
arXiv:2411.08706, as the ETRM repository has it: without the paper's grid-shape tokens.

Shape legend: U sets, K slots, S cells, N packed tokens, W = 128 width, Z latent width.
"""

from __future__ import annotations

import math
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from trainable.config import ModelConfig
from trainable.errors import ConfigError
from trainable.models.attention import attend
from trainable.models.encoders.base import DemonstrationEncoder, DemoSets, EncoderOutput
from trainable.models.encoders.bottleneck import CLAMP, per_demo
from trainable.models.encoders.packing import pack_pairs
from trainable.models.inner import DTYPES
from trainable.models.layers import Linear, ZeroLinear
from trainable.models.layout import TokenLayout
from trainable.random import RowGenerator

WIDTH, HEADS, LAYERS, HIDDEN, SIDE = 128, 8, 2, 512, 30
STD = 0.02
"""Of every embedding at the start."""


class _UniformLinear(Linear):
    """Weights start uniform within ±1/√in."""

    def init_(self, name: str, generator: torch.Generator) -> None:
        """Initialise one tensor of this layer from its own generator."""
        bound = 1 / math.sqrt(self.weight.shape[1])
        with torch.no_grad():
            self.weight.copy_(
                torch.empty(self.weight.shape).uniform_(-bound, bound, generator=generator)
            )


class _Table(nn.Module):
    """An embedding table `weight` (rows, W)."""

    def __init__(self, rows: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(rows, WIDTH))

    def init_(self, name: str, generator: torch.Generator) -> None:
        """Normal, std 0.02."""
        _normal_(self.weight, generator)


def _normal_(tensor: Tensor, generator: torch.Generator) -> None:
    with torch.no_grad():
        tensor.copy_(torch.randn(tensor.shape, generator=generator) * STD)


def _norm(h: Tensor) -> Tensor:
    return F.layer_norm(h, (WIDTH,), eps=1e-5)


class _MLP(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.fc1 = _UniformLinear(WIDTH, HIDDEN)
        self.fc2 = _UniformLinear(HIDDEN, WIDTH)

    def forward(self, h: Tensor) -> Tensor:
        """(N, W) → (N, W)."""
        return self.fc2(F.silu(self.fc1(h)))  # type: ignore[no-any-return]


class _Block(nn.Module):
    """h ← h + attention(norm h); h ← h + mlp(norm h)."""

    def __init__(self) -> None:
        super().__init__()
        self.qkv_proj = _UniformLinear(WIDTH, 3 * WIDTH)
        self.o_proj = _UniformLinear(WIDTH, WIDTH)
        self.mlp = _MLP()

    def forward(self, h: Tensor, layout: TokenLayout) -> Tensor:
        """(N, W) → (N, W)."""
        h = h + attend(_norm(h), self.qkv_proj, self.o_proj, heads=HEADS, layout=layout, rope=None)
        return h + self.mlp(_norm(h))  # type: ignore[no-any-return]


class PaperGridEncoder(nn.Module):
    """paper-enc: one pair in, the normalised class token out."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.vocab, self.side = config.vocab_size, config.grid_side
        self.every_slot = config.parity
        if self.side > SIDE or self.side**2 != config.seq_len:
            raise ConfigError(
                f"encoder_type {config.encoder_type!r} reads square grids of at most {SIDE} x "
                f"{SIDE} cells: set seq_len to a square up to {SIDE**2}, not {config.seq_len}"
            )
        self.color_embed = _Table(config.vocab_size)
        self.pos_row_embed = _Table(SIDE)
        self.pos_col_embed = _Table(SIDE)
        self.channel_embed = _Table(2)
        self.cls_token = nn.Parameter(torch.empty(1, 1, WIDTH))
        self.layers = nn.ModuleList(_Block() for _ in range(LAYERS))

    def init_(self, name: str, generator: torch.Generator) -> None:
        """`cls_token`: normal, std 0.02."""
        _normal_(self.cls_token, generator)

    def tables(self) -> tuple[Tensor, Tensor]:
        """Tokens (2V + 1, W), the class token last; positions (2S + 1, W), the last 0."""
        colour, channel = self.color_embed.weight, self.channel_embed.weight
        tokens = torch.cat([colour + channel[0], colour + channel[1], self.cls_token[0]])
        rows, columns = self.pos_row_embed.weight, self.pos_col_embed.weight
        cells = (rows[: self.side, None] + columns[None, : self.side]).flatten(0, 1)
        return tokens, torch.cat([cells, cells, torch.zeros_like(cells[:1])])

    def forward(self, sets: DemoSets) -> Tensor:
        """Vectors of slots (U, K, W) float32, zero where there is no demonstration."""
        pairs = pack_pairs(sets, vocab=self.vocab, cls=True, every_slot=self.every_slot)
        if not len(pairs.slot):  # a rank's padding rows
            return torch.zeros(*sets.mask.shape, WIDTH, device=sets.mask.device)
        tokens, positions = self.tables()
        h = F.embedding(pairs.row_of(2 * self.vocab), tokens)
        h = h + F.embedding(pairs.position, positions)
        for layer in self.layers:
            h = layer(h, pairs.layout)
        return pairs.spread(_norm(h[pairs.layout.first]), sets)


class LPN(DemonstrationEncoder):
    """context = output_proj(mean of the demonstrations' vectors); pooled = that mean (B, 128)."""

    latent: ClassVar[int | None] = WIDTH

    def __init__(self, config: ModelConfig) -> None:
        super().__init__(config)
        self.grid_encoder = PaperGridEncoder(config)
        width = self.latent or config.lpn_latent_dim
        self.output_proj = _UniformLinear(width, config.prefix_len * config.hidden_size)

    def encode(self, sets: DemoSets, noise: RowGenerator) -> EncoderOutput:
        """Deterministic."""
        pooled = sets.mean(self.grid_encoder(sets))
        context = sets.to_rows(self.tokens(pooled))
        return EncoderOutput(context, sets.to_rows(pooled).to(context.dtype))

    def tokens(self, pooled: Tensor) -> Tensor:
        """(rows, W or Z) float32 → (rows, T, D) in the forward dtype."""
        context = self.as_tokens(self.output_proj(pooled))
        return context.to(DTYPES[self.config.forward_dtype])


class LPNVar(LPN):
    """A Gaussian of `lpn_latent_dim` per demonstration; pooled = mean of the samples (B, Z)."""

    variational: ClassVar[bool] = True
    effective: ClassVar[frozenset[str]] = frozenset({"lpn_latent_dim"})
    latent: ClassVar[int | None] = None

    def __init__(self, config: ModelConfig) -> None:
        super().__init__(config)
        self.mu_proj = _UniformLinear(WIDTH, config.lpn_latent_dim)
        self.logvar_proj = ZeroLinear(WIDTH, config.lpn_latent_dim, bias=False)

    def encode(self, sets: DemoSets, noise: RowGenerator) -> EncoderOutput:
        """KL is the mean over the demonstrations that exist; reported mu and logvar are means."""
        vectors = self.grid_encoder(sets)
        mu, logvar = self.mu_proj(vectors), self.logvar_proj(vectors).clamp(-CLAMP, CLAMP)
        latent = per_demo(sets, mu, logvar, noise, training=self.training)
        return latent.output(self.tokens(latent.z))
