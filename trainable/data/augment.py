"""Augmentations: a dihedral transform and a colour permutation, and which of them are distinct.

An augmentation is (dihedral id 0 … 7, colours (10,) with colours[0] = 0): every colour c of the
puzzle becomes colours[c], then every grid is transformed. Colours and transforms commute.

Whether two augmentations of a puzzle look the same is a question about its symmetries: applying g
or h gives equal puzzle hashes exactly if g = s·h (s first) for a symmetry s, an augmentation that
maps the puzzle's set of pairs onto itself. `symmetries` finds all of them once (mostly only the
identity); a draw is then a duplicate if the smallest code over its coset was seen. No grid is
transformed and nothing hashed per draw, and the answer is exactly that of the puzzle hash.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from trainable.data.grids import EOS, EOS_VALUE, FIRST_COLOUR, NUM_COLOURS, Grid
from trainable.data.sources import Puzzle
from trainable.errors import DataError
from trainable.random import numpy_generator

NUM_DIHEDRAL = 8
DIHEDRAL_INVERSE = (0, 3, 2, 1, 4, 5, 6, 7)
SWAPS_SIDES = (False, True, False, True, False, False, True, True)
"""Whether a transform exchanges rows and columns."""
SEPARATOR = "|||"
RETRIES = 5
"""At most this many draws per augmentation asked for (published builder)."""

Colours = NDArray[np.uint8]
IDENTITY: Colours = np.arange(NUM_COLOURS, dtype=np.uint8)


def dihedral(grid: Grid, which: int) -> Grid:
    """Transform ``which``: 0 identity, 1–3 rotations by 90° counter-clockwise, 4 mirror left-right,
    5 mirror up-down, 6 transpose, 7 rotate 90° then mirror left-right."""
    if which < 4:
        return np.rot90(grid, which)
    if which == 4:
        return np.fliplr(grid)
    if which == 5:
        return np.flipud(grid)
    return grid.T if which == 6 else np.fliplr(np.rot90(grid))


def _compositions() -> tuple[tuple[int, ...], ...]:
    probe = np.arange(6, dtype=np.uint8).reshape(2, 3)
    images = [dihedral(probe, which) for which in range(NUM_DIHEDRAL)]

    def number(grid: Grid) -> int:
        return next(i for i, image in enumerate(images) if np.array_equal(image, grid))

    return tuple(
        tuple(number(dihedral(images[first], second)) for second in range(NUM_DIHEDRAL))
        for first in range(NUM_DIHEDRAL)
    )


COMPOSE = _compositions()
"""COMPOSE[first][second]: the transform that equals ``first``, then ``second``."""


@dataclass(frozen=True, slots=True)
class Augmentation:
    """One augmentation; ``colours[c]`` is the new colour of colour c."""

    dihedral: int
    colours: tuple[int, ...]

    def apply(self, grid: Grid) -> Grid:
        """Colours first, then the transform: (rows, columns) uint8 to the same or swapped shape."""
        return dihedral(np.asarray(self.colours, np.uint8)[grid], self.dihedral)

    def invert(self, grid: Grid) -> Grid:
        """Undo `apply`."""
        back = np.argsort(np.asarray(self.colours)).astype(np.uint8)
        return back[dihedral(grid, DIHEDRAL_INVERSE[self.dihedral])]

    def name(self, puzzle: str) -> str:
        """Identifier ``<id>|||t<k>|||<ten digits>``."""
        return SEPARATOR.join([puzzle, f"t{self.dihedral}", "".join(map(str, self.colours))])


NO_AUGMENTATION = Augmentation(0, tuple(range(NUM_COLOURS)))


def parse_identifier(name: str) -> tuple[str, Augmentation]:
    """Split an identifier into the puzzle's id and its augmentation (none: the identity).

    Raises `DataError` for a name that is neither.
    """
    if SEPARATOR not in name:
        return name, NO_AUGMENTATION
    fields = name.split(SEPARATOR)
    base, transform, digits = fields[0], fields[-2], fields[-1]
    valid = (
        len(fields) > 2
        and transform in {f"t{which}" for which in range(NUM_DIHEDRAL)}
        and sorted(digits) == sorted("0123456789")
    )
    if not valid:
        raise DataError(
            f"puzzle identifier {name!r} is malformed: use <id>{SEPARATOR}t<0-7>{SEPARATOR}"
            f"<ten different digits>"
        )
    return base, Augmentation(int(transform[1:]), tuple(map(int, digits)))


@dataclass(frozen=True, slots=True, eq=False)
class AugmentationTable:
    """A puzzle's augmentations as rows; row 0 is the original.

    Attributes:
        dihedral: (A,) uint8.
        tokens: (A, 11) uint8: token of colour value 0 … 9, then of `EOS_VALUE`.
    """

    dihedral: NDArray[np.uint8]
    tokens: NDArray[np.uint8]

    def __len__(self) -> int:
        return len(self.dihedral)

    def __getitem__(self, row: int) -> Augmentation:
        colours = (self.tokens[row, :NUM_COLOURS] - FIRST_COLOUR).tolist()
        return Augmentation(int(self.dihedral[row]), tuple(colours))

    def head(self, rows: int) -> AugmentationTable:
        """The first ``rows`` augmentations (views)."""
        return AugmentationTable(self.dihedral[:rows], self.tokens[:rows])

    def name(self, puzzle: str, row: int) -> str:
        """Identifier of augmentation ``row``; the bare id for row 0."""
        return self[row].name(puzzle) if row else puzzle


def table_of(dihedrals: NDArray[np.integer], colours: NDArray[np.integer]) -> AugmentationTable:
    """The original followed by augmentations (A,) and (A, 10)."""
    count = len(dihedrals) + 1
    tokens = np.empty((count, EOS_VALUE + 1), np.uint8)
    tokens[0, :NUM_COLOURS] = IDENTITY
    tokens[1:, :NUM_COLOURS] = colours
    tokens[:, :NUM_COLOURS] += FIRST_COLOUR
    tokens[:, EOS_VALUE] = EOS
    ids = np.zeros(count, np.uint8)
    ids[1:] = dihedrals
    return AugmentationTable(ids, tokens)


# Which augmentations are the same

Symmetry = tuple[int, tuple[int, ...]]
"""A dihedral id and where each used colour goes, in the order of the used colours."""
_Form = tuple[object, ...]


def _canonical_pair(source: Grid, target: Grid) -> tuple[_Form, bytes]:
    """The pair with its colours renamed in order of appearance, and that order.

    Two pairs are equal up to a colour permutation that keeps 0 exactly if their forms are equal;
    the permutation maps the order of the one to the order of the other.
    """
    raw = source.tobytes() + target.tobytes()
    found = sorted(
        (at, colour) for colour in range(1, NUM_COLOURS) if (at := raw.find(colour)) >= 0
    )
    order = bytes(colour for _, colour in found)
    rename = bytearray(range(256))
    for new, old in enumerate(order, start=1):
        rename[old] = new
    return (source.shape, target.shape, raw.translate(bytes(rename))), order


def used_colours(puzzle: Puzzle) -> tuple[int, ...]:
    """Colours other than 0 in any of the puzzle's grids, ascending."""
    seen = set[int]()
    for pair in puzzle.pairs:
        seen.update(pair.input.tobytes(), pair.target.tobytes())
    return tuple(sorted(seen - {0}))


def symmetries(puzzle: Puzzle) -> list[Symmetry]:
    """All augmentations, on the used colours, that map the puzzle's multiset of pairs onto itself.

    The identity is always among them. Shapes are compared first, then canonical forms, and only
    then is a consistent colour permutation sought by backtracking over the pairs.
    """
    used = used_colours(puzzle)
    grids = [(pair.input, pair.target) for pair in puzzle.pairs]
    plain = [_canonical_pair(source, target) for source, target in grids]
    plain_forms = Counter(form for form, _ in plain)
    orders: dict[_Form, list[bytes]] = {}
    for form, order in plain:
        orders.setdefault(form, []).append(order)
    shapes = Counter((source.shape, target.shape) for source, target in grids)
    swapped = Counter((source.shape[::-1], target.shape[::-1]) for source, target in grids)

    found: set[Symmetry] = set()
    for which in range(NUM_DIHEDRAL):
        if which and SWAPS_SIDES[which] and shapes != swapped:
            continue
        image: list[tuple[_Form, bytes]] = []
        for source, target in grids:
            pair = _canonical_pair(dihedral(source, which), dihedral(target, which))
            if pair[0] not in plain_forms:
                break
            image.append(pair)
        else:
            if Counter(form for form, _ in image) == plain_forms:
                for colours in _colour_maps(image, orders):
                    found.add((which, tuple(colours[c] for c in used)))
    return sorted(found)


def _colour_maps(
    image: Sequence[tuple[_Form, bytes]], orders: dict[_Form, list[bytes]]
) -> list[dict[int, int]]:
    """Every colour bijection under which the image's pairs are the plain ones, pair for pair."""
    free = {form: Counter(listed) for form, listed in orders.items()}
    # pairs with few possible partners first: they fix the colours early
    image = sorted(image, key=lambda item: len(free[item[0]]))
    maps: list[dict[int, int]] = []

    def extend(at: int, forward: dict[int, int], backward: dict[int, int]) -> None:
        if at == len(image):
            maps.append(forward)
            return
        form, order = image[at]
        partners = free[form]
        for partner in list(partners):
            if not partners[partner]:
                continue
            there, back = dict(forward), dict(backward)
            for old, new in zip(order, partner, strict=True):
                if there.setdefault(old, new) != new or back.setdefault(new, old) != old:
                    break
            else:
                partners[partner] -= 1
                extend(at + 1, there, back)
                partners[partner] += 1

    extend(0, {}, {})
    return maps


class DuplicateTest:
    """Codes that are equal for two augmentations exactly if the puzzle hashes are equal."""

    def __init__(self, puzzle: Puzzle) -> None:
        self._used = np.asarray(used_colours(puzzle), np.int64)
        self._powers = 10 ** np.arange(len(self._used), dtype=np.int64)
        self._symmetries = symmetries(puzzle)
        self._compose = np.asarray(COMPOSE, np.int64)

    def codes(
        self, dihedrals: NDArray[np.integer], colours: NDArray[np.integer]
    ) -> NDArray[np.int64]:
        """Codes (A,) int64 of augmentations (A,) and (A, 10)."""
        best: NDArray[np.int64] | None = None
        for which, images in self._symmetries:
            transform = self._compose[which][dihedrals]
            code = transform * 10**9 + colours[:, np.asarray(images, np.int64)] @ self._powers
            best = code if best is None else np.minimum(best, code)
        assert best is not None, "the identity is a symmetry"
        return best

    def identity(self) -> int:
        """The code of the original."""
        return int(self.codes(np.zeros(1, np.int64), IDENTITY[None].astype(np.int64))[0])


# Drawing


def draw_augmentations(puzzle: Puzzle, count: int, *, seed: int) -> AugmentationTable:
    """The original and up to ``count`` distinct augmentations, from a stream of the puzzle's own.

    At most ``5 * count`` draws; a group may stay smaller. A smaller ``count`` gives the first rows
    of a larger one's table, if that was filled within the smaller one's draws.
    """
    if count == 0:
        return table_of(np.zeros(0, np.uint8), np.zeros((0, NUM_COLOURS), np.uint8))
    test = DuplicateTest(puzzle)
    rng = numpy_generator(seed, "augment", puzzle.id)
    known = np.asarray([test.identity()])
    dihedrals = np.zeros(0, np.int64)
    colours = np.zeros((0, NUM_COLOURS), np.int64)
    left = RETRIES * count
    while left and len(dihedrals) < count:
        chunk = min(left, count - len(dihedrals) + 16)
        left -= chunk
        uniform = rng.random((chunk, NUM_COLOURS))
        transform = (uniform[:, 0] * NUM_DIHEDRAL).astype(np.int64)
        mapping = np.zeros((chunk, NUM_COLOURS), np.int64)
        mapping[:, 1:] = uniform[:, 1:].argsort(axis=1, kind="stable") + 1
        codes = np.concatenate([known, test.codes(transform, mapping)])
        first = np.unique(codes, return_index=True)[1]
        first = np.sort(first[first >= len(known)]) - len(known)
        dihedrals = np.concatenate([dihedrals, transform[first]])
        colours = np.concatenate([colours, mapping[first]])
        known = np.concatenate([known, codes[first + len(known)]])
    return table_of(dihedrals[:count], colours[:count])


def draw_augmentations_legacy(
    puzzle: Puzzle, count: int, rng: np.random.RandomState
) -> AugmentationTable:
    """As `draw_augmentations`, drawing from the published builder's generator in its order."""
    if count == 0:
        return table_of(np.zeros(0, np.uint8), np.zeros((0, NUM_COLOURS), np.uint8))
    test = DuplicateTest(puzzle)
    seen = {test.identity()}
    plain = np.arange(1, NUM_COLOURS, dtype=np.uint8)
    dihedrals: list[int] = []
    colours: list[Colours] = []
    mapping = np.zeros((1, NUM_COLOURS), np.int64)
    for _ in range(RETRIES * count):
        transform = int(rng.randint(0, NUM_DIHEDRAL))
        mapping[0, 1:] = rng.permutation(plain)
        code = int(test.codes(np.asarray([transform]), mapping)[0])
        if code not in seen:
            seen.add(code)
            dihedrals.append(transform)
            colours.append(mapping[0].astype(np.uint8))
        if len(dihedrals) >= count:
            break
    if not dihedrals:
        return table_of(np.zeros(0, np.uint8), np.zeros((0, NUM_COLOURS), np.uint8))
    return table_of(np.asarray(dihedrals), np.stack(colours))
