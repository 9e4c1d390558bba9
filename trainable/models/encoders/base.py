"""What every demonstration encoder shares: its output, and which pairs it really encodes.

Shape legend: B rows, U distinct demonstration sets, K slots, S cells, M encoded pairs, T context
tokens, D width.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from trainable.config import ModelConfig
from trainable.models.transfer import upload
from trainable.random import RowGenerator

State = tuple[Tensor, ...]
"""What a recurrent encoder carries from one ACT step to the next: tensors (B, T, D)."""


@dataclass(frozen=True, eq=False)
class EncoderOutput:
    """`context` (B, T, D); `z_pooled` (B, D or latent); with a bottleneck `kl_loss` (scalar),
    `kl_rows` (B), `mu` and `logvar` (B, latent), all float32; of a recurrent encoder its new
    `state`, not detached."""

    context: Tensor
    z_pooled: Tensor
    kl_loss: Tensor | None = None
    kl_rows: Tensor | None = None
    mu: Tensor | None = None
    logvar: Tensor | None = None
    state: State | None = None

    def as_outputs(self) -> dict[str, Any]:
        """Entries for a model's outputs; the KL terms only where they are defined."""
        values = {
            "context": self.context,
            "kl": self.kl_loss,
            "kl_rows": self.kl_rows,
            "mu": self.mu,
            "logvar": self.logvar,
        }
        return {name: value for name, value in values.items() if value is not None}


@dataclass(frozen=True, eq=False)
class DemoSets:
    """Distinct demonstration sets of a batch.

    `inputs`, `labels` (U, K, S) tokens, `mask` (U, K) bool, `of_row` (B) set of each row or None
    where every row has its own. `given` (U, K) is the mask where the tokens are: on the host, while
    `mask` and `of_row` are on the device, if the host knows the demonstrations.
    """

    inputs: Tensor
    labels: Tensor
    mask: Tensor
    of_row: Tensor | None
    given: Tensor

    def to(self, device: torch.device) -> DemoSets:
        """Mask and rows sent to `device`; the tokens stay, to be packed where they are."""
        if self.mask.device == device:
            return self
        of_row = None if self.of_row is None else upload(self.of_row, device)
        return replace(self, mask=upload(self.mask, device), of_row=of_row)

    def to_rows(self, value: Tensor) -> Tensor:
        """Spread values of sets (U, …) over rows (B, …)."""
        return value if self.of_row is None else value[self.of_row]

    def mean(self, vectors: Tensor) -> Tensor:
        """Mean (U, D) of vectors of slots (U, K, D) over the demonstrations that exist, else 0."""
        return masked_mean(vectors, self.mask)


def masked_mean(values: Tensor, mask: Tensor) -> Tensor:
    """Mean over the slots of (B, K, …) that `mask` (B, K) marks; (B, …), 0 where it marks none."""
    mask = mask[..., None]
    share = mask.to(values.dtype) / mask.sum(1, keepdim=True).clamp_min(1).to(values.dtype)
    return (values * share).sum(1)


def distinct_sets(inputs: Tensor, labels: Tensor, mask: Tensor, keys: Tensor | None) -> DemoSets:
    """Collapse rows with equal `keys` (B); without keys every row is a set of its own."""
    mask = mask.bool()
    if keys is None:
        return DemoSets(inputs, labels, mask, None, mask)
    unique, of_row = torch.unique(keys, return_inverse=True)
    if unique.shape[0] == keys.shape[0]:
        return DemoSets(inputs, labels, mask, None, mask)
    rows = torch.arange(keys.shape[0], device=keys.device)
    first = torch.full_like(unique, keys.shape[0]).scatter_reduce(0, of_row, rows, "amin")
    mask = mask[first]
    return DemoSets(inputs[first], labels[first], mask, of_row, mask)


class DemonstrationEncoder(nn.Module):
    """Interface: (`demo_inputs`, `demo_labels`, `demo_mask`) → `EncoderOutput`.

    A class says `variational` if it has a KL term, `recurrent` if its context depends on a state
    that it carries over ACT steps, and in `effective` which encoder options it reads.
    """

    variational: ClassVar[bool] = False
    recurrent: ClassVar[bool] = False
    effective: ClassVar[frozenset[str]] = frozenset()

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.config = config

    def initial_state(self, rows: int, device: torch.device) -> State:
        """State (rows, T, D), in the forward dtype, of rows that start; static encoders: ()."""
        return ()

    def forward(
        self,
        demo_inputs: Tensor,
        demo_labels: Tensor,
        demo_mask: Tensor,
        *,
        generator: RowGenerator | torch.Generator | None = None,
        keys: Tensor | None = None,
        state: State | None = None,
    ) -> EncoderOutput:
        """Encode demonstrations.

        Args:
            demo_inputs, demo_labels: (B, K, S) tokens, 0 = PAD; they and `demo_mask` and `keys`
                may be on the host while the encoder is on the device.
            demo_mask: (B, K), true where a demonstration exists.
            generator: noise of a variational encoder in training.
            keys: (B) integers; rows with equal keys have equal demonstrations and are encoded once.
            state: what a recurrent encoder carries (default: its initial state); the caller
                detaches it between ACT steps.

        A row without demonstrations gives a finite context.
        """
        if self.config.parity:
            keys = None
        device = next(self.parameters()).device
        sets = distinct_sets(demo_inputs, demo_labels, demo_mask, keys).to(device)
        if not self.recurrent:
            return self.encode(sets, RowGenerator.wrap(generator))
        if state is None:
            state = self.initial_state(demo_mask.shape[0], device)
        return self.advance(sets, state)

    def as_tokens(self, flat: Tensor) -> Tensor:
        """(rows, T · D) → (rows, T, D)."""
        return flat.view(flat.shape[0], self.config.prefix_len, self.config.hidden_size)

    def encode(self, sets: DemoSets, noise: RowGenerator) -> EncoderOutput:
        """Encode distinct sets and spread the result over rows."""
        raise TypeError(f"{type(self).__name__} must define encode()")

    def advance(self, sets: DemoSets, state: State) -> EncoderOutput:
        """Encode distinct sets and move each row's state one step on (recurrent encoders)."""
        raise TypeError(f"{type(self).__name__} must define advance()")
