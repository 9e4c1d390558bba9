"""Voting against the published evaluators' numbers, and where ours differs on purpose."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch

from trainable.data.augment import Augmentation
from trainable.data.grids import grid_tokens
from trainable.evaluation import PLACEHOLDER, ArcVoting


def _filled(golden: Any, rows: slice = slice(None), **options: Any) -> ArcVoting:
    g = golden("g_evaluator")
    voting = ArcVoting(g.scalars["test_puzzles"], g.scalars["identifiers"], **options)
    tensors = [g.tensors[n] for n in ("puzzle_identifiers", "inputs", "preds", "q_halt_logits")]
    picked = [tensor[rows] for tensor in tensors]
    for at in range(0, len(picked[0]), 8):
        voting.update(*(tensor[at : at + 8] for tensor in picked))
    return voting


def test_ranking_and_both_denominators_equal_the_published_evaluators(golden: Any) -> None:
    scalars = golden("g_evaluator").scalars
    voting = _filled(golden)
    for name in scalars["test_puzzles"]:
        expected = scalars["ranking"].get(name)
        got = voting.ranking(name)
        if expected is None:
            assert all(not candidates for candidates in got)
            continue
        assert len(got) == len(expected)
        for mine, theirs in zip(got, expected, strict=True):
            assert [(c.hash, c.votes, c.correct) for c in mine] == [
                (c["hash"], c["votes"], c["correct"]) for c in theirs
            ]
            np.testing.assert_allclose(
                [c.mean_q for c in mine], [c["mean_q"] for c in theirs], rtol=1e-12
            )
    result = voting.result()
    assert (result.scheduled, result.answered) == (5, 4)
    for k, score in result.pass_at.items():
        assert score == pytest.approx(scalars["result_trm"][f"ARC/pass@{k}"], abs=1e-12)
    for k, score in result.pass_at_answered().items():
        assert score == pytest.approx(scalars["result_etrm"][f"ARC/pass@{k}"], abs=1e-12)


def test_submission_equals_the_published_one_and_fills_the_gaps(golden: Any) -> None:
    scalars = golden("g_evaluator").scalars
    mine = _filled(golden).submission()
    assert list(mine) == list(scalars["test_puzzles"])
    for name, puzzle in scalars["test_puzzles"].items():
        assert len(mine[name]) == len(puzzle["test"])
        theirs = scalars["submission_trm"][name]
        answered = [entry for entry in mine[name] if entry["attempt_1"] != PLACEHOLDER]
        assert answered == theirs
    assert mine["pzD"] == [{"attempt_1": PLACEHOLDER, "attempt_2": PLACEHOLDER}]


@pytest.mark.parametrize("cut", [0, 7, 16, 40])
def test_merged_ranks_equal_one(golden: Any, cut: int) -> None:
    whole = _filled(golden)
    first, second = _filled(golden, slice(None, cut)), _filled(golden, slice(cut, None))
    first.merge(second.state())
    assert first.submission() == whole.submission()
    assert first.result() == whole.result()


def test_no_votes_survive_a_reset(golden: Any) -> None:
    voting = _filled(golden)
    voting.reset()
    result = voting.result()
    assert result.answered == 0
    assert set(result.pass_at.values()) == {0.0}


def test_pass_at_k_is_nan_beyond_the_possible_candidates(golden: Any) -> None:
    result = _filled(golden, num_aug=8).result()
    assert not math.isnan(result.pass_at[5])
    assert math.isnan(result.pass_at[10])
    assert math.isnan(result.tasks[0]["pass@10"])


def _row(grid: Any, augmentation: Augmentation) -> np.ndarray:
    return grid_tokens(augmentation.apply(np.asarray(grid, np.uint8))).astype(np.int32)


def test_padding_in_the_middle_is_dropped_from_everything() -> None:
    """The published code drops padding from predictions but not from q."""
    turn = Augmentation(1, (0, 2, 1, 3, 4, 5, 6, 7, 8, 9))
    puzzles = {"p": {"test": [{"input": [[1, 2, 3]], "output": [[3], [1]]}]}}
    voting = ArcVoting(puzzles, ["<blank>", turn.name("p"), "p"])
    asked = [[1, 2, 3]]
    wrong, right = [[9]], [[3], [1]]
    plain = Augmentation(0, tuple(range(10)))
    empty = np.zeros(900, np.int32)
    voting.update(
        torch.tensor([1, 0, 2]),
        np.stack([_row(asked, turn), empty, _row(asked, plain)]),
        np.stack([_row(wrong, turn), empty, _row(right, plain)]),
        torch.tensor([-3.0, 9.0, 3.0], dtype=torch.bfloat16),
    )
    best, second = voting.ranking("p")[0]
    assert best.correct
    assert best.mean_q == pytest.approx(1 / (1 + math.exp(-3)))
    assert second.mean_q == pytest.approx(1 / (1 + math.exp(3)))
    assert voting.result().pass_at[1] == 1.0
    assert voting.result().tasks[0]["best_rank"] == 1


def test_unknown_outputs_are_not_scored() -> None:
    puzzles = {
        "known": {"test": [{"input": [[1]], "output": [[0]]}, {"input": [[2]]}]},
        "unknown": {"test": [{"input": [[3]]}]},
    }
    voting = ArcVoting(puzzles, ["<blank>", "known", "unknown"])
    plain = Augmentation(0, tuple(range(10)))
    rows = [_row([[1]], plain), _row([[2]], plain), _row([[3]], plain), _row([[7]], plain)]
    voting.update([1, 1, 2, 2], np.stack(rows), np.stack([_row([[0]], plain)] * 4), np.zeros(4))
    result = voting.result()
    assert result.scheduled == 1
    assert result.pass_at[1] == 1.0  # [[0]] is right once, and not taken for the missing truths
    assert voting.unmatched == 1
    assert len(voting.submission()["unknown"]) == 1


def _half_right(puzzles: int, *, answered: float = 1.0) -> ArcVoting:
    """Every other puzzle answered rightly, and only the first share of them answered at all."""
    tasks = {
        f"p{n}": {"test": [{"input": [[n // 10, n % 10]], "output": [[1]]}]} for n in range(puzzles)
    }
    voting = ArcVoting(tasks, ["<blank>", *tasks], num_aug=0)
    plain = Augmentation(0, tuple(range(10)))
    for n in range(round(puzzles * answered)):
        asked = _row([[n // 10, n % 10]], plain)
        voting.update([1 + n], asked[None], _row([[n % 2]], plain)[None], np.zeros(1))
    return voting


def test_groups_of_equal_quality_score_equally_however_many_there_are() -> None:
    """4 and 64 puzzles, half of them solved: not 0.5 % against 8 % of a fixed 400 (D3)."""
    few, many = _half_right(4).result(), _half_right(64).result()
    assert few.pass_at[1] == many.pass_at[1] == 0.5
    assert (few.scheduled, many.scheduled) == (4, 64)
    # a puzzle without prediction counts as wrong, and is counted
    partly = _half_right(64, answered=0.5).result()
    assert partly.pass_at[1] == 0.25 and (partly.scheduled, partly.answered) == (64, 32)
    assert partly.pass_at_answered()[1] == 0.5


def test_an_unanswered_pair_keeps_its_place_and_one_candidate_is_repeated() -> None:
    pairs = [{"input": [[n]], "output": [[n]]} for n in (1, 2, 3)]
    voting = ArcVoting({"p": {"test": pairs}}, ["<blank>", "p"])
    plain = Augmentation(0, tuple(range(10)))
    rows = np.stack([_row([[1]], plain), _row([[3]], plain), _row([[3]], plain)])
    answers = np.stack([_row([[n]], plain) for n in (7, 8, 9)])
    voting.update([1, 1, 1], rows, answers, np.asarray([0.0, -1.0, 1.0]))
    first, second, third = voting.submission()["p"]
    assert first == {"attempt_1": [[7]], "attempt_2": [[7]]}
    assert second == {"attempt_1": PLACEHOLDER, "attempt_2": PLACEHOLDER}
    assert third == {"attempt_1": [[9]], "attempt_2": [[8]]}, "the larger q first"
    assert [len(candidates) for candidates in voting.ranking("p")] == [1, 0, 2]
    assert voting.grid(voting.ranking("p")[2][0]) == [[9]]
