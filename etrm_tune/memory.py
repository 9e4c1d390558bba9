"""How much memory a trial takes: what is certain, and an estimate.

Certain is what every parameter needs: weight, gradient, two moments and a moving average, four
bytes each. The rest is an estimate from the shapes of a step: what the blocks keep for the backward
pass, and the logits in float64. It decides how many trials run at once and over how many GPUs one
is spread; only what is certain refuses a trial.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass

from trainable.config import ModelConfig, TrialConfig
from trainable.flops import count_parameters

PER_PARAMETER = 20
"""Bytes: weight, gradient, two moments, moving average, in float32."""

HOST_BYTES = 1_400_000_000
"""Of a trial beside its tensors: worker, controller, queue and their imports (two trials on CPUs
took 4.3 GB with Ray's own processes, `docs/log.md`)."""

GPU_HOST_BYTES = 2_500_000_000
"""The same where CUDA's libraries are loaded."""

GPU_CONTEXT_BYTES = 600 * 2**20
"""A process's CUDA context and workspaces."""

CELLS, PAIR_CELLS, PAIRS = 219, 283, 3.3
"""Of ARC-1's training puzzles on the `demos` canvas: tokens per query and per pair, pairs per
puzzle."""

KEPT = 16
"""Values that a block keeps per token and unit of width for its backward pass."""

OVERHEAD = 1.3
"""Of the allocator, and of what lives between a forward and its backward pass."""


@dataclass(frozen=True)
class Memory:
    """Bytes of one worker's tensors."""

    certain: int
    """Of the parameters alone."""
    estimate: int
    """With what a step keeps."""


def tensors(config: TrialConfig, *, workers: int = 1) -> Memory:
    """Memory of one worker's tensors, on its GPU or in its process."""
    model = config.model
    certain = PER_PARAMETER * _parameters(model)
    rows = max(1, config.global_batch_size // workers)
    if model.micro_batch_size is not None:
        rows = min(rows, model.micro_batch_size)
    size = 2 if model.forward_dtype == "bfloat16" else 4
    cells = _cells(model, config.data.max_grid_side, CELLS)
    blocks = (model.L_cycles + 1) * model.L_layers  # of the last cycle, which has a gradient
    kept = rows * (cells + model.prefix_len) * blocks * KEPT * model.hidden_size * size
    if model.kind != "trm":
        pairs = config.data.max_demos if model.parity else min(PAIRS, config.data.max_demos)
        length = 2 * _cells(model, config.data.max_grid_side, PAIR_CELLS // 2)
        layers = model.encoder_num_layers
        kept += rows * pairs * length * layers * KEPT * model.hidden_size * size
    logits = 4 * 8 * rows * cells * model.vocab_size
    return Memory(certain, int(certain + OVERHEAD * (kept + logits)))


@functools.cache
def _parameters(model: ModelConfig) -> int:
    counted = count_parameters(model)
    return counted.decoder + counted.encoder


def on_host(config: TrialConfig, *, workers: int = 1, use_gpu: bool = False) -> int:
    """Estimated bytes of main memory of one trial, all its processes."""
    if use_gpu:
        return workers * GPU_HOST_BYTES
    return HOST_BYTES + workers * tensors(config, workers=workers).estimate


def on_gpu(config: TrialConfig, *, workers: int = 1) -> int:
    """Estimated bytes of one worker on its GPU."""
    return GPU_CONTEXT_BYTES + tensors(config, workers=workers).estimate


def _cells(model: ModelConfig, side: int, mean: int) -> float:
    """Tokens of one grid: all on the `full` canvas, else about the mean, less for small puzzles."""
    return model.seq_len if model.canvas == "full" or model.parity else min(mean, 0.83 * side**2)
