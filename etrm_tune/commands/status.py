"""``etrm-tune status RUN``: how the trials of a run stand."""

from __future__ import annotations

import argparse
import json
from typing import Any


def add(commands: Any) -> None:
    """Add the parser of ``status``."""
    parser: argparse.ArgumentParser = commands.add_parser("status", help="how a run stands")
    parser.add_argument("run", help="its folder, such as runs/phase1")
    parser.add_argument("--json", action="store_true", help="the same as one JSON object")
    parser.set_defaults(action=status_command)


def status_command(args: argparse.Namespace) -> int:
    """``status RUN``."""
    from rich.table import Table

    from etrm_tune.follow import continue_command
    from etrm_tune.live import percent
    from etrm_tune.retry import RETRIED, open_run
    from etrm_tune.run_folder import FINAL
    from etrm_tune.rungs import show_standing, standing
    from etrm_tune.terminal import console, say

    folder, plan = open_run(args.run)
    busy = folder.in_use()
    lines = [_line(folder, str(trial["trial_id"]), busy) for trial in plan["trials"]]
    if args.json:
        values = {"run": str(folder.path), "running": busy, "process": folder.holder()}
        print(json.dumps(values | {"trials": lines} | standing(folder, plan), indent=1))
        return 0
    out = console()
    table = Table(box=None, pad_edge=False)
    for column in ("trial", "status", "step", "epoch", "accuracy", "checkpoint", "attempts"):
        table.add_column(column, justify="left" if column in ("trial", "status") else "right")
    table.add_column("reason")
    for line in lines:
        table.add_row(
            line["trial_id"],
            line["status"],
            *("" if line[k] is None else str(line[k]) for k in ("step",)),
            "" if line["epoch"] is None else f"{line['epoch']:.0f}",
            percent(line["accuracy"]),
            *("" if line[k] is None else str(line[k]) for k in ("checkpoint", "attempts")),
            line["reason"],
        )
    out.print(table)
    show_standing(out, folder, plan)
    if busy:
        say(out, f"running, {folder.holder_text()}")
        return 0
    say(out, "not running")
    if any(line["status"] not in (*FINAL, "failed") for line in lines) and "search" not in plan:
        say(out, f"continue with: {continue_command(folder, plan)}")
    if any(line["status"] in RETRIED for line in lines):
        say(out, f"run failed and diverged trials again with: etrm-tune retry {args.run}")
    return 0


def _line(folder: Any, trial_id: str, busy: bool) -> dict[str, Any]:
    """One trial as plain values; None where there is nothing yet."""
    told = folder.read_status(trial_id)
    rows = folder.rows(trial_id)
    row = rows[-1] if rows else {}
    home = folder.trial(trial_id)
    saved = [
        int(number)
        for path in (home / "checkpoints").glob("step-*.pt")
        if (number := path.stem.removeprefix("step-")).isdigit()
    ]
    status = str(told["status"])
    return {
        "trial_id": trial_id,
        "status": "interrupted" if status == "running" and not busy else status,
        "step": row.get("step"),
        "epoch": row.get("epoch"),
        "accuracy": next(
            (r["train/accuracy"] for r in reversed(rows) if r.get("train/accuracy") is not None),
            None,
        ),
        "checkpoint": max(saved, default=None),
        "attempts": len(list(home.glob("attempt-*.jsonl"))) or None,
        "reason": str(told.get("reason") or ""),
    }
