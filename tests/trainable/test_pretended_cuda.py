"""What the pretended device refuses is what CUDA refuses, operation by operation."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from tests.trainable.pretended_cuda import CUDA, Refused, pretended_cuda, waiting_is_an_error

Operation = Callable[[Tensor, Tensor, Tensor], object]
"""Of (4, 3) floats and (4) int64 indices on the device, and (4) floats on the host."""


def entry(x: Tensor, i: Tensor, host: Tensor) -> None:
    x[0, 1] = 2.0


def row(x: Tensor, i: Tensor, host: Tensor) -> None:
    x[0] = 2.0


def rows(x: Tensor, i: Tensor, host: Tensor) -> None:
    x[i] = x[i] + 1


def masked(x: Tensor, i: Tensor, host: Tensor) -> None:
    x[x[:, 0] > 0] = x[:2] * 2


def to_pinned(x: Tensor, i: Tensor, host: Tensor) -> None:
    torch.empty(4, 3, pin_memory=True).copy_(x, non_blocking=True)


def to_host(x: Tensor, i: Tensor, host: Tensor) -> None:
    torch.empty(4, 3).copy_(x)


def learned(x: Tensor, i: Tensor, host: Tensor) -> None:
    weight = torch.ones(3, device=x.device, requires_grad=True)
    (x * weight).sum().backward()
    assert weight.grad is not None and weight.grad.device == x.device


def waits_in_backward(x: Tensor, i: Tensor, host: Tensor) -> None:
    weight = torch.ones(3, device=x.device, requires_grad=True)
    weight.register_hook(lambda grad: grad * float(grad.sum()))
    (x * weight).sum().backward()


FREE: dict[str, Operation] = {
    "arithmetic": lambda x, i, host: (x @ x.T * 2 + 1).softmax(-1).sum(),
    "made there": lambda x, i, host: torch.zeros(4, 3, device=x.device) + x,
    "gathered": lambda x, i, host: x[i] + x.index_select(0, i),
    "scattered": rows,
    "a row set to a number": row,
    "added to an entry": lambda x, i, host: x[0, 1].add_(2.0),
    "chosen": lambda x, i, host: torch.where(x > 0, x, 0.0).masked_fill(x > 1, 1.0),
    "repeated": lambda x, i, host: x.repeat_interleave(i, dim=0, output_size=6),
    "sent from pinned": lambda x, i, host: host.pin_memory().to(x.device, non_blocking=True) + 1,
    "sent to pinned": to_pinned,
    "a number of the host": lambda x, i, host: x * host.sum(),
    "learned": learned,
}
WAITS: dict[str, Operation] = {
    "an entry set to a number": entry,
    "item": lambda x, i, host: x.sum().item(),
    "float": lambda x, i, host: float(x[0, 0]),
    "bool": lambda x, i, host: bool((x > 0).all()),
    "tolist": lambda x, i, host: x.tolist(),
    "equal": lambda x, i, host: torch.equal(x, x + 1),
    "nonzero": lambda x, i, host: x.nonzero(),
    "unique": lambda x, i, host: i.unique(),
    "by a mask": lambda x, i, host: x[x > 0],
    "set by a mask": masked,
    "masked_select": lambda x, i, host: x.masked_select(x > 0),
    "repeated, length unknown": lambda x, i, host: x.repeat_interleave(i, dim=0),
    "cpu": lambda x, i, host: x.cpu(),
    "sent to the host": to_host,
    "sent to the device": lambda x, i, host: host.to(x.device),
    "made of numbers": lambda x, i, host: torch.tensor([1.0, 2.0], device=x.device),
    "in a hook of a gradient": waits_in_backward,
}
FAILS: dict[str, Operation] = {
    "host plus device": lambda x, i, host: x[:, 0] + host,
    "stacked": lambda x, i, host: torch.stack([x[:, 0], host]),
    "indexed on the host": lambda x, i, host: host[i],
}


def operands() -> tuple[Tensor, Tensor, Tensor]:
    x = torch.tensor([[1.0, -1, 2], [0, 0, 0], [-3, 1, 1], [1, 1, 1]])
    return x.to(CUDA), torch.tensor([1, 0, 3, 2]).to(CUDA), torch.arange(4.0)


@pytest.mark.parametrize("name", FREE)
def test_free(name: str) -> None:
    with pretended_cuda() as cuda:
        x, i, host = operands()
        with cuda.step():
            result = FREE[name](x, i, host)
        assert not isinstance(result, Tensor) or result.device == CUDA


@pytest.mark.parametrize("name", WAITS)
def test_waits(name: str) -> None:
    with pretended_cuda() as cuda:
        WAITS[name](*operands())  # refused in a step alone
        x, i, host = operands()
        with cuda.step(), pytest.raises(Refused):
            WAITS[name](x, i, host)


@pytest.mark.parametrize("name", FAILS)
def test_fails(name: str) -> None:
    with pretended_cuda(), pytest.raises(Refused):
        FAILS[name](*operands())


def test_nothing_stays() -> None:
    with pretended_cuda() as cuda:
        x, _, _ = operands()
        assert x.is_cuda and x.device == CUDA and x in cuda.on_device
        assert torch.cuda.is_available()
    assert not x.is_cuda and x.device.type == "cpu"
    assert x.sum().item() == 4


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs CUDA")
@pytest.mark.parametrize("name", [*FREE, *WAITS])
def test_cuda_does_the_same(name: str) -> None:
    x, i, host = operands()
    operation = FREE.get(name) or WAITS[name]
    operation(*operands())  # what a first call loads
    with waiting_is_an_error():
        if name in FREE:
            operation(x, i, host)
        else:
            with pytest.raises(RuntimeError, match="synchronizing"):
                operation(x, i, host)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs CUDA")
@pytest.mark.parametrize("name", FAILS)
def test_cuda_fails_too(name: str) -> None:
    with pytest.raises(RuntimeError, match="device"):
        FAILS[name](*operands())
