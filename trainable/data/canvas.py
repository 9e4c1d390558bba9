"""The canvas: which rectangle of the 30 × 30 array a row is computed on.

`full`: all of it. `demos`: the smallest rectangle with the maximum rows and columns over the
puzzle's demonstration grids (inputs and outputs) and the row's own input, plus one for end markers,
at most 30. It is measured on the augmented grids before translation and then laid at the grid's
offset, where it is clipped at the array's border: (top, left, height, width) = (a, b,
min(rows, 30 − a), min(columns, 30 − b)). The row's input with its end markers is always inside. The
row's output plays no part; it *fits* if its colour cells lie inside.
"""

from __future__ import annotations

import torch
from torch import Tensor

from trainable.data.grids import EOS, SIDE

FULL = (0, 0, SIDE, SIDE)
NOTHING = (0, 0, 1, 1)
"""The rectangle of a padding row on the `demos` canvas: one PAD cell."""


def extent(size: int) -> int:
    """Rows (or columns) of a rectangle for grids of at most ``size``: one more, at most 30."""
    return min(SIDE, size + 1)


def rectangle(rows: int, columns: int, offset: tuple[int, int]) -> tuple[int, int, int, int]:
    """(top, left, height, width) for grids of at most rows × columns, laid at ``offset``."""
    top, left = offset
    return top, left, min(extent(rows), SIDE - top), min(extent(columns), SIDE - left)


def fits(output: tuple[int, int], height: int, width: int) -> bool:
    """Whether an output of shape (rows, columns) lies inside a rectangle at its own offset."""
    return output[0] <= height and output[1] <= width


def canvas_from_tokens(
    inputs: Tensor,
    demo_inputs: Tensor | None = None,
    demo_labels: Tensor | None = None,
    demo_mask: Tensor | None = None,
) -> Tensor:
    """The `demos` canvas of a plain token batch, by the same rule, from the tokens alone.

    Args:
        inputs: (B, 900) tokens.
        demo_inputs, demo_labels: (B, K, 900) tokens (PAD 0), or None: then nothing bounds the
            output, and the whole array is the canvas.
        demo_mask: (B, K) bool, slots that exist.

    Returns:
        (B, 4) int16: top, left, height, width. Rows without any colour get one cell.
    """
    rows = inputs.shape[0]
    if demo_inputs is None or demo_labels is None or demo_mask is None:
        return torch.tensor(FULL, dtype=torch.int16, device=inputs.device).repeat(rows, 1)
    size_B2, corner_B2 = _size_and_corner(inputs)
    demos_BN = torch.cat([demo_inputs, demo_labels], dim=1)
    mask_BN1 = torch.cat([demo_mask, demo_mask], dim=1).bool().unsqueeze(-1)
    if demos_BN.shape[1]:
        sizes_BN2, _ = _size_and_corner(demos_BN)
        most_B2 = (sizes_BN2 * mask_BN1).amax(dim=1).maximum(size_B2)
    else:
        most_B2 = size_B2
    some_B1 = (size_B2 > 0).any(dim=1, keepdim=True)
    extent_B2 = torch.where(some_B1, most_B2 + 1, 1).clamp(max=SIDE)
    extent_B2 = extent_B2.minimum(SIDE - corner_B2)
    return torch.cat([corner_B2, extent_B2], dim=1).to(torch.int16)


def _size_and_corner(tokens: Tensor) -> tuple[Tensor, Tensor]:
    """Rows and columns of the colour cells of (..., 900), and their first row and column."""
    colour = (tokens > EOS).reshape(*tokens.shape[:-1], SIDE, SIDE)
    per_axis = torch.stack([colour.any(dim=-1), colour.any(dim=-2)], dim=-2)  # (..., 2, 30)
    first = per_axis.to(torch.uint8).argmax(dim=-1)
    return per_axis.sum(dim=-1), first
