"""Demonstration encoders: demonstration pairs in, context tokens out. One registry for all.

A new encoder is one file in this folder and one line in `trainable.encoder_options.ENCODER_FACTS`,
which the configuration reads without torch (docs/own-encoder.md).
"""

from __future__ import annotations

from importlib import import_module

from trainable.config import ModelConfig
from trainable.encoder_options import ENCODER_FACTS, check_kind
from trainable.errors import ConfigError, nearest
from trainable.models.encoders.base import DemonstrationEncoder, EncoderOutput, State


def encoder_class(at: str) -> type[DemonstrationEncoder]:
    """``"standard:Standard"`` → the class `Standard` of standard.py in this folder."""
    file, _, name = at.partition(":")
    found: type[DemonstrationEncoder] = getattr(import_module(f"{__name__}.{file}"), name)
    assert issubclass(found, DemonstrationEncoder), f"{at} is no DemonstrationEncoder"
    return found


ENCODERS: dict[str, type[DemonstrationEncoder]] = {
    name: encoder_class(facts.at) for name, facts in ENCODER_FACTS.items()
}


def build_encoder(config: ModelConfig) -> DemonstrationEncoder:
    """The encoder named by `encoder_type`, in kind "etrmtrm" by `recurrent_encoder_type`.

    Raises `ConfigError` naming the nearest known type, or the right kind.
    """
    name = config.encoder_name
    if name not in ENCODERS:
        raise ConfigError(
            f"unknown encoder_type {name!r}{nearest(name, ENCODERS)}: "
            f"choose from {', '.join(ENCODERS)}"
        )
    encoder = ENCODERS[name]
    check_kind(config.kind, name, recurrent=encoder.recurrent)
    return encoder(config)


__all__ = ["ENCODERS", "DemonstrationEncoder", "EncoderOutput", "State", "build_encoder"]
