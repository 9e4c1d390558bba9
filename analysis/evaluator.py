"""Is a reported score what its puzzles add up to?"""

from __future__ import annotations

import math
from typing import Any, Literal

import numpy as np
import pandas as pd

from analysis.load import Run
from analysis.observe import percent

SMALL = 4
"""Puzzles of the small subset (the document compares 4 with 64)."""


def recount(
    run: Run, trial: pd.Series[Any], tolerance: float
) -> tuple[Literal["supported", "refuted", "cannot tell"], list[str]]:
    """H6: pass@1 counted again from the per-puzzle table.

    A score that is not the mean over the scheduled puzzles (another denominator, puzzles left out)
    differs between 4 and 64 groups of the same quality; such a mean does not. Supported when the
    reported score differs from it by more than `tolerance`, or the puzzles are not those scheduled.
    """
    reported = _number(trial.get("eval/pass@1"))
    scheduled = _number(trial.get("eval/scheduled"))
    tasks = run.tasks
    if len(tasks):
        tasks = tasks[(tasks["run"] == trial["run"]) & (tasks["trial_id"] == trial["trial_id"])]
    if math.isnan(reported) or not len(tasks) or "pass@1" not in tasks:
        return "cannot tell", ["held-out pass@1 or its puzzles were not recorded"]
    scores = pd.to_numeric(tasks["pass@1"], errors="coerce").to_numpy(dtype=np.float64)
    if np.isnan(scores).any():
        return "cannot tell", ["some puzzles have no score"]
    evidence = [
        f"reported {percent(reported)}, {len(scores)} puzzles give {percent(scores.mean())}"
    ]
    wrong = abs(float(scores.mean()) - reported) > tolerance
    if not math.isnan(scheduled):
        evidence.append(f"{scheduled:.0f} scheduled")
        wrong = wrong or int(scheduled) != len(scores)
    if len(scores) > SMALL:
        part = percent(float(scores[:SMALL].mean()))
        evidence.append(f"the first {SMALL} alone {part}, each puzzle counting the same")
    return ("supported" if wrong else "refuted"), evidence


def _number(value: Any) -> float:
    return float(value) if isinstance(value, int | float) else math.nan
