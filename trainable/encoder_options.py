"""What the configuration knows about every demonstration encoder, without torch.

`ENCODER_FACTS` is the registry: one line per encoder. `trainable.models.encoders.ENCODERS` has the
classes; a test holds them equal to what is said here.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, cast

from trainable.errors import ConfigError, nearest

if TYPE_CHECKING:
    from trainable.config import ModelConfig, TrialConfig

CELLS = frozenset({"encoder_num_layers", "encoder_layer_scale_init", "encoder_qk_norm"})
"""Read by every grid encoder of blocks."""
GRID = CELLS | {"encoder_pooling_method", "encoder_norm_style"}
SETS = frozenset({"encoder_set_layers", "encoder_norm_style"})
BLEND = frozenset({"recurrent_blend"})
CYCLES = frozenset({"encoder_h_cycles", "encoder_l_cycles", "encoder_l_layers"})
LATENT = frozenset({"lpn_latent_dim"})

ENCODER_OPTIONS = GRID | SETS | BLEND | CYCLES | LATENT
"""Every option that some encoder reads."""

_TOKEN = {"encoder_pooling_method": "cls"}
_PRE = {"encoder_norm_style": "pre"}


@dataclass(frozen=True)
class EncoderFacts:
    """`at`: its class as ``file:Class`` below trainable/models/encoders; `effective`: the options
    that it reads; `fixed`: what it does anyway, so that an option with
    this value says nothing wrong; `variational`: it has a KL term; `recurrent`: it carries a state.
    """

    at: str = ""
    effective: frozenset[str] = frozenset()
    fixed: Mapping[str, Any] = field(default_factory=dict)
    variational: bool = False
    recurrent: bool = False


ENCODER_FACTS: dict[str, EncoderFacts] = {
    "standard": EncoderFacts("standard:Standard", GRID | SETS),
    "variational": EncoderFacts("standard:Variational", GRID | SETS, variational=True),
    "hybrid_standard": EncoderFacts("hybrid:HybridStandard", CELLS | SETS, _TOKEN),
    "hybrid_variational": EncoderFacts(
        "hybrid:HybridVariational", CELLS | SETS, _TOKEN, variational=True
    ),
    "lpn_standard": EncoderFacts("lpn:LPNStandard", CELLS, _TOKEN | _PRE),
    "lpn_variational": EncoderFacts("lpn:LPNVariational", CELLS, _TOKEN | _PRE, variational=True),
    "lpn_variational_v2": EncoderFacts(
        "lpn:LPNVariationalV2", CELLS, _TOKEN | _PRE, variational=True
    ),
    "lpn": EncoderFacts("paper:LPN", fixed=_TOKEN | _PRE),
    "lpn_var": EncoderFacts("paper:LPNVar", LATENT, _TOKEN | _PRE, variational=True),
    "recurrent_standard": EncoderFacts("recurrent:RecurrentStandard", GRID | BLEND, recurrent=True),
    "trm_style": EncoderFacts("recurrent:TRMStyle", GRID | BLEND | CYCLES, recurrent=True),
}

ENCODER_TYPES = tuple(ENCODER_FACTS)
VARIATIONAL_ENCODERS = frozenset(name for name, facts in ENCODER_FACTS.items() if facts.variational)
"""Encoder types with a KL term: they need ``kl_weight`` > 0."""
RECURRENT_ENCODERS = frozenset(name for name, facts in ENCODER_FACTS.items() if facts.recurrent)
"""Encoder types of kind "etrmtrm": they carry a state along the ACT steps."""


def check_encoder(model: ModelConfig) -> None:
    """Raise `ConfigError` for an unknown encoder, or one of another kind of model."""
    if model.kind == "trm":
        return
    name = model.encoder_name
    option = "encoder_type" if name == model.encoder_type else "recurrent_encoder_type"
    if name not in ENCODER_FACTS:
        raise ConfigError(
            f"unknown {option} {name!r}{nearest(name, ENCODER_TYPES)}: "
            f"choose from {', '.join(ENCODER_TYPES)}"
        )
    check_kind(model.kind, name, recurrent=ENCODER_FACTS[name].recurrent)


def check_kind(kind: str, name: str, *, recurrent: bool) -> None:
    """Raise `ConfigError` where a recurrent encoder meets kind "etrm", or another "etrmtrm"."""
    if recurrent and kind != "etrmtrm":
        raise ConfigError(f"encoder_type {name!r} is recurrent: set kind='etrmtrm'")
    if not recurrent and kind == "etrmtrm":
        raise ConfigError(
            f"kind 'etrmtrm' needs a recurrent encoder, not {name!r}: set recurrent_encoder_type "
            f"to {' or '.join(sorted(RECURRENT_ENCODERS))}"
        )


def ineffective_options(config: ModelConfig | TrialConfig) -> dict[str, str]:
    """Encoder options set to other values than their default that change nothing: option → reason.

    A configuration with such options is valid, since the plan's documents contain some; whoever
    takes options from a user refuses them (defect A10).
    """
    model = cast("ModelConfig", getattr(config, "model", config))
    fields = type(model).model_fields
    found: dict[str, str] = {}

    def is_set(option: str) -> bool:
        return bool(getattr(model, option) != fields[option].default)

    if model.kind == "trm":
        options = sorted(ENCODER_OPTIONS | {"encoder_type", "recurrent_encoder_type"})
        found = dict.fromkeys(filter(is_set, options), "kind 'trm' has no encoder")
        facts = EncoderFacts()
    else:
        name = model.encoder_name
        facts = ENCODER_FACTS.get(name, EncoderFacts(effective=ENCODER_OPTIONS))
        for option in sorted(ENCODER_OPTIONS - facts.effective):
            if is_set(option) and getattr(model, option) != facts.fixed.get(option):
                found[option] = f"encoder {name!r} does not read it"
        if model.kind == "etrm" and is_set("recurrent_encoder_type"):
            found["recurrent_encoder_type"] = "only kind 'etrmtrm' reads it"
        if model.kind == "etrmtrm" and is_set("encoder_type") and name != model.encoder_type:
            found["encoder_type"] = f"recurrent_encoder_type {name!r} decides"
        if model.parity and model.encoder_qk_norm:
            found["encoder_qk_norm"] = "the references ignore it, and so does parity"
    if getattr(config, "kl_weight", 0.0) > 0 and not facts.variational:
        found["kl_weight"] = "there is no KL term without a variational encoder"
    return found
