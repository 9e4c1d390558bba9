"""Models, demonstrations and batches of a few cells, for the tests of models.

Shape legend: B rows, K demonstration slots, S cells, P prefix tokens, L = P + S, D width.
"""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from tests.trainable.small_trials import TINY_MODEL
from trainable.config import ModelConfig
from trainable.encoder_options import RECURRENT_ENCODERS
from trainable.models import ENCODERS, EncoderOutput, RecursiveModel, build_model
from trainable.models.encoders import DemonstrationEncoder

CELLS, SLOTS, ROWS = 36, 3, 3
ALL = sorted(ENCODERS)
VARIANTS = [
    *({"encoder_type": name} for name in ALL),
    {"encoder_type": "standard", "encoder_pooling_method": "attention"},
    {"encoder_type": "standard", "encoder_pooling_method": "weighted"},
    {"encoder_type": "standard", "encoder_pooling_method": "cls", "encoder_norm_style": "pre"},
    {"encoder_type": "standard", "encoder_norm_style": "pre", "encoder_layer_scale_init": 0.1},
    {"encoder_type": "hybrid_standard", "encoder_layer_scale_init": 0.1, "encoder_qk_norm": True},
]


def name_of(variant: Any) -> str:
    return "-".join(str(value) for value in variant.values())


every_encoder = pytest.mark.parametrize("variant", VARIANTS, ids=name_of)


def model_config(**options: Any) -> ModelConfig:
    if options.get("encoder_type") in RECURRENT_ENCODERS:
        options.setdefault("kind", "etrmtrm")
    return ModelConfig(**(TINY_MODEL | {"seq_len": CELLS} | options))


def encoder_of(seed: int = 0, **options: Any) -> DemonstrationEncoder:
    encoder = build_model(model_config(**options), seed=seed).encoder
    assert isinstance(encoder, DemonstrationEncoder)
    return encoder.eval()


def demonstrations(seed: int = 0, *, pad: bool = True) -> tuple[Tensor, Tensor, Tensor]:
    """(B, K, S) inputs and labels, (B, K) mask; with `pad` every grid ends in PAD cells."""
    rng = torch.Generator().manual_seed(seed)
    shape = ROWS, SLOTS, CELLS
    inputs = torch.randint(1, 12, shape, generator=rng)
    labels = torch.randint(1, 12, shape, generator=rng)
    mask = torch.ones(ROWS, SLOTS, dtype=torch.bool)
    if pad:
        for grids in (inputs, labels):
            length = torch.randint(4, CELLS - 4, shape[:2], generator=rng)
            grids[torch.arange(CELLS) >= length[..., None]] = 0
        mask[1, 2:] = False
        mask[2, 1:] = False
    return inputs, labels, mask


def fields(output: EncoderOutput) -> dict[str, Tensor]:
    names = ("context", "z_pooled", "kl_loss", "kl_rows", "mu", "logvar")
    return {name: getattr(output, name) for name in names if getattr(output, name) is not None}


def assert_close(actual: Tensor, expected: Tensor, tolerance: float, what: str = "") -> None:
    difference = float((actual.detach().double() - expected.detach().double()).abs().max())
    assert difference <= tolerance, f"{what}: {difference:.2e} > {tolerance:.0e}"


def plain_batch(seed: int, rows: int = 4) -> dict[str, Tensor]:
    rng = torch.Generator().manual_seed(seed)
    return {
        "inputs": torch.randint(0, 12, (rows, CELLS), generator=rng),
        "labels": torch.randint(2, 12, (rows, CELLS), generator=rng),
        "puzzle_identifiers": torch.randint(1, 9, (rows,), generator=rng),
    }


def trm(**options: Any) -> RecursiveModel:
    return build_model(model_config(kind="trm", num_puzzle_identifiers=9, **options), seed=0)
