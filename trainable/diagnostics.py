"""What the encoder gives: norms, spread and similarity of its context, its posterior, its state.

No gradient, float32, no host synchronisation: every value is a tensor until a row is written. NaN
marks what a batch cannot show: variances of a single row, puzzles of which there is only one.

Shape legend: B rows, T context tokens, D width, Z latent width.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from trainable.models.carry import Carry, Outputs

Seen = Mapping[str, Tensor]
"""What the diagnostics need of an ACT step: tensors of B rows by name, see `observe`."""

ACTIVE = 0.01
"""A latent dimension is active if its mean varies by more than this over puzzles (Burda, Grosse,
Salakhutdinov 2016, arXiv:1509.00519, section 5.2)."""


def observe(outputs: Outputs, before: Carry, after: Carry, *, whole: bool) -> dict[str, Tensor]:
    """Keep what the diagnostics need of an ACT step, without its graph; costs no computation.

    `before` and `after` are the carries around the step. `whole` says that every row was encoded:
    otherwise (encode mode `cached`) the posterior is known of the starting rows alone and left out,
    on every worker alike. Names: ``context``, ``base_puzzle``, and where defined ``mu``,
    ``kl_rows``, ``went_on``, ``state/<i>``, ``before/<i>``; empty without an encoder.
    """
    if "context" not in outputs:
        return {}
    seen = {"context": outputs["context"], "base_puzzle": after.current_data["base_puzzle"]}
    if whole and "mu" in outputs:
        seen |= {name: outputs[name] for name in ("mu", "kl_rows")}
    if after.encoder_state is not None:
        old = before.encoder_state or after.encoder_state  # at first every row starts
        seen["went_on"] = ~before.halted
        seen |= {f"state/{i}": value for i, value in enumerate(after.encoder_state)}
        seen |= {f"before/{i}": value for i, value in enumerate(old)}
    return {name: value.detach() for name, value in seen.items()}


def encoder_diagnostics(seen: Seen, *, tokens: int | None = None) -> dict[str, Tensor]:
    """All diagnostics of rows of all workers; `tokens`: how many context tokens are in use."""
    found = context_diagnostics(seen["context"][:, :tokens], seen["base_puzzle"])
    if "mu" in seen:
        found |= posterior_diagnostics(seen["mu"], seen["kl_rows"])
    if "went_on" in seen:
        states, olds = (
            [value for name, value in seen.items() if name.startswith(prefix)]
            for prefix in ("state/", "before/")
        )
        found |= state_diagnostics(states, olds, seen["went_on"])
    return found


@torch.no_grad()
def context_diagnostics(context: Tensor, base_puzzle: Tensor) -> dict[str, Tensor]:
    """Scalars (float32 tensors) of one batch's context.

    Args:
        context: (B, T, D) over all workers.
        base_puzzle: (B) integers: the original puzzle of each row.

    Returns:
        `output_mean`, `output_std`, `output_min`, `output_max` over all elements; `output_norm`
        mean Euclidean norm of a token;
        `cross_sample_var` mean of (c − batch mean)²; `within_group_var` the same around the mean of
        each puzzle's rows, averaged over puzzles with at least two rows (NaN without one): it
        compares augmentations of a puzzle, which the references' grouping by identifier never
        does; `token_std` standard deviation over the *batch*, averaged (the references' name);
        `token_spread` standard deviation over the tokens of a row, averaged (NaN for one token);
        `similarity` mean cosine between rows of different puzzles (NaN with one puzzle). Variances
        over the batch are NaN for a single row.
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
        "output_std": c.std() if c.numel() > 1 else nan,
        "output_min": c.amin(),
        "output_max": c.amax(),
        "output_norm": torch.linalg.vector_norm(c, dim=-1).mean(),
        "cross_sample_var": centred.square().mean() if rows > 1 else nan,
        "within_group_var": (per_group * several).sum() / several.sum(),
        "token_std": c.std(0).mean() if rows > 1 else nan,
        "token_spread": c.std(1).mean() if c.shape[1] > 1 else nan,
        "similarity": (cosine * other).sum() / other.sum(),
    }


@torch.no_grad()
def posterior_diagnostics(mu: Tensor, kl_rows: Tensor) -> dict[str, Tensor]:
    """Has the posterior collapsed? Scalars of one batch's latent codes.

    Args:
        mu: (B, Z) means of the rows' posteriors, over all workers.
        kl_rows: (B) KL to the standard normal, summed over Z.

    Returns:
        `active_units`: share of the Z dimensions whose mean has a variance above `ACTIVE` over the
        rows (NaN for a single row); `kl_per_dim`: mean KL of a dimension in nats. Both near 0: the
        code says nothing about the puzzle.
    """
    means = mu.detach().float()
    spread = means.var(0) if means.shape[0] > 1 else means.new_full(means.shape[1:], float("nan"))
    active = torch.where(spread.isnan(), spread, (spread > ACTIVE).to(spread.dtype))
    return {
        "active_units": active.mean(),
        "kl_per_dim": kl_rows.detach().float().mean() / means.shape[1],
    }


@torch.no_grad()
def state_diagnostics(
    state: Sequence[Tensor], before: Sequence[Tensor], went_on: Tensor
) -> dict[str, Tensor]:
    """How a recurrent encoder's carried state moves.

    Args:
        state, before: tensors (B, T, D) after and before this ACT step, over all workers.
        went_on: (B) bool: rows that did not start in this step.

    Returns:
        `state_norm`: mean Euclidean norm of a state token; `state_change`: mean over the rows that
        went on of ‖new − old‖ / ‖old‖ over a row's whole state (NaN where every row started).
    """
    new = torch.stack([value.detach().float() for value in state], 1)  # (B, states, T, D)
    old = torch.stack([value.detach().float() for value in before], 1)
    moved = torch.linalg.vector_norm((new - old).flatten(1), dim=1)
    length = torch.linalg.vector_norm(old.flatten(1), dim=1)
    ratio = torch.where(went_on, moved / length.clamp_min(1e-12), 0.0)
    return {
        "state_norm": torch.linalg.vector_norm(new, dim=-1).mean(),
        "state_change": ratio.sum() / went_on.sum(),
    }
