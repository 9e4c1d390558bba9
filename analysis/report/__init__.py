"""The report of a run: one self-contained HTML page, a Markdown text and CSV tables.

The page holds its style sheet and charts (SVG) itself and refers to nothing outside, so it opens
anywhere, without a network, and prints.
"""

from __future__ import annotations

from functools import partial
from pathlib import Path

from analysis.derived import _replace, _write_text
from analysis.load import PathLike, Run, load
from analysis.report.curves import halting, learning
from analysis.report.inside import drift, gradients, q_head
from analysis.report.material import Material
from analysis.report.page import Section, document
from analysis.report.paper import paper_markdown, search_table, thin_curves
from analysis.report.puzzles import puzzles
from analysis.report.results import (
    comparison,
    controls,
    decision,
    estimate,
    findings,
    pareto,
    what_run,
)
from analysis.report.searched import search, searched
from analysis.report.stopping import audit

NAME = "report.html"

BUILDERS = (
    decision, what_run, comparison, controls, search, pareto, puzzles, learning, halting, q_head,
    gradients, drift, audit, estimate, findings,
)  # fmt: skip
"""Sections in the order of the page; one that has nothing to say in this run gives None."""


def report_html(run: Run) -> str:
    """The page as text."""
    return _page(Material.of(run))


def _page(material: Material) -> str:
    run = material.run
    sections: list[Section] = [s for build in BUILDERS if (s := build(material)) is not None]
    target = ", ".join(dict.fromkeys(str(p.get("target", "?")) for p in run.plans.values()))
    finished = int((material.run.arms["status"] == "finished").sum())
    subtitle = f"{', '.join(run.plans)}: {finished} of {len(run.arms)} trials finished"
    return document(f"Report: {target}", subtitle, sections)


def write_report(path: PathLike | Run, out: PathLike | None = None) -> list[Path]:
    """Write the page, and beside it ``report.md`` and CSV tables (comparison, trials, health,
    thinned curves, points of a search); return all their paths.

    Args:
        path: a run folder, or a `Run` (several folders together).
        out: the page's file; default: ``report.html`` in the (first) run folder.

    Raises `ResultsError` when the folder is not a run folder, or cannot be written.
    """
    run = path if isinstance(path, Run) else load(path)
    page = Path(out) if out is not None else run.paths[0] / NAME
    stem = page.with_suffix("")
    material = Material.of(run)
    texts = {
        page: _page(material),
        stem.with_name(f"{stem.name}.md"): paper_markdown(material),
        stem.with_name(f"{stem.name}-comparison.csv"): material.matrix.to_csv(index=False),
        stem.with_name(f"{stem.name}-trials.csv"): run.trials.to_csv(index=False),
        stem.with_name(f"{stem.name}-health.csv"): material.signs.to_csv(index=False),
        stem.with_name(f"{stem.name}-curves.csv"): thin_curves(material).to_csv(index=False),
    }
    if points := searched(material):
        table = search_table(points)
        texts[stem.with_name(f"{stem.name}-search.csv")] = table.to_csv(index=False)
    for file, text in texts.items():
        _replace(file, partial(_write_text, text))
    return list(texts)
