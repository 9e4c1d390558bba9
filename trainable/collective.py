"""What the workers of one trial tell each other beyond gradients."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

import torch
import torch.distributed as dist
from torch import Tensor

from trainable.errors import UserError

T = TypeVar("T")


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


def together(action: Callable[[], T]) -> T:
    """Run `action` on every worker; a `UserError` on one is raised on all of them.

    Reading or writing files can fail on one worker alone; the others must not wait for it in the
    next exchange. Outside torch.distributed it just runs.
    """
    if not (dist.is_available() and dist.is_initialized()) or dist.get_world_size() == 1:
        return action()
    problem: UserError | None = None
    result: T | None = None
    try:
        result = action()
    except UserError as error:
        problem = error
    problems: list[str | None] = [None] * dist.get_world_size()
    dist.all_gather_object(problems, None if problem is None else str(problem))
    if problem is not None:
        raise problem
    for rank, text in enumerate(problems):
        if text is not None:
            raise UserError(f"worker {rank}: {text}")
    return result  # type: ignore[return-value]
