"""When the encoder runs, and for which rows: at every ACT step, when a row starts, or with a state.

Shape legend: B rows, K slots, S cells, P prefix tokens, D width.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, cast

import torch
import torch.nn.functional as F
from torch import Tensor

from trainable.models.carry import Batch, Carry
from trainable.models.encoders import DemonstrationEncoder, EncoderOutput
from trainable.models.encoders.base import State
from trainable.models.transfer import upload
from trainable.random import RowGenerator

if TYPE_CHECKING:
    from trainable.models.act import RecursiveModel

_DEMOS = ("demo_inputs", "demo_labels", "demo_mask", "demo_key")


def encode(
    encoder: DemonstrationEncoder,
    data: Mapping[str, Tensor],
    noise: RowGenerator,
    *,
    state: State | None = None,
    keep: int | None = None,
) -> EncoderOutput:
    """Encode the demonstrations of every row; rows with equal `demo_key` are encoded once.

    `state` is a recurrent encoder's. With `keep` n the context is exactly zero after its first n
    tokens, and gradients flow through those alone.
    """
    encoded = cast(
        EncoderOutput,
        encoder(
            data["demo_inputs"],
            data["demo_labels"],
            data["demo_mask"],
            generator=noise,
            keys=data.get("demo_key"),
            state=state,
        ),
    )
    if keep is None:
        return encoded
    rest = encoded.context.shape[1] - keep
    return replace(encoded, context=F.pad(encoded.context[:, :keep], (0, 0, 0, rest)))


def encode_step(
    model: RecursiveModel,
    carry: Carry,
    data: Batch,
    noise: RowGenerator,
    host: Mapping[str, Tensor] | None = None,
) -> EncoderOutput:
    """The rows' encoding at this ACT step, as the encoder and `encode_mode` say.

    A recurrent encoder runs at every step, in evaluation too: its state moves on. A static one runs
    once per row in evaluation (in `parity` at every step of `reencode`, which gives the same), and
    in training as the mode says. `host`: demonstrations that the host knows; which cells exist is
    then found there (not in `parity`, which takes all).
    """
    assert model.encoder is not None
    if host is not None and not model.config.parity:
        data = data | {name: host[name] for name in _DEMOS if name in host}
    if model.encoder.recurrent:
        return model.encode(data, noise, _state_of(model.encoder, carry))
    if model.training:
        if model.config.encode_mode == "cached":
            return _cached(model, carry, data, noise)
        return model.encode(data, noise)
    again = model.config.parity and model.config.encode_mode == "reencode"
    if again or carry.encoded is None or bool(carry.halted_on_host().any()):
        return model.encode(data, noise)
    return carry.encoded


def detached_state(encoded: EncoderOutput | None, before: State | None) -> State | None:
    """State that the carry keeps: the encoder's new one without its graph, else the old one."""
    if encoded is None or encoded.state is None:
        return before
    return tuple(value.detach() for value in encoded.state)


def _state_of(encoder: DemonstrationEncoder, carry: Carry) -> State:
    """State of every row before the encoder runs: initial for rows that start."""
    reset = carry.halted
    start = encoder.initial_state(reset.shape[0], reset.device)
    if carry.encoder_state is None:
        return start
    return tuple(
        torch.where(reset.view(-1, *[1] * (new.dim() - 1)), new, old)
        for new, old in zip(start, carry.encoder_state, strict=True)
    )


def _cached(model: RecursiveModel, carry: Carry, data: Batch, noise: RowGenerator) -> EncoderOutput:
    """Encode the rows that start in this step; the others reuse their stored context.

    Only starting rows have a gradient and a KL term (`kl_rows` is 0 elsewhere; `mu` and `logvar`
    are theirs alone). The noise stream moves by one draw whichever rows start, so that workers stay
    in step.
    """
    assert model.encoder is not None
    if model.encoder.variational:
        noise = noise.fork()
    starts = carry.halted_on_host().nonzero()[:, 0]
    rows = carry.halted.shape[0]
    if len(starts) == rows:
        return model.encode(data, noise)
    stored = carry.context
    assert stored is not None, "the first step starts every row"
    if not len(starts):
        return EncoderOutput(stored, stored.mean(1))
    index = upload(starts, stored.device)
    part = {
        name: data[name][starts if data[name].device == starts.device else index]
        for name in _DEMOS
        if name in data
    }
    encoded = model.encode(part, noise.select(starts, rows))
    context = stored.index_copy(0, index, encoded.context.to(stored.dtype))
    kl_rows = encoded.kl_rows
    if kl_rows is not None:
        kl_rows = kl_rows.new_zeros(rows).index_copy(0, index, kl_rows)
    return replace(encoded, context=context, z_pooled=context.mean(1), kl_rows=kl_rows)
