"""Demonstration encoders: demonstration pairs in, context tokens out. One registry for all.

A new encoder is one class in this folder and one line in `ENCODERS`.
"""

from __future__ import annotations

from collections.abc import Callable

from torch import nn

from trainable.config import ModelConfig
from trainable.errors import ConfigError, nearest
from trainable.models.encoders.base import DemonstrationEncoder, EncoderOutput
from trainable.models.encoders.hybrid import HybridStandard, HybridVariational
from trainable.models.encoders.lpn import LPNVariational
from trainable.models.encoders.standard import Standard

ENCODERS: dict[str, Callable[[ModelConfig], DemonstrationEncoder]] = {
    "standard": Standard,
    "hybrid_standard": HybridStandard,
    "hybrid_variational": HybridVariational,
    "lpn_variational": LPNVariational,
}


def build_encoder(config: ModelConfig) -> nn.Module:
    """The encoder named by `encoder_type`. Raises `ConfigError` naming the nearest known type."""
    if config.encoder_type not in ENCODERS:
        raise ConfigError(
            f"unknown encoder_type {config.encoder_type!r}"
            f"{nearest(config.encoder_type, ENCODERS)}: choose from {', '.join(ENCODERS)}"
        )
    return ENCODERS[config.encoder_type](config)


__all__ = ["ENCODERS", "DemonstrationEncoder", "EncoderOutput", "build_encoder"]
