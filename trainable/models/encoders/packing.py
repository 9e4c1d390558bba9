"""From demonstration pairs to packed tokens.

A pair is the input grid's cells followed by the output grid's. By default only cells that hold
something (colours and EOS) of demonstrations that exist become tokens, packed by length; in
`parity` every slot and every PAD cell does, as in the references.

Shape legend: U sets, K slots, S cells, M pairs, N packed tokens, D width.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from trainable.models.encoders.base import DemoSets
from trainable.models.layout import TokenLayout, full_layout, ragged_layout
from trainable.models.transfer import upload

CLS = -1
"""Marks the class token in a pair's token list."""


@dataclass(frozen=True, eq=False)
class PackedPairs:
    """Tokens of M pairs.

    `token` (N) index into the joint table [input tokens; output tokens], `CLS` for the class token;
    `filled` (N) bool: a cell that is not PAD, so that it counts in pooling; `slot` (M) index of
    each pair into (U · K). `position` (N) cell of the pair (output cells after input cells), 2S for
    the class token.
    """

    layout: TokenLayout
    token: Tensor
    filled: Tensor
    position: Tensor
    slot: Tensor

    def to(self, device: torch.device) -> PackedPairs:
        """The same pairs on another device, sent there without waiting."""
        if device == self.token.device:
            return self
        return PackedPairs(
            self.layout.to(device),
            upload(self.token, device),
            upload(self.filled, device),
            upload(self.position, device),
            upload(self.slot, device),
        )

    def row_of(self, cls_row: int) -> Tensor:
        """(N) rows of a table of tokens whose class token is row `cls_row`."""
        return torch.where(self.token == CLS, cls_row, self.token)

    def spread(self, vectors: Tensor, sets: DemoSets) -> Tensor:
        """Vectors of pairs (M, D) → slots (U, K, D), zero where there is no demonstration."""
        rows, slots = sets.mask.shape
        if self.slot.shape[0] == rows * slots:
            vectors = vectors.view(rows, slots, -1)
            return vectors * sets.mask[..., None].to(vectors.dtype)
        flat = vectors.new_zeros(rows * slots, vectors.shape[-1])
        return flat.index_copy(0, self.slot, vectors).view(rows, slots, -1)


def pack_pairs(sets: DemoSets, *, vocab: int, cls: bool, every_slot: bool) -> PackedPairs:
    """Choose and pack the tokens of all pairs. `every_slot`: all slots and all cells (parity).

    The work is done where the tokens are, and the result sent to where `sets.mask` is.
    """
    slots = sets.mask.numel()
    cells = sets.inputs.shape[-1]
    grids = sets.inputs.reshape(slots, cells), sets.labels.reshape(slots, cells)
    head, device = int(cls), grids[0].device
    shift = vocab * (torch.arange(2 * cells, device=device) >= cells).long()
    if every_slot:
        pair = torch.cat(grids, dim=1).long()
        layout = full_layout(slots, head + 2 * cells, device)
        token = pair + shift
        filled = pair != 0
        if cls:
            token = F.pad(token, (1, 0), value=CLS)
            filled = F.pad(filled, (1, 0), value=False)
        slot = torch.arange(slots, device=device)
        position = layout.position - head
        position = torch.where(position < 0, 2 * cells, position)
        return PackedPairs(layout, token.flatten(), filled.flatten(), position, slot)
    slot = sets.given.flatten().nonzero()[:, 0]
    pair = torch.cat([grid[slot] for grid in grids], dim=1)
    present = pair != 0
    if not cls:  # a pair of PAD alone has no token: its vector is 0
        some = present.any(1)
        if not bool(some.all()):
            slot, pair, present = slot[some], pair[some], present[some]
    if cls:
        present = F.pad(present, (1, 0), value=True)
    marks = present.cpu().numpy()
    lengths = np.count_nonzero(marks, axis=1)
    column = np.flatnonzero(marks) - np.repeat(np.arange(len(marks)) * marks.shape[1], lengths)
    layout = ragged_layout(lengths, column, width=head + 2 * cells, device=device)
    exists = layout.dense >= 0
    row = layout.dense.clamp_min(0) // layout.width
    column = layout.position - head
    is_cell = exists & (column >= 0)
    at = column.clamp_min(0)
    cell_token = pair[row, at].long() + shift[at]
    if cls:
        cell_token = torch.where(exists & (column < 0), CLS, cell_token)
    token = torch.where(exists, cell_token, 0)
    position = torch.where(is_cell, column, 2 * cells)
    return PackedPairs(layout, token, is_cell, position, slot).to(sets.mask.device)
