"""Evaluation of a model: full ACT on held-out queries with voting, and the demonstration controls.

Padding rows of a batch are not computed. Demonstrations that cannot change are encoded once per
row, the recurrent encoders' at every ACT step. Gradients are off, but not in inference mode:
layouts are cached and shared with training, whose graph may not hold inference tensors.

Shape legend: B rows, S cells, P prefix tokens, D width.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor
from tqdm import tqdm

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
from trainable.models.transfer import hosted
from trainable.random import numpy_generator

CONTROLS = ("normal", "zeroed", "shuffled", "other")
"""Demonstrations as they are; context set to zero; outputs permuted among a row's demonstrations;
another puzzle's demonstrations."""

CALIBRATION_BINS = 10
"""Tenths of the halting probability that a reliability table has."""


@dataclass(frozen=True)
class Evaluation:
    """`metrics` by row name (``eval/…``), one dictionary per scheduled puzzle, and the votes."""

    metrics: dict[str, float]
    tasks: list[dict[str, Any]]
    voting: ArcVoting = field(repr=False)


def to_tensors(batch: Batch, device: torch.device) -> dict[str, Tensor]:
    """A batch of arrays as tensors on `device`, same names and dtypes.

    To CUDA they go in their small integer types, through pinned memory, and the host keeps what
    decides shapes.
    """
    tensors = {name: torch.from_numpy(array) for name, array in batch.items()}
    return tensors if device.type == "cpu" else hosted(tensors, device)


def real_rows(batch: Batch) -> Batch:
    """The batch without its padding rows (identifier 0), which stand at its end or anywhere."""
    real = batch["puzzle_identifiers"] != 0
    return batch if real.all() else {name: array[real] for name, array in batch.items()}


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

    `context` (B, P, D) replaces the encoder's. Call in evaluation mode.
    """
    carry = model.initial_carry(batch)
    outputs = Outputs()
    for _ in range(model.config.halt_max_steps):
        carry, outputs = model(carry, batch, context=context)
    outputs["labels"] = carry.current_data["labels"]
    return outputs


class _Sums:
    """Sums over rows that are scored, on the device, in float64.

    Then, for every tenth of the halting probability: rows, right ones, summed probability.
    """

    names = ("count", "accuracy", "exact_accuracy", "q_halt_accuracy", "lm_loss", "q_halt_loss")

    def __init__(self, device: torch.device) -> None:
        size = len(self.names) + 3 * CALIBRATION_BINS
        self.values = torch.zeros(size, dtype=torch.float64, device=device)

    def add(self, outputs: Outputs, batch: dict[str, Tensor]) -> None:
        """Add a batch without padding; rows of unknown solution count nowhere.

        A row that has no label because its output lies outside its canvas counts as wrong.
        """
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
        self.values[: len(self.names)] += torch.where(scored, rows, 0.0).sum(1)
        sure = q.double().sigmoid().nan_to_num(0.0)
        tenth = (sure * CALIBRATION_BINS).long().clamp_max(CALIBRATION_BINS - 1)
        told = torch.stack([torch.ones_like(sure), right.double(), sure])
        tenths = self.values[len(self.names) :].view(3, -1)
        tenths.index_add_(1, tenth, torch.where(scored, told, 0.0))

    def calibration(self) -> dict[str, float]:
        """Whether the Q-head's probabilities are true, from the sums as they stand.

        ``q_rows/k``: share of rows whose halting probability lies in tenth k; ``q_right/k``: share
        of those whose grid is right (absent without rows); ``q_halt_calibration_error``: mean
        distance of probability and share over the rows.
        """
        rows, right, sure = self.values[len(self.names) :].view(3, -1).tolist()
        if not (count := sum(rows)):
            return {}
        found = {f"q_rows/{k}": n / count for k, n in enumerate(rows, start=1)}
        found |= {
            f"q_right/{k}": r / n for k, (n, r) in enumerate(zip(rows, right, strict=True), 1) if n
        }
        apart = sum(abs(p - r) for p, r in zip(sure, right, strict=True))
        return found | {"q_halt_calibration_error": apart / count}

    def means(self) -> dict[str, float]:
        """Means over scored rows and ranks; NaN where nothing was scored."""
        if dist.is_initialized():
            dist.all_reduce(self.values)
        total = self.values[: len(self.names)].tolist()
        count = total[0]
        means = {
            n: v / count if count else float("nan") for n, v in zip(self.names, total, strict=True)
        }
        return means | {"count": count}


def evaluate(
    model: RecursiveModel,
    data: ArcData,
    batch_size: int,
    *,
    device: torch.device,
    prefix: str = "eval",
    progress: bool = False,
) -> Evaluation:
    """Score every held-out query with every evaluation augmentation, and vote.

    Args:
        model: with the weights to evaluate.
        data: its evaluation groups; over several workers each takes its rows of every batch.
        batch_size: rows over all workers.
        device: of the model.
        prefix: of the metrics' names.
        progress: show a bar on rank 0.

    No votes are kept between calls. A worker without rows takes part in the reduction alone.
    """
    rank, world = ranks()
    voting = ArcVoting(data.eval_puzzles(), data.identifier_names, num_aug=data.eval_num_aug)
    sums = _Sums(device)
    with evaluation_mode(model):
        for arrays in tqdm(
            data.eval_batches(batch_size, rank=rank, world=world),
            total=-(-data.num_eval_rows() // batch_size),
            unit="batch",
            desc=prefix,
            disable=not progress or rank > 0,
            leave=False,
        ):
            arrays = real_rows(arrays)
            if not len(arrays["inputs"]):
                continue
            batch = to_tensors(arrays, device)
            outputs = run_act(model, batch)
            sums.add(outputs, batch)
            voting.update(
                arrays["puzzle_identifiers"],
                arrays["inputs"],
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
    means["rows"] = means.pop("count")
    means["loss"] = means["lm_loss"] + 0.5 * means["q_halt_loss"]
    means["steps"] = float(model.config.halt_max_steps)  # every row runs all of them
    means["num_aug"] = float(data.eval_num_aug)
    means |= sums.calibration()
    metrics = {f"{prefix}/{name}": value for name, value in means.items()}
    return Evaluation(metrics | result.metrics(prefix), result.tasks, voting)


def demonstration_controls(
    model: RecursiveModel, data: ArcData, batch_size: int, *, seed: int, device: torch.device
) -> dict[str, float]:
    """Does the model read its demonstrations? Accuracy on the training puzzles, four ways.

    Every training query of the original puzzles, untranslated, full ACT: with its demonstrations,
    with a zero context, with the outputs permuted among its demonstrations, and with another
    puzzle's demonstrations (NaN where there is no other). Returns ``control/<way>_accuracy`` and
    ``…_exact_accuracy``, and the trivial baselines over the same rows; with its own demonstrations
    the Q-head's calibration too. Every rank computes the same.
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
                arrays = real_rows(arrays)
                batch = to_tensors(arrays, device)
                context = None
                if way == "zeroed":
                    shape = len(arrays["inputs"]), model.config.prefix_len, model.config.hidden_size
                    context = torch.zeros(shape, dtype=model.inner.dtype, device=device)
                sums.add(run_act(model, batch, context), batch)
            count = float(sums.values[0])
            for name, value in zip(sums.names[1:3], sums.values[1:3].tolist(), strict=True):
                metrics[f"control/{way}_{name}"] = value / count if count else float("nan")
            if way == "normal":
                metrics |= {f"control/{n}": value for n, value in sums.calibration().items()}
    return metrics | trivial_baselines(control_batches(data, batch_size))


def ranks() -> tuple[int, int]:
    """(rank, world size); (0, 1) without torch.distributed."""
    if dist.is_available() and dist.is_initialized():
        return dist.get_rank(), dist.get_world_size()
    return 0, 1
