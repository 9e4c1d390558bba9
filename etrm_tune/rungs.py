"""The rung table in a terminal: after a run, and in ``status``."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from rich.console import Console
from rich.table import Table

from analysis.load import Run, load
from analysis.rungs import rung_table
from etrm_tune.population import copy_lines
from etrm_tune.run_folder import RunFolder
from etrm_tune.terminal import note

MOST = 12
"""Reasons of survivors that are shown; those of stopped and copied trials always are."""


def show_rungs(console: Console, run: Run, *, stopped_too: bool = True) -> None:
    """Who reached each rung, who survived, and why. Nothing where no rung was reached."""
    table = rung_table(run)
    if table.empty:
        return
    shown = Table(box=None, pad_edge=False)
    columns = ["  rung (epochs)", "rule", "reached", "survived", "stopped", "copied", "best"]
    if not table["copied"].any():
        columns.remove("copied")
    for name in columns:
        shown.add_column(name, justify="left" if name in ("rule", "best") else "right")
    for one in table.to_dict("records"):
        values = {name.split()[0]: one[name.split()[0]] for name in columns}
        values["rung"] = f"{one['rung']:g}"
        shown.add_row(*(str(value) for value in values.values()))
    console.print(shown)
    went_on = 0
    reasons = zip(run.trials["trial_id"], run.trials["reason"], strict=True)
    stopped = {(str(trial_id), str(reason)) for trial_id, reason in reasons}
    for one in table.to_dict("records"):
        for trial_id, reason in one["reasons"].items():
            stops = (trial_id, reason) in stopped
            keeps = not stops and ": copies " not in reason
            went_on += keeps
            if (stops and stopped_too) or (not stops and (not keeps or went_on <= MOST)):
                note(console, f"{trial_id}: {reason}")
    if went_on > MOST:
        note(console, f"… and {went_on - MOST} more that went on (etrm-tune report)")


def show_standing(console: Console, folder: RunFolder, plan: Mapping[str, Any]) -> None:
    """The rungs of a run so far; of a population, who copied whom."""
    show_rungs(console, load(folder.path), stopped_too=False)  # the table above has them
    if rounds := plan.get("search", {}).get("population"):
        note(console, "who copied whom, and which rate followed:")
        for line in copy_lines(rounds):
            note(console, f"  {line}")


def standing(folder: RunFolder, plan: Mapping[str, Any]) -> dict[str, Any]:
    """The same as plain values: ``rungs``, one object each, and ``population`` (its rounds)."""
    return {
        "rungs": rung_table(load(folder.path)).to_dict("records"),
        "population": plan.get("search", {}).get("population", []),
    }
