"""`standard`, `variational`: pooled grid encoder, then the set encoder."""

from __future__ import annotations

from typing import ClassVar

from trainable.config import ModelConfig
from trainable.models.encoders.base import DemonstrationEncoder, DemoSets, EncoderOutput
from trainable.models.encoders.bottleneck import per_row
from trainable.models.encoders.grid import PooledGridEncoder
from trainable.models.encoders.sets import SetEncoder
from trainable.models.layers import Linear
from trainable.random import RowGenerator


class Standard(DemonstrationEncoder):
    """context = set encoder's output; pooled = its mean over tokens."""

    effective: ClassVar[frozenset[str]] = PooledGridEncoder.effective | SetEncoder.effective

    def __init__(self, config: ModelConfig) -> None:
        super().__init__(config)
        self.grid_encoder = PooledGridEncoder(config)
        self.set_encoder = SetEncoder(config)

    def encode(self, sets: DemoSets, noise: RowGenerator) -> EncoderOutput:
        """Deterministic."""
        context = self.set_encoder(self.grid_encoder(sets), sets.mask)
        return EncoderOutput(sets.to_rows(context), sets.to_rows(context.mean(1)))


class Variational(Standard):
    """A Gaussian bottleneck on the token mean of `standard`; pooled = z. logvar is not clamped."""

    variational: ClassVar[bool] = True

    def __init__(self, config: ModelConfig) -> None:
        super().__init__(config)
        width = config.hidden_size
        self.mu_proj = Linear(width, width, bias=True)
        self.logvar_proj = Linear(width, width, bias=True)
        self.decode_proj = Linear(width, config.prefix_len * width, bias=True)

    def encode(self, sets: DemoSets, noise: RowGenerator) -> EncoderOutput:
        """KL is the mean over rows."""
        tokens = self.set_encoder(self.grid_encoder(sets), sets.mask)
        pooled = tokens.float().mean(1)
        mu, logvar = self.mu_proj(pooled), self.logvar_proj(pooled)
        latent = per_row(sets, mu, logvar, noise, training=self.training)
        context = self.decode_proj(latent.z.to(tokens.dtype))
        return latent.output(self.as_tokens(context))
