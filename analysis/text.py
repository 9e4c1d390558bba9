"""The summary of a run in plain text, at most 100 columns wide."""

from __future__ import annotations

import math
import textwrap
from collections.abc import Iterable
from typing import Any

import pandas as pd

from analysis.compare import CONTROLS, INCLUSION, comparison_matrix
from analysis.decide import decide, next_step
from analysis.decision import Decision
from analysis.health import health
from analysis.hypotheses import hypotheses
from analysis.load import Run
from analysis.observe import observe, percent

WIDTH = 100

_GLUE = "\x00%"  # as wide as " %", and no place to break a line

TITLES = {
    "phase1": "Decisions after phase 1",
    "phase2": "Decisions after phase 2",
    "phase3": "Decisions after phase 3",
    "selection": "Selection for the full data set",
    "debug": "Decisions of the debug series",
    "act": "Decisions of the act series",
    "frozen": "Decisions of the frozen series",
    "full data": "The full data set",
}
"""Heading of each decision point, in the order of the summary."""

INTERVAL = (
    "; interval: of the mean over n seeds, 95 %, bootstrap (BCa), in percent; Q-halt and held-out "
    "accuracy stand in comparison.md"
)

PUBLISHED = "paper"
"""The one profile whose sizes are the published ones."""


def summary_text(run: Run) -> str:
    """What was run, the decisions, the comparison matrix, what limits them, and the next command.

    Plain text of at most `WIDTH` columns, decisions first.
    """
    matrix, decisions = comparison_matrix(run), decide(run)
    parts = [_header(run), _decision_lines(run, decisions), _matrix_text(matrix)]
    parts += [_evidence_text(run, matrix), _health_text(run), _hypotheses_text(run)]
    parts += [_notes_text(run, matrix), _next_text(run, decisions)]
    return "\n\n".join(part for part in parts if part) + "\n"


def what_was_run(run: Run) -> list[str]:
    """Lines that stand on every table: scale, revision, augmentations, decoder, inclusion."""
    arms = run.arms
    profile = _values(arms, "profile")
    scaled = any(value != PUBLISHED for value in arms["profile"].dropna().unique())
    scale = (
        f"{profile} profile: scaled, not the published sizes" if scaled else f"{profile} profile"
    )
    return [
        f"{scale}; revision {_values(arms, 'revision')}; seeds {_values(arms, 'seed')}",
        f"num_aug {_values(arms, 'num_aug')} in training; eval_num_aug "
        f"{_values(arms, 'eval_num_aug')} voted over in evaluation",
        f"decoder: {decoder_text(run)}",
        *map("allowed in spite of a critical difference: {}".format, _accepted_text(run)),
        f"counted: {INCLUSION}",
    ]


def accepted(run: Run) -> list[dict[str, Any]]:
    """Critical differences from the reference that were allowed by name, of all plans: `field`,
    `value`, `reference`, `why`, `trials`."""
    found: list[dict[str, Any]] = []
    for plan in run.plans.values():
        found += [one for one in plan.get("accepted", []) if one not in found]
    return found


def _accepted_text(run: Run) -> list[str]:
    """``halt_exploration_prob 0.4, reference 0.1 (overfit-E1a-s0)``."""
    return [
        f"{one['field']} {one['value']}, reference {one['reference']} ({', '.join(one['trials'])})"
        for one in accepted(run)
    ]


def decoder_text(run: Run) -> str:
    """Where the arms' decoder comes from and on which puzzles it was trained."""
    arms = run.arms
    used = arms.get("config/pretrained_decoder")
    puzzles = _values(arms, "config/decoder_puzzles")
    made = run.trials[run.trials["role"] == "decoder"]
    if len(made):
        told = [
            f"{trial.trial_id} {trial.status} at step {trial.step}, "
            f"train accuracy {percent(float(str(trial.accuracy)))}"
            for trial in made.itertuples()
        ]
        named = {"disjoint": "puzzles disjoint from the arms'", "same": "the arms' own puzzles"}
        return f"trained here on {named.get(puzzles, f'{puzzles} puzzles')} ({'; '.join(told)})"
    if used is None:
        return "not recorded"
    if not used.fillna(False).astype(bool).any():
        return "none, the arms train from scratch"
    given = dict(run.plan.get("options", {})).get("decoder") or _values(arms, "config/decoder_ref")
    if given == "?":
        return "pretrained, its source is not recorded"
    return (
        f"given checkpoint {given}, puzzles that it has seen: unknown; conditional on one decoder"
    )


def evidence(run: Run, matrix: pd.DataFrame) -> list[str]:
    """What controls and held-out puzzles say per experiment; one line for the unmeasured."""
    lines, missing = [], []
    for experiment in matrix["experiment"]:
        seen = observe(run, str(experiment))
        if seen.reads is None and "held-out pass@1" not in seen.numbers:
            missing.append(seen.id)
        else:
            lines += [seen.controls, seen.held_out]
    if missing:
        lines.append(f"{', '.join(missing)}: neither controls nor held-out pass@1 were measured")
    return lines


def show_matrix(matrix: pd.DataFrame) -> pd.DataFrame:
    """The main columns of the matrix, formatted, for tables that people read."""
    shares = ("accuracy", "exact", "q_halt_accuracy", "eval_accuracy", "pass@1", "baseline")
    titles = {
        "accuracy": "accuracy", "exact": "exact", "q_halt_accuracy": "Q-halt",
        "eval_accuracy": "held-out", "pass@1": "pass@1", "baseline": "trivial",
    }  # fmt: skip
    shown = pd.DataFrame(
        {
            "experiment": matrix["experiment"],
            "n": matrix["n"],
            "status": matrix["status"],
            **{titles[name]: matrix[name].map(_share) for name in shares[:2]},
            "steps": matrix["steps"].map(lambda value: _plain(value, 1)),
            "to 90 %": matrix["steps_to_90"].map(lambda value: _plain(value, 0)),
            **{titles[name]: matrix[name].map(_share) for name in shares[2:]},
        }
    )
    if matrix["accuracy_low"].notna().any():  # several seeds: the interval beside the mean
        bounds = zip(matrix["accuracy_low"], matrix["accuracy_high"], strict=True)
        at = list(shown.columns).index("accuracy") + 1
        cells = pd.Series([_range(*pair) for pair in bounds], index=matrix.index, dtype=str)
        shown.insert(at, "interval", cells)
    return shown.astype(str)


def show_controls(matrix: pd.DataFrame) -> pd.DataFrame:
    """Accuracy with the true demonstrations and with each control, tokens / whole grids."""
    columns = {"experiment": matrix["experiment"]}
    for name in ("normal", *CONTROLS):
        pairs = zip(matrix[f"control_{name}"], matrix[f"control_{name}_exact"], strict=True)
        columns[name] = pd.Series([_pair(*pair) for pair in pairs], index=matrix.index, dtype=str)
    pairs = zip(matrix["baseline"], matrix["baseline_exact"], strict=True)
    columns["trivial"] = pd.Series([_pair(*p) for p in pairs], index=matrix.index, dtype=str)
    return pd.DataFrame(columns).astype(str)


def _header(run: Run) -> str:
    names = ", ".join(run.plans)
    target = ", ".join(dict.fromkeys(str(plan.get("target", "?")) for plan in run.plans.values()))
    return "\n".join([f"{target} ({names})", *_wrapped(what_was_run(run), "  ")])


def _decision_lines(run: Run, decisions: list[Decision]) -> str:
    if not decisions:
        return ""
    lines = []
    for decision in sorted(decisions, key=_point):  # stable: the plan's order within a point
        title = TITLES.get(decision.after, "Decisions")
        if title not in lines:
            lines.append(title)
        label = f" [{decision.label}]" if decision.decided else ""
        lines += _wrapped([f"{decision.name}: {decision.verdict}{label}"], "  ")
        lines += _wrapped([decision.text, *map("check: {}".format, decision.checks)], "      ")
    return "\n".join(lines)


def _point(decision: Decision) -> int:
    points = list(TITLES)
    return points.index(decision.after) if decision.after in points else len(points)


def _matrix_text(matrix: pd.DataFrame) -> str:
    if matrix.empty:
        return "No experiment has a folder yet."
    lines = [
        "Comparison (train: halted rows, mean of the last 10 % of steps; held-out: evaluation)"
    ]
    shown = show_matrix(matrix)
    shown["status"] = [textwrap.shorten(status, 13, placeholder=" …") for status in shown["status"]]
    several = "interval" in shown
    if several:  # two columns make room for the interval
        shown = shown.drop(columns=["Q-halt", "held-out"])
    lines += _grid(shown)
    lines += _wrapped(
        [
            "accuracy, trivial: tokens; exact: whole grids; steps: mean ACT steps; to 90 %: "
            "optimizer steps; trivial: best of copying the input and all background"
            + (INTERVAL if several else "")
        ],
        "  ",
    )
    return "\n".join(lines)


def _evidence_text(run: Run, matrix: pd.DataFrame) -> str:
    if matrix.empty:
        return ""
    lines = ["Are the demonstrations read? (training puzzles, full ACT; tokens / whole grids)"]
    lines += _grid(show_controls(matrix))
    return "\n".join([*lines, *_wrapped(evidence(run, matrix), "  ")])


def _health_text(run: Run) -> str:
    """Signs of every trial; one line when all are well."""
    if run.curves.empty:
        return ""
    found = health(run)
    if found.empty:
        return "Health: no sign of trouble in any trial"
    worst = found.sort_values("level", kind="stable")  # critical before warning
    lines = [f"{one.trial_id}: {one.level}, {one.sign}: {one.text}" for one in worst.itertuples()]
    return "\n".join(["Health", *_wrapped(lines, "  ")])


def _hypotheses_text(run: Run) -> str:
    """H1 to H7 of the frozen series, where they are the question; one line per answer."""
    trials = run.arms[run.arms["series"] == "frozen"]
    lines = []
    for trial_id in trials["trial_id"]:
        answers = hypotheses(run, str(trial_id))
        lines.append(f"{trial_id}")
        for one in answers:
            said = "; ".join(one.evidence)
            lines.append(f"  {one.hypothesis} {one.title}: {one.verdict} ({said})")
    if not lines:
        return ""
    return "\n".join(["Hypotheses", *_wrapped(lines, "  ")])


def _notes_text(run: Run, matrix: pd.DataFrame) -> str:
    pairs = zip(matrix["experiment"].tolist(), matrix["notes"].tolist(), strict=True)
    notes = [f"{experiment}: {said}" for experiment, said in pairs if said]
    notes += list(run.notes)
    return "\n".join(["Notes", *_wrapped(notes, "  ")]) if notes else ""


def _next_text(run: Run, decisions: list[Decision]) -> str:
    why, command = next_step(run, decisions)
    lines = _wrapped([f"Next: {why}."])
    return "\n".join([*lines, f"  {command}"] if command else lines)


def _wrapped(texts: Iterable[str], indent: str = "") -> list[str]:
    """Lines of at most `WIDTH` columns; a number keeps its percent sign."""
    lines: list[str] = []
    for text in texts:
        wrapped = textwrap.wrap(
            text.replace(" %", _GLUE), WIDTH, initial_indent=indent,
            subsequent_indent=indent + "  ", break_on_hyphens=False,
        )  # fmt: skip
        lines += [line.replace(_GLUE, " %") for line in wrapped]
    return lines


def _grid(frame: pd.DataFrame) -> list[str]:
    """Columns two spaces apart (one where that is too wide), text left, numbers right."""
    table = [list(map(str, frame.columns)), *frame.to_numpy().tolist()]
    widths = [max(map(len, column)) for column in zip(*table, strict=True)]
    left = [name in ("experiment", "status") for name in frame.columns]
    fits = sum(widths) + 2 * len(widths) <= WIDTH
    lines = []
    for row in table:
        cells = zip(row, widths, left, strict=True)
        padded = [cell.ljust(w) if to_left else cell.rjust(w) for cell, w, to_left in cells]
        lines.append("  " + ("  " if fits else " ").join(padded).rstrip())
    return lines


def _values(trials: pd.DataFrame, column: str) -> str:
    """The distinct values of a column, in order; ``?`` when unknown."""
    if column not in trials:
        return "?"
    values = trials[column].dropna().unique()
    shown = [f"{value:g}" if isinstance(value, float) else str(value) for value in values]
    return ", ".join(shown) or "?"


def _share(value: float) -> str:
    return "-" if math.isnan(value) else f"{100 * value:.1f} %"


def _range(low: float, high: float) -> str:
    """``90.1-94.0``, in percent; a dash without an interval."""
    return "-" if math.isnan(low) else f"{100 * low:.1f}-{100 * high:.1f}"


def _pair(tokens: float, grids: float) -> str:
    if math.isnan(tokens) and math.isnan(grids):
        return "-"
    return f"{_share(tokens)} / {_share(grids)}".replace(" % / ", "/")


def _plain(value: float, digits: int) -> str:
    return "-" if math.isnan(value) else f"{value:.{digits}f}"
