"""TRM and ETRM with adaptive computation time (ACT): one ACT step per call, rows halt on their own.

A row that has halted takes the next batch's data and starts from the initial states; the other rows
keep their data and ignore the new batch. Gradients never cross ACT steps.

Shape legend: B rows, K demonstration slots, S cells, P prefix tokens, D width, N packed tokens,
M packed cells, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from trainable.config import ModelConfig
from trainable.data.canvas import canvas_from_tokens
from trainable.errors import DataError
from trainable.models.carry import Batch, Carry, InnerCarry, Outputs, PackedLogits
from trainable.models.encoders import DemonstrationEncoder, EncoderOutput, build_encoder
from trainable.models.encoders.base import State
from trainable.models.encoding import detached_state, encode, encode_step
from trainable.models.inner import Inner, Rope
from trainable.models.layout import TokenLayout, canvas_layout, full_layout
from trainable.models.transfer import Flags, HostedBatch, merged, upload
from trainable.random import RowGenerator

IGNORE_LABEL = -100
FIRST_COLOUR = 2


def labels_on_canvas(labels: Tensor, canvas: Tensor, side: int) -> tuple[Tensor, Tensor]:
    """Labels (B, S) with −100 outside each row's rectangle, and which rows' colours lie inside."""
    top, left, height, width = canvas.long().T[:, :, None]
    at = torch.arange(side, device=labels.device)
    rows = (at >= top) & (at < top + height)
    columns = (at >= left) & (at < left + width)
    inside = (rows[:, :, None] & columns[:, None, :]).flatten(1)
    fits = ~((labels >= FIRST_COLOUR) & ~inside).any(dim=1)
    return torch.where(inside, labels, IGNORE_LABEL), fits


class RecursiveModel(nn.Module):
    """TRM (`kind` "trm") or ETRM ("etrm"): the recursion, its prefix source, and halting."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.config = config
        self.inner = Inner(config)
        self.encoder: DemonstrationEncoder | None = None
        if config.kind != "trm":
            self.encoder = build_encoder(config)

    # --- carry -----------------------------------------------------------------------------------

    def initial_carry(self, batch: Mapping[str, Tensor]) -> Carry:
        """All rows halted: the first call takes the whole batch."""
        rows, device = batch["inputs"].shape[0], batch["inputs"].device
        empty = torch.zeros(
            rows, self.inner.length, self.config.hidden_size, dtype=self.inner.dtype, device=device
        )
        data = {name: torch.zeros_like(value) for name, value in batch.items()}
        if self.config.canvas == "demos":
            data |= {
                "canvas": torch.zeros(rows, 4, dtype=torch.int16, device=device),
                "fits": torch.zeros(rows, dtype=torch.bool, device=device),
            }
        return Carry(
            inner=InnerCarry(empty, empty, None),
            steps=torch.zeros(rows, dtype=torch.int32, device=device),
            halted=torch.ones(rows, dtype=torch.bool, device=device),
            current_data=data,
            host=batch.host if isinstance(batch, HostedBatch) else None,
            flags=Flags(torch.ones(rows, dtype=torch.bool)) if device.type == "cuda" else None,
        )

    def _next_data(self, carry: Carry, batch: Mapping[str, Tensor]) -> Batch:
        offered = dict(batch)
        if self.config.canvas == "demos" and ("canvas" not in offered or "fits" not in offered):
            offered |= self._derive_canvas(offered)
        reset = carry.halted
        missing = offered.keys() ^ carry.current_data.keys()
        if missing:
            raise DataError(
                f"batch and carry differ in {sorted(missing)}: start from initial_carry(batch)"
            )
        return {
            name: torch.where(
                reset.view(-1, *[1] * (value.dim() - 1)), value, carry.current_data[name]
            )
            for name, value in offered.items()
        }

    def _next_host(self, carry: Carry, batch: Mapping[str, Tensor]) -> Batch | None:
        """What the host knows of the rows of this step; None where it does not follow them."""
        if carry.host is None or not isinstance(batch, HostedBatch):
            return None
        return merged(carry.halted_on_host(), batch.host, carry.host)

    def _derive_canvas(self, batch: Batch) -> Batch:
        if "demo_inputs" not in batch:
            raise DataError(
                "canvas 'demos' needs batch['canvas'] where a batch has no demonstrations (TRM): "
                "take batches from ArcData, or use canvas 'full'"
            )
        canvas = canvas_from_tokens(
            batch["inputs"], batch["demo_inputs"], batch["demo_labels"], batch["demo_mask"].bool()
        )
        labels, fits = labels_on_canvas(batch["labels"], canvas, self.config.grid_side)
        return {"canvas": canvas, "labels": labels, "fits": fits}

    def layout(
        self, data: Mapping[str, Tensor], host: Mapping[str, Tensor] | None = None
    ) -> TokenLayout:
        """Packed layout of the rows' tokens, from `host` where the host knows their canvas."""
        device = data["inputs"].device
        if self.config.canvas == "full":
            return full_layout(data["inputs"].shape[0], self.inner.length, device)
        canvas = data["canvas"] if host is None or "canvas" not in host else host["canvas"]
        return canvas_layout(
            canvas.cpu().numpy(),
            prefix=self.config.prefix_len,
            side=self.config.grid_side,
            device=device,
        )

    def _start_states(self, carry: Carry, layout: TokenLayout) -> tuple[Tensor, Tensor]:
        """Packed states of this step: initial for rows that start, carried for the others."""
        inner, old = self.inner, carry.inner.layout
        h_init, l_init = inner.H_init.to(inner.dtype), inner.L_init.to(inner.dtype)
        if old is None:  # nothing carried yet
            shape = (layout.tokens, self.config.hidden_size)
            return h_init.expand(shape), l_init.expand(shape)
        row = layout.dense.clamp_min(0) // layout.width
        keep = ~carry.halted[row]
        if old.identity and layout.identity:
            source_H, source_L = carry.inner.packed_H, carry.inner.packed_L
        else:
            places = old.rows * old.width  # padding goes to one place behind them
            slot = torch.zeros(places + 1, dtype=torch.int64, device=row.device)
            place = torch.where(old.dense >= 0, old.dense, places)
            slot.scatter_(0, place, torch.arange(old.tokens, device=row.device))
            source = slot[layout.dense.clamp_min(0)]
            source_H, source_L = carry.inner.packed_H[source], carry.inner.packed_L[source]
            keep = keep & (layout.dense >= 0)
        return (
            torch.where(keep[:, None], source_H, h_init),
            torch.where(keep[:, None], source_L, l_init),
        )

    # --- prefix ----------------------------------------------------------------------------------

    def encode(
        self, data: Mapping[str, Tensor], generator: RowGenerator, state: State | None = None
    ) -> EncoderOutput:
        """Encode the demonstrations of every row, as `trainable.models.encoding.encode`."""
        assert self.encoder is not None
        return encode(
            self.encoder, data, generator, state=state, keep=self.config.context_positions
        )

    # --- one ACT step ----------------------------------------------------------------------------

    def forward(
        self,
        carry: Carry,
        batch: Mapping[str, Tensor],
        *,
        generator: RowGenerator | torch.Generator | None = None,
        sampling: RowGenerator | torch.Generator | None = None,
        context: Tensor | None = None,
    ) -> tuple[Carry, Outputs]:
        """One ACT step.

        Args:
            carry: from `initial_carry` or the previous call.
            batch: rows offered to halted places: `inputs`, `labels` (B, S), `puzzle_identifiers`
                (B) and, for an encoder, `demo_inputs`, `demo_labels` (B, K, S), `demo_mask` (B, K).
            generator: draws of halting exploration (default: torch's global generator).
            sampling: draws of variational encoders (default: `generator`).
            context: (B, P, D) to use in place of the encoder's (evaluation, controls).

        Returns:
            The new carry and `logits` (B, S, V), `q_halt_logits`, `q_continue_logits` (B); with an
            encoder also `context` (B, P, D) and, where defined, `kl`, `kl_rows`, `mu`, `logvar`.
        """
        halting = RowGenerator.wrap(generator)
        noise = halting if sampling is None else RowGenerator.wrap(sampling)
        inner = self.inner
        data = self._next_data(carry, batch)
        host = self._next_host(carry, batch)
        steps = torch.where(carry.halted, 0, carry.steps)

        encoded = None
        if self.encoder is None:
            prefix = inner.puzzle_prefix(data["puzzle_identifiers"])
        elif context is not None:
            prefix = context
        else:
            encoded = encode_step(self, carry, data, noise, host)
            prefix = encoded.context

        unchanged = carry.inner.layout is not None and not bool(carry.halted_on_host().any())
        layout = carry.inner.layout if unchanged else self.layout(data, host)
        assert layout is not None
        if unchanged:
            z_H, z_L = carry.inner.packed_H, carry.inner.packed_L
        else:
            z_H, z_L = self._start_states(carry, layout)
        rope = inner.rope(layout)
        x = inner.input_embedding(data["inputs"], prefix, layout)
        z_H, z_L = inner.recur(z_H, z_L, x, layout, rope)

        outputs = self._heads(z_H, layout)
        if encoded is not None:
            outputs |= encoded.as_outputs()
        new_inner = InnerCarry(z_H.detach(), z_L.detach(), layout)
        steps = steps + 1
        halted = self._halt(steps, outputs, halting)
        if self.training and not self.config.no_ACT_continue:
            outputs["target_q_continue"] = self._continue_target(steps, new_inner, x, layout, rope)
        return Carry(
            new_inner,
            steps,
            halted,
            data,
            encoded=None if self.training else encoded,
            context=prefix.detach() if self._stores_context else None,
            encoder_state=detached_state(encoded, carry.encoder_state),
            host=host,
        ), outputs

    def _heads(self, z_H: Tensor, layout: TokenLayout) -> Outputs:
        inner, cells = self.inner, self.config.seq_len
        prefix = self.config.prefix_len
        if layout.identity:
            states = z_H.view(layout.rows, layout.width, -1)[:, prefix:]
            outputs = Outputs(logits=inner.lm_head(states))
        else:
            assert layout.cells is not None
            packed, row, cell = layout.cells
            logits = inner.lm_head(z_H[packed])
            outputs = Outputs(PackedLogits(logits, row, cell, layout.rows, cells))
        q = inner.q_logits(z_H, layout)
        outputs["q_halt_logits"], outputs["q_continue_logits"] = q[:, 0], q[:, 1]
        return outputs

    def _halt(self, steps: Tensor, outputs: Outputs, generator: RowGenerator) -> Tensor:
        """(B) bool: rows that end here.

        Evaluation always runs `halt_max_steps`; training in `online` always `num_act_steps`.
        """
        config = self.config
        last = self._is_last(steps)
        if not self.training or config.halt_max_steps == 1 or config.encode_mode == "online":
            return last
        q_halt = outputs["q_halt_logits"].detach()
        if config.no_ACT_continue:
            stop = last | (q_halt > 0)
        else:
            stop = last | (q_halt > outputs["q_continue_logits"].detach())
        rows, device = steps.shape[0], steps.device
        explore = upload(generator.rand(rows), device) < config.halt_exploration_prob
        least = upload(generator.randint(2, config.halt_max_steps + 1, rows), device)
        halted: Tensor = stop & (steps >= torch.where(explore, least, 0))
        return halted

    def _is_last(self, steps: Tensor) -> Tensor:
        """(B) bool: rows that have spent their ACT steps."""
        fixed = self.training and self.config.encode_mode == "online"
        return steps >= (self.config.num_act_steps if fixed else self.config.halt_max_steps)

    @property
    def _stores_context(self) -> bool:
        return self.training and self.config.encode_mode == "cached" and self.encoder is not None

    @torch.no_grad()
    def _continue_target(
        self, steps: Tensor, states: InnerCarry, x: Tensor, layout: TokenLayout, rope: Rope | None
    ) -> Tensor:
        """Bootstrapped target (B) of the continue head: the value of one more step."""
        z_H, _ = self.inner.recur(states.packed_H, states.packed_L, x, layout, rope)
        q = self.inner.q_logits(z_H, layout)
        last = self._is_last(steps)
        return torch.sigmoid(torch.where(last, q[:, 0], q.amax(dim=-1)))
