"""What the stopping rule did, and what it or another one would have done on these curves."""

from __future__ import annotations

import pandas as pd

from analysis.replay import replay
from analysis.report.material import Material
from analysis.report.page import Section, items, note, paragraph, table
from analysis.rows import ResultsError

ORDERS = 50


def audit(material: Material) -> Section:
    """Every recorded rung decision, then the bar and halving replayed."""
    parts = ["<h3>What was decided</h3>"]
    rungs = material.run.rungs
    if rungs.empty or "reason" not in rungs:
        parts.append(paragraph("No trial reached a rung, or the run had no stopping rule."))
    else:
        shown = pd.DataFrame(
            {
                "trial": rungs["trial_id"].astype(str),
                "outcome": ["stopped" if stop else "went on" for stop in rungs["stop"]],
                "step": [_whole(step) for step in rungs.get("step", [None] * len(rungs))],
                "why": rungs["reason"].astype(str),
            }
        )
        parts.append(table(shown))
    parts.append("<h3>What it would have cost: recorded curves replayed</h3>")
    for word in ("bar", "asha"):
        try:
            found = replay(material.run, word, orders=ORDERS)
        except ResultsError as error:
            parts.append(paragraph(str(error)))
            break
        first, *lines = found.lines()
        parts.append(paragraph(first.strip()) + items(line.strip() for line in lines))
        if word == "asha":
            parts.append("<h3>For the next run</h3>" + items(found.advice()))
    parts.append(
        note(
            "The rules are the classes that decide live. A stopped trial's end is unknown, so only "
            "full curves tell what a stop loses. Halving is replayed for comparison: phases run "
            "without it, since an ablation must not lose an arm for being second best."
        )
    )
    return Section("stopping", "Early-stopping audit", "".join(parts))


def _whole(value: object) -> str:
    return f"{value:.0f}" if isinstance(value, int | float) and value == value else "–"
