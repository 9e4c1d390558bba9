"""`lpn_variational`: class-token grid encoder, a Gaussian per demonstration, their mean."""

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
from trainable.models.layers import Linear
from trainable.random import RowGenerator


class LPNVariational(DemonstrationEncoder):
    """context = output_proj(mean of z over demonstrations), not normalised; pooled = that mean."""

    variational: ClassVar[bool] = True

    def __init__(self, config: ModelConfig) -> None:
        super().__init__(config)
        width = config.hidden_size
        self.grid_encoder = CLSGridEncoder(config)
        self.mu_proj = Linear(width, width, bias=True)
        self.logvar_proj = Linear(width, width, bias=True)
        self.output_proj = Linear(width, config.prefix_len * width)

    def encode(self, sets: DemoSets, noise: RowGenerator) -> EncoderOutput:
        """KL is the mean over the demonstrations that exist; reported mu and logvar are means."""
        vectors = self.grid_encoder(sets)
        mu = sets.to_rows(self.mu_proj(vectors))
        logvar = sets.to_rows(self.logvar_proj(vectors))
        exists = sets.to_rows(sets.mask)[..., None]
        share = exists.to(mu.dtype) / exists.sum(1, keepdim=True).clamp_min(1).to(mu.dtype)
        z = sample(mu, logvar, noise, training=self.training)
        pooled = (z * share).sum(1)
        context = self.output_proj(pooled).unflatten(-1, (self.config.prefix_len, -1))
        kl = kl_to_standard_normal(mu, logvar) * exists[..., 0]
        return EncoderOutput(
            context,
            pooled,
            kl.sum() / exists.sum().clamp_min(1),
            kl.sum(1) / exists[..., 0].sum(1).clamp_min(1),
            (mu * share).sum(1),
            (logvar * share).sum(1),
        )
