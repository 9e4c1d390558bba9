"""``etrm-tune replay RUN``: what a stopping rule would have done to recorded curves."""

from __future__ import annotations

import argparse
import json
from typing import Any

from search_spaces.schedulers import FIRST_RUNG, SCHEDULERS, SETTINGS, check_scheduler


def add(commands: Any) -> None:
    """Add the parser of ``replay``."""
    parser: argparse.ArgumentParser = commands.add_parser(
        "replay", help="play recorded curves back to a stopping rule"
    )
    parser.add_argument("run", nargs="+", metavar="RUN", help="a run's folder, or several")
    words = f"{', '.join(SCHEDULERS)} (default: bar), or with settings: " + "; ".join(
        SETTINGS.values()
    )
    parser.add_argument("--rule", default="bar", help=words.replace("%", "%%"))
    parser.add_argument(
        "--threshold", type=float, metavar="X", help="of the bar, a share (default: 0.2)"
    )
    parser.add_argument(
        "--at", type=float, metavar="X", help="the bar's share of the budget (default: 0.5)"
    )
    parser.add_argument("--eta", type=float, metavar="N", help="asha keeps the best 1/N (3)")
    parser.add_argument(
        "--orders", type=int, default=200, metavar="N", help="random orders of arrival (200)"
    )
    parser.add_argument("--seed", type=int, default=0, metavar="N", help="of these orders")
    parser.add_argument("--json", action="store_true", help="for scripts")
    parser.set_defaults(action=replay_command)


def replay_command(args: argparse.Namespace) -> int:
    """``replay RUN``."""
    from analysis import load, replay
    from etrm_tune.terminal import console, note, say
    from trainable.errors import ConfigError

    if args.orders < 0:
        raise ConfigError(f"--orders {args.orders}: give 0 or more")
    run = load(args.run)
    found = replay(run, _rule(args, run), orders=args.orders, seed=args.seed)
    if args.json:
        print(json.dumps({"schema_version": 1} | found.to_json(), indent=1, ensure_ascii=False))
        return 0
    out = console()
    first, *lines = found.lines()
    say(out, first)
    for line in lines:
        note(out, line.strip())
    for line in found.advice():
        say(out, line)
    return 0


def _rule(args: argparse.Namespace, run: Any) -> Any:
    from analysis.replay import read_curves
    from search_spaces.stopping import Bar, Halving
    from trainable.errors import ConfigError

    of_bar = args.threshold is not None or args.at is not None
    check_scheduler(args.rule)
    if args.rule == "pbt":
        raise ConfigError("--rule pbt: it stops nobody, so there is nothing to replay: try asha")
    if args.rule not in ("bar", "asha") and (of_bar or args.eta is not None):
        raise ConfigError(
            f"--threshold, --at and --eta are options of --rule bar and asha, not of {args.rule}"
        )
    if args.rule not in ("bar", "asha"):
        return args.rule
    if args.rule == "asha":
        if of_bar:
            raise ConfigError("--threshold and --at are options of --rule bar: leave them out")
        if args.eta is None:
            return "asha"
        budgets = [curve.budget for curve in read_curves(run)]
        budget = max(budgets, default=1.0)
        return [Bar(), Halving.geometric(args.eta, budget=budget, first=FIRST_RUNG * budget)]
    if args.eta is not None:
        raise ConfigError("--eta is an option of --rule asha: add --rule asha, or leave it out")
    usual = Bar()
    return Bar(
        threshold=usual.threshold if args.threshold is None else args.threshold,
        at_fraction=usual.at_fraction if args.at is None else args.at,
    )
