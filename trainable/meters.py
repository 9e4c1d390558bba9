"""Sums over the rows of an interval, kept on the device and reduced over workers when read."""

from __future__ import annotations

import torch
import torch.distributed as dist
from torch import Tensor

LOSSES = ("loss", "lm_loss", "q_halt_loss", "q_continue_loss", "kl_loss", "identity_loss")
COUNTED = ("accuracy", "exact_accuracy", "q_halt_accuracy", "steps")
NORMS = ("encoder_norm", "decoder_norm", "total_norm", "clip_factor")


class IntervalSums:
    """Accumulates `act_loss` sums, gradient norms and halting steps between two rows.

    One float64 vector on the device: adding costs no host synchronisation, reading one.
    """

    def __init__(self, max_steps: int, device: torch.device) -> None:
        self.max_steps = max_steps
        names = ["rows", "began", "count", "all_count", *LOSSES]
        names += [prefix + name for prefix in ("", "all_") for name in COUNTED]
        self.summed = [*names, *(f"hist/{k}" for k in range(1, max_steps + 1))]
        self.averaged = ["updates", *NORMS]
        self.values = torch.zeros(
            len(self.summed) + len(self.averaged), dtype=torch.float64, device=device
        )
        self._at = {name: i for i, name in enumerate([*self.summed, *self.averaged])}

    def add(
        self,
        sums: dict[str, Tensor],
        *,
        began: Tensor,
        halted: Tensor,
        steps: Tensor,
        norms: dict[str, Tensor],
    ) -> None:
        """Add one training step: loss sums, rows that began or halted (B), steps (B), norms."""
        hist = torch.zeros(self.max_steps + 1, dtype=torch.float64, device=self.values.device)
        hist.index_add_(0, steps.long().clamp_max(self.max_steps), halted.double())
        first = self._at["hist/1"]
        self.values[first : first + self.max_steps] += hist[1:]
        for name, value in {**sums, "began": began.sum(), **norms}.items():
            self.values[self._at[name]].add_(value)
        # in place: to assign a number to an entry would wait for the device
        self.values[self._at["rows"]].add_(steps.shape[0])
        self.values[self._at["updates"]].add_(1)

    def is_finite(self) -> bool:
        """Whether this worker's loss since the last row is a number; one host synchronisation."""
        return bool(self.values[self._at["loss"]].isfinite())

    def read(self) -> dict[str, float]:
        """All sums, over workers (norms are equal on every worker), and start again."""
        values = self.values.clone()
        if dist.is_available() and dist.is_initialized():
            summed = values[: len(self.summed)].contiguous()
            dist.all_reduce(summed)
            values[: len(self.summed)] = summed
        self.values.zero_()
        return dict(zip(self._at, values.tolist(), strict=True))


def interval_metrics(total: dict[str, float], *, losses: set[str]) -> dict[str, float]:
    """Row entries ``train/…`` and ``grad/…`` from `IntervalSums.read`.

    Metrics over halted rows are absent where none halted: they were not measured.
    """
    metrics = {f"train/{name}": total[name] / total["rows"] for name in LOSSES if name in losses}
    for prefix, count in (("", total["count"]), ("all_", total["all_count"])):
        if count:
            metrics |= {f"train/{prefix}{name}": total[prefix + name] / count for name in COUNTED}
    halted = {name: value for name, value in total.items() if name.startswith("hist/")}
    if some := sum(halted.values()):
        metrics |= {f"train/steps_{name}": value / some for name, value in halted.items()}
    if "train/exact_accuracy" in metrics:
        right = metrics["train/exact_accuracy"]
        metrics["train/q_halt_base_rate"] = max(right, 1 - right)
    return metrics | {f"grad/{name}": total[name] / total["updates"] for name in NORMS}
