"""What a search found: which parameters matter, and every point in parallel coordinates."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import pandas as pd

from analysis.importance import FEW, Importance, importance
from analysis.report.material import Material, Trial, number, short
from analysis.report.page import Section, charts, figure, note, paragraph, table
from analysis.report.parallel import Axis, Path, parallel_chart
from analysis.report.svg import Point, scatter_chart

MOST = 300
"""Points that are drawn, at most; the best of them."""
SLICES = 8
"""Different values from which on a parameter has a chart of its own."""


@dataclass(frozen=True)
class Searched:
    """One point of a search and what became of it, over its seeds."""

    name: str
    values: Mapping[str, Any]
    known: bool
    """Whether it is an experiment of the plan."""
    state: str
    """finished, stopped, failed or running."""
    accuracy: float
    """Mean final accuracy over its seeds; NaN unless all have finished."""
    first_rung: float
    """Mean value on the lowest rung that any trial reached; NaN where one has not."""


def search(material: Material) -> Section | None:
    """Importance, parallel coordinates, and a chart for each numeric parameter; None without a
    search: arms of the plan differ in single options, and the comparison says it all."""
    points = searched(material)
    if not points:
        return None
    done = [p for p in points if math.isfinite(p.accuracy)]
    counts = pd.Series([p.state for p in points]).value_counts()
    told = ", ".join(f"{n} {state}" for state, n in counts.items())
    lead = (
        f"How accuracy depends on what was searched: {len(points)} points ({told}); means over a "
        f"point's seeds. Values are those of the published sizes."
    )
    parts = [_matters(points), "<h3>Parallel coordinates</h3>", _parallel(points)]
    slices = [_slice(name, done) for name in _names(points)]
    if any(slices):
        parts += [
            "<h3>One parameter at a time (points that finished)</h3>",
            charts(slices, ""),
            note("Filled: experiments of the plan. Other parameters vary from point to point."),
        ]
    return Section("search", "Search: what matters", "".join(parts), lead)


def searched(material: Material) -> list[Searched]:
    """Every point of the searches in these runs, in the order in which they were proposed."""
    found = []
    for run, plan in material.run.plans.items():
        asked = plan.get("search")
        points = asked.get("points") if isinstance(asked, dict) else None
        for point in points if isinstance(points, list) else ():
            if not isinstance(point, dict) or not isinstance(point.get("values"), dict):
                continue
            name = str(point.get("name", "?"))
            trials = [t for t in material.seeds(name) if t.summary["run"] == run]
            found.append(_searched(material, name, point, trials))
    return found


def _searched(
    material: Material, name: str, point: Mapping[str, Any], trials: Sequence[Trial]
) -> Searched:
    states = {str(t.summary["status"]) for t in trials}
    state = "running"
    if states & {"failed", "diverged"}:
        state = "failed"
    elif states and states <= {"finished", "stopped"}:
        state = "stopped" if "stopped" in states else "finished"
    finals = [number(t.summary["accuracy"]) for t in trials]
    final = sum(finals) / len(finals) if state == "finished" else math.nan
    rungs = [material.first_rungs.get((t.summary["run"], t.id), math.nan) for t in trials]
    first = sum(rungs) / len(rungs) if rungs else math.nan
    values = {str(k): v for k, v in point["values"].items()}
    return Searched(name, values, bool(point.get("known")), state, final, first)


def _matters(points: Sequence[Searched]) -> str:
    """Tables of importance: of the final accuracy, and where points were stopped of the first
    rung, which all of them reached."""
    parts = ["<h3>Which parameters matter</h3>"]
    told = [("final accuracy of the points that finished", [p.accuracy for p in points])]
    if any(p.state == "stopped" for p in points):
        told.append(
            ("accuracy on the first rung, stopped points too", [p.first_rung for p in points])
        )
    shown = False
    for what, target in told:
        n = sum(map(math.isfinite, target))
        found = importance([p.values for p in points], target)
        if not found:
            parts.append(
                paragraph(
                    f"The {what}: {n} points, too few to say what matters (at least {FEW} with "
                    f"two values of a parameter, ours)."
                )
            )
            continue
        shown = True
        parts.append(paragraph(f"The {what} (n = {n}):"))
        parts.append(table(pd.DataFrame([_row(one) for one in found])))
    if shown:
        parts.append(
            note(
                "Explains: share of the variance between groups of equal or neighbouring values, "
                "corrected for their number; main effects alone. p: share of permutations that "
                "explain as much, for each parameter by itself, so one in 20 is below 0.05 by "
                "chance. A searcher does not sample at random and a scheduler keeps the good: a "
                "hint where to look, no proof."
            )
        )
    return "".join(parts)


def _row(one: Importance) -> dict[str, str]:
    means = "; ".join(f"{g.values}: {100 * g.mean:.1f} % (n = {g.n})" for g in one.groups)
    return {
        "parameter": one.parameter,
        "n": str(one.n),
        "explains": f"{100 * max(0.0, one.share):.0f} %",
        "p": f"{one.p:.3f}",
        "best": one.best.values,
        "mean by value": means,
    }


def _parallel(points: Sequence[Searched]) -> str:
    ranked = sorted(points, key=lambda p: -p.accuracy if math.isfinite(p.accuracy) else math.inf)
    drawn = ranked[:MOST]
    done = [p for p in drawn if math.isfinite(p.accuracy)]
    best = {p.name for p in done[: max(1, len(done) // 4)]}
    axes = [Axis(name, [p.values.get(name) for p in drawn]) for name in _names(points)]
    axes.append(
        Axis(
            "accuracy",
            [p.accuracy if math.isfinite(p.accuracy) else None for p in drawn],
            percent=True,
            ends=True,
        )
    )
    paths = [
        Path(
            tip=_tip(p),
            kind="best" if p.name in best else "done" if math.isfinite(p.accuracy) else "cut",
        )
        for p in drawn
    ]
    alt = f"{len(drawn)} points of the search: one line each over {len(axes) - 1} parameters"
    text = (
        "One line is one point, through its value of each parameter to its accuracy. Orange, "
        "thick: the best quarter of those that finished; blue: the other finished ones; grey, "
        "dashed: stopped, failed or running, so without a final accuracy. ∅: the parameter has no "
        "effect there. Point at a line, or touch it, for its values."
    )
    if len(points) > MOST:
        text += f" The best {MOST} of {len(points)} are drawn."
    return parallel_chart(axes, paths, alt=alt) + note(text)


def _tip(p: Searched) -> str:
    lines = [f"{short(p.name)}: {p.state}"]
    if math.isfinite(p.accuracy):
        lines[0] += f", {100 * p.accuracy:.1f} %"
    return "\n".join([*lines, *(f"{name} {show_value(value)}" for name, value in p.values.items())])


def _slice(name: str, done: Sequence[Searched]) -> str:
    """Accuracy over one numeric parameter."""
    have = [p for p in done if isinstance(p.values.get(name), int | float)]
    values = [float(p.values[name]) for p in have if not isinstance(p.values[name], bool)]
    if len(set(values)) < SLICES or len(values) < len(have):
        return ""
    log = min(values) > 0 and max(values) / min(values) >= 30
    points = [
        Point(
            float(p.values[name]),
            p.accuracy,
            "",
            1 if p.known else 0,
            fill=p.known,
            tip=_tip(p),
        )
        for p in have
    ]
    svg = scatter_chart(
        points, alt=f"accuracy over {name}, {len(have)} points", x_name=name, log_x=log
    )
    return figure(svg, name, f"{len(have)} points")


def _names(points: Sequence[Searched]) -> list[str]:
    return list(dict.fromkeys(name for point in points for name in point.values))


def show_value(value: Any) -> str:
    """A parameter's value, numbers with three digits."""
    if isinstance(value, float):
        return f"{value:.3g}"
    return str(value)
