"""Packing against explicit masking: the same loss and gradients, to rounding.

Explicit masking computes every demonstration slot and every PAD cell, as the references do, and
takes PAD out of attention by a mask over keys. Packing leaves them out, and encodes equal sets of
demonstrations once. On the `full` canvas nothing else differs.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from tests.trainable.small_models import CELLS, ROWS, demonstrations, every_encoder, model_config
from trainable import kernels
from trainable.losses import act_loss
from trainable.models import build_model
from trainable.models.encoders import grid, packing, paper
from trainable.models.layout import Bucket
from trainable.random import torch_generator


def pack_with_mask(sets: Any, *, vocab: int, cls: bool, every_slot: bool) -> packing.PackedPairs:
    """Every slot and every cell, and a mask over the keys that exist."""
    pairs = packing.pack_pairs(sets, vocab=vocab, cls=cls, every_slot=True)
    (bucket,) = pairs.layout.buckets
    valid = pairs.filled.view(bucket.rows, bucket.length).clone()
    if cls:
        valid[:, 0] = True
    valid[~valid.any(1)] = True  # an empty slot: its vector is dropped
    bucket = Bucket(0, bucket.rows, bucket.length, valid)
    return replace(pairs, layout=replace(pairs.layout, buckets=[bucket]))


def batch_of() -> dict[str, Tensor]:
    """Rows of which two share their demonstrations; some slots are empty, every grid has PAD."""
    inputs, labels, mask = demonstrations()
    rng = torch.Generator().manual_seed(1)
    same = {"demo_inputs": inputs, "demo_labels": labels, "demo_mask": mask}
    for value in same.values():
        value[ROWS - 1] = value[1]
    key = torch.arange(ROWS)
    key[ROWS - 1] = 1
    return {
        "inputs": torch.randint(0, 12, (ROWS, CELLS), generator=rng),
        "labels": torch.randint(2, 12, (ROWS, CELLS), generator=rng),
        "demo_key": key,
        **same,
    }


def gradients(**options: Any) -> dict[str, Tensor]:
    model = build_model(model_config(canvas="full", **options), seed=1).train()
    with torch.no_grad():
        model.inner.q_head.weight.normal_(generator=torch.Generator().manual_seed(2))
    batch = batch_of()
    carry, outputs = model(
        model.initial_carry(batch), batch, sampling=torch_generator(0, "sampling")
    )
    kl = {"kl_weight": 1e-2} if "kl_rows" in outputs else {}
    loss, _ = act_loss(outputs, carry.current_data["labels"], carry=carry, **kl)
    loss.backward()
    found = {n: p.grad for n, p in model.named_parameters() if p.grad is not None}
    return {"loss": loss.detach(), **found}


@every_encoder
def test_packing_has_the_gradients_of_explicit_masking(
    monkeypatch: pytest.MonkeyPatch, variant: dict[str, Any]
) -> None:
    if variant.get("encoder_qk_norm"):
        pytest.skip("`parity`, which computes every slot, ignores qk_norm as the references do")
    # the kernels take what exists to lie at a row's beginning, as in every packed layout; they have
    # tests of their own
    monkeypatch.setattr(kernels, "usable", lambda *_, **__: False)
    packed = gradients(**variant)
    unmasked = gradients(parity=True, **variant)
    monkeypatch.setattr(grid, "pack_pairs", pack_with_mask)
    monkeypatch.setattr(paper, "pack_pairs", pack_with_mask)
    masked = gradients(parity=True, **variant)
    assert packed.keys() == masked.keys()
    for name, value in masked.items():
        scale = max(1.0, float(value.abs().max()))
        difference = float((packed[name] - value).abs().max())
        assert difference <= 1e-4 * scale, f"{name}: {difference:.2e}"
    assert float((packed["loss"] - unmasked["loss"]).abs()) > 1e-4, "without the mask PAD counts"
