"""``etrm-tune report RUN``: one HTML file of a run, with Markdown and CSV beside it."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Any


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
        action="store_true",
        help="first let the finished trials answer puzzles, where they have not (minutes)",
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
    if args.puzzles:
        _answer_puzzles(run)
    for path in write_report(run, args.out):
        print(path)
    return 0


def _answer_puzzles(run: Any) -> None:
    """``predictions.json`` of every finished trial that has none. A trial whose checkpoint is gone
    is named and left out: the report of the others is worth having."""
    from trainable.checkpoint import list_steps
    from trainable.errors import UserError
    from trainable.predictions import FILE, write_predictions

    folders = dict(zip(run.plans, run.paths, strict=True))
    for trial in run.trials.to_dict("records"):
        folder = folders[trial["run"]] / "trials" / trial["trial_id"]
        if trial["status"] != "finished" or (folder / FILE).exists():
            continue
        steps = list_steps(folder / "checkpoints")
        if not steps:
            print(f"{trial['trial_id']}: no checkpoint, so no puzzles", file=sys.stderr)
            continue
        print(f"{trial['trial_id']}: answering puzzles", file=sys.stderr)
        try:
            write_predictions(max(steps)[1], folder)
        except UserError as error:
            print(f"{trial['trial_id']}: no puzzles: {error}", file=sys.stderr)
