"""A CUDA device pretended on the CPU: real values, and an error where CUDA would wait or refuse.

Under `pretended_cuda` tensors made on ``cuda`` or sent there say so, and so does all that is
computed from them, in backward passes too. The CPU computes the values, so that code which branches
by device takes its branches for CUDA with real numbers. Three kinds of code raise `Refused`:

- an operation on tensors of both devices (not in a backward pass: autograd makes its own there);
- within `PretendedCuda.step`, an operation whose value or whose result's shape the host needs;
- within it, a copy between host and device that waits, one from memory that is not pinned included.

What a kernel does within itself is not seen. ``test_pretended_cuda.py`` holds both devices against
each other.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any
from unittest.mock import patch

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from trainable.models.layout import full_layout

CPU, CUDA = torch.device("cpu"), torch.device("cuda", 0)
NEEDED = (torch.Tag.data_dependent_output, torch.Tag.dynamic_output_shape)
INDEXING = ("aten::index", "aten::index_put", "aten::index_put_", "aten::_index_put_impl_")


class Refused(AssertionError):
    """On CUDA the host would wait here, or the operation fail."""


class Storages:
    """A set of storages; it keeps them, so that no address is used again."""

    def __init__(self) -> None:
        self._kept: dict[int, torch.UntypedStorage] = {}

    def add(self, tensor: Tensor) -> None:
        storage = tensor.untyped_storage()
        self._kept[storage._cdata] = storage

    def __contains__(self, tensor: Tensor) -> bool:
        return tensor.untyped_storage()._cdata in self._kept


class PretendedCuda(TorchFunctionMode):
    """What Python sees: where a tensor is, where it is made or sent, what is pinned."""

    def __init__(self) -> None:
        super().__init__()
        self.on_device, self.pinned = Storages(), Storages()
        self.operations = _Operations(self)
        self.waiting_is_refused = False

    @contextmanager
    def step(self) -> Iterator[None]:
        """Waiting is refused here."""
        self.waiting_is_refused = True
        try:
            yield
        finally:
            self.waiting_is_refused = False

    def kernel(self, stand_in: Callable[..., Tensor]) -> Callable[..., Tensor]:
        """`stand_in` in the place of one kernel of the device: free to look at its operands."""

        def run(*args: Any) -> Tensor:
            with self.operations.placing(CUDA):
                return stand_in(*args)

        return run

    def waits(self, what: str) -> None:
        if self.waiting_is_refused and self.operations.place is None:
            raise Refused(what)

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = dict(kwargs or {})
        first = args[0] if args and isinstance(args[0], Tensor) else None
        # Getters are made anew at every look: equal, not the same.
        if func == Tensor.device.__get__:  # type: ignore[attr-defined]
            return CUDA if first in self.on_device else CPU
        if func == Tensor.is_cuda.__get__:  # type: ignore[attr-defined]
            return first in self.on_device
        if func is Tensor.pin_memory:
            assert first is not None and first not in self.on_device
            copy = first.clone()
            self.pinned.add(copy)
            return copy
        if func in (Tensor.to, Tensor.cpu, Tensor.cuda):
            return self._sent(func, first, args[1:], kwargs)
        if func is Tensor.tolist and first in self.on_device:
            self.waits("tolist of a tensor on the device")
        pinned = kwargs.pop("pin_memory", False)
        if kwargs.get("device") is None:
            result = func(*args, **kwargs)
        else:
            device = torch.device(kwargs["device"])
            if device.type == "cuda":
                kwargs["device"] = CPU
                if func is torch.tensor or func is torch.as_tensor:
                    self.waits("a tensor of the device made of the host's values")
            with self.operations.placing(device):
                result = func(*args, **kwargs)
        if pinned:
            self.pinned.add(result)
        return result

    def _sent(self, func: Any, tensor: Any, args: tuple[Any, ...], kwargs: Any) -> Tensor:
        device, dtype, free, _ = (
            torch._C._nn._parse_to(*args, **kwargs)
            if func is Tensor.to
            else (CPU if func is Tensor.cpu else CUDA, None, kwargs.get("non_blocking"), None)
        )
        source = CUDA if tensor in self.on_device else CPU
        dtype = dtype or tensor.dtype
        if device is None or device.type == source.type:
            return tensor.to(dtype, copy=bool(kwargs.get("copy")))
        if not free or (source == CPU and tensor not in self.pinned):
            self.waits(f"a copy from {source.type} to {device.type}")
        with self.operations.placing(device):
            return tensor.to(dtype, copy=True)


class _Operations(TorchDispatchMode):
    """What is computed: results are on the device where an operand is."""

    def __init__(self, seen: PretendedCuda) -> None:
        super().__init__()
        self.seen = seen
        self.place: torch.device | None = None
        self.backward = False

    @contextmanager
    def placing(self, device: torch.device) -> Iterator[None]:
        """Results are on `device`, whatever they are computed from."""
        before, self.place = self.place, device
        try:
            yield
        finally:
            self.place = before

    def in_backward(self, real: Callable[..., Any]) -> Callable[..., Any]:
        """`real`, all of whose results are on the device."""

        def run(*args: Any, **kwargs: Any) -> Any:
            self.backward = True
            try:
                return real(*args, **kwargs)
            finally:
                self.backward = False

        return run

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        on_device = self.seen.on_device
        operands = [x for x in tree_leaves((args, kwargs)) if isinstance(x, Tensor)]
        on_host = [x for x in operands if x not in on_device]
        device = self.place
        if device is None:
            there = self.backward or len(on_host) < len(operands)
            device = CUDA if there else CPU
            if there:
                self._check(func, args, kwargs, on_host)
        result = func(*args, **kwargs)
        if device.type == "cuda":
            given = {x.untyped_storage()._cdata for x in on_host}
            for made in tree_leaves(result):
                if isinstance(made, Tensor) and made.untyped_storage()._cdata not in given:
                    on_device.add(made)
        return result

    def _check(self, func: Any, args: Any, kwargs: Any, on_host: list[Tensor]) -> None:
        name = func._schema.name
        if name == "aten::copy_":
            free = args[2] if len(args) > 2 else kwargs.get("non_blocking", False)
            if on_host and not (free and on_host[0] in self.seen.pinned):
                self.seen.waits("a copy between host and device")
            return
        if on_host and not self.backward and any(x.dim() for x in on_host):
            raise Refused(f"{name} of tensors of both devices")
        if name in INDEXING:
            masks = (torch.bool, torch.uint8)
            if any(x is not None and x.dtype in masks for x in args[1]):
                self.seen.waits(f"{name} by a mask")
        elif name == "aten::repeat_interleave" and kwargs.get("output_size") is not None:
            return
        elif any(tag in func.tags for tag in NEEDED):
            self.seen.waits(f"{name}, which the host needs the value of")


@contextmanager
def waiting_is_an_error() -> Iterator[None]:
    """On a real device: where the host waits a RuntimeError is raised."""
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode("error")
    try:
        yield
    finally:
        torch.cuda.set_sync_debug_mode("default")


class _Event:
    def record(self) -> None:
        """All before it is done."""

    def synchronize(self) -> None:
        """All before it is done."""


@contextmanager
def pretended_cuda() -> Iterator[PretendedCuda]:
    """``torch.cuda`` is there, with one device."""
    mode = PretendedCuda()
    instead: dict[str, Any] = {
        "torch.cuda.is_available": lambda: True,
        "torch.cuda.Event": _Event,
        "torch.cuda.get_device_capability": lambda device=None: (9, 0),
        "torch.autograd.backward": mode.operations.in_backward(torch.autograd.backward),
        "torch.autograd.grad": mode.operations.in_backward(torch.autograd.grad),
    }
    full_layout.cache_clear()  # it keeps tensors
    try:
        with ExitStack() as stack:
            for name, value in instead.items():
                stack.enter_context(patch(name, value))
            stack.enter_context(mode.operations)
            stack.enter_context(mode)
            yield mode
    finally:
        full_layout.cache_clear()
