"""`hybrid_standard`, `hybrid_variational`: class-token grid encoder, then the set encoder."""

from __future__ import annotations

from typing import ClassVar

from trainable.config import ModelConfig
from trainable.models.encoders.base import (
    DemonstrationEncoder,
    DemoSets,
    EncoderOutput,
    kl_to_standard_normal,
    sample,
)
from trainable.models.encoders.grid import CLSGridEncoder
from trainable.models.encoders.sets import SetEncoder
from trainable.models.layers import Linear, ZeroLinear, rms_norm
from trainable.random import RowGenerator


class HybridStandard(DemonstrationEncoder):
    """context = set encoder's output; pooled = its mean over tokens."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__(config)
        self.grid_encoder = CLSGridEncoder(config)
        self.set_encoder = SetEncoder(config)

    def encode(self, sets: DemoSets, noise: RowGenerator) -> EncoderOutput:
        """Deterministic."""
        context = self.set_encoder(self.grid_encoder(sets), sets.mask)
        return EncoderOutput(sets.to_rows(context), sets.to_rows(context.mean(1)))


class HybridVariational(HybridStandard):
    """A Gaussian bottleneck after pooling the set encoder's tokens; noise is drawn per row."""

    variational: ClassVar[bool] = True

    def __init__(self, config: ModelConfig) -> None:
        super().__init__(config)
        width = config.hidden_size
        self.mu_proj = Linear(width, width, bias=True)
        self.logvar_proj = ZeroLinear(width, width)
        self.decode_proj = Linear(width, config.prefix_len * width)

    def encode(self, sets: DemoSets, noise: RowGenerator) -> EncoderOutput:
        """KL is the mean over rows."""
        tokens = self.set_encoder(self.grid_encoder(sets), sets.mask)
        pooled = rms_norm(tokens.mean(1), self.config.rms_norm_eps)
        mu = sets.to_rows(self.mu_proj(pooled))
        logvar = sets.to_rows(self.logvar_proj(pooled)).clamp(-10, 10)
        z = sample(mu, logvar, noise, training=self.training)
        context = self.decode_proj(z).unflatten(-1, (self.config.prefix_len, -1))
        kl_rows = kl_to_standard_normal(mu, logvar)
        return EncoderOutput(context, z, kl_rows.mean(), kl_rows, mu, logvar)
