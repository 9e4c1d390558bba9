"""``etrm-tune watch RUN``: what a run's own terminal shows, from any terminal with the folder."""

from __future__ import annotations

import argparse
from typing import Any


def add(commands: Any) -> None:
    """Add the parser of ``watch``."""
    parser: argparse.ArgumentParser = commands.add_parser(
        "watch", help="look on while a run goes on, from any terminal or machine with its folder"
    )
    parser.add_argument("run", metavar="RUN", help="its folder, such as runs/phase1")
    parser.add_argument(
        "--every", type=float, default=2.0, metavar="SECONDS", help="between two looks (default: 2)"
    )
    parser.add_argument("--once", action="store_true", help="show it once, do not wait")
    parser.set_defaults(action=watch_command)


def watch_command(args: argparse.Namespace) -> int:
    """``watch RUN``."""
    from etrm_tune.terminal import console
    from etrm_tune.watching import watch
    from trainable.errors import ConfigError

    if not 0.1 <= args.every <= 3600:
        raise ConfigError(f"--every {args.every:g}: give seconds from 0.1 to 3600")
    return watch(args.run, console(wide=True), every=args.every, once=args.once)
