"""Puzzles for a finished model: evaluation groups without a training split.

An encoder answers for any puzzle; a TRM only for identifiers that its puzzle table has.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from trainable.config import DataConfig
from trainable.data.augment import (
    SEPARATOR,
    AugmentationTable,
    draw_augmentations,
    parse_identifier,
    table_of,
)
from trainable.data.batches import CanvasKind
from trainable.data.dataset import ArcData, IdentifierNames, Kind, builder_order, load_subset
from trainable.data.grids import NUM_COLOURS
from trainable.data.sources import Puzzle, content_hash
from trainable.errors import DataError


def select_puzzles(config: DataConfig, subset: str, groups: int | None) -> list[Puzzle]:
    """The first `groups` puzzles of a subset (None: all), as a trial of `config` selects them.

    Its order, and its limit on the side of a grid. Raises `DataError` where none is left.
    """
    puzzles = load_subset(config, subset)
    if config.shuffle_groups:
        puzzles = builder_order(puzzles)
    puzzles = [puzzle for puzzle in puzzles if puzzle.max_side() <= config.max_grid_side][:groups]
    if not puzzles:
        raise DataError(
            f"no puzzle of {subset!r} has grids of at most {config.max_grid_side}: choose another "
            f"--subset"
        )
    return puzzles


class HeldOutData(ArcData):
    """The evaluation side of `ArcData` for given puzzles.

    Args:
        puzzles: what is evaluated, in this order; all of one subset.
        kind, canvas: of the model.
        num_aug: augmentations voted over beside the original.
        max_demos: demonstration slots of an encoder's batch; further demonstrations are not shown.
        seed: of the augmentations: a trial's seed gives the ones it evaluated with.
        identifiers: names by row of a TRM's puzzle table. Its augmentations are the trained ones.

    ``missing`` lists the puzzles that the table does not know: they are not scheduled.

    Raises `DataError` without puzzles, for a TRM without names, or one that knows none of them.
    """

    def __init__(
        self,
        puzzles: Sequence[Puzzle],
        *,
        kind: Kind,
        canvas: CanvasKind,
        num_aug: int,
        max_demos: int = 10,
        seed: int = 0,
        identifiers: Sequence[str] | None = None,
    ) -> None:
        if not puzzles:
            raise DataError("no puzzle to evaluate: choose another --subset or raise --groups")
        subset = puzzles[0].subset
        self.config = DataConfig(
            train_subsets=(subset,), eval_subset=subset, eval_num_aug=num_aug, max_demos=max_demos
        )
        self.kind, self.canvas, self.seed = kind, canvas, seed
        self.eval_num_aug = num_aug
        self.train_groups, self.eval_groups = [], []
        self.train_ids = ()
        self.missing: tuple[str, ...] = ()
        if kind == "trm":
            self._take_named(puzzles, num_aug, identifiers)
        else:
            self._draw(puzzles, num_aug)
        evaluated = [group.puzzle for group in self.eval_groups]
        self.eval_ids = tuple(puzzle.id for puzzle in evaluated)
        self.data_hash = content_hash([("eval", evaluated)])
        self.exposure = {"trained": [], "trained_demos": [], "evaluated": list(self.eval_ids)}

    def _draw(self, puzzles: Sequence[Puzzle], num_aug: int) -> None:
        """Identifiers of their own, augmentations from each puzzle's stream."""
        first: list[int] = []
        named: list[tuple[str, AugmentationTable]] = []
        following = 1
        for index, puzzle in enumerate(puzzles):
            table = draw_augmentations(puzzle, num_aug, seed=self.seed)
            first.append(following)
            named.append((puzzle.id, table))
            self.eval_groups.append(self._group(puzzle, index, following, table, "all"))
            following += len(table)
        self.num_puzzle_identifiers = following
        self.identifier_names = IdentifierNames(first, named)

    def _take_named(
        self, puzzles: Sequence[Puzzle], num_aug: int, identifiers: Sequence[str] | None
    ) -> None:
        """Identifiers and augmentations that a TRM's puzzle table has been trained on."""
        if identifiers is None:
            raise DataError(
                "nothing tells which puzzle each row of the TRM's puzzle table stands for: put "
                "the data's identifiers.json beside the checkpoint"
            )
        names = list(identifiers)
        row_of = {name: row for row, name in enumerate(names) if row and SEPARATOR not in name}
        known = [puzzle for puzzle in puzzles if puzzle.id in row_of]
        self.missing = tuple(puzzle.id for puzzle in puzzles if puzzle.id not in row_of)
        if not known:
            raise DataError(
                f"the TRM has no identifier of puzzle {puzzles[0].id!r}"
                f"{f' nor of {len(puzzles) - 1} others' if len(puzzles) > 1 else ''}: it can "
                f"answer only for puzzles it was trained on"
            )
        most = 0
        for index, puzzle in enumerate(known):
            row = row_of[puzzle.id]
            last = row + 1
            while last < len(names) and names[last].startswith(puzzle.id + SEPARATOR):
                last += 1
            found = [parse_identifier(name)[1] for name in names[row + 1 : last][:num_aug]]
            most = max(most, len(found))
            table = table_of(
                np.asarray([a.dihedral for a in found], np.uint8),
                np.asarray([a.colours for a in found], np.uint8).reshape(-1, NUM_COLOURS),
            )
            self.eval_groups.append(self._group(puzzle, index, row, table, "queries"))
        self.eval_num_aug = min(num_aug, most)
        self.num_puzzle_identifiers = len(names)
        self.identifier_names = names
