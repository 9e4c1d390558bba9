"""Optimizers, learning-rate schedule, gradient clipping and the moving average of weights."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from trainable.models.inner import PuzzleEmbedding


class AdamATan2(torch.optim.Optimizer):
    """Adam with atan2 in place of division: no epsilon, scale invariant.

    p ← p·(1 − lr·wd); m ← m + (1−β1)(g − m); v ← v + (1−β2)(g² − v);
    p ← p − lr/(1−β1^t) · atan2(m, √v / √(1−β2^t)). Parameters without a gradient are skipped
    entirely (no decay, and their own t does not advance). Everett et al. 2024, arXiv:2407.05872.

    Args:
        params: parameters or groups.
        lr: learning rate, ≥ 0.
        betas: decay of the first and second moment.
        weight_decay: decoupled, applied to every parameter.
    """

    def __init__(
        self,
        params: Iterable[Any],
        lr: float = 1e-4,
        betas: tuple[float, float] = (0.9, 0.95),
        weight_decay: float = 0.1,
    ) -> None:
        if lr < 0 or weight_decay < 0 or not all(0 <= beta < 1 for beta in betas):
            raise ValueError(f"lr {lr}, betas {betas}, weight_decay {weight_decay}: out of range")
        super().__init__(params, {"lr": lr, "betas": betas, "weight_decay": weight_decay})

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        """One update of every parameter that has a gradient."""
        assert closure is None, "closures are not supported"
        for group in self.param_groups:
            by_step: dict[int, list[nn.Parameter]] = {}
            for p in group["params"]:
                if p.grad is None:
                    continue
                state = self.state[p]
                if not state:
                    state["step"] = 0
                    state["exp_avg"] = torch.zeros_like(p)
                    state["exp_avg_sq"] = torch.zeros_like(p)
                state["step"] += 1
                by_step.setdefault(state["step"], []).append(p)
            for t, params in by_step.items():
                self._update(params, t, group)

    def _update(self, params: list[nn.Parameter], t: int, group: dict[str, Any]) -> None:
        lr, (beta1, beta2) = group["lr"], group["betas"]
        grads = [p.grad.to(p.dtype) for p in params if p.grad is not None]
        m = [self.state[p]["exp_avg"] for p in params]
        v = [self.state[p]["exp_avg_sq"] for p in params]
        values: list[Tensor] = list(params)
        torch._foreach_mul_(values, 1 - lr * group["weight_decay"])
        torch._foreach_lerp_(m, grads, 1 - beta1)
        torch._foreach_lerp_(v, torch._foreach_mul(grads, grads), 1 - beta2)
        scale = torch._foreach_sqrt(v)
        torch._foreach_div_(scale, math.sqrt(1 - beta2**t))
        update = [torch.atan2(a, b) for a, b in zip(m, scale, strict=True)]
        torch._foreach_add_(values, update, alpha=-lr / (1 - beta1**t))


class SignSGDEmbedding:
    """Sparse sign-SGD for a puzzle table.

    Gradients of the batch's rows are summed per distinct identifier; for those rows only
    w ← w·(1 − lr·wd) − lr·sign(sum), with sign(0) = 0.

    Args:
        embedding: the `PuzzleEmbedding` to train.
        lr: learning rate.
        weight_decay: decoupled.
    """

    def __init__(
        self, embedding: PuzzleEmbedding, lr: float = 1e-2, weight_decay: float = 0.1
    ) -> None:
        self.embedding, self.lr, self.weight_decay = embedding, lr, weight_decay

    def zero_grad(self) -> None:
        """Forget the batch's gradients."""
        if self.embedding.local_weights is not None:
            self.embedding.local_weights.grad = None

    @torch.no_grad()
    def step(self, ids: Tensor | None = None, grad: Tensor | None = None) -> None:
        """Update the rows `ids` (R) with `grad` (R, ndim); by default those of the last batch."""
        local = self.embedding.local_weights
        if ids is None or grad is None:
            if local is None or local.grad is None or self.embedding.local_ids is None:
                return
            ids, grad = self.embedding.local_ids, local.grad
        sign_sgd_(self.embedding.weights, ids, grad, lr=self.lr, weight_decay=self.weight_decay)


@torch.no_grad()
def sign_sgd_(table: Tensor, ids: Tensor, grad: Tensor, *, lr: float, weight_decay: float) -> None:
    """In-place sparse sign-SGD of `table` (N, ndim) at rows `ids` (R) with `grad` (R, ndim)."""
    if ids.device.type == "cuda":
        _sign_sgd_without_waiting_(table, ids, grad, lr=lr, weight_decay=weight_decay)
        return
    rows, of = torch.unique(ids.long(), return_inverse=True)
    sums = grad.new_zeros(rows.shape[0], grad.shape[1]).index_add_(0, of, grad)
    table[rows] = table[rows] * (1 - lr * weight_decay) - lr * sums.sign()


def _sign_sgd_without_waiting_(
    table: Tensor, ids: Tensor, grad: Tensor, *, lr: float, weight_decay: float
) -> None:
    """The same where the host must not learn how many rows are distinct: a row is written as often
    as it occurs, always with the same values."""
    first = (ids[:, None] == ids[None, :]).int().argmax(1)
    sums = torch.zeros_like(grad).index_add_(0, first, grad)[first]
    table[ids.long()] = table[ids.long()] * (1 - lr * weight_decay) - lr * sums.sign()


def learning_rate(
    step: int, *, base: float, warmup: int, total: int, min_ratio: float = 1.0
) -> float:
    """Rate at 1-based `step`: linear warm-up, then cosine from `base` to `min_ratio · base`."""
    if step < warmup:
        return base * step / warmup
    progress = (step - warmup) / max(1, total - warmup)
    cosine = 0.5 * (1 + math.cos(math.pi * progress)) if progress <= 1 else 0.0
    return base * (min_ratio + max(0.0, (1 - min_ratio) * cosine))


@torch.no_grad()
def grad_norm(params: Iterable[nn.Parameter], device: torch.device | None = None) -> Tensor:
    """Global L2 norm of the gradients (scalar float32); 0, on `device`, without gradients."""
    grads = [p.grad for p in params if p.grad is not None]
    if not grads:
        return torch.zeros((), device=device)
    norm: Tensor = torch.linalg.vector_norm(torch.stack(torch._foreach_norm(grads)).float())
    return norm


@torch.no_grad()
def clip_(params: Iterable[nn.Parameter], norm: Tensor, max_norm: float) -> Tensor:
    """Scale gradients so that a global `norm` is at most `max_norm` (0 = off); gives the factor."""
    if max_norm <= 0:
        return torch.ones_like(norm)
    factor = (max_norm / (norm + 1e-6)).clamp_max(1.0)
    grads = [p.grad for p in params if p.grad is not None]
    if grads:
        torch._foreach_mul_(grads, factor)
    return factor


class EMA:
    """Moving average of every trainable parameter: shadow ← (1 − rate)·p + rate·shadow.

    Buffers (puzzle table, initial states) are not averaged.
    """

    def __init__(self, model: nn.Module, rate: float) -> None:
        self.rate = rate
        self.params = dict(model.named_parameters())
        self.shadow = {name: p.detach().clone() for name, p in self.params.items()}

    @torch.no_grad()
    def update(self) -> None:
        """Call after every optimizer step."""
        values: list[Tensor] = [p.detach() for p in self.params.values()]
        torch._foreach_lerp_(list(self.shadow.values()), values, 1 - self.rate)

    @contextmanager
    def applied(self) -> Iterator[None]:
        """Within the block the model holds the averaged weights (swapped in place)."""
        self._swap()
        try:
            yield
        finally:
            self._swap()

    def _swap(self) -> None:
        for name, p in self.params.items():
            p.data, self.shadow[name] = self.shadow[name], p.data
