"""How much work a trial is: parameters, and floating point operations counted from shapes.

A matrix product of (m, k) and (k, n) counts 2·m·k·n; attention counts its two products; everything
else is left out, as it is in torch's own counter. A backward pass costs twice its forward
(attention 2.5 times, since scores are computed again). Token counts are measured on batches of the
trial's own data, padding of the packed layout included; the rest follows from the weights' shapes.

Shape legend: B rows, N packed tokens, L tokens of a row, U distinct demonstration sets, K slots,
M demonstration pairs, T context tokens, D width.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import lru_cache
from itertools import islice

import numpy as np
import torch

from trainable.config import ModelConfig, TrialConfig
from trainable.data import ArcData, control_batches
from trainable.data.batches import Batch
from trainable.encoder_options import RECURRENT_ENCODERS
from trainable.models.act import RecursiveModel
from trainable.models.layout import TokenLayout, canvas_layout, ragged_layout

SAMPLED_BATCHES = 4
"""Batches over which token counts are averaged."""

CONTROL_PASSES = 4
"""Full evaluations of the training puzzles at the end of an ETRM trial."""

CPU = torch.device("cpu")


@dataclass(frozen=True)
class Tokens:
    """Mean sizes of a batch of `rows` rows; `squares` and `pair_squares` are sums of L²."""

    rows: float
    tokens: float
    squares: float
    cells: float
    """Cells that get logits."""
    sets: float = 0.0
    slots: float = 0.0
    pairs: float = 0.0
    pair_tokens: float = 0.0
    pair_squares: float = 0.0


@dataclass(frozen=True)
class Parameters:
    """Trained parameters, without the table of puzzle embeddings."""

    decoder: int
    encoder: int


@dataclass(frozen=True)
class Work:
    """What one trial costs.

    `step` operations of one training step, `steps` of them; `evaluation` operations of everything
    that is not training: held-out evaluations and demonstration controls.
    """

    steps: int
    step: float
    evaluation: float
    parameters: Parameters

    @property
    def total(self) -> float:
        """Operations of the whole trial."""
        return self.steps * self.step + self.evaluation

    @property
    def step_equivalents(self) -> float:
        """The trial's length in training steps that cost as much, evaluations included."""
        return self.total / self.step


@lru_cache(maxsize=64)
def _weights(config: ModelConfig) -> tuple[tuple[str, tuple[int, ...]], ...]:
    """Names and shapes of a model's parameters; nothing is allocated."""
    with torch.device("meta"):
        model = RecursiveModel(config)
    return tuple((name, tuple(p.shape)) for name, p in model.named_parameters())


def count_parameters(config: ModelConfig) -> Parameters:
    """Parameters of decoder and encoder."""
    sizes = {"inner": 0, "encoder": 0}
    for name, shape in _weights(config):
        sizes[name.partition(".")[0]] += math.prod(shape)
    return Parameters(sizes["inner"], sizes["encoder"])


# --- what a batch holds --------------------------------------------------------------------------


def batch_tokens(config: ModelConfig, batch: Batch) -> Tokens:
    """Sizes of one batch as the model packs it."""
    rows = len(batch["inputs"])
    if config.canvas == "full":
        length = config.prefix_len + config.seq_len
        tokens, squares, cells = rows * length, rows * length**2, rows * config.seq_len
    else:
        canvas = batch["canvas"].astype(np.int64)
        layout = canvas_layout(canvas, prefix=config.prefix_len, side=config.grid_side, device=CPU)
        tokens, squares = _packed(layout)
        cells = int((canvas[:, 2] * canvas[:, 3]).sum())
    if config.kind == "trm":
        return Tokens(rows, tokens, squares, cells)
    demos = np.concatenate([batch["demo_inputs"], batch["demo_labels"]], axis=2)
    mask = batch["demo_mask"]
    if not config.parity:
        _, first = np.unique(batch["demo_key"], return_index=True)
        demos, mask = demos[first], mask[first]
    sets, slots = mask.shape
    cls = _has_class_token(config)
    if config.parity:
        pairs, length = sets * slots, demos.shape[2] + cls
        pair_tokens, pair_squares = pairs * length, pairs * length**2
    else:
        lengths = (demos[mask] != 0).sum(1).astype(np.int64) + cls
        pairs, width = len(lengths), demos.shape[2] + cls
        places = np.concatenate([np.arange(n) for n in lengths]) if pairs else lengths
        layout = ragged_layout(lengths, places, width=width, device=CPU)
        pair_tokens, pair_squares = _packed(layout)
    return Tokens(
        rows, tokens, squares, cells, sets, sets * slots, pairs, pair_tokens, pair_squares
    )


def _packed(layout: TokenLayout) -> tuple[int, int]:
    squares = sum(bucket.rows * bucket.length**2 for bucket in layout.buckets)
    return layout.tokens, squares


def _has_class_token(config: ModelConfig) -> bool:
    return any(name.endswith("cls_token") for name, _ in _weights(config))


def mean_tokens(config: ModelConfig, batches: Iterable[Batch]) -> Tokens:
    """Mean sizes over batches of the data; zeros without any."""
    found = [batch_tokens(config, batch) for batch in batches]
    names = Tokens.__dataclass_fields__
    return Tokens(**{n: sum(getattr(t, n) for t in found) / max(1, len(found)) for n in names})


# --- what the model computes ---------------------------------------------------------------------

_TOKEN_BLOCK = re.compile(r"grid_encoder\.layers\.\d+\.")


def _decoder_forward(config: ModelConfig, t: Tokens) -> tuple[float, float, float]:
    """Operations of one stack call without and with attention apart, and of the heads."""
    linear = heads = 0.0
    for name, shape in _weights(config):
        size = 2.0 * math.prod(shape)
        if ".mlp_t." in name:
            linear += size * t.rows * config.hidden_size
        elif name.startswith("inner.L_level.") and len(shape) == 2:
            linear += size * t.tokens
        elif name == "inner.lm_head.weight":
            heads += size * t.cells
        elif name == "inner.q_head.weight":
            heads += size * t.rows
    attention = 0.0 if config.mlp_t else 4.0 * config.L_layers * config.hidden_size * t.squares
    return linear, attention, heads


def _encoder_forward(config: ModelConfig, t: Tokens) -> tuple[float, float]:
    """Operations of encoding a batch: (matrix products, attention)."""
    context = config.prefix_len
    linear = attention = 0.0
    for name, shape in _weights(config):
        if not name.startswith("encoder.") or not name.endswith("weight") or len(shape) != 2:
            continue
        linear += 2.0 * math.prod(shape) * _applications(config, name, t)
        if name.endswith("o_proj.weight"):
            if _TOKEN_BLOCK.search(name):
                attention += 4.0 * shape[1] * t.pair_squares
            elif "pool_o_proj" in name:
                attention += 4.0 * shape[1] * t.pair_tokens
            else:
                attention += 4.0 * shape[1] * context * t.slots
    return linear, attention


def _applications(config: ModelConfig, name: str, t: Tokens) -> float:
    """How many vectors a weight of the encoder is applied to."""
    if "embed" in name:
        return 0.0
    if _TOKEN_BLOCK.search(name) or re.search(r"pool_(k|v|weight)_proj", name):
        return t.pair_tokens
    if "pool_q_proj" in name:
        return 1.0
    if "pool" in name:
        return t.pairs
    if re.search(r"\.(k|v|mu|logvar)_proj\.", name):
        return t.slots
    if re.search(r"\.(output|decode)_proj\.", name):
        return t.rows
    if "encoder.L_level." in name:
        # The last cycle alone has a backward pass, which costs twice its forward.
        cycles = 1 + (config.encoder_h_cycles - 1) / 3
        return t.rows * config.prefix_len * cycles * (config.encoder_l_cycles + 1)
    recurrent = config.encoder_name in RECURRENT_ENCODERS
    return (t.rows if recurrent else t.sets) * config.prefix_len


def _with_backward(linear: float, attention: float, *, weights: bool = True) -> float:
    """Forward and backward; without `weights` only gradients of activations are computed."""
    return linear * (3.0 if weights else 2.0) + attention * 3.5


def step_flops(config: TrialConfig, t: Tokens) -> float:
    """Operations of one training step on a batch of sizes `t`, over all workers.

    In `online` a step is `num_act_steps` ACT steps. In `cached` the demonstrations of rows that
    begin are encoded; a row is taken to last `halt_max_steps`, the most it can.
    """
    model = config.model
    linear, attention, heads = _decoder_forward(model, t)
    calls = model.L_cycles + 1
    total = (model.H_cycles - 1) * calls * (linear + attention)
    trains_decoder = config.freeze_decoder_steps == 0
    total += _with_backward(calls * linear + heads, calls * attention, weights=trains_decoder)
    if model.kind != "trm":
        encoded = _encoder_forward(model, t)
        if model.encode_mode == "cached":
            encoded = encoded[0] / model.halt_max_steps, encoded[1] / model.halt_max_steps
        total += sum(encoded) if config.freeze_encoder else _with_backward(*encoded)
    return total * (model.num_act_steps if model.encode_mode == "online" else 1)


def evaluation_flops(model: ModelConfig, t: Tokens) -> float:
    """Operations of full ACT on a batch of sizes `t`: all steps, demonstrations encoded once (in
    `parity` at every step of `reencode`)."""
    linear, attention, heads = _decoder_forward(model, t)
    step = model.H_cycles * (model.L_cycles + 1) * (linear + attention) + heads
    encoded = 0.0 if model.kind == "trm" else sum(_encoder_forward(model, t))
    if model.parity and model.encode_mode == "reencode":
        encoded *= model.halt_max_steps
    return model.halt_max_steps * step + encoded


def trial_work(config: TrialConfig, data: ArcData) -> Work:
    """What a trial costs on its data. Draws a few batches from a sampler of its own."""
    from trainable.trial import total_steps

    model, rows = config.model, config.global_batch_size
    steps = total_steps(config, data)
    sampler = data.train_sampler(rows, epochs_per_iter=max(1, math.ceil(config.eval_interval)))
    trained = mean_tokens(model, islice(sampler, SAMPLED_BATCHES))
    size = max(rows, 64)
    evaluation = 0.0
    if data.eval_groups:
        every = max(1, round(config.eval_interval * steps / config.epochs))
        times = steps // every + (steps % every > 0)
        evaluation += times * data.num_eval_rows() * _per_row(model, data.eval_batches(size))
    if model.kind != "trm":
        queries = sum(len(g.rows) for g in data.train_groups)
        evaluation += CONTROL_PASSES * queries * _per_row(model, control_batches(data, size))
    return Work(steps, step_flops(config, trained), evaluation, count_parameters(model))


def _per_row(model: ModelConfig, batches: Iterator[Batch]) -> float:
    """Operations of evaluating one row, from the first batches."""
    tokens = mean_tokens(model, islice(batches, SAMPLED_BATCHES))
    return evaluation_flops(model, tokens) / tokens.rows if tokens.rows else 0.0
