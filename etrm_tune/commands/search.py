"""``search``: try points of typed spaces beyond the plan; the same as ``run search``."""

from __future__ import annotations

import argparse
from typing import Any

import search_spaces
from etrm_tune.searchers import SEARCHERS, check_searcher
from search_spaces.profiles import PROFILES
from search_spaces.reference import REVISIONS
from search_spaces.schedulers import SCHEDULERS, SETTINGS, check_scheduler
from search_spaces.spaces import SPACES
from trainable.errors import ConfigError


def add(commands: Any) -> None:
    """Add the parser."""
    from etrm_tune.cli import add_run_options

    parser: argparse.ArgumentParser = commands.add_parser(
        "search", help="try points of a space beyond the plan, or continue a search"
    )
    add_run_options(parser, target="search")
    for action in parser._actions:
        if action.dest == "scheduler":
            action.help = (
                f"{', '.join(SCHEDULERS)} (default: asha); with settings, as replay recommends: "
                f"{'; '.join(SETTINGS.values())}"
            ).replace("%", "%%")
        elif action.dest == "of":
            action.help = argparse.SUPPRESS
    parser.add_argument("--space", metavar="NAME,…", help=", ".join(SPACES))
    parser.add_argument(
        "--trials", type=int, metavar="N",
        help="points in all, known and earlier ones included (default: 32)",
    )  # fmt: skip
    parser.add_argument("--searcher", help=f"{', '.join(SEARCHERS)} (default: optuna)")
    parser.add_argument(
        "--objective", metavar="NAME,…",
        help="accuracy, act_steps, time, parameters (default: accuracy)",
    )  # fmt: skip
    parser.add_argument("--seed", type=int, metavar="N", help="seed of the searcher (default: 0)")
    parser.set_defaults(
        action=search_command,
        known_options=[o for a in parser._actions for o in a.option_strings],
    )


def search_command(args: argparse.Namespace) -> int:
    """``search``."""
    from etrm_tune.cli import (
        _choice,
        folder_name,
        how_of,
        options_of,
        parse_settings,
        run_again,
        runs_of,
    )

    if args.of is not None:
        raise ConfigError(f"unexpected {args.of!r}: name what is searched with --space NAME")
    if args.space is None:
        raise ConfigError(f"search over what? give --space: {', '.join(SPACES)}")
    space = search_spaces.space(args.space)
    searcher = None if args.searcher is None else check_searcher(args.searcher, space)
    if args.scheduler is not None:
        check_scheduler(args.scheduler)
    _choice("profile", args.profile, list(PROFILES))
    _choice("revision", args.revision, list(REVISIONS))
    _choice("decoder puzzles", args.decoder_puzzles, ["disjoint", "same"])
    for option in ("trials", "seeds"):
        value = getattr(args, option)
        if value is not None and value < 1:
            raise ConfigError(f"--{option} {value}: give 1 or more")
    settings = parse_settings(args.set)
    name = args.name or f"search-{folder_name(space.name)}"
    if name in (".", "..") or "/" in name:
        raise ConfigError(f"--name {name}: give a name without '/'; the place is --runs DIR")

    from etrm_tune.run_folder import RunFolder
    from etrm_tune.search import SearchOptions, check_objectives, check_searched
    from etrm_tune.search_run import run_search

    check_searched(settings, space)
    asked = SearchOptions(
        space.name,
        searcher,
        None if args.objective is None else check_objectives(args.objective),
        args.seed,
        args.trials,
    )
    options = options_of(args, f"search {space.name}", settings)
    how = how_of(args, run_again("search", *args.words))
    folder = RunFolder(runs_of(args) / name)
    args.log = folder.log
    return run_search(options, asked, folder, how, dry_run=args.dry_run)
