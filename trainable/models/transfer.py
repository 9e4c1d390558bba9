"""From the host to the device without waiting: pinned memory, and flags that come back later.

A training step on CUDA makes no synchronising call. What decides shapes is kept on the host beside
the device's tensors (`HostedBatch.host`, `Carry.host`): rectangles and demonstrations, from which
layouts are built and sent. Only the halting flags are computed on the device; they start back right
after the forward pass (`Flags`) and are awaited when the next step begins, while the device is busy
with the backward pass and the update.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

MIRRORED = ("canvas", "demo_inputs", "demo_labels", "demo_mask", "demo_key")
"""Entries of a batch that decide shapes: the host keeps a copy of them."""


def upload(tensor: Tensor, device: torch.device) -> Tensor:
    """A host tensor on `device`; to CUDA through pinned memory, without waiting."""
    if device.type != "cuda" or tensor.device.type != "cpu":
        return tensor.to(device)
    return tensor.pin_memory().to(device, non_blocking=True)


class HostedBatch(dict[str, Tensor]):
    """A batch on the device, and on the host what decides its shapes."""

    def __init__(self, values: Mapping[str, Tensor], host: Mapping[str, Tensor]) -> None:
        super().__init__(values)
        self.host = dict(host)

    def rows(self, chosen: slice) -> HostedBatch:
        """The batch of some of its rows."""
        return HostedBatch(
            {name: value[chosen] for name, value in self.items()},
            {name: value[chosen] for name, value in self.host.items()},
        )


def rows_of(batch: Mapping[str, Tensor], chosen: slice) -> dict[str, Tensor]:
    """Some rows of a batch."""
    if isinstance(batch, HostedBatch):
        return batch.rows(chosen)
    return {name: value[chosen] for name, value in batch.items()}


def hosted(batch: Mapping[str, Tensor], device: torch.device) -> HostedBatch:
    """A host batch sent to `device`, which keeps the mirrored entries."""
    return HostedBatch(
        {name: upload(value, device) for name, value in batch.items()},
        {name: value for name, value in batch.items() if name in MIRRORED},
    )


class Flags:
    """A (B) bool tensor of the device that is read on the host later.

    The copy starts when this is made; `read` waits for the copy alone, not for what the device was
    given afterwards.
    """

    def __init__(self, values: Tensor) -> None:
        self._event: torch.cuda.Event | None = None
        if values.device.type != "cuda":
            self._values = values
            return
        self._values = torch.empty(values.shape, dtype=values.dtype, pin_memory=True)
        self._values.copy_(values, non_blocking=True)
        self._event = torch.cuda.Event()  # type: ignore[no-untyped-call]
        self._event.record()

    def read(self) -> Tensor:
        """The flags on the host."""
        if self._event is not None:
            self._event.synchronize()
            self._event = None
        return self._values


def merged(
    flags: Tensor, new: Mapping[str, Tensor], old: Mapping[str, Tensor]
) -> dict[str, Tensor]:
    """Host rows of the next step: `new` where `flags` (B) is set, else `old`."""
    if bool(flags.all()):
        return dict(new)
    if not bool(flags.any()):
        return dict(old)
    rows = flags.nonzero()[:, 0]
    return {
        name: old[name].clone().index_copy_(0, rows, value[rows]) for name, value in new.items()
    }
