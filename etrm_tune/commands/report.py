"""``etrm-tune report RUN``: one HTML file of a run, with Markdown and CSV beside it."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Any

TRIALS = 3
"""Trials that answer puzzles unless more is asked for."""
SECONDS = 20
"""They answer for as long as this, each."""


def add(commands: Any) -> None:
    """Add the parser of ``report``."""
    parser: argparse.ArgumentParser = commands.add_parser(
        "report", help="write a run's report: HTML, Markdown and CSV"
    )
    parser.add_argument("run", nargs="+", metavar="RUN", help="a run's folder, or several")
    parser.add_argument(
        "--out", metavar="FILE", help="of the page (default: report.html in the run's folder)"
    )
    parser.add_argument(
        "--puzzles",
        action=argparse.BooleanOptionalAction,
        help=f"let every trial answer all its puzzles (minutes), or none; default: the best "
        f"{TRIALS}, for {SECONDS} s each at most, where they have not",
    )
    parser.set_defaults(action=report_command)


def report_command(args: argparse.Namespace) -> int:
    """``report RUN``."""
    from analysis import load
    from analysis.report import write_report
    from trainable.errors import ConfigError

    if args.out is not None and Path(args.out).suffix not in (".html", ".htm"):
        raise ConfigError(f"--out {args.out}: give the page's file, such as report.html")
    run = load(args.run)
    if args.puzzles is not False:
        _answer_puzzles(run, all_of_them=bool(args.puzzles))
    for path in write_report(run, args.out):
        print(path)
    return 0


def _answer_puzzles(run: Any, *, all_of_them: bool) -> None:
    """``predictions.json`` of finished trials, where it is missing or of an earlier checkpoint. A
    trial whose checkpoint is gone is named and left out: the rest of the report is worth having."""
    from trainable.checkpoint import list_steps
    from trainable.errors import UserError

    for trial_id, folder in _folders(run, None if all_of_them else TRIALS):
        steps = list_steps(folder / "checkpoints")
        if not steps:
            if all_of_them:
                print(f"{trial_id}: no checkpoint, so no puzzles", file=sys.stderr)
            continue
        if _answered(folder, max(steps)[0], complete=all_of_them):
            continue
        print(f"{trial_id}: answering puzzles", file=sys.stderr, flush=True)
        try:
            from trainable.predictions import write_predictions  # torch: only where it is needed

            limit = None if all_of_them else SECONDS
            write_predictions(max(steps)[1], folder, seconds=limit)
        except UserError as error:
            print(f"{trial_id}: no puzzles: {error}", file=sys.stderr)


def _folders(run: Any, most: int | None) -> list[tuple[str, Path]]:
    """(trial, folder) of the finished trials: arms, the most accurate first; decoders only where
    all are asked for."""
    roots = dict(zip(run.plans, run.paths, strict=True))
    done = run.trials[run.trials["status"] == "finished"]
    done = done.sort_values("accuracy", ascending=False, kind="stable")
    arms = done[done["role"] != "decoder"]
    chosen = [*arms.to_dict("records")][:most]
    if most is None:
        chosen += done[done["role"] == "decoder"].to_dict("records")
    return [(t["trial_id"], roots[t["run"]] / "trials" / t["trial_id"]) for t in chosen]


def _answered(folder: Path, step: int, *, complete: bool) -> bool:
    """Whether predictions of this checkpoint are there, and, if asked for, all of them."""
    from analysis.report.puzzles import FILE, read_predictions

    told = read_predictions(folder / FILE)
    if told is None or told["step"] != step:
        return False
    return bool(told.get("complete", True)) or not complete
