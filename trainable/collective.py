"""What the workers of one trial tell each other beyond gradients."""

from __future__ import annotations

import torch
import torch.distributed as dist
from torch import Tensor


def gather(value: Tensor) -> Tensor:
    """Rows of all workers, in rank order; sent as bytes, since gloo and nccl lack some types."""
    raw = value.contiguous().view(torch.uint8)
    parts = [torch.empty_like(raw) for _ in range(dist.get_world_size())]
    dist.all_gather(parts, raw)
    return torch.cat(parts).view(value.dtype)


def any_worker(value: bool, *, world: int, device: torch.device) -> bool:
    """Whether any worker says so: all leave the loop together."""
    if world == 1:
        return value
    flag = torch.tensor(float(value), device=device)
    dist.all_reduce(flag)
    return bool(flag > 0)
