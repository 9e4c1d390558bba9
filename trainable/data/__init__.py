"""What a trial reads: puzzles, augmentations, splits, batches."""

from trainable.data.batches import Batch, rank_slice
from trainable.data.canvas import canvas_from_tokens
from trainable.data.controls import (
    control_batches,
    other_demos,
    shuffle_demos,
    trivial_baselines,
)
from trainable.data.dataset import ArcData
from trainable.data.sampler import TrainSampler

__all__ = [
    "ArcData",
    "Batch",
    "TrainSampler",
    "canvas_from_tokens",
    "control_batches",
    "other_demos",
    "rank_slice",
    "shuffle_demos",
    "trivial_baselines",
]
