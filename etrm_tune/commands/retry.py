"""``etrm-tune retry RUN``: give trials that failed or diverged another attempt."""

from __future__ import annotations

import argparse
from typing import Any


def add(commands: Any) -> None:
    """Add the parser of ``retry``."""
    parser: argparse.ArgumentParser = commands.add_parser(
        "retry", help="run the failed and diverged trials of a run again"
    )
    parser.add_argument("run", help="its folder, such as runs/phase1")
    parser.add_argument(
        "trials", nargs="*", metavar="TRIAL", help="only these (default: all that failed, diverged)"
    )
    parser.add_argument(
        "--from-start",
        action="store_true",
        help="begin them anew (default: go on from their newest checkpoint)",
    )
    parser.add_argument("--concurrent", type=int, metavar="N", help="trials at once")
    parser.set_defaults(action=retry_command)


def retry_command(args: argparse.Namespace) -> int:
    """``retry RUN [TRIAL …]``."""
    from etrm_tune.command import How, run
    from etrm_tune.plan import Options
    from etrm_tune.retry import open_run, to_retry
    from etrm_tune.run_folder import FINAL, FolderInUseError
    from etrm_tune.terminal import console, say

    folder, plan = open_run(args.run)
    args.log = folder.log
    if folder.in_use():
        raise FolderInUseError(folder.in_use_text())
    chosen = to_retry(folder, plan, args.trials)
    out = console()
    told = [str(folder.read_status(trial["trial_id"])["status"]) for trial in plan["trials"]]
    left = sum(status not in (*FINAL, "failed") for status in told)
    if not chosen and not left:
        say(out, f"Nothing to retry: no trial of {args.run} has failed or diverged")
        return 0
    if chosen:
        say(out, f"Retrying {', '.join(chosen)}")
    if left:
        say(out, f"{left} {'trial is' if left == 1 else 'trials are'} not finished, and continued")
    again = ("etrm-tune", "retry", str(args.run))
    how = How(
        concurrent=args.concurrent,
        again=again,
        reopen=tuple(chosen),
        from_start=args.from_start,
    )
    options = Options.stored(plan)
    if "search" not in plan:
        return run(options, folder, how)
    from etrm_tune.search import SearchOptions
    from etrm_tune.search_run import run_search

    return run_search(options, SearchOptions(str(plan["search"]["space"])), folder, how)
