"""Puzzles: demonstrations, query, truth, and the prediction after several ACT steps.

Reads ``trials/<id>/predictions.json`` (written by `trainable.predictions`). A grid is a list of
rows; −1 marks a cell that is no colour.
"""

from __future__ import annotations

from collections.abc import Sequence
from html import escape
from typing import Any

from analysis.report.material import Material, Trial
from analysis.report.page import Section, note, paragraph
from analysis.report.style import ARC
from analysis.rows import read_object

FILE = "predictions.json"
CELL = 10
SHOWN = (1, 2, 4, 8, 16, 32, 64)
"""ACT steps that are drawn, and the last one."""
TRIALS = 6
"""Trials whose puzzles are drawn, at most."""
ORDER = ("solved", "nearly solved", "failed")


def puzzles(material: Material) -> Section:
    """Solved, nearly solved and failed puzzles of every trial that has predictions."""
    found = []
    for trial in _best_first(material):
        told = read_object(trial.folder / FILE)
        if told and isinstance(told.get("puzzles"), list) and told["puzzles"]:
            found.append((trial, told))
    if not found:
        where = " ".join(str(path) for path in material.run.paths)
        body = paragraph(
            "No predictions were computed yet. They need the checkpoints of finished trials and "
            "about a minute each:"
        )
        body += f"<pre><code>etrm-tune report {escape(where)} --puzzles</code></pre>"
        return Section("puzzles", "Puzzles", body)
    parts = []
    for at, (trial, told) in enumerate(found[:TRIALS]):
        drawn = sorted(told["puzzles"], key=lambda one: ORDER.index(one["outcome"]))
        inside = "".join(_puzzle(one) for one in drawn)
        said = (
            f"{trial.id} ({told.get('weights', '?')} weights, step {told.get('step', '?')}): "
            f"{_tally(told)}"
        )
        opened = " open" if at == 0 else ""
        parts.append(f"<details{opened}><summary>{escape(said)}</summary>{inside}</details>")
    text = (
        "Original puzzles, un-augmented, one answer without voting, full ACT. Crossed cells are "
        "wrong; a hatched cell holds no colour. Predictions are shown over the rectangle of the "
        "truth. Nearly solved: the best of the wrong ones, from 80 % of the cells on (ours). "
        "Chosen by outcome, so their shares say nothing about accuracy: the tally does."
    )
    return Section("puzzles", "Puzzles", _patterns() + "".join(parts) + note(text))


def _best_first(material: Material) -> list[Trial]:
    order = {name: at for at, name in enumerate(material.matrix["experiment"])}
    return sorted(material.trials, key=lambda t: order.get(t.summary["experiment"], len(order)))


def _tally(told: dict[str, Any]) -> str:
    counts = told.get("tally") or {}
    return "; ".join(
        f"{role}: {one['solved']} of {one['queries']} queries solved"
        for role, one in counts.items()
    )


def _puzzle(one: dict[str, Any]) -> str:
    demos = "".join(
        f'<div class="pair">{_figure(pair["input"], f"demo {i}")}<span>→</span>'
        f"{_figure(pair['output'], '')}</div>"
        for i, pair in enumerate(one["demos"], start=1)
    )
    truth = one["output"]
    steps = one["steps"]
    chosen = [s for s in steps if s["step"] in SHOWN or s is steps[-1]]
    grids = [_figure(one["input"], "query"), _figure(truth, "truth")]
    for step in chosen:
        wrong = sum(
            a != b for row, said in zip(truth, step["grid"], strict=True)
            for a, b in zip(row, said, strict=True)
        )  # fmt: skip
        size = "" if step["size"] == _size(truth) else f", size {_by(step['size'])}"
        mark = "✓ right" if step["correct"] else f"✗ {wrong} wrong{size}"
        grids.append(
            _figure(step["grid"], f"step {step['step']}: {mark}, q {step['q']:.2f}", truth)
        )
    head = (
        f"<h3>{escape(str(one['task']))} · {escape(one['outcome'])} "
        f'<span class="soft">({escape(one["role"])})</span></h3>'
    )
    return (
        f'<div class="puzzle">{head}<div class="grids">{demos}</div>'
        f'<div class="grids" style="margin-top:.5rem">{"".join(grids)}</div></div>'
    )


def _figure(
    grid: Sequence[Sequence[int]], caption: str, truth: Sequence[Sequence[int]] | None = None
) -> str:
    said = f"<figcaption>{escape(caption)}</figcaption>" if caption else ""
    return f"<figure>{said}{grid_svg(grid, caption or 'output', truth)}</figure>"


def grid_svg(
    grid: Sequence[Sequence[int]], alt: str, truth: Sequence[Sequence[int]] | None = None
) -> str:
    """A grid in ARC's colours; cells that differ from `truth` are crossed.

    One path for each colour keeps a page of puzzles small.
    """
    rows, columns = len(grid), len(grid[0]) if len(grid) else 0
    cells: dict[int, list[str]] = {}
    crosses = []
    for r, row in enumerate(grid):
        c = 0
        while c < columns:
            end = c
            while end < columns and row[end] == row[c]:
                end += 1
            path = f"M{c * CELL},{r * CELL}h{(end - c) * CELL}v{CELL}H{c * CELL}z"
            cells.setdefault(int(row[c]), []).append(path)
            c = end
        if truth is not None:
            crosses += [
                f"M{c * CELL + 2},{r * CELL + 2}l6,6m0,-6l-6,6"
                for c in range(columns)
                if row[c] != truth[r][c]
            ]
    drawn = "".join(
        f'<path d="{"".join(paths)}" fill="{ARC[value] if value >= 0 else "url(#none)"}"/>'
        for value, paths in sorted(cells.items())
    )
    lines = "".join(f"M0,{r * CELL}h{columns * CELL}" for r in range(rows + 1))
    lines += "".join(f"M{c * CELL},0v{rows * CELL}" for c in range(columns + 1))
    drawn += f'<path d="{lines}" stroke="#808080" stroke-width=".6" fill="none"/>'
    if crosses:
        path = "".join(crosses)
        drawn += f'<path d="{path}" stroke="#000" stroke-width="3.4" fill="none"/>'
        drawn += f'<path d="{path}" stroke="#fff" stroke-width="1.6" fill="none"/>'
    width, height = columns * CELL + 1, rows * CELL + 1
    alt = f"{alt}: {rows} by {columns} cells" + (f", {len(crosses)} wrong" if truth else "")
    return (
        f'<svg viewBox="-.5 -.5 {width} {height}" width="{max(24, width)}" role="img" '
        f'aria-label="{escape(alt)}">{drawn}</svg>'
    )


def _patterns() -> str:
    return (
        '<svg width="0" height="0" style="position:absolute" aria-hidden="true"><defs>'
        '<pattern id="none" width="5" height="5" patternUnits="userSpaceOnUse">'
        '<rect width="5" height="5" fill="#fff"/><path d="M0,5L5,0" stroke="#999"/></pattern>'
        "</defs></svg>"
    )


def _size(grid: Sequence[Sequence[int]]) -> list[int]:
    return [len(grid), len(grid[0]) if len(grid) else 0]


def _by(size: Sequence[int]) -> str:
    return f"{size[0]} × {size[1]}"
