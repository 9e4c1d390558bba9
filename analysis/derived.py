"""Writes the derived files of a run folder. All can be deleted and written anew at any time."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Callable
from dataclasses import asdict
from functools import partial
from pathlib import Path

import pandas as pd
from tabulate import tabulate

from analysis.cache import FOLDER as CACHE
from analysis.cache import write_rows
from analysis.compare import comparison_matrix
from analysis.decide import decide, next_step
from analysis.decision import Decision
from analysis.health import health
from analysis.hypotheses import hypotheses
from analysis.load import PathLike, Run, read
from analysis.recommend import recommend
from analysis.rows import SCHEMA_VERSION, ResultsError
from analysis.text import accepted, evidence, show_controls, show_matrix, summary_text, what_was_run
from search_spaces.rules.table import table

FILES = (
    "trials.parquet",
    "curves.parquet",
    "tasks.parquet",
    "comparison.md",
    "comparison.csv",
    "decisions.json",
    "summary.txt",
)


def write_derived(path: PathLike) -> Run:
    """Derive `FILES` of one run folder from its rows, each replaced as a whole, and return the run.

    The parsed rows are kept beside them (`analysis.cache`), so that the next `load` is quick.

    Raises `ResultsError` when the folder is not a run folder, or cannot be written.
    """
    run, found = read([path])
    folder = run.paths[0]
    matrix, decisions = comparison_matrix(run), decide(run)
    for name, frame in (("trials", run.trials), ("curves", run.curves), ("tasks", run.tasks)):
        _replace(folder / f"{name}.parquet", _plain(frame).to_parquet)
    texts = {
        "comparison.md": comparison_markdown(run, matrix, decisions),
        "comparison.csv": matrix.to_csv(index=False),
        "decisions.json": decisions_json(run, decisions),
        "summary.txt": summary_text(run),
    }
    for name, text in texts.items():
        _replace(folder / name, partial(_write_text, text))
    try:
        write_rows(folder, found[0])
    except OSError as error:
        raise _cannot_write(folder / CACHE, error) from None
    return run


def comparison_markdown(run: Run, matrix: pd.DataFrame, decisions: list[Decision]) -> str:
    """The matrix, the controls and the decisions as Markdown."""
    lines = [f"# Comparison: {run.plan.get('target', '?')}", ""]
    lines += [f"- {line}" for line in what_was_run(run)]
    shown = show_matrix(matrix).assign(notes=matrix["notes"].astype(str))
    lines += ["", _markdown(shown), "", "Demonstration controls, tokens / whole grids:", ""]
    lines += [_markdown(show_controls(matrix)), ""]
    lines += [*(f"- {line}" for line in evidence(run, matrix)), "", "## Decisions", ""]
    for decision in decisions:
        lines.append(
            f"- **{decision.name}: {decision.verdict}** ({decision.label}). {decision.text}."
        )
        lines.append(f"  Rule: {decision.rule}.")
    why, command = next_step(run, decisions)
    lines += ["", f"Next: {why}.", *([f"`{command}`"] if command else [])]
    return "\n".join(lines) + "\n"


def decisions_json(run: Run, decisions: list[Decision]) -> str:
    """Content of decisions.json."""
    found = recommend(run, decisions)
    why, command = found.why, found.command
    steps = [asdict(step) for step in found.steps]
    values = {
        "schema_version": SCHEMA_VERSION,
        "target": run.plan.get("target"),
        "profile": run.plan.get("profile"),
        "revision": run.plan.get("revision"),
        "accepted": accepted(run),
        "decisions": [decision.to_json() for decision in decisions],
        "next": {"why": why, "command": command, "steps": steps},
        "red_flags": [decision.name for decision in decisions if decision.raised],
        "health": _records(health(run)),
        "hypotheses": [finding.to_json() for finding in hypotheses(run)],
        "rules": [asdict(row) for row in table()],
    }
    return json.dumps(values, indent=1, ensure_ascii=False, allow_nan=False) + "\n"


def _records(frame: pd.DataFrame) -> list[dict[str, object]]:
    """Rows as JSON objects; NaN and infinities become null."""
    rows = frame.to_dict("records")
    return [
        {
            str(name): None if isinstance(value, float) and not math.isfinite(value) else value
            for name, value in row.items()
        }
        for row in rows
    ]


def _markdown(frame: pd.DataFrame) -> str:
    cells = [[str(c).replace("|", "/") for c in row] for row in frame.to_numpy().tolist()]
    return tabulate(cells, headers=list(frame.columns), tablefmt="github", disable_numparse=True)


def _plain(frame: pd.DataFrame) -> pd.DataFrame:
    """Columns of mixed types as JSON text, since a parquet column has one type."""
    plain = frame.copy(deep=False)
    for column in [name for name in plain if plain[name].dtype.kind == "O"]:
        known = plain[column].dropna()
        if known.map(type).nunique() > 1 or known.map(lambda v: isinstance(v, dict | list)).any():
            text = known.map(lambda v: v if isinstance(v, str) else json.dumps(v, default=str))
            plain[column] = text.reindex(plain.index)
    return plain


def _write_text(text: str, path: Path) -> None:
    path.write_text(text, encoding="utf-8")


def _cannot_write(path: Path, error: OSError) -> ResultsError:
    return ResultsError(
        f"cannot write {path}: {error.strerror or error}: free some space or make the folder "
        f"writable, the measured rows are kept"
    )


def _replace(path: Path, write: Callable[[Path], object]) -> None:
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        write(temporary)
        temporary.replace(path)
    except OSError as error:
        raise _cannot_write(path, error) from None
    finally:
        if temporary.exists():
            temporary.unlink()
