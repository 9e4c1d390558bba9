"""Evaluation of a model: full ACT on held-out queries with voting, and the demonstration controls.

Shape legend: B rows, S cells, P prefix tokens, D width.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor

from trainable.data import ArcData
from trainable.data.batches import Batch
from trainable.data.controls import (
    control_batches,
    other_demos,
    shuffle_demos,
    trivial_baselines,
)
from trainable.evaluation import ArcVoting
from trainable.losses import row_scores
from trainable.models import Outputs, RecursiveModel
from trainable.random import numpy_generator

CONTROLS = ("normal", "zeroed", "shuffled", "other")
"""Demonstrations as they are; context set to zero; outputs permuted among a row's demonstrations;
another puzzle's demonstrations."""


@dataclass(frozen=True)
class Evaluation:
    """`metrics` by row name (``eval/…``) and one dictionary per scheduled puzzle."""

    metrics: dict[str, float]
    tasks: list[dict[str, Any]]


def to_tensors(batch: Batch, device: torch.device) -> dict[str, Tensor]:
    """A batch of arrays as tensors on `device`, same names and dtypes."""
    return {
        name: torch.from_numpy(array).to(device, non_blocking=True) for name, array in batch.items()
    }


@contextmanager
def evaluation_mode(model: torch.nn.Module) -> Iterator[None]:
    """Evaluation mode without gradients; training mode is restored."""
    training = model.training
    model.eval()
    try:
        with torch.no_grad():
            yield
    finally:
        model.train(training)


def run_act(
    model: RecursiveModel, batch: dict[str, Tensor], context: Tensor | None = None
) -> Outputs:
    """All `halt_max_steps` ACT steps on a batch; the last step's outputs.

    The demonstrations are encoded once (they never change within a row). Call in evaluation mode.
    """
    carry = model.initial_carry(batch)
    outputs = Outputs()
    for _ in range(model.config.halt_max_steps):
        carry, outputs = model(carry, batch, context=context)
    outputs["labels"] = carry.current_data["labels"]
    return outputs


class _Sums:
    """Sums over rows that are scored, on the device, in float64."""

    names = ("count", "accuracy", "exact_accuracy", "q_halt_accuracy", "lm_loss", "q_halt_loss")

    def __init__(self, device: torch.device) -> None:
        self.values = torch.zeros(len(self.names), dtype=torch.float64, device=device)

    def add(self, outputs: Outputs, batch: dict[str, Tensor]) -> None:
        """Add a batch; rows without labels (padding, unknown solutions) count nowhere."""
        loss, correct, count = row_scores(outputs, outputs["labels"])
        right = correct == count
        if "fits" in batch:
            right = right & batch["fits"]
        q = outputs["q_halt_logits"]
        q_loss = F.binary_cross_entropy_with_logits(q, right.to(q.dtype), reduction="none")
        rows = torch.stack(
            [
                torch.ones_like(loss),
                correct / count.clamp_min(1),
                right.double(),
                ((q >= 0) == right).double(),
                loss,
                q_loss.double(),
            ]
        )
        scored = (count > 0) | (~batch["fits"] if "fits" in batch else count < 0)
        scored = scored & (batch["puzzle_identifiers"] != 0)
        self.values += torch.where(scored, rows, 0.0).sum(1)

    def means(self) -> dict[str, float]:
        """Means over scored rows and ranks; NaN where nothing was scored."""
        if dist.is_initialized():
            dist.all_reduce(self.values)
        total = self.values.tolist()
        count = total[0]
        means = {
            n: v / count if count else float("nan") for n, v in zip(self.names, total, strict=True)
        }
        return means | {"count": count}


def evaluate(
    model: RecursiveModel, data: ArcData, batch_size: int, *, device: torch.device
) -> Evaluation:
    """Score every held-out query with every evaluation augmentation, and vote.

    `batch_size` counts rows over all workers. No votes are kept between calls.
    """
    rank, world = ranks()
    voting = ArcVoting(data.eval_puzzles(), data.identifier_names, num_aug=data.eval_num_aug)
    sums = _Sums(device)
    with evaluation_mode(model):
        for arrays in data.eval_batches(batch_size, rank=rank, world=world):
            batch = to_tensors(arrays, device)
            outputs = run_act(model, batch)
            sums.add(outputs, batch)
            voting.update(
                batch["puzzle_identifiers"],
                batch["inputs"],
                outputs["logits"].argmax(-1),
                outputs["q_halt_logits"],
            )
    if world > 1:
        states: list[Any] = [None] * world
        dist.all_gather_object(states, voting.state())
        voting.reset()
        for state in states:
            voting.merge(state)
    result, means = voting.result(), sums.means()
    count = means.pop("count")
    metrics = {f"eval/{name}": value for name, value in means.items()}
    metrics["eval/loss"] = metrics["eval/lm_loss"] + 0.5 * metrics["eval/q_halt_loss"]
    metrics["eval/steps"] = float(model.config.halt_max_steps)  # every row runs all of them
    metrics |= {"eval/rows": count, "eval/num_aug": float(data.eval_num_aug)} | result.metrics()
    return Evaluation(metrics, result.tasks)


def demonstration_controls(
    model: RecursiveModel, data: ArcData, batch_size: int, *, seed: int, device: torch.device
) -> dict[str, float]:
    """Does the model read its demonstrations? Accuracy on the training puzzles, four ways.

    Every training query of the original puzzles, untranslated, full ACT: with its demonstrations,
    with a zero context, with the outputs permuted among its demonstrations, and with another
    puzzle's demonstrations (NaN where there is no other). Returns ``control/<way>_accuracy`` and
    ``…_exact_accuracy``, and the trivial baselines over the same rows. Every rank computes the
    same.
    """
    metrics: dict[str, float] = {}
    with evaluation_mode(model):
        for way in CONTROLS:
            if way == "other" and len(data.train_groups) < 2:
                metrics |= {f"control/{way}_{name}": float("nan") for name in _Sums.names[1:3]}
                continue
            sums = _Sums(device)
            rng = numpy_generator(seed, "controls")
            for arrays in control_batches(data, batch_size):
                if way == "shuffled":
                    arrays = shuffle_demos(arrays, rng)
                elif way == "other":
                    arrays = other_demos(data, arrays)
                batch = to_tensors(arrays, device)
                context = None
                if way == "zeroed":
                    shape = len(arrays["inputs"]), model.config.prefix_len, model.config.hidden_size
                    context = torch.zeros(shape, dtype=model.inner.dtype, device=device)
                sums.add(run_act(model, batch, context), batch)
            count = float(sums.values[0])
            for name, value in zip(sums.names[1:3], sums.values[1:3].tolist(), strict=True):
                metrics[f"control/{way}_{name}"] = value / count if count else float("nan")
    return metrics | trivial_baselines(control_batches(data, batch_size))


def ranks() -> tuple[int, int]:
    """(rank, world size); (0, 1) without torch.distributed."""
    if dist.is_available() and dist.is_initialized():
        return dist.get_rank(), dist.get_world_size()
    return 0, 1
