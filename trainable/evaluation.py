"""Voting over augmentations: pass@k as ARC scores it.

Every prediction is cropped, brought back to the original puzzle by its identifier's inverse
augmentation, and counted as a vote for one output of the test input that it answers. Candidates of
an input are ranked by votes, then by mean halting probability, then by arrival (rank order first).

Unlike the published evaluators, the denominator is the puzzles that were *scheduled* (with the
answered ones beside it), votes live for one evaluation only, nothing needs a process group, test
outputs that are unknown are not scored, and a pair without a prediction keeps its place in the
submission. Test pairs of one puzzle with equal inputs share their votes, as published.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from trainable.data.augment import parse_identifier
from trainable.data.grids import Grid, crop_all, grid_hash
from trainable.data.sources import Puzzle

PASS_AT = (1, 2, 5, 10, 100, 1000)
PLACEHOLDER = [[0, 0], [0, 0]]
"""Submitted where a test input has no candidate."""


@dataclass(frozen=True, slots=True)
class Candidate:
    """One predicted output of a test input."""

    hash: str
    votes: int
    mean_q: float
    correct: bool


@dataclass(frozen=True, slots=True)
class VotingResult:
    """Scores of one evaluation.

    Attributes:
        pass_at: k → mean over the scheduled puzzles of correct pairs / scored pairs. NaN where
            fewer than k candidates can exist, or nothing is scheduled.
        scheduled: puzzles with at least one scored pair: the denominator.
        answered: those of them with at least one prediction.
        tasks: a row per scheduled puzzle: ``task``, ``pairs`` (scored), ``answered_pairs``,
            ``candidates`` and ``votes`` (summed over pairs), ``best_rank`` (1-based rank of the
            true output, the worst over pairs; None if one is missing), ``pass@k`` for every k.
    """

    pass_at: dict[int, float]
    scheduled: int
    answered: int
    tasks: list[dict[str, Any]]

    def pass_at_answered(self) -> dict[int, float]:
        """pass@k over answered puzzles only (what later published versions report)."""
        ratio = self.scheduled / self.answered if self.answered else float("nan")
        return {k: score * ratio for k, score in self.pass_at.items()}

    def metrics(self, prefix: str = "eval") -> dict[str, float]:
        """Names for a row: ``eval/pass@k``, ``eval/scheduled``, ``eval/answered``."""
        named = {f"{prefix}/pass@{k}": score for k, score in self.pass_at.items()}
        return named | {
            f"{prefix}/scheduled": float(self.scheduled),
            f"{prefix}/answered": float(self.answered),
        }


class _Inputs:
    """Test pairs of one puzzle: input hashes, true output hashes (None: unknown)."""

    def __init__(self, pairs: Iterable[tuple[Any, Any]]) -> None:
        self.inputs: list[str] = []
        self.outputs: list[str | None] = []
        for source, target in pairs:
            self.inputs.append(grid_hash(np.asarray(source, np.uint8)))
            self.outputs.append(None if target is None else grid_hash(np.asarray(target, np.uint8)))


class ArcVoting:
    """Collects predictions of one evaluation and scores them.

    Args:
        test_puzzles: the scheduled puzzles by id, each a `Puzzle` or a Kaggle-format mapping with
            ``test`` pairs (``output`` may be absent: not scored).
        identifiers: name of every identifier (`ArcData.identifier_names`); 0 is padding.
        num_aug: augmentations scheduled beside the original; decides where pass@k is NaN. None
            leaves every k.
        pass_at: the k to score.

    >>> voting = ArcVoting(data.eval_puzzles(), data.identifier_names)        # doctest: +SKIP
    >>> voting.update(batch["puzzle_identifiers"], batch["inputs"], predicted, q)  # doctest: +SKIP
    >>> voting.result().pass_at[2]                                            # doctest: +SKIP
    """

    def __init__(
        self,
        test_puzzles: Mapping[str, Puzzle | Mapping[str, Any]],
        identifiers: Sequence[str],
        *,
        num_aug: int | None = None,
        pass_at: Sequence[int] = PASS_AT,
    ) -> None:
        self._puzzles = {name: _Inputs(_test_pairs(p)) for name, p in test_puzzles.items()}
        self._identifiers = identifiers
        self._num_aug = num_aug
        self._pass_at = tuple(pass_at)
        self._known = {name: set(p.inputs) for name, p in self._puzzles.items()}
        self.reset()

    def reset(self) -> None:
        """Forget every prediction: weights have changed."""
        # puzzle -> input hash -> output hash -> [votes, sum of q], in order of arrival
        self._votes: dict[str, dict[str, dict[str, list[float]]]] = {}
        self._grids: dict[str, list[list[int]]] = {}
        self._answered: dict[str, None] = {}
        self.unmatched = 0

    def update(self, puzzle_identifiers: Any, inputs: Any, preds: Any, q_halt_logits: Any) -> None:
        """Add one batch: identifiers (B), input and predicted tokens (B, 900), halting logits (B).

        NumPy arrays or tensors. Padding rows (identifier 0) are dropped from all four; rows of
        puzzles that are not scheduled are ignored, and rows whose input is no test input of their
        puzzle are counted in ``unmatched``.
        """
        ids = _array(puzzle_identifiers)
        real = np.flatnonzero(ids != 0)
        ids = ids[real]
        sources = crop_all(_array(inputs)[real])
        targets = crop_all(_array(preds)[real])
        logits = _array(q_halt_logits)[real].astype(np.float64)
        weights = np.exp(-np.logaddexp(0.0, -logits))
        rows = zip(ids.tolist(), sources, targets, weights.tolist(), strict=True)
        for identifier, source, target, q in rows:
            base, augmentation = parse_identifier(self._identifiers[identifier])
            if base not in self._puzzles:
                continue
            self._answered.setdefault(base)
            asked = grid_hash(augmentation.invert(source))
            if asked not in self._known[base]:
                self.unmatched += 1
                continue
            answer: Grid = np.ascontiguousarray(augmentation.invert(target))
            key = grid_hash(answer)
            if key not in self._grids:
                self._grids[key] = answer.tolist()
            votes = self._votes.setdefault(base, {}).setdefault(asked, {})
            tally = votes.setdefault(key, [0, 0.0])
            tally[0] += 1
            tally[1] += q

    # Gathering over ranks

    def state(self) -> dict[str, Any]:
        """Everything collected, as plain objects, for a gather over ranks."""
        return {
            "votes": self._votes,
            "grids": self._grids,
            "answered": list(self._answered),
            "unmatched": self.unmatched,
        }

    def merge(self, state: Mapping[str, Any]) -> None:
        """Add another rank's `state`; merge in rank order, so that ties rank as published."""
        for base, by_input in state["votes"].items():
            for asked, answers in by_input.items():
                mine = self._votes.setdefault(base, {}).setdefault(asked, {})
                for key, (votes, q) in answers.items():
                    tally = mine.setdefault(key, [0, 0.0])
                    tally[0] += votes
                    tally[1] += q
        for key, grid in state["grids"].items():
            self._grids.setdefault(key, grid)
        self._answered.update(dict.fromkeys(state["answered"]))
        self.unmatched += int(state["unmatched"])

    # Scores

    def ranking(self, puzzle: str) -> list[list[Candidate]]:
        """Candidates of every test pair of a puzzle, best first."""
        pairs = self._puzzles[puzzle]
        votes = self._votes.get(puzzle, {})
        ranked = []
        for asked, truth in zip(pairs.inputs, pairs.outputs, strict=True):
            tallies = [
                Candidate(key, int(count), total / count, key == truth)
                for key, (count, total) in votes.get(asked, {}).items()
            ]
            # sorted is stable also in reverse: full ties keep their order of arrival
            ranked.append(sorted(tallies, key=lambda c: (c.votes, c.mean_q), reverse=True))
        return ranked

    def result(self) -> VotingResult:
        """Scores over the scheduled puzzles; nothing is cleared."""
        tasks = []
        totals = dict.fromkeys(self._pass_at, 0.0)
        answered = 0
        for name, pairs in self._puzzles.items():
            ranked = self.ranking(name)
            scored = [
                candidates
                for candidates, truth in zip(ranked, pairs.outputs, strict=True)
                if truth is not None
            ]
            if not scored:
                continue
            answered += name in self._answered
            ranks = [
                next((at for at, c in enumerate(candidates, start=1) if c.correct), None)
                for candidates in scored
            ]
            found = [rank for rank in ranks if rank is not None]
            row: dict[str, Any] = {
                "task": name,
                "pairs": len(scored),
                "answered_pairs": sum(1 for candidates in scored if candidates),
                "candidates": sum(len(candidates) for candidates in scored),
                "votes": sum(c.votes for candidates in scored for c in candidates),
                "best_rank": max(found) if len(found) == len(ranks) else None,
            }
            for k in self._pass_at:
                score = sum(rank <= k for rank in found) / len(scored)
                totals[k] += score
                row[f"pass@{k}"] = score if self._possible(k) else float("nan")
            tasks.append(row)
        count = len(tasks)
        pass_at = {
            k: totals[k] / count if count and self._possible(k) else float("nan")
            for k in self._pass_at
        }
        return VotingResult(pass_at, count, answered, tasks)

    def _possible(self, k: int) -> bool:
        return self._num_aug is None or k <= self._num_aug + 1

    def grid(self, candidate: Candidate) -> list[list[int]]:
        """The colours of a candidate's output, row by row; may be empty."""
        return self._grids[candidate.hash]

    def submission(self) -> dict[str, list[dict[str, list[list[int]]]]]:
        """Two attempts for every test pair of every scheduled puzzle, in Kaggle's format.

        With one candidate it is repeated; without any both attempts are a placeholder, so that
        later pairs keep their place. An empty prediction is an empty list, as published.
        """
        entries = {}
        for name in self._puzzles:
            attempts = []
            for candidates in self.ranking(name):
                grids = [self.grid(c) for c in candidates[:2]] or [PLACEHOLDER]
                attempts.append({"attempt_1": grids[0], "attempt_2": grids[-1]})
            entries[name] = attempts
        return entries


def _test_pairs(puzzle: Puzzle | Mapping[str, Any]) -> list[tuple[Any, Any]]:
    if isinstance(puzzle, Puzzle):
        return [(pair.input, pair.output) for pair in puzzle.queries]
    return [(pair["input"], pair.get("output")) for pair in puzzle["test"]]


def _array(values: Any) -> np.ndarray[Any, np.dtype[Any]]:
    """A NumPy array of an array or of a tensor on any device, bfloat16 included."""
    if hasattr(values, "detach"):
        values = values.detach().cpu()
        if values.is_floating_point():
            values = values.double()
        values = values.numpy()
    return np.asarray(values)
