"""`recurrent_standard`, `trm_style`: encoders whose context moves along the ACT steps (ETRMTRM).

The demonstrations are encoded anew at every step; the state moves by `recurrent_blend` towards what
they ask for. The context is the new state with its gradient; what is stored is detached.

Shape legend: B rows, U sets, K slots, T context tokens, D width.
"""

from __future__ import annotations

from typing import ClassVar

import torch
from torch import Tensor

from trainable.config import ModelConfig
from trainable.models.attention import CrossAttention, rope_table
from trainable.models.encoders.base import (
    DemonstrationEncoder,
    DemoSets,
    EncoderOutput,
    State,
)
from trainable.models.encoders.grid import PooledGridEncoder
from trainable.models.inner import DTYPES, Stack, recur
from trainable.models.layers import add_rms_norm, truncated_normal_
from trainable.models.layout import full_layout
from trainable.models.mlp import SwiGLU


class _Recurrent(DemonstrationEncoder):
    """Grid encoder and the initial states named in `starts`, which are never trained."""

    recurrent: ClassVar[bool] = True
    effective: ClassVar[frozenset[str]] = PooledGridEncoder.effective | {"recurrent_blend"}
    starts: ClassVar[tuple[str, ...]]

    def __init__(self, config: ModelConfig) -> None:
        super().__init__(config)
        self.grid_encoder = PooledGridEncoder(config)
        shape = config.prefix_len, config.hidden_size
        for name in self.starts:
            self.register_buffer(name, torch.zeros(shape, dtype=DTYPES[config.forward_dtype]))

    def init_(self, name: str, generator: torch.Generator) -> None:
        """Initial states: truncated normal with standard deviation 1."""
        truncated_normal_(self.get_buffer(name), 1.0, generator)

    def initial_state(self, rows: int, device: torch.device) -> State:
        """One (rows, T, D) per name in `starts`, in the forward dtype."""
        dtype = DTYPES[self.config.forward_dtype]
        starts = (self.get_buffer(name).to(device, dtype) for name in self.starts)
        return tuple(start.expand(rows, -1, -1) for start in starts)

    def blend(self, old: Tensor, new: Tensor) -> Tensor:
        """The next state: `recurrent_blend` of the new one."""
        share = self.config.recurrent_blend
        return (1 - share) * old + share * new


class RecurrentStandard(_Recurrent):
    """The state's tokens read the demonstrations by cross-attention, then an MLP."""

    starts: ClassVar[tuple[str, ...]] = ("z_e_init",)

    def __init__(self, config: ModelConfig) -> None:
        super().__init__(config)
        self.cross_attn = CrossAttention(config.hidden_size, config.num_heads)
        self.mlp = SwiGLU(config.hidden_size, config.expansion)

    def advance(self, sets: DemoSets, state: State) -> EncoderOutput:
        """context = the new state, not normalised; pooled = its mean over tokens."""
        old, eps = state[0].detach(), self.config.rms_norm_eps
        demos, exists = sets.to_rows(self.grid_encoder(sets)), sets.to_rows(sets.mask)
        new = add_rms_norm(old, self.cross_attn(old, demos, exists), eps)
        new = add_rms_norm(new, self.mlp(new), eps)
        context = self.blend(old, new)
        return EncoderOutput(context, context.mean(1), state=(context,))


class TRMStyle(_Recurrent):
    """Two states recur over the mean of the demonstrations as in TRM, with a stack of their own."""

    effective: ClassVar[frozenset[str]] = _Recurrent.effective | {
        "encoder_h_cycles",
        "encoder_l_cycles",
        "encoder_l_layers",
    }
    starts: ClassVar[tuple[str, ...]] = ("z_e_H_init", "z_e_L_init")

    def __init__(self, config: ModelConfig) -> None:
        super().__init__(config)
        own = config.model_copy(update={"mlp_t": False, "L_layers": config.encoder_l_layers})
        self.L_level = Stack(own, config.prefix_len)
        cos, sin = rope_table(config.prefix_len, config.head_dim, config.rope_theta)
        self.cos: Tensor
        self.sin: Tensor
        self.register_buffer("cos", cos, persistent=False)
        self.register_buffer("sin", sin, persistent=False)

    def advance(self, sets: DemoSets, state: State) -> EncoderOutput:
        """context = the new z_H; pooled = its mean over tokens."""
        config = self.config
        old_H, old_L = (z.detach() for z in state)
        rows, length, width = old_H.shape
        u = sets.to_rows(sets.mean(self.grid_encoder(sets)))
        u = u[:, None].expand(-1, length, -1).reshape(rows * length, width)
        layout = full_layout(rows, length, old_H.device)
        at = layout.position
        z_H, z_L = recur(
            self.L_level,
            old_H.reshape(-1, width),
            old_L.reshape(-1, width),
            u,
            layout,
            (self.cos[at][:, None, None], self.sin[at][:, None, None]),
            H_cycles=config.encoder_h_cycles,
            L_cycles=config.encoder_l_cycles,
        )
        context = self.blend(old_H, z_H.view_as(old_H))
        new_L = self.blend(old_L, z_L.view_as(old_L))
        return EncoderOutput(context, context.mean(1), state=(context, new_L))
