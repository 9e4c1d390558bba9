"""What goes from one ACT step to the next, and what a step gives.

Shape legend: B rows, S cells, P prefix tokens, D width, N packed tokens, M packed cells, V
vocabulary.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from torch import Tensor

from trainable.models.encoders import EncoderOutput
from trainable.models.layout import TokenLayout
from trainable.models.transfer import Flags

Batch = dict[str, Tensor]


@dataclass(eq=False)
class InnerCarry:
    """The two states, packed (N, D). `z_H` and `z_L` show them as (B, P + S, D), zeros outside."""

    packed_H: Tensor
    packed_L: Tensor
    layout: TokenLayout | None

    @property
    def z_H(self) -> Tensor:
        """(B, P + S, D)."""
        return self.packed_H if self.layout is None else self.layout.to_dense(self.packed_H)

    @property
    def z_L(self) -> Tensor:
        """(B, P + S, D)."""
        return self.packed_L if self.layout is None else self.layout.to_dense(self.packed_L)


@dataclass(eq=False)
class Carry:
    """What a batch of rows carries from one ACT step to the next; nothing in it has a gradient.

    `encoded` is kept in evaluation, where demonstrations never change; `context` (B, P, D) in
    training with encode mode `cached`; `encoder_state` by recurrent encoders. `host` holds on the
    host what decides shapes of `current_data`, `flags` brings `halted` there (CUDA).
    """

    inner: InnerCarry
    steps: Tensor  # (B) int32
    halted: Tensor  # (B) bool
    current_data: Batch
    encoded: EncoderOutput | None = None
    context: Tensor | None = None
    encoder_state: tuple[Tensor, ...] | None = None
    host: Batch | None = None
    flags: Flags | None = None

    def announce(self) -> None:
        """`halted` is final: start its way to the host, behind what the device has to do now."""
        if self.halted.device.type == "cuda":
            self.flags = Flags(self.halted)

    def halted_on_host(self) -> Tensor:
        """`halted` on the host; waits for everything on the device unless it was announced."""
        return self.halted.cpu() if self.flags is None else self.flags.read()


@dataclass(eq=False)
class PackedLogits:
    """Logits (M, V) of the cells that exist; `row` (M), and `cell` (M) index into (B · S)."""

    logits: Tensor
    row: Tensor
    cell: Tensor
    rows: int
    cells: int


class Outputs(dict[str, Any]):
    """What one ACT step gives; keys are also attributes. `logits` (B, S, V) is made when read."""

    def __init__(self, packed: PackedLogits | None = None, **values: Any) -> None:
        super().__init__(values)
        self._packed = packed

    @property
    def packed(self) -> PackedLogits | None:
        """The logits as computed, where rows have their own canvas."""
        return self._packed

    def __missing__(self, key: str) -> Any:
        if key != "logits" or self._packed is None:
            raise KeyError(key)
        packed = self._packed
        flat = packed.logits.new_zeros(packed.rows * packed.cells, packed.logits.shape[-1])
        flat = flat.index_copy(0, packed.cell, packed.logits)
        self["logits"] = flat.view(packed.rows, packed.cells, -1)
        return self["logits"]

    def __getattr__(self, key: str) -> Any:
        try:
            return self[key]
        except KeyError:
            raise AttributeError(key) from None
