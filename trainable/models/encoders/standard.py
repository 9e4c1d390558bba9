"""`standard`: pooled grid encoder, then the set encoder."""

from __future__ import annotations

from trainable.config import ModelConfig
from trainable.models.encoders.base import DemonstrationEncoder, DemoSets, EncoderOutput
from trainable.models.encoders.grid import PooledGridEncoder
from trainable.models.encoders.sets import SetEncoder
from trainable.random import RowGenerator


class Standard(DemonstrationEncoder):
    """context = set encoder's output; pooled = its mean over tokens."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__(config)
        self.grid_encoder = PooledGridEncoder(config)
        self.set_encoder = SetEncoder(config)

    def encode(self, sets: DemoSets, noise: RowGenerator) -> EncoderOutput:
        """Deterministic."""
        context = self.set_encoder(self.grid_encoder(sets), sets.mask)
        return EncoderOutput(sets.to_rows(context), sets.to_rows(context.mean(1)))
