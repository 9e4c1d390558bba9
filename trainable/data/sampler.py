"""The training order: groups by permuted epochs, one puzzle of each, its rows without replacement.

By default every epoch has a generator derived from the trial's seed, and the rows are one stream
that batches cut: rows that do not fit into a batch open the next one. The n-th row is then the same
for every batch size and evaluation interval, so that arms of one seed are paired by sample index.

``legacy`` has one generator per *iteration* of ``epochs_per_iter`` epochs, Philox seeded with
seed + i, and draws in the published loaders' order: an iteration's last, incomplete batch is
dropped, and so are rows of a puzzle that do not fit into a batch.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from trainable.data.batches import Batch, Row
from trainable.errors import CheckpointError, ConfigError
from trainable.random import numpy_generator

if TYPE_CHECKING:
    from trainable.data.dataset import ArcData


class TrainSampler(Iterator[Batch]):
    """Endless training batches with a position that can be saved and restored bit for bit.

    Args:
        data: the data set; its train groups are sampled.
        batch_size: rows of the global batch.
        epochs_per_iter: epochs of one iteration (the evaluation interval).

    Raises `ConfigError` if an iteration cannot fill one batch.

    >>> sampler = data.train_sampler(32, epochs_per_iter=10)   # doctest: +SKIP
    >>> batch = next(sampler)                                   # doctest: +SKIP
    """

    def __init__(self, data: ArcData, batch_size: int, *, epochs_per_iter: int = 1) -> None:
        self._data = data
        self._groups = [group for group in data.train_groups if group.rows]
        self.batch_size = batch_size
        self.epochs_per_iter = epochs_per_iter
        self._legacy = data.config.stream == "legacy"
        rows = sum(len(group.rows) for group in self._groups) * epochs_per_iter
        if batch_size < 1 or epochs_per_iter < 1 or rows < batch_size:
            raise ConfigError(
                f"an iteration of {epochs_per_iter} epochs over {len(self._groups)} puzzles has "
                f"{rows} rows, too few for a batch of {batch_size}: lower global_batch_size or "
                f"raise eval_interval"
            )
        self._left: list[Row] = []
        self._begin(0)

    def _begin(self, chunk: int) -> None:
        # a chunk is what one generator serves: an epoch, or in `legacy` an iteration
        self._chunk = chunk
        self._position = 0
        count = len(self._groups)
        kind = np.int32
        if self._legacy:
            seed = self._data.seed + chunk + 1
            self._rng = np.random.Generator(np.random.Philox(seed=seed))
            epochs = [self._rng.permutation(count) for _ in range(self.epochs_per_iter)]
            self._order: NDArray[np.int32] = np.concatenate(epochs).astype(kind)
        else:
            self._rng = numpy_generator(self._data.seed, "order", chunk)
            self._order = self._rng.permutation(count).astype(kind)

    @property
    def epoch(self) -> float:
        """Passes over the groups so far, counting groups whose rows were dropped."""
        per_chunk = self.epochs_per_iter if self._legacy else 1
        return self._chunk * per_chunk + self._position / len(self._groups)

    def __next__(self) -> Batch:
        return self.next_batch()

    def next_batch(self, *, rank: int = 0, world: int = 1) -> Batch:
        """The next global batch, of which only this rank's rows are built.

        Every rank makes the same draws. Raises `ConfigError` if the rows do not divide evenly.
        """
        if self.batch_size % world:
            raise ConfigError(
                f"global_batch_size {self.batch_size} does not divide by {world} workers: "
                f"choose a multiple"
            )
        share = self.batch_size // world
        return self._data.build(self.next_rows()[rank * share : (rank + 1) * share])

    def next_rows(self) -> list[Row]:
        """The rows of the next global batch."""
        rows, self._left = self._left[: self.batch_size], self._left[self.batch_size :]
        while len(rows) < self.batch_size:
            if self._position == len(self._order):
                if self._legacy:
                    rows = []  # end of an iteration: an incomplete batch is dropped
                self._begin(self._chunk + 1)
            group = self._groups[self._order[self._position]]
            self._position += 1
            free = self.batch_size - len(rows)
            augmentation, chosen = self._draw(len(group.augmentations), len(group.rows), free)
            drawn = [Row(group, augmentation, group.rows[i]) for i in chosen]
            rows.extend(drawn[:free])
            self._left = drawn[free:]
        return rows

    def _draw(self, augmentations: int, available: int, free: int) -> tuple[int, list[int]]:
        """One augmentation, and all its rows (`legacy`: at most `free`), in random order."""
        if self._legacy:
            augmentation = int(self._rng.integers(0, augmentations))
            take = min(available, free)
            return augmentation, self._rng.choice(available, take, replace=False).tolist()
        if available == 1:
            return int(self._rng.random() * augmentations), [0]
        uniform = self._rng.random(1 + available)
        return int(uniform[0] * augmentations), uniform[1:].argsort().tolist()

    # Position

    def state(self) -> dict[str, Any]:
        """The position as plain numbers: chunk, place in it, rows left, the generator's state."""
        raw = self._rng.bit_generator.state
        return {
            "batch_size": self.batch_size,
            "epochs_per_iter": self.epochs_per_iter,
            "groups": len(self._groups),
            "chunk": self._chunk,
            "position": self._position,
            "left": [[row.augmentation, row.pair] for row in self._left],
            "counter": [int(word) for word in raw["state"]["counter"]],
            "key": [int(word) for word in raw["state"]["key"]],
            "buffer": [int(word) for word in raw["buffer"]],
            "buffer_pos": int(raw["buffer_pos"]),
            "has_uint32": int(raw["has_uint32"]),
            "uinteger": int(raw["uinteger"]),
        }

    def restore(self, state: Mapping[str, Any]) -> None:
        """Continue where `state` was taken. Raises `CheckpointError` for another data set."""
        here = self.state()
        for name in ("batch_size", "epochs_per_iter", "groups"):
            if state.get(name) != here[name]:
                raise CheckpointError(
                    f"the checkpoint's sampler has {name} {state.get(name)}, this run "
                    f"{here[name]}: resume with the configuration that wrote it"
                )
        self._begin(int(state["chunk"]))
        self._position = int(state["position"])
        last = self._groups[self._order[self._position - 1]]  # rows left over are of one puzzle
        self._left = [Row(last, int(a), int(pair)) for a, pair in state["left"]]
        self._rng.bit_generator.state = {
            "bit_generator": "Philox",
            "state": {
                "counter": np.asarray(state["counter"], np.uint64),
                "key": np.asarray(state["key"], np.uint64),
            },
            "buffer": np.asarray(state["buffer"], np.uint64),
            "buffer_pos": int(state["buffer_pos"]),
            "has_uint32": int(state["has_uint32"]),
            "uinteger": int(state["uinteger"]),
        }
