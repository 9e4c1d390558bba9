"""What the stopping rule did, and what it or another one would have done on these curves."""

from __future__ import annotations

import math

import pandas as pd

from analysis.replay import ORDERED
from analysis.report.material import ROWS, Material
from analysis.report.page import Section, charts, figure, items, note, paragraph, table
from analysis.report.svg import Line, lines_chart, percent
from analysis.rows import ResultsError


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
        parts.append(table(shown, fold=ROWS))
    parts.append("<h3>What it would have cost: recorded curves replayed</h3>")
    found = None
    for word in ("bar", "asha"):
        try:
            found = material.replayed(word)
        except ResultsError as error:
            parts.append(paragraph(f"{str(error).capitalize()}."))
            break
        first, *lines = found.outcome()
        parts.append(paragraph(f"{first.strip()}:") + items(line.strip() for line in lines))
    if found is not None:
        parts += [_on_the_way(material), "<h3>For the next run</h3>", items(found.advice())]
    parts.append(
        note(
            "The rules are the classes that decide live. A stopped trial's end is unknown, so only "
            "full curves tell what a stop loses. Halving is replayed for comparison: phases run "
            "without it, since an ablation must not lose an arm for being second best."
        )
    )
    lead = (
        "What the stopping rule decided and why, and what it would have cost: every rung decision "
        "of the run, then all recorded curves replayed through the same rules."
    )
    return Section("stopping", "Early-stopping audit", "".join(parts), lead)


def _on_the_way(material: Material) -> str:
    """Rank correlation of each rung with the end, of all rules' rungs."""
    found = {
        one.fraction: one
        for word in ("bar", "asha")
        for one in material.replayed(word).correlations
        if not math.isnan(one.rho)
    }
    title = "<h3>Does the order on the way tell that at the end?</h3>"
    if not found:
        said = "Not measurable: that needs three full curves that end differently."
        return title + paragraph(said)
    known = [found[share] for share in sorted(found)]
    svg = lines_chart(
        [Line([one.fraction for one in known], [one.rho for one in known], name="correlation")],
        alt="rank correlation of accuracy on the way with the final accuracy, over the budget",
        x_name="share of the budget",
        x_format=percent,
        y_range=(-1.0, 1.0),
    )
    rows = [
        {
            "share of the budget": percent(one.fraction),
            "n": str(one.n),
            "rank correlation": f"{one.rho:.2f}",
        }
        for one in known
    ]
    said = (
        "Spearman's, over the full curves that reached the rung: 1, the order there is the final "
        f"one; 0, it tells nothing. From {ORDERED:g} on a rung is worth halving on (ours)."
    )
    return (
        title
        + charts([figure(svg, "Rank correlation")], "")
        + table(pd.DataFrame(rows))
        + (note(said))
    )


def _whole(value: object) -> str:
    return f"{value:.0f}" if isinstance(value, int | float) and value == value else "–"
