"""``etrm-tune reproduce TRIAL``: train a trial again from its saved file, compare row by row."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Any


def add(commands: Any) -> None:
    """Add the parser of ``reproduce``."""
    parser: argparse.ArgumentParser = commands.add_parser(
        "reproduce", help="train a trial again from its saved file, and compare row by row"
    )
    parser.add_argument(
        "trial", metavar="TRIAL", help="its folder, such as runs/phase1/trials/overfit-E1a-s0"
    )
    parser.add_argument(
        "--steps", type=int, metavar="N", help="compare up to step N (default: all)"
    )
    parser.add_argument("--out", metavar="FOLDER", help="keep what is trained there")
    parser.add_argument("--json", action="store_true", help="the comparison as one JSON object")
    parser.set_defaults(action=reproduce_command)


def reproduce_command(args: argparse.Namespace) -> int:
    """``reproduce TRIAL``; 0 when every row is equal bit for bit, else 1."""
    from etrm_tune.reproduce import comparison_json, describe, reproduce
    from trainable.errors import ConfigError

    if args.steps is not None and args.steps < 1:
        raise ConfigError(f"--steps {args.steps}: give 1 or more")
    recorded, found, changes = reproduce(
        args.trial,
        steps=args.steps,
        out=None if args.out is None else Path(args.out),
        progress=sys.stderr.isatty() and not args.json,
    )
    if args.json:
        print(comparison_json(found, changes))
        return 0 if found.same else 1
    print(f"{recorded.home.name}, trained again from {recorded.home / 'config.json'}")
    print("  " + ("; ".join(changes) if changes else "versions, threads, workers: as recorded"))
    for line in describe(found):
        print(f"  {line}")
    return 0 if found.same else 1
