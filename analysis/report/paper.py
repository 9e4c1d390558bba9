"""What a paper needs of a run: Markdown with every table, and curves and points as tables."""

from __future__ import annotations

import math
from collections.abc import Sequence

import pandas as pd

from analysis.derived import _markdown, comparison_markdown
from analysis.importance import importance
from analysis.report.material import Material
from analysis.report.searched import Searched, searched, show_value
from analysis.report.svg import thin
from analysis.rows import ResultsError

ROWS_OF_A_CURVE = 200
"""Rows of a trial in the table of curves, at most, evenly spread, with the first and the last."""
CURVES = (
    "run", "trial_id", "experiment", "seed", "step", "epoch", "samples", "wall_s",
    "train/accuracy", "train/exact_accuracy", "train/loss", "train/steps", "train/q_halt_accuracy",
    "train/q_halt_base_rate", "grad/encoder_norm", "grad/decoder_norm", "encoder/cross_sample_var",
    "drift/relative", "eval/accuracy", "eval/exact_accuracy", "eval/pass@1", "eval/pass@2",
)  # fmt: skip
"""Columns of that table, where they were measured."""


def paper_markdown(material: Material) -> str:
    """Comparison, controls and decisions, then what a search found and what a replay would do."""
    text = comparison_markdown(material.run, material.matrix, material.decisions)
    intervals = _intervals(material.matrix)
    if len(intervals):
        text += f"\n## Means over seeds, 95 % intervals (bootstrap)\n\n{_markdown(intervals)}\n"
    return text + _search_markdown(material) + _replay_markdown(material)


def thin_curves(material: Material) -> pd.DataFrame:
    """The most used metrics of every trial over at most `ROWS_OF_A_CURVE` rows; rows with an
    evaluation are always kept."""
    parts = []
    for trial in material.trials:
        if trial.curve.empty:
            continue
        kept = set(thin(range(len(trial.curve)), ROWS_OF_A_CURVE))
        if "eval/accuracy" in trial.curve:
            measured = trial.curve["eval/accuracy"].notna().tolist()
            kept |= {at for at, known in enumerate(measured) if known}
        parts.append(trial.curve.iloc[sorted(kept)])
    if not parts:
        return pd.DataFrame(columns=list(CURVES))
    whole = pd.concat(parts, ignore_index=True)
    return whole[[name for name in CURVES if name in whole]]


def search_table(points: Sequence[Searched]) -> pd.DataFrame:
    """One row for each point of a search: what became of it, and its values."""
    return pd.DataFrame(
        [
            {
                "point": p.name,
                "known": p.known,
                "state": p.state,
                "accuracy": p.accuracy,
                "accuracy_first_rung": p.first_rung,
                **p.values,
            }
            for p in points
        ]
    )


def _intervals(matrix: pd.DataFrame) -> pd.DataFrame:
    """``90.1 [88.0, 92.3]`` for tokens and whole grids, of experiments with several seeds."""
    rows = [
        {
            "experiment": row["experiment"],
            "n": str(row["n"]),
            **{
                f"{name} (%)": f"{100 * row[name]:.1f} "
                f"[{100 * row[f'{name}_low']:.1f}, {100 * row[f'{name}_high']:.1f}]"
                for name in ("accuracy", "exact")
            },
        }
        for row in matrix.to_dict("records")
        if not math.isnan(row["accuracy_low"])
    ]
    return pd.DataFrame(rows)


def _search_markdown(material: Material) -> str:
    points = searched(material)
    if not points:
        return ""
    found = importance([p.values for p in points], [p.accuracy for p in points])
    lines = ["", "## Search", ""]
    rows = [
        {
            "parameter": one.parameter,
            "n": str(one.n),
            "explains": f"{100 * max(0.0, one.share):.0f} %",
            "p": f"{one.p:.3f}",
            "best": one.best.values,
        }
        for one in found
    ]
    if rows:
        lines += ["Variance of the final accuracy that a parameter explains alone:", ""]
        lines += [_markdown(pd.DataFrame(rows)), ""]
    best = sorted((p for p in points if math.isfinite(p.accuracy)), key=lambda p: -p.accuracy)[:10]
    lines += [f"The best {len(best)} of {len(points)} points:", ""] if best else []
    for p in best:
        values = ", ".join(f"{name} {show_value(value)}" for name, value in p.values.items())
        lines.append(f"- {p.name}: {100 * p.accuracy:.1f} %: {values}")
    return "\n".join(lines) + "\n"


def _replay_markdown(material: Material) -> str:
    lines = ["", "## Stopping rules replayed on the recorded curves", ""]
    for word in ("bar", "asha"):
        try:
            found = material.replayed(word)
        except ResultsError as error:
            return "\n".join([*lines, f"{error}."]) + "\n"
        first, *rest = found.lines()
        lines += [f"{first.strip()}:", "", *(f"- {line.strip()}" for line in rest), ""]
    return "\n".join([*lines, *(f"- {line}" for line in found.advice())]) + "\n"
