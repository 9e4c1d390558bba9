"""Losses: stablemax cross-entropy and the ACT loss of one step.

Shape legend: B rows, S cells, V vocabulary, M packed cells.
"""

from __future__ import annotations

from typing import Any, Literal, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor

from trainable.models.act import IGNORE_LABEL
from trainable.models.carry import Outputs


class _StablemaxNLL(torch.autograd.Function):
    """−log(s(x_label) / Σ s(x)) in float64, with the closed-form gradient.

    s(x) = x + 1 for x ≥ 0, 1 / (1 − x) below; s'(x) = 1, or s(x)² below. No branch is evaluated
    where it is singular, so the gradient is finite everywhere.
    """

    @staticmethod
    def forward(ctx: Any, logits: Tensor, labels: Tensor) -> Tensor:
        x = logits.double()
        s = torch.where(x < 0, 1 / (1 - x.clamp_max(0)), x.clamp_min(0) + 1)
        total = s.sum(-1)
        at_label = s.gather(-1, labels[..., None])[..., 0]
        ctx.save_for_backward(x < 0, s, total, at_label, labels)
        ctx.dtype = logits.dtype
        return total.log() - at_label.log()

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None]:
        (grad,) = grads
        negative, s, total, at_label, labels = ctx.saved_tensors
        slope = torch.where(negative, s.square(), 1.0)
        result = slope * (grad / total)[..., None]
        own = slope.gather(-1, labels[..., None]) * (grad / at_label)[..., None]
        result.scatter_add_(-1, labels[..., None], -own)
        return result.to(ctx.dtype), None


def stablemax_cross_entropy(
    logits: Tensor, labels: Tensor, ignore_index: int = IGNORE_LABEL
) -> Tensor:
    """Negative log stablemax probability of every label.

    Args:
        logits: (…, V), any float dtype.
        labels: (…) integers; `ignore_index` gives a loss of 0.

    Returns:
        (…) float64.
    """
    valid = labels != ignore_index
    target = torch.where(valid, labels, 0).long()
    loss: Tensor = _StablemaxNLL.apply(logits, target)  # type: ignore[no-untyped-call]
    return torch.where(valid, loss, 0.0)


class ActCarry(Protocol):
    """What the loss reads of a carry: after the step, with the rows' own data."""

    @property
    def steps(self) -> Tensor:
        """(B) ACT steps done."""

    @property
    def halted(self) -> Tensor:
        """(B) bool."""

    @property
    def current_data(self) -> dict[str, Tensor]:
        """The rows' data."""


def row_scores(outputs: Outputs, labels: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Per row: loss (mean over its scored cells, float64), correct cells, scored cells; each (B).

    `labels` (B, S) with −100 where nothing is scored.
    """
    rows = labels.shape[0]
    packed = outputs.packed
    if packed is None:
        logits: Tensor = outputs["logits"]
        target = labels
        per_cell = stablemax_cross_entropy(logits, target)
        valid = target != IGNORE_LABEL
        correct = (logits.argmax(-1) == target) & valid
        count = valid.sum(-1)
        return per_cell.sum(-1) / count.clamp_min(1), correct.sum(-1), count
    target = labels.reshape(-1)[packed.cell]
    per_cell = stablemax_cross_entropy(packed.logits, target)
    valid = target != IGNORE_LABEL
    correct = (packed.logits.detach().argmax(-1) == target) & valid
    sums = torch.zeros(rows, 2, dtype=torch.int64, device=labels.device)
    sums.index_add_(0, packed.row, torch.stack([correct, valid], dim=-1).long())
    loss = per_cell.new_zeros(rows).index_add(0, packed.row, per_cell)
    return loss / sums[:, 1].clamp_min(1), sums[:, 0], sums[:, 1]


def act_loss(
    outputs: Outputs,
    labels: Tensor,
    *,
    carry: ActCarry,
    kl_weight: float = 0.0,
    kl_scaling: Literal["sample", "reference"] = "sample",
) -> tuple[Tensor, dict[str, Tensor]]:
    """Loss of one ACT step, summed over rows, and sums for metrics.

    lm_loss (each row weighs 1) + 0.5 · (q_halt_loss + q_continue_loss) + kl_weight · Σ rows KL. The
    KL weight is per row, independent of batch size and workers; with `kl_scaling` "reference" the
    term is kl_weight · (mean KL of this worker's batch), as in the public code (A6), so that the
    weight per row falls with the batch.

    Args:
        outputs: of the model.
        labels: (B, S), those of the carry's data (not of the incoming batch).
        carry: the carry that the model returned with `outputs`.
        kl_weight: weight of the KL term.
        kl_scaling: "sample" (per row) or "reference" (per worker's batch).

    Returns:
        The scalar sum (divide by the global batch size before backward) and sums, detached:
        `count`, `accuracy`, `exact_accuracy`, `q_halt_accuracy`, `steps` over halted rows with
        labels; the same with the prefix `all_` over all rows with labels; `lm_loss`, `q_halt_loss`
        (and `q_continue_loss`, `kl_loss`, `loss`) over all rows.
    """
    loss, correct, count = row_scores(outputs, labels)
    right = correct == count
    fits = carry.current_data.get("fits")
    if fits is not None:
        right = right & fits  # an output that does not fit its canvas is never exact
    q_halt = outputs["q_halt_logits"]
    lm_loss = loss.sum()
    q_halt_loss = F.binary_cross_entropy_with_logits(
        q_halt, right.to(q_halt.dtype), reduction="sum"
    )
    total = lm_loss + 0.5 * q_halt_loss
    sums = {"lm_loss": lm_loss, "q_halt_loss": q_halt_loss}
    target = outputs.get("target_q_continue")
    if target is not None:
        sums["q_continue_loss"] = F.binary_cross_entropy_with_logits(
            outputs["q_continue_logits"], target, reduction="sum"
        )
        total = total + 0.5 * sums["q_continue_loss"]
    kl_rows = outputs.get("kl_rows")
    if kl_rows is not None:
        sums["kl_loss"] = kl_rows.sum()
        of_reference = kl_scaling == "reference"
        total = total + kl_weight * (outputs["kl"] if of_reference else sums["kl_loss"])
    sums["loss"] = total
    per_row = {
        "count": torch.ones_like(loss),
        "accuracy": correct / count.clamp_min(1),
        "exact_accuracy": right,
        "q_halt_accuracy": (q_halt >= 0) == right,
        "steps": carry.steps,
    }
    some = count > 0
    for prefix, chosen in (("", some & carry.halted), ("all_", some)):
        for name, value in per_row.items():
            sums[prefix + name] = torch.where(chosen, value.double(), 0.0).sum()
    return total, {name: value.detach() for name, value in sums.items()}


def add_identity(
    loss: Tensor, sums: dict[str, Tensor], distance: Tensor, weight: float
) -> tuple[Tensor, dict[str, Tensor]]:
    """`act_loss` with weight · Σ rows `distance` (B) added; the sums gain `identity_loss`."""
    term = distance.sum().double()
    loss = loss + weight * term
    return loss, sums | {"identity_loss": term.detach(), "loss": loss.detach()}
