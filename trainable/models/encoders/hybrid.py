"""`hybrid_standard`, `hybrid_variational`: class-token grid encoder, then the set encoder."""

from __future__ import annotations

from typing import ClassVar

from trainable.config import ModelConfig
from trainable.models.encoders.base import DemonstrationEncoder, DemoSets, EncoderOutput
from trainable.models.encoders.bottleneck import CLAMP, per_row
from trainable.models.encoders.grid import CLSGridEncoder
from trainable.models.encoders.sets import SetEncoder
from trainable.models.layers import Linear, ZeroLinear, rms_norm
from trainable.random import RowGenerator


class HybridStandard(DemonstrationEncoder):
    """context = set encoder's output; pooled = its mean over tokens."""

    effective: ClassVar[frozenset[str]] = CLSGridEncoder.effective | SetEncoder.effective

    def __init__(self, config: ModelConfig) -> None:
        super().__init__(config)
        self.grid_encoder = CLSGridEncoder(config)
        self.set_encoder = SetEncoder(config)

    def encode(self, sets: DemoSets, noise: RowGenerator) -> EncoderOutput:
        """Deterministic."""
        context = self.set_encoder(self.grid_encoder(sets), sets.mask)
        return EncoderOutput(sets.to_rows(context), sets.to_rows(context.mean(1)))


class HybridVariational(HybridStandard):
    """A Gaussian bottleneck on the normalised token mean of the set encoder; pooled = z."""

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
        pooled = rms_norm(tokens.float().mean(1), self.config.rms_norm_eps)
        mu, logvar = self.mu_proj(pooled), self.logvar_proj(pooled).clamp(-CLAMP, CLAMP)
        latent = per_row(sets, mu, logvar, noise, training=self.training)
        context = self.decode_proj(latent.z.to(tokens.dtype))
        return latent.output(self.as_tokens(context))
