"""``checkpoint inspect``, ``checkpoint verify-decoder``, ``checkpoint export``: any format."""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from etrm_tune.terminal import console


def add(commands: Any) -> None:
    """Add ``checkpoint`` and its three words."""
    parser = commands.add_parser(
        "checkpoint", help="look into a checkpoint, compare its decoder, change its format"
    )
    words = parser.add_subparsers(dest="what", metavar="WHAT", required=True)
    inspect = words.add_parser("inspect", help="kind, sizes, statistics, configuration, exposure")
    verify = words.add_parser(
        "verify-decoder", help="is the decoder still its source? exit status 0 equal, 1 drifted"
    )
    verify.add_argument("--decoder", required=True, metavar="SOURCE", help="where it came from")
    export = words.add_parser("export", help="write the weights in another format")
    export.add_argument(
        "--format",
        required=True,
        metavar="FORMAT",
        help="trm or etrm (public: step_<n>, all_config.yaml), or etrm-tune (weights alone)",
    )
    export.add_argument("--out", required=True, metavar="FOLDER", help="made if needed")
    for word, action in (
        (inspect, inspect_command),
        (verify, verify_command),
        (export, export_command),
    ):
        word.add_argument("file", metavar="FILE", help="of etrm-tune, official TRM or ETRM")
        word.add_argument("--config", metavar="YAML", help="a foreign file's all_config.yaml")
        word.add_argument("--json", action="store_true", help="for scripts")
        if word is not inspect:
            word.add_argument("--weights", help="ema or raw (default: ema where there are any)")
        if word is not verify:
            word.add_argument("--identifiers", metavar="JSON", help="names of a TRM's puzzles")
        word.set_defaults(
            action=action, known_options=[o for a in word._actions for o in a.option_strings]
        )


def inspect_command(args: argparse.Namespace) -> int:
    """``checkpoint inspect FILE``."""
    from trainable.foreign import open_weights
    from trainable.inspection import inspect

    file = open_weights(args.file, config=args.config, identifiers=args.identifiers)
    found = inspect(file)
    if args.json:
        _print_json(found)
        return 0
    out = console(wide=True)
    facts = {
        "file": found["path"],
        "format": found["format"],
        "step": found["step"],
        "weights": " and ".join(found["weights"]),
        "configuration": found["config_file"] or "none beside it",
        **({f"trial {key}": value for key, value in (found["trial"] or {}).items()}),
        **{key: value for key, value in (found["config"] or {}).items() if value is not None},
        **{f"values in {part}": f"{n:,}" for part, n in found["parameters"].items()},
        "exposure": _exposure(found["exposure"]),
    }
    if "puzzle table" in found["parameters"]:
        facts["names of identifiers"] = found["identifiers"]
    _table(out, ("", ""), ((key, _or_unknown(value)) for key, value in facts.items()))
    for label, rows in found["tensors"].items():
        out.print()
        _table(
            out,
            (f"tensor ({label})", "shape", "dtype", "mean", "std", "min", "max", "NaN", "Inf"),
            (
                (
                    row["name"],
                    " x ".join(map(str, row["shape"])) or "scalar",
                    row["dtype"],
                    *(f"{row[key]:.4g}" for key in ("mean", "std", "min", "max")),
                    str(row["nan"]),
                    str(row["inf"]),
                )
                for row in rows
            ),
        )
    _notes(out, found["notes"])
    return 0


def verify_command(args: argparse.Namespace) -> int:
    """``checkpoint verify-decoder FILE --decoder SOURCE``."""
    from trainable.decoder import read_decoder
    from trainable.foreign import open_weights
    from trainable.inspection import verify_decoder

    _weights(args.weights)
    file = open_weights(args.file, config=args.config)
    label, weights = file.choose(args.weights)
    found = verify_decoder(file, read_decoder(args.decoder), weights) | {"weights": label}
    status = 0 if found["verdict"] == "frozen: equal" else 1
    if args.json:
        _print_json(found)
        return status
    out = console(wide=True)
    _table(
        out,
        ("tensor", "equal", "max difference", "mean difference"),
        (
            (
                row["name"],
                "yes" if row["equal"] else "NO",
                *(
                    "other shape" if row[key] is None else f"{row[key]:.3g}"
                    for key in ("largest", "mean")
                ),
            )
            for row in found["tensors"]
        ),
    )
    for key in ("missing", "unexpected"):
        for name in found[key]:
            out.print(Text(f"{key}: {name}"), soft_wrap=True)
    out.print(
        Text(
            f"{found['verdict']}: {found['equal']} of {found['of']} tensors within "
            f"{found['tolerance']:g} ({label} weights)"
        ),
        soft_wrap=True,
    )
    return status


def export_command(args: argparse.Namespace) -> int:
    """``checkpoint export FILE --format FORMAT --out FOLDER``."""
    from trainable.errors import ConfigError, nearest
    from trainable.foreign import open_weights
    from trainable.foreign.export import FORMATS, export

    _weights(args.weights)
    if args.format not in FORMATS:
        raise ConfigError(
            f"unknown format {args.format!r}{nearest(args.format, FORMATS)}: choose from "
            f"{', '.join(FORMATS)}"
        )
    file = open_weights(args.file, config=args.config, identifiers=args.identifiers)
    paths, notes = export(file, format=args.format, out=args.out, weights=args.weights)
    if args.json:
        _print_json({"files": [str(path) for path in paths], "notes": notes})
        return 0
    out = console(wide=True)
    for path in paths:
        out.print(Text(f"wrote {path}"), soft_wrap=True)
    _notes(out, notes)
    return 0


def _weights(value: str | None) -> None:
    from trainable.errors import ConfigError

    if value not in (None, "ema", "raw"):
        raise ConfigError(f"--weights {value}: choose from ema, raw")


def _table(out: Console, columns: Sequence[str], rows: Iterable[Sequence[str]]) -> None:
    table = Table(box=None, pad_edge=False, show_header=any(columns))
    for at, column in enumerate(columns):
        table.add_column(column, justify="right" if at > 2 else "left", overflow="fold")
    for row in rows:
        table.add_row(*(Text(cell) for cell in row))
    out.print(table)


def _notes(out: Console, notes: Iterable[str]) -> None:
    for note in notes:
        out.print(Text(f"note: {note}"), soft_wrap=True)


def _exposure(counts: Mapping[str, int] | None) -> str:
    if counts is None:
        return "unknown"
    return ", ".join(f"{role} {count}" for role, count in counts.items()) or "none"


def _or_unknown(value: object) -> str:
    return "unknown" if value is None else str(value)


def _print_json(value: dict[str, Any]) -> None:
    from trainable.records import plain

    print(json.dumps(plain(value), indent=1, allow_nan=False))
