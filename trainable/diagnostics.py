"""What the encoder's context looks like: norms, spread, similarity. No gradient, float32.

Shape legend: B rows, T context tokens, D width.
"""

from __future__ import annotations

import torch
from torch import Tensor


@torch.no_grad()
def context_diagnostics(context: Tensor, base_puzzle: Tensor) -> dict[str, Tensor]:
    """Scalars (float32 tensors, no host synchronisation) of one batch's context.

    Args:
        context: (B, T, D) over all workers.
        base_puzzle: (B) integers: the original puzzle of each row.

    Returns:
        `output_mean`, `output_std` over all elements; `output_norm` mean Euclidean norm of a token;
        `cross_sample_var` mean of (c − batch mean)²; `within_group_var` the same around the mean of
        each puzzle's rows, averaged over puzzles with at least two rows (NaN without one);
        `token_std` standard deviation over the batch, averaged; `similarity` mean cosine between
        rows of different puzzles (NaN with one puzzle). Variances are NaN for a single row.
    """
    c = context.detach().float()
    rows = c.shape[0]
    centred = c - c.mean(0, keepdim=True)
    nan = c.new_full((), float("nan"))
    group = torch.unique(base_puzzle, return_inverse=True)[1]
    ones = torch.zeros(rows, device=c.device).index_add_(
        0, group, torch.ones(rows, device=c.device)
    )
    flat = c.flatten(1)
    sums = torch.zeros_like(flat).index_add_(0, group, flat)
    means = sums / ones.clamp_min(1)[:, None]
    squares = (flat - means[group]).square().mean(1)
    per_group = torch.zeros(rows, device=c.device).index_add_(0, group, squares) / ones.clamp_min(1)
    several = ones >= 2
    unit = torch.nn.functional.normalize(flat, dim=1)
    other = group[:, None] != group[None, :]
    cosine = unit @ unit.T
    return {
        "output_mean": c.mean(),
        "output_std": c.std(),
        "output_norm": torch.linalg.vector_norm(c, dim=-1).mean(),
        "cross_sample_var": centred.square().mean() if rows > 1 else nan,
        "within_group_var": (per_group * several).sum() / several.sum(),
        "token_std": c.std(0).mean() if rows > 1 else nan,
        "similarity": (cosine * other).sum() / other.sum(),
    }
