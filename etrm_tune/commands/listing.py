"""``list``: what can be run. ``show NAME``: one experiment's settings and their origin."""

from __future__ import annotations

import argparse
from collections.abc import Iterable
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

import search_spaces
from etrm_tune.terminal import console, shown
from search_spaces.experiment import Experiment, Phase, Series
from search_spaces.profiles import PROFILES
from search_spaces.reference import DEFAULT_REVISION, REVISIONS
from search_spaces.resolve import AXES
from trainable.config import TrialConfig, option_owner

PARTS = {None: "training", "model": "model", "data": "data"}
"""Headings of the settings by their owner."""


def add(commands: Any) -> None:
    """Add both parsers."""
    listing = commands.add_parser("list", help="what can be run")
    listing.add_argument("target", nargs="?", help="a series or phase, for its details")
    listing.add_argument("--revision", default=DEFAULT_REVISION, help=", ".join(REVISIONS))
    listing.set_defaults(action=list_command)
    show = commands.add_parser("show", help="one experiment: settings and where they come from")
    show.add_argument("name", help="series/ID, such as overfit/E2b")
    show.add_argument("--revision", default=DEFAULT_REVISION, help=", ".join(REVISIONS))
    show.add_argument("--profile", default="laptop", help=f"{', '.join(PROFILES)} (laptop)")
    show.add_argument(
        "--set", action="append", default=[], metavar="OPTION=VALUE", help="override an option"
    )
    show.set_defaults(action=show_command)


# ------------------------------------------------------------------------------------------ list


def list_command(args: argparse.Namespace) -> int:
    """``list``, ``list TARGET``."""
    out = console()
    if args.target is None:
        _overview(out, args.revision)
        return 0
    words = search_spaces.targets(args.revision)
    if args.target in search_spaces.SERIES and args.target in words:
        _question(out, search_spaces.series(args.target))
        for phase in search_spaces.phases(args.revision):
            if phase.experiments[0].series == args.target:
                _details(out, phase.experiments, phase)
    elif args.target in words and args.target != "all":
        phase = search_spaces.phase(args.target, revision=args.revision)
        _details(out, phase.experiments, phase)
    else:
        _details(out, search_spaces.resolve_target(args.target, revision=args.revision))
    return 0


def _overview(out: Console, revision: str) -> None:
    out.print(f"revision {revision}; run one word, one name, or several with commas between them\n")
    phases = search_spaces.phases(revision)
    for series in search_spaces.SERIES.values():
        if series.role != "arm":
            continue
        out.print(f"[bold]{series.name}[/bold]  {series.title}")
        for phase in phases:
            if phase.experiments[0].series != series.name:
                continue
            out.print(_indented(f"[bold]{phase.name}[/bold]  {phase.text}", 2))
            for arm in phase.experiments:
                out.print(f"    {arm.name:<30}  {arm.title}", no_wrap=True, overflow="ellipsis")
        out.print()
    out.print("all  every experiment above")
    out.print("\nmore: etrm-tune list debug, etrm-tune show overfit/E2b")


def _question(out: Console, series: Series) -> None:
    out.print(f"[bold]{series.name}[/bold]  {series.title}")
    for word in ("question", "hypothesis", "decision_rule", "cost"):
        out.print(_indented(f"{word.replace('_', ' ')}: {getattr(series, word)}", 2))


def _details(out: Console, arms: Iterable[Experiment], phase: Phase | None = None) -> None:
    if phase is not None:
        out.print(f"\n[bold]{phase.name}[/bold] ({phase.path})  {phase.text}")
    table = Table(box=None, pad_edge=False, show_edge=False)
    for column in ("experiment", "what and why", "sets"):
        table.add_column(column, overflow="fold")
    for arm in arms:
        about = Text(arm.title)
        about.append(f"\n{arm.why}", style="dim")
        table.add_row(arm.name, about, _sets(arm))
    out.print(table)


def _sets(arm: Experiment) -> str:
    settings = [f"{o} {shown(v)}" for o, v in arm.overrides.items() if o != "batch_size_reason"]
    notes = []
    if arm.repeats is not None:
        notes.append(f"(repeats {arm.repeats})")
    if arm.decided:
        notes.append("(mode: the winner's, as @ID says)")
    return "\n".join([*settings, *notes])


def _indented(text: str, columns: int) -> Table:
    """Text that keeps its indentation where it wraps."""
    grid = Table.grid()
    grid.add_row(" " * columns, text)
    return grid


# ------------------------------------------------------------------------------------------ show


def show_command(args: argparse.Namespace) -> int:
    """``show NAME``."""
    from etrm_tune.cli import parse_settings

    experiment = search_spaces.experiment(args.name, revision=args.revision)
    settings = parse_settings(args.set)
    resolved = search_spaces.resolve(
        experiment, revision=args.revision, profile=args.profile, overrides=settings
    )
    out = console()
    out.print(f"[bold]{experiment.name}[/bold]  {experiment.title}")
    out.print(experiment.why)
    phase = f", {experiment.phase}" if experiment.phase else ""
    out.print(f"series {experiment.series}{phase}; revision {args.revision}")
    out.print(f"profile {args.profile}: {PROFILES[resolved.config.profile].text}")
    out.print(f"subject: {', '.join(sorted(experiment.subject)) or '–'}")
    if experiment.repeats is not None:
        out.print(f"repeats {experiment.repeats}: its own run measures noise")
    if experiment.decided:
        out.print(
            f"decided by a run: {', '.join(sorted(experiment.decided))}; "
            f"here that of {experiment.control} ({experiment.name.partition('@')[0]}@ID for others)"
        )
    if experiment.control is None:
        out.print("control: none, it is the control of its series")
    else:
        control = search_spaces.resolve(
            experiment.control, revision=args.revision, profile=args.profile, overrides=settings
        )
        _differences(out, experiment.control, resolved.config, control.config)
    _settings(out, resolved)
    return 0


def _differences(out: Console, name: str, own: TrialConfig, control: TrialConfig) -> None:
    out.print(f"\n[bold]differs from its control {name}[/bold]")
    here, there = own.flat(), control.flat()
    changed = [o for o in here if here[o] != there[o] and o not in AXES]
    if not changed:
        out.print("  in nothing")
        return
    table = Table(box=None, pad_edge=False)
    for column in ("  option", "here", "control"):
        table.add_column(column, overflow="fold")
    for option in changed:
        table.add_row(f"  {option}", shown(here[option]), shown(there[option]))
    out.print(table)


def _settings(out: Console, resolved: search_spaces.Resolved) -> None:
    table = Table(box=None, pad_edge=False)
    table.add_column("option", no_wrap=True)
    for column in ("value", "from"):
        table.add_column(column, overflow="fold")
    part = ""
    for option, value in resolved.config.flat().items():
        if option in AXES:
            continue
        heading = PARTS[option_owner(option)]
        if heading != part:
            table.add_row(Text(f"\n{heading}", style="bold"))
            part = heading
        origin = resolved.provenance[option]
        style = "dim" if origin == "default" else ""
        told = origin.replace(f" by profile {resolved.config.profile}", " (profile)")
        table.add_row(f"  {option}", shown(value), told, style=style)
    out.print()
    out.print(table)
