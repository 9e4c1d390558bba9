"""Rungs: who reached each one, who survived and why, as the schedulers recorded it.

`Run.rungs` holds one row per trial and rung; this is the same by rung.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from typing import Any

import pandas as pd

from analysis.load import Run

COLUMNS = {
    "rule": "bar, halving, median or pbt",
    "rung": "epochs",
    "reached": "trials that were placed on it",
    "survived": "trials that went on; a copy goes on too",
    "stopped": "trials that were stopped there",
    "copied": "trials that copied another one there (pbt)",
    "best": "trial with the largest value of those that went on",
    "reasons": "why, by trial, in order of arrival",
}


def rung_table(run: Run | Iterable[Mapping[str, Any]]) -> pd.DataFrame:
    """One row per rule and rung, by epoch; columns are `COLUMNS`. Empty where no rung was reached.

    Takes a run, or the lines of scheduler.jsonl with a ``trial_id`` each.
    """
    given: Iterable[Mapping[Any, Any]] = (
        run.rungs.to_dict("records") if isinstance(run, Run) else run
    )
    lines = [{str(name): value for name, value in one.items()} for one in given]
    found: dict[tuple[float, str], list[dict[str, Any]]] = {}
    for line in lines:
        if "rung" in line and line["rung"] == line["rung"]:
            found.setdefault((float(line["rung"]), str(line.get("rule"))), []).append(line)
    rows = []
    for (rung, rule), placed in sorted(found.items()):
        placed = sorted(placed, key=lambda line: _number(line.get("time")))
        on = [line for line in placed if not line.get("stop")]
        copied = [line for line in on if isinstance(line.get("parent"), str)]
        best = max(on, key=lambda line: _number(line.get("value")), default=None)
        rows.append(
            {
                "rule": rule,
                "rung": rung,
                "reached": len(placed),
                "survived": len(on),
                "stopped": len(placed) - len(on),
                "copied": len(copied),
                "best": "" if best is None else str(best["trial_id"]),
                "reasons": {str(line["trial_id"]): str(line.get("reason", "")) for line in placed},
            }
        )
    return pd.DataFrame(rows, columns=list(COLUMNS))


def _number(value: Any) -> float:
    known = isinstance(value, int | float) and not math.isnan(value)
    return float(value) if known else -math.inf
