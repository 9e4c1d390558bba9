"""Puzzles: demonstrations, query, truth, and the prediction after several ACT steps.

Reads ``trials/<id>/predictions.json`` (written by `trainable.predictions`). A grid is a list of
rows; −1 marks a cell that is no colour.
"""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from html import escape
from pathlib import Path
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
LEAD = (
    "What the best trials answer: solved, nearly solved and failed original puzzles, with the "
    "answer after several ACT steps; training and held-out queries, up to 12 of each trial."
)
ORDER = ("solved", "nearly solved", "failed")


def puzzles(material: Material) -> Section:
    """Solved, nearly solved and failed puzzles of every trial that has predictions."""
    found = [
        (trial, told)
        for trial in _best_first(material)
        if (told := read_predictions(trial.folder / FILE)) and told["puzzles"]
    ]
    command = shlex.join(["etrm-tune", "report", *map(str, material.run.paths), "--puzzles"])
    if not found:
        body = paragraph("No puzzle was answered yet. That needs the checkpoint of a finished arm:")
        body += f"<pre><code>{escape(command)}</code></pre>"
        return Section("puzzles", "Puzzles", body, LEAD)
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
        "Un-augmented, one answer without voting, full ACT. Crossed cells are wrong; a hatched "
        "cell holds no colour; point at a cell for its colour's name. Predictions are shown over "
        "the rectangle of the truth; q: the probability with which the Q-head would halt. Nearly "
        "solved: wrong, with at least 80 % of "
        "the cells right (ours). Chosen by outcome, so their shares say nothing about accuracy: "
        "the counts in the headings do."
    )
    body = _patterns() + "".join(parts) + note(text)
    if any(t["status"] == "finished" for t in (one.summary for one in material.arms)):
        body += note(f"For every trial and all of its puzzles: {command}")
    return Section("puzzles", "Puzzles", body, LEAD)


def _best_first(material: Material) -> list[Trial]:
    order = {name: at for at, name in enumerate(material.matrix["experiment"])}
    return sorted(material.trials, key=lambda t: order.get(t.summary["experiment"], len(order)))


def read_predictions(path: Path) -> dict[str, Any] | None:
    """A trial's predictions; None where there are none, or the file is not what was written.

    Puzzles that cannot be drawn are left out.
    """
    told = read_object(path)
    if told is None or not isinstance(told.get("puzzles"), list):
        return None
    tally = told.get("tally")
    counts = {
        str(role): {str(name): int(n) for name, n in one.items() if isinstance(n, int)}
        for role, one in (tally if isinstance(tally, dict) else {}).items()
        if isinstance(one, dict)
    }
    puzzles = [one for one in told["puzzles"] if _can_be_drawn(one)]
    return told | {"tally": counts, "puzzles": puzzles, "step": told.get("step")}


def _can_be_drawn(one: Any) -> bool:
    try:
        grids = [one["input"], *(g for d in one["demos"] for g in (d["input"], d["output"]))]
        steps = one["steps"]
        drawn = [one["output"], *(step["grid"] for step in steps)]
        plain = all(
            isinstance(step["step"], int)
            and isinstance(step["q"], int | float)
            and all(isinstance(side, int) for side in step["size"])
            and len(step["size"]) == 2
            for step in steps
        )
        sizes = {(len(grid), len(grid[0])) for grid in drawn}
        cells = [value for grid in (*grids, *drawn) for row in grid for value in row]
        even = all(len(row) == len(grid[0]) for grid in (*grids, *drawn) for row in grid)
        known = one["outcome"] in ORDER and all(v in range(-1, len(ARC)) for v in cells)
        return bool(steps and plain and even and known and len(sizes) == 1)
    except (KeyError, TypeError, IndexError):
        return False


def _tally(told: dict[str, Any]) -> str:
    said = []
    for role, one in told["tally"].items():
        asked, known = one.get("queries", 0), one.get("available", 0)
        of = f"{asked} of {known} queries answered" if known > asked else f"{asked} queries"
        said.append(f"{role}: {one.get('solved', 0)} solved of {of}")
    return "; ".join(said)


def _puzzle(one: dict[str, Any]) -> str:
    demos = "".join(
        f'<div class="pair">{_figure(pair["input"], f"demo {i}")}<span>→</span>'
        f"{_figure(pair['output'], 'answer')}</div>"
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
        f'<div class="puzzle" data-truth="{_cells(truth)}">{head}<div class="grids">{demos}</div>'
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
    data = f'data-g="{_cells(grid)}"' + (' data-w="1"' if truth else "")
    return (
        f'<svg viewBox="-.5 -.5 {width} {height}" width="{max(24, width)}" role="img" {data} '
        f'aria-label="{escape(alt)}">{drawn}</svg>'
    )


def _cells(grid: Sequence[Sequence[int]]) -> str:
    """A grid for the page's script, which names the colour of a cell: ``01|2.``, a dot for none."""
    return "|".join("".join("." if v < 0 else str(int(v)) for v in row) for row in grid)


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
