"""The report of a run: one self-contained HTML page, a Markdown text and CSV tables.

The page holds its style sheet and charts (SVG) itself and refers to nothing outside, so it opens
anywhere, without a network, and prints.
"""

from __future__ import annotations

from functools import partial
from pathlib import Path

from analysis.compare import comparison_matrix
from analysis.decide import decide
from analysis.derived import _replace, _write_text, comparison_markdown
from analysis.health import health
from analysis.load import PathLike, Run, load
from analysis.report.curves import drift, gradients, halting, learning, q_head
from analysis.report.material import Material
from analysis.report.page import Section, document
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
from analysis.report.stopping import audit

NAME = "report.html"

BUILDERS = (
    what_run, decision, comparison, controls, learning, halting, q_head, gradients, drift, audit,
    estimate, pareto, findings, puzzles,
)  # fmt: skip
"""Sections in the order of the page."""


def report_html(run: Run) -> str:
    """The page as text."""
    material = Material.of(run)
    sections: list[Section] = [build(material) for build in BUILDERS]
    target = ", ".join(dict.fromkeys(str(p.get("target", "?")) for p in run.plans.values()))
    finished = int((material.run.arms["status"] == "finished").sum())
    subtitle = f"{', '.join(run.plans)}: {finished} of {len(run.arms)} trials finished"
    return document(f"Report: {target}", subtitle, sections)


def write_report(path: PathLike | Run, out: PathLike | None = None) -> list[Path]:
    """Write the page, and beside it ``report.md`` and the CSV tables; return all their paths.

    Args:
        path: a run folder, or a `Run` (several folders together).
        out: the page's file; default: ``report.html`` in the (first) run folder.

    Raises `ResultsError` when the folder is not a run folder, or cannot be written.
    """
    run = path if isinstance(path, Run) else load(path)
    page = Path(out) if out is not None else run.paths[0] / NAME
    matrix, stem = comparison_matrix(run), page.with_suffix("")
    signs = health(run)
    texts = {
        page: report_html(run),
        stem.with_name(f"{stem.name}.md"): comparison_markdown(run, matrix, decide(run)),
        stem.with_name(f"{stem.name}-comparison.csv"): matrix.to_csv(index=False),
        stem.with_name(f"{stem.name}-trials.csv"): run.trials.to_csv(index=False),
        stem.with_name(f"{stem.name}-health.csv"): signs.to_csv(index=False),
    }
    for file, text in texts.items():
        _replace(file, partial(_write_text, text))
    return list(texts)
