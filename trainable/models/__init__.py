"""Models: `build_model(config)` gives a TRM or an ETRM under the references' tensor names."""

from __future__ import annotations

import torch
from torch import nn

from trainable.config import ModelConfig
from trainable.models.act import RecursiveModel
from trainable.models.carry import Carry, InnerCarry, Outputs
from trainable.models.encoders import ENCODERS, EncoderOutput
from trainable.random import derive_seed, torch_generator


def build_model(config: ModelConfig, *, seed: int | None = None) -> RecursiveModel:
    """Build and initialise a model.

    Every tensor is initialised from a generator of its own, derived from `seed` and its name, so
    that models that share a tensor name and shape start with the same values. Without a seed one is
    drawn from torch's global generator.

    Raises:
        ConfigError: an unknown encoder type, or one of another kind of model.
    """
    if seed is None:
        seed = int(torch.randint(2**31 - 1, ()).item())
    model = RecursiveModel(config)
    _initialise(model, derive_seed(seed, "init"))
    return model


def _initialise(module: nn.Module, seed: int, prefix: str = "") -> None:
    own = [name for name, _ in module.named_parameters(recurse=False)]
    own += [name for name, _ in module.named_buffers(recurse=False) if name.endswith("_init")]
    for name in own:
        init = getattr(module, "init_", None)
        if init is None or name.startswith("gamma_"):
            continue
        init(name, torch_generator(seed, prefix + name))
    for name, child in module.named_children():
        _initialise(child, seed, f"{prefix}{name}.")


__all__ = [
    "ENCODERS",
    "Carry",
    "EncoderOutput",
    "InnerCarry",
    "Outputs",
    "RecursiveModel",
    "build_model",
]
