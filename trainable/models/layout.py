"""Packed tokens: rows of different lengths as one (N, D) matrix with dense views for attention.

Rows are sorted by length and grouped into buckets; each bucket is padded to its longest row. Linear
layers see one matrix, attention one dense view per bucket. Shape legend: B rows, N packed tokens
(padding included), P prefix tokens, S cells.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from functools import cached_property, lru_cache
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from trainable.models.transfer import upload

IntArray = npt.NDArray[np.int64]

BUCKET_COST = 48.0
"""Cost of one more bucket, in tokens: where an attention call costs more than padding saves."""


@dataclass(eq=False)
class Bucket:
    """`rows` rows of `length` tokens at packed positions start … stop; `valid` (rows, length)."""

    start: int
    rows: int
    length: int
    valid: Tensor | None
    _masks: dict[torch.dtype, Tensor] = field(default_factory=dict, repr=False)

    @property
    def stop(self) -> int:
        """End of the bucket in the packed matrix."""
        return self.start + self.rows * self.length

    def attention_mask(self, dtype: torch.dtype) -> Tensor | None:
        """Additive key mask (rows, 1, 1, length), or None where every token exists."""
        if self.valid is None:
            return None
        mask = self._masks.get(dtype)
        if mask is None:
            mask = torch.zeros(self.valid.shape, dtype=dtype, device=self.valid.device)
            mask = mask.masked_fill_(~self.valid, float("-inf"))[:, None, None, :]
            self._masks[dtype] = mask
        return mask


class Cells(NamedTuple):
    """Cells of all rows, in packed order, each (M): `packed` index into the packed matrix, `row`,
    and `cell` index into (B · S)."""

    packed: Tensor
    row: Tensor
    cell: Tensor


@dataclass(eq=False)
class TokenLayout:
    """Where the tokens of B rows lie in a packed matrix.

    `position` (N) position ids; `dense` (N) index into a dense (B · width) arrangement, −1 for
    padding; `order` (B) row at each packed place; `first` (B) packed index of each row's token 0.
    `runs` (R + 1) int32 starts of the runs of tokens that attend to each other, a row's tokens or
    the padding behind them, and `longest` the most tokens of one: what variable-length attention
    takes. `cells`: which tokens are cells of a grid, where rows have their own canvas.
    """

    rows: int
    width: int
    buckets: list[Bucket]
    position: Tensor
    dense: Tensor
    valid: Tensor | None
    order: Tensor
    first: Tensor
    identity: bool
    runs: Tensor
    longest: int
    cells: Cells | None = None

    def to(self, device: torch.device) -> TokenLayout:
        """The same layout on another device, sent there without waiting."""
        if device == self.position.device:
            return self
        sent: dict[str, Any] = {
            name: upload(getattr(self, name), device)
            for name in ("position", "dense", "order", "first", "runs")
        }
        if self.valid is not None:
            valid = sent["valid"] = upload(self.valid, device)
            sent["buckets"] = [
                replace(
                    bucket,
                    valid=None
                    if bucket.valid is None
                    else valid[bucket.start : bucket.stop].view_as(bucket.valid),
                    _masks={},
                )
                for bucket in self.buckets
            ]
        if self.cells is not None:
            sent["cells"] = Cells(*(upload(part, device) for part in self.cells))
        return replace(self, **sent)

    @property
    def tokens(self) -> int:
        """Packed tokens N, padding included."""
        return int(self.position.shape[0])

    @cached_property
    def table(self) -> Tensor:
        """(3, B) int64 of the rows as packed: first token, tokens, tokens that exist."""
        parts = []
        for bucket in self.buckets:
            length = torch.full((bucket.rows,), bucket.length)
            start = bucket.start + torch.arange(bucket.rows) * bucket.length
            exist = length if bucket.valid is None else bucket.valid.sum(1).cpu()
            parts.append(torch.stack([start, length, exist]))
        if not parts:
            return torch.zeros(3, 0, dtype=torch.int64)
        return torch.cat(parts, dim=1).contiguous()

    def split(self, packed: Tensor) -> list[tuple[Bucket, Tensor]]:
        """Every bucket with its dense view (rows, length, …) of a packed (N, …)."""
        parts = torch.split(packed, [bucket.rows * bucket.length for bucket in self.buckets])
        return [
            (bucket, part.view(bucket.rows, bucket.length, *packed.shape[1:]))
            for bucket, part in zip(self.buckets, parts, strict=True)
        ]

    def to_dense(self, packed: Tensor) -> Tensor:
        """Packed (N, …) → dense (B, width, …) with zeros where a row has no token."""
        if self.identity:
            return packed.view(self.rows, self.width, *packed.shape[1:])
        keep = self.dense >= 0
        flat = packed.new_zeros(self.rows * self.width, *packed.shape[1:])
        flat = flat.index_copy(0, self.dense[keep], packed[keep])
        return flat.view(self.rows, self.width, *packed.shape[1:])

    def to_packed(self, dense: Tensor) -> Tensor:
        """Dense (B, width, …) → packed (N, …); padding takes the values of dense position 0."""
        flat = dense.reshape(self.rows * self.width, *dense.shape[2:])
        return flat if self.identity else flat[self.dense.clamp_min(0)]


@lru_cache(maxsize=16)
def full_layout(rows: int, width: int, device: torch.device) -> TokenLayout:
    """Every row has all `width` tokens: one bucket, no padding, packed = dense."""
    steps = torch.arange(width, device=device)
    every = torch.arange(rows * width, device=device)
    row = torch.arange(rows, device=device)
    return TokenLayout(
        rows=rows,
        width=width,
        buckets=[Bucket(0, rows, width, None)],
        position=steps.repeat(rows),
        dense=every,
        valid=None,
        order=row,
        first=row * width,
        identity=True,
        runs=(torch.arange(rows + 1, device=device) * width).int(),
        longest=width,
    )


def ragged_layout(
    lengths: IntArray,
    positions: IntArray,
    *,
    width: int,
    device: torch.device,
    max_buckets: int = 8,
) -> TokenLayout:
    """Layout of rows with `lengths` (B) tokens at the dense `positions`, rows one after another."""
    return _build(lengths, positions, width, max_buckets).to(device)


def canvas_layout(
    canvas: IntArray, *, prefix: int, side: int, device: torch.device, max_buckets: int = 6
) -> TokenLayout:
    """Layout of `prefix` tokens and the cells of each row's rectangle.

    `canvas` (B, 4): top, left, height, width within a grid of `side` × `side` cells. Positions are
    those of the full grid: cell (r, c) is `prefix + r * side + c`.
    """
    top, left, height, width = (canvas[:, i].astype(np.int64) for i in range(4))
    cells = height * width
    lengths = prefix + cells
    starts = np.repeat(np.cumsum(cells) - cells, cells)
    j = np.arange(int(cells.sum()), dtype=np.int64) - starts
    wide = np.repeat(width, cells)
    at = (np.repeat(top, cells) + j // wide) * side + np.repeat(left, cells) + j % wide + prefix
    flat = np.empty(int(lengths.sum()), dtype=np.int64)
    is_prefix = np.zeros(flat.shape, dtype=bool)
    row_start = np.cumsum(lengths) - lengths
    is_prefix[(row_start[:, None] + np.arange(prefix)).ravel()] = True
    flat[is_prefix] = np.tile(np.arange(prefix), len(lengths))
    flat[~is_prefix] = at
    layout = _build(lengths, flat, prefix + side * side, max_buckets)
    packed = ((layout.position >= prefix) & (layout.dense >= 0)).nonzero()[:, 0]
    dense = layout.dense[packed]
    row = dense // layout.width
    layout.cells = Cells(packed, row, row * side * side + dense % layout.width - prefix)
    return layout.to(device)


def _build(lengths: IntArray, flat: IntArray, width: int, max_buckets: int) -> TokenLayout:
    rows = len(lengths)
    order = np.argsort(lengths, kind="stable")
    ordered = lengths[order]
    row_start = (np.cumsum(lengths) - lengths)[order]
    positions, denses, valids, buckets = [], [], [], []
    first = np.empty(rows, dtype=np.int64)
    runs = [np.zeros(1, np.int64)]
    start = 0
    for lo, hi in split_buckets(tuple(ordered.tolist()), max_buckets):
        longest = int(ordered[hi - 1])
        j = np.arange(longest)
        valid = j < ordered[lo:hi, None]
        source = np.minimum(row_start[lo:hi, None] + j, max(len(flat) - 1, 0))
        position = np.where(valid, flat[source] if len(flat) else 0, 0)
        dense = np.where(valid, order[lo:hi, None] * width + position, -1)
        first[order[lo:hi]] = start + np.arange(hi - lo) * longest
        all_valid = bool(valid.all())
        mask = None if all_valid else torch.from_numpy(valid)
        ends = start + np.arange(hi - lo)[:, None] * longest
        ends = ends + np.stack([ordered[lo:hi], np.full(hi - lo, longest)], axis=1)
        runs.append(ends.ravel())
        buckets.append(Bucket(start, hi - lo, longest, mask))
        positions.append(position.ravel())
        denses.append(dense.ravel())
        valids.append(valid.ravel())
        start += (hi - lo) * longest
    position = np.concatenate(positions) if positions else np.zeros(0, np.int64)
    dense = np.concatenate(denses) if denses else np.zeros(0, np.int64)
    valid = np.concatenate(valids) if valids else np.zeros(0, bool)
    starts = np.concatenate(runs)
    starts = starts[np.concatenate([[True], starts[1:] > starts[:-1]])]  # no padding, no run
    return TokenLayout(
        rows=rows,
        width=width,
        buckets=buckets,
        position=torch.from_numpy(position),
        dense=torch.from_numpy(dense),
        valid=None if bool(valid.all()) else torch.from_numpy(valid),
        order=torch.from_numpy(order),
        first=torch.from_numpy(first),
        identity=False,
        runs=torch.from_numpy(starts.astype(np.int32)),
        longest=int(np.diff(starts).max(initial=0)),
    )


@lru_cache(maxsize=4096)
def split_buckets(lengths: tuple[int, ...], max_buckets: int) -> tuple[tuple[int, int], ...]:
    """Cut ascending `lengths` into at most `max_buckets` runs with the least padded cost.

    The cost of a run is rows × longest, plus `BUCKET_COST`. Exact dynamic programme over the
    distinct lengths (merged to at most 32 candidates).
    """
    n = len(lengths)
    if n == 0:
        return ()
    ends = [i + 1 for i in range(n) if i + 1 == n or lengths[i + 1] != lengths[i]]
    if len(ends) > 32:
        keep = np.unique(np.linspace(0, len(ends) - 1, 32).astype(int))
        ends = [ends[i] for i in keep]
    points = [0, *ends]
    best = [[0.0] + [float("inf")] * len(ends)]
    back: list[list[int]] = []
    for _ in range(min(max_buckets, len(ends))):
        row, choice = [float("inf")] * len(points), [0] * len(points)
        for hi in range(1, len(points)):
            longest = lengths[points[hi] - 1]
            for lo in range(hi):
                cost = best[-1][lo] + (points[hi] - points[lo]) * longest + BUCKET_COST
                if cost < row[hi]:
                    row[hi], choice[hi] = cost, lo
        best.append(row)
        back.append(choice)
    used = min(range(1, len(best)), key=lambda k: best[k][-1])
    cuts, at = [], len(points) - 1
    for k in range(used, 0, -1):
        lo = back[k - 1][at]
        cuts.append((points[lo], points[at]))
        at = lo
    return tuple(reversed(cuts))
