"""How gradients become weights: parameter groups, freezing, rates, clipping, moving average.

Two groups, decoder (`inner.`) and encoder (`encoder.`), each with its own rate, decay and frozen
span; a TRM's puzzle table has an optimizer of its own.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from trainable.collective import gather
from trainable.config import TrialConfig
from trainable.models import RecursiveModel
from trainable.optim import EMA, AdamATan2, SignSGDEmbedding, clip_, grad_norm, learning_rate


class Updater:
    """Optimizers of a model, and everything that stands between a gradient and a weight."""

    def __init__(
        self, model: RecursiveModel, config: TrialConfig, *, total_steps: int, world: int
    ) -> None:
        self.model, self.config = model, config
        self.total_steps, self.world = total_steps, world
        self.device = model.inner.H_init.device
        named = list(model.named_parameters())
        self.encoder_params = [p for n, p in named if n.startswith("encoder.")]
        self.decoder_params = [p for n, p in named if n.startswith("inner.")]
        if config.freeze_encoder:
            _freeze(self.encoder_params, frozen=True)
        decay = config.encoder_weight_decay
        groups: list[dict[str, Any]] = [{"params": self.decoder_params}]
        if self.encoder_params:
            groups.append(
                {
                    "params": self.encoder_params,
                    "weight_decay": config.weight_decay if decay is None else decay,
                }
            )
        self.optimizer = AdamATan2(
            groups, config.lr, (config.beta1, config.beta2), config.weight_decay
        )
        self.puzzle_optimizer: SignSGDEmbedding | None = None
        if config.model.kind == "trm" and config.model.puzzle_emb_ndim:
            self.puzzle_optimizer = SignSGDEmbedding(
                model.inner.puzzle_emb, config.puzzle_emb_lr, config.puzzle_emb_weight_decay
            )
        self._puzzle_rows: list[tuple[Tensor, Tensor]] = []
        self.ema = EMA(model, config.ema_rate) if config.ema else None

    # --- freezing --------------------------------------------------------------------------------

    def encoder_frozen(self, step: int) -> bool:
        """Whether the encoder gets no gradient and no update at a step."""
        return self.config.freeze_encoder or step <= self.config.encoder_freeze_steps

    def decoder_frozen(self, step: int) -> bool:
        """Whether the decoder gets no gradient and no update at a step."""
        return step <= self.config.freeze_decoder_steps

    def freeze_for(self, step: int) -> None:
        """Freezing is per parameter group: gradients of a frozen group are not computed."""
        if self.config.freeze_decoder_steps:
            _freeze(self.decoder_params, frozen=self.decoder_frozen(step))
        if self.config.encoder_freeze_steps:
            _freeze(self.encoder_params, frozen=self.encoder_frozen(step))

    # --- rates -----------------------------------------------------------------------------------

    def rates(self, step: int) -> dict[str, float]:
        """Learning rates at a step: decoder, then encoder where there is one.

        A group that thaws after n steps is warmed up from there if `unfreeze_warmup_steps` says so:
        the schedule's rate times (step − n) / w, at most 1. `lr_factors` multiply both groups.
        """
        config, factor = self.config, self.factor(step)
        rates = {"lr": factor * self._rate(step, config.lr, config.freeze_decoder_steps)}
        if self.encoder_params:
            scale = config.encoder_lr_scale or 1.0
            thaws = config.encoder_freeze_steps
            rates["encoder_lr"] = factor * self._rate(step, config.lr * scale, thaws)
        return rates

    def factor(self, step: int) -> float:
        """What a population has multiplied the rate by at a step; 1 outside of one."""
        return next((f for since, f in reversed(self.config.lr_factors) if step > since), 1.0)

    def _rate(self, step: int, base: float, thaws: int = 0) -> float:
        config = self.config
        rate = learning_rate(
            step,
            base=base,
            warmup=config.lr_warmup_steps,
            total=self.total_steps,
            min_ratio=config.lr_min_ratio,
        )
        ramp = config.unfreeze_warmup_steps
        if thaws and ramp and step > thaws:
            rate *= min(1.0, (step - thaws) / ramp)
        return rate

    # --- one update ------------------------------------------------------------------------------

    def collect(self) -> None:
        """Call after every backward: keeps the puzzle rows' gradients until the update."""
        if self.puzzle_optimizer is None:
            return
        table = self.model.inner.puzzle_emb
        local, ids = table.local_weights, table.local_ids
        assert local is not None and local.grad is not None and ids is not None
        self._puzzle_rows.append((ids, local.grad))

    def update(self, step: int) -> dict[str, Tensor]:
        """Apply the gradients at this step's rates; norms before clipping and the clip factor."""
        self._complete()
        self._reduce()
        norms = self._clip()
        self._apply(step)
        return norms

    def average(self) -> None:
        """Move the averaged weights: once per batch, as the reference does in every mode."""
        if self.ema is not None:
            self.ema.update()

    def _complete(self) -> None:
        """Cached encoding without a starting row: a gradient of zero, not none.

        The public code encodes every row and selects, so its encoder keeps moving by momentum; and
        workers must hold gradients of the same parameters.
        """
        if self.config.model.encode_mode != "cached":
            return
        for p in self.encoder_params:
            if p.requires_grad and p.grad is None:
                p.grad = torch.zeros_like(p)

    def _reduce(self) -> None:
        """Sum gradients over workers, in one buffer."""
        if self.world == 1:
            return
        grads = [p.grad for p in self.model.parameters() if p.grad is not None]
        if not grads:
            return
        buffer = torch.cat([grad.flatten() for grad in grads])
        dist.all_reduce(buffer)
        for grad, part in zip(grads, torch.split(buffer, [g.numel() for g in grads]), strict=True):
            grad.copy_(part.view_as(grad))

    def _clip(self) -> dict[str, Tensor]:
        """Norms of the global gradient before clipping, and the clip factor."""
        norms = {
            "encoder_norm": grad_norm(self.encoder_params, self.device),
            "decoder_norm": grad_norm(self.decoder_params, self.device),
        }
        total = torch.linalg.vector_norm(torch.stack(list(norms.values())))
        factor = clip_(self.model.parameters(), total, self.config.grad_clip_norm)
        return {**norms, "total_norm": total, "clip_factor": factor}

    def _apply(self, step: int) -> None:
        for group, rate in zip(self.optimizer.param_groups, self.rates(step).values(), strict=True):
            group["lr"] = rate
        if self.puzzle_optimizer is not None:
            self.puzzle_optimizer.lr = self._rate(step, self.config.puzzle_emb_lr)
            ids, grad = (torch.cat(parts) for parts in zip(*self._puzzle_rows, strict=True))
            self._puzzle_rows.clear()
            if self.world > 1:
                ids, grad = gather(ids), gather(grad)
            self.puzzle_optimizer.step(ids, grad)
        self.optimizer.step()
        self.optimizer.zero_grad()

    # --- health ----------------------------------------------------------------------------------

    def weights_are_finite(self) -> bool:
        """Whether every stored weight is a number; one host synchronisation."""
        values = [
            v for v in self.model.state_dict().values() if v.is_floating_point() and v.numel()
        ]
        largest = torch._foreach_norm(values, ord=float("inf"))
        return bool(torch.stack([v.float() for v in largest]).isfinite().all())


def _freeze(params: list[nn.Parameter], *, frozen: bool) -> None:
    for p in params:
        p.requires_grad_(not frozen)
