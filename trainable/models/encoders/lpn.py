"""`lpn_standard`, `lpn_variational`, `lpn_variational_v2`: class-token grid encoder, then a mean.

The context is a projection of one vector, not normalised.
"""

from __future__ import annotations

from typing import ClassVar

from torch import Tensor

from trainable.config import ModelConfig
from trainable.models.encoders.base import DemonstrationEncoder, DemoSets, EncoderOutput
from trainable.models.encoders.bottleneck import per_demo, per_row
from trainable.models.encoders.grid import CLSGridEncoder
from trainable.models.layers import Linear
from trainable.random import RowGenerator


class LPNStandard(DemonstrationEncoder):
    """context = output_proj(mean of the demonstrations' vectors); pooled = that mean."""

    effective: ClassVar[frozenset[str]] = CLSGridEncoder.effective

    def __init__(self, config: ModelConfig) -> None:
        super().__init__(config)
        width = config.hidden_size
        self.grid_encoder = CLSGridEncoder(config)
        self.output_proj = Linear(width, config.prefix_len * width)

    def encode(self, sets: DemoSets, noise: RowGenerator) -> EncoderOutput:
        """Deterministic."""
        pooled = sets.mean(self.grid_encoder(sets))
        return EncoderOutput(sets.to_rows(self.tokens(pooled)), sets.to_rows(pooled))

    def tokens(self, pooled: Tensor) -> Tensor:
        """(rows, D) → (rows, T, D)."""
        return self.as_tokens(self.output_proj(pooled))


class LPNVariational(LPNStandard):
    """A Gaussian per demonstration; pooled = mean of the samples. logvar is not clamped."""

    variational: ClassVar[bool] = True

    def __init__(self, config: ModelConfig) -> None:
        super().__init__(config)
        width = config.hidden_size
        self.mu_proj = Linear(width, width, bias=True)
        self.logvar_proj = Linear(width, width, bias=True)

    def encode(self, sets: DemoSets, noise: RowGenerator) -> EncoderOutput:
        """KL is the mean over the demonstrations that exist; reported mu and logvar are means."""
        vectors = self.grid_encoder(sets)
        mu, logvar = self.mu_proj(vectors.float()), self.logvar_proj(vectors.float())
        latent = per_demo(sets, mu, logvar, noise, training=self.training)
        return latent.output(self.tokens(latent.z.to(vectors.dtype)))


class LPNVariationalV2(LPNVariational):
    """The mean of the demonstrations first, then one Gaussian; pooled = its sample."""

    def encode(self, sets: DemoSets, noise: RowGenerator) -> EncoderOutput:
        """KL is the mean over rows."""
        vectors = self.grid_encoder(sets)
        mean = sets.mean(vectors.float())
        mu, logvar = self.mu_proj(mean), self.logvar_proj(mean)
        latent = per_row(sets, mu, logvar, noise, training=self.training)
        return latent.output(self.tokens(latent.z.to(vectors.dtype)))
