"""Random numbers by purpose: every generator of a trial is derived from its seed and a name.

A seed is the SHA-256 of (trial seed, purpose...), so that neighbouring trial seeds share no stream
and a new consumer does not shift the draws of an old one. Draws for rows are made for the *global*
batch and sliced by rank: one worker and two see the same numbers.
"""

from __future__ import annotations

import hashlib

import numpy as np
import torch
from torch import Tensor


def derive_seed(seed: int, *purpose: str | int) -> int:
    """A 63-bit seed for ``purpose`` (for example ``"augment", "007bbfb7"``)."""
    text = "\x1f".join([str(seed), *(str(part) for part in purpose)])
    digest = hashlib.sha256(text.encode()).digest()
    return int.from_bytes(digest[:8], "big") >> 1


def numpy_generator(seed: int, *purpose: str | int) -> np.random.Generator:
    """NumPy generator over Philox, keyed by `derive_seed`."""
    return np.random.Generator(np.random.Philox(key=derive_seed(seed, *purpose)))


def torch_generator(
    seed: int, *purpose: str | int, device: str | torch.device = "cpu"
) -> torch.Generator:
    """Torch generator on ``device``, seeded by `derive_seed`."""
    return torch.Generator(device=device).manual_seed(derive_seed(seed, *purpose))


class RowGenerator:
    """Draws for a rank's rows out of draws for the global batch.

    ``rows`` is always this rank's number of rows; ``rows * world`` rows are drawn and the
    contiguous block ``rank`` of them is returned. Every rank must hold a generator in the same
    state and make the same calls.

    Args:
        generator: the stream; None is torch's global one, so that ``torch.manual_seed`` governs.
        rank, world: this rank and the number of ranks.
        device: where to draw if ``generator`` is None (else the generator's device).

    `select` gives a view for some of a rank's rows: it draws for all of them and keeps those, so
    that a row's numbers do not depend on which others are asked for.
    """

    def __init__(
        self,
        generator: torch.Generator | None,
        *,
        rank: int = 0,
        world: int = 1,
        device: str | torch.device = "cpu",
    ) -> None:
        if not 0 <= rank < world:
            raise ValueError(f"rank {rank} is not in 0..{world - 1}: pass a rank below world")
        self.generator = generator
        self.rank = rank
        self.world = world
        self.device = generator.device if generator is not None else torch.device(device)
        self._selected: Tensor | None = None
        self._of = 0

    @classmethod
    def wrap(cls, generator: RowGenerator | torch.Generator | None) -> RowGenerator:
        """The generator itself, or a plain torch generator (None: the global one) for one rank."""
        return generator if isinstance(generator, RowGenerator) else cls(generator)

    def select(self, rows: Tensor, of: int) -> RowGenerator:
        """The same stream for the rows `rows` (n) out of a rank's `of` rows."""
        view = RowGenerator(self.generator, rank=self.rank, world=self.world, device=self.device)
        rows = rows.to(self.device)
        view._selected = rows if self._selected is None else self._selected[rows]
        view._of = of if self._selected is None else self._of
        return view

    def fork(self) -> RowGenerator:
        """A stream of its own: this one moves by one draw, however much is drawn from that."""
        seed = int(torch.randint(2**62, (), generator=self.generator, device=self.device))
        own = torch.Generator(device=self.device).manual_seed(seed)
        fork = RowGenerator(own, rank=self.rank, world=self.world)
        fork._selected, fork._of = self._selected, self._of
        return fork

    def rand(self, rows: int, *shape: int) -> Tensor:
        """Uniform in [0, 1): (rows, *shape) float32."""
        size = (self._drawn(rows), *shape)
        return self._mine(
            torch.rand(size, generator=self.generator, device=self.device, dtype=torch.float32)
        )

    def randn(self, rows: int, *shape: int) -> Tensor:
        """Standard normal: (rows, *shape) float32."""
        size = (self._drawn(rows), *shape)
        return self._mine(
            torch.randn(size, generator=self.generator, device=self.device, dtype=torch.float32)
        )

    def randint(self, low: int, high: int, rows: int) -> Tensor:
        """Uniform integers in low … high − 1: (rows,) int64."""
        size = (self._drawn(rows),)
        return self._mine(
            torch.randint(low, high, size, generator=self.generator, device=self.device)
        )

    def _drawn(self, rows: int) -> int:
        """Rows to draw for, over all ranks, when a caller asks for `rows`."""
        if self._selected is None:
            return rows * self.world
        assert rows == self._selected.shape[0], "a view draws for exactly its own rows"
        return self._of * self.world

    def _mine(self, drawn: Tensor) -> Tensor:
        rows = drawn.shape[0] // self.world
        block = drawn[self.rank * rows : (self.rank + 1) * rows]
        return block if self._selected is None else block[self._selected]

    def get_state(self) -> Tensor:
        """The stream's state, a uint8 tensor on the CPU."""
        if self.generator is not None:
            return self.generator.get_state()
        if self.device.type == "cuda":
            return torch.cuda.get_rng_state(self.device)
        return torch.get_rng_state()

    def set_state(self, state: Tensor) -> None:
        """Continue where `get_state` was taken."""
        if self.generator is not None:
            self.generator.set_state(state)
        elif self.device.type == "cuda":
            torch.cuda.set_rng_state(state, self.device)
        else:
            torch.set_rng_state(state)
