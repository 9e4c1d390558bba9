"""Demonstration encoders: demonstration pairs in, context tokens out. One registry for all.

A new encoder is one class in this folder and one line in `ENCODERS`; so that it can be named in a
trial, one line in `trainable.encoder_options` says the same of it without torch.
"""

from __future__ import annotations

from trainable.config import ModelConfig
from trainable.encoder_options import check_kind
from trainable.errors import ConfigError, nearest
from trainable.models.encoders.base import DemonstrationEncoder, EncoderOutput, State
from trainable.models.encoders.hybrid import HybridStandard, HybridVariational
from trainable.models.encoders.lpn import LPNStandard, LPNVariational, LPNVariationalV2
from trainable.models.encoders.paper import LPN, LPNVar
from trainable.models.encoders.recurrent import RecurrentStandard, TRMStyle
from trainable.models.encoders.standard import Standard, Variational

ENCODERS: dict[str, type[DemonstrationEncoder]] = {
    "standard": Standard,
    "variational": Variational,
    "hybrid_standard": HybridStandard,
    "hybrid_variational": HybridVariational,
    "lpn_standard": LPNStandard,
    "lpn_variational": LPNVariational,
    "lpn_variational_v2": LPNVariationalV2,
    "lpn": LPN,
    "lpn_var": LPNVar,
    "recurrent_standard": RecurrentStandard,
    "trm_style": TRMStyle,
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
