"""What the sections of a report read, gathered once."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import pandas as pd

from analysis.compare import comparison_matrix
from analysis.decide import decide
from analysis.decision import Decision
from analysis.health import health
from analysis.load import Run
from analysis.replay import replay
from analysis.replayed import Replay
from analysis.rows import read_attempts, read_object

MOST = 24
"""Experiments that charts show, best first; tables hold all."""
ROWS = 12
"""Rows of a table that are shown at once; more are folded away."""
ORDERS = 50
"""Random orders of arrival of a replay in the report."""
BACKGROUND = 12
"""Faint curves behind a chart, at most."""


@dataclass(frozen=True)
class Trial:
    """One trial: its summary, its curve, its folder."""

    summary: dict[str, Any]
    curve: pd.DataFrame = field(repr=False)
    folder: Path

    @property
    def id(self) -> str:
        """``overfit-E1a-s0``."""
        return str(self.summary["trial_id"])

    @property
    def stopped(self) -> bool:
        """Whether a rule ended it."""
        return bool(self.summary["status"] == "stopped")

    @property
    def budget(self) -> float:
        """Planned epochs; NaN when unknown."""
        return number(self.summary.get("config/epochs"))

    def values(self, metric: str) -> tuple[list[float], list[float]]:
        """(epochs, values) of the rows that measured `metric`."""
        if metric not in self._read:
            found: tuple[list[float], list[float]] = [], []
            if metric in self.curve and "epoch" in self.curve:
                pairs = zip(self.curve["epoch"].tolist(), self.curve[metric].tolist(), strict=True)
                known = [(float(x), float(y)) for x, y in pairs if x == x and y == y]
                found = [x for x, _ in known], [y for _, y in known]
            self._read[metric] = found
        return self._read[metric]

    @cached_property
    def _read(self) -> dict[str, tuple[list[float], list[float]]]:
        return {}

    @cached_property
    def start(self) -> dict[str, Any]:
        """First line of the last attempt."""
        attempts = read_attempts(self.folder, []) if self.folder.is_dir() else []
        return dict(attempts[-1].start) if attempts else {}

    @cached_property
    def result(self) -> dict[str, Any]:
        """result.json; empty where there is none."""
        return read_object(self.folder / "result.json") or {}


@dataclass(frozen=True)
class Material:
    """A run with what follows from it."""

    run: Run
    matrix: pd.DataFrame
    decisions: list[Decision]
    trials: list[Trial]

    @classmethod
    def of(cls, run: Run) -> Material:
        """Compare, decide, and split the curves by trial."""
        folders = dict(zip(run.plans, run.paths, strict=True))
        curves = {
            (str(curve["run"].iloc[0]), str(curve["trial_id"].iloc[0])): curve
            for _, curve in run.curves.groupby(["run", "trial_id"], sort=False)
        }
        trials = []
        for summary in run.trials.to_dict("records"):
            key = str(summary["run"]), str(summary["trial_id"])
            folder = folders[key[0]] / "trials" / key[1]
            values = {str(name): value for name, value in summary.items()}
            trials.append(Trial(values, curves.get(key, pd.DataFrame()), folder))
        return cls(run, comparison_matrix(run), decide(run), trials)

    def replayed(self, word: str) -> Replay:
        """The recorded curves played back to a rule named by `word`, once for all that ask.

        Raises `ResultsError` when no arm has a row yet.
        """
        if word not in self._replays:
            self._replays[word] = replay(self.run, word, orders=ORDERS)
        return self._replays[word]

    @cached_property
    def signs(self) -> pd.DataFrame:
        """Signs of ill health of every trial."""
        return health(self.run)

    @cached_property
    def first_rungs(self) -> dict[tuple[str, str], float]:
        """Value on the run's lowest rung, by run and trial."""
        rungs = self.run.rungs
        if rungs.empty or not {"rung", "value"} <= set(rungs.columns):
            return {}
        known = rungs[rungs["rung"] == rungs["rung"].min()].dropna(subset=["value"])
        found: dict[tuple[str, str], float] = {}
        for run, trial, value in known[["run", "trial_id", "value"]].itertuples(index=False):
            found.setdefault((str(run), str(trial)), number(value))
        return found

    @cached_property
    def _by_experiment(self) -> dict[str, list[Trial]]:
        found: dict[str, list[Trial]] = {}
        for trial in self.arms:
            found.setdefault(str(trial.summary["experiment"]), []).append(trial)
        return found

    @cached_property
    def _replays(self) -> dict[str, Replay]:
        return {}

    @property
    def experiments(self) -> list[str]:
        """Experiments in charts, best first."""
        return [str(name) for name in self.matrix["experiment"]][:MOST]

    @property
    def left_out(self) -> str:
        """Says so when there are more experiments than charts."""
        more = len(self.matrix) - MOST
        return f" Charts show the best {MOST}; {more} more are in the tables." if more > 0 else ""

    def seeds(self, experiment: str) -> list[Trial]:
        """The arms of one experiment."""
        return self._by_experiment.get(experiment, [])

    @property
    def arms(self) -> list[Trial]:
        """Every trial that is no decoder."""
        return [t for t in self.trials if t.summary["role"] != "decoder"]


def number(value: Any) -> float:
    """A finite or infinite number as it is; NaN for anything else."""
    return float(value) if isinstance(value, int | float) else math.nan


def short(experiment: str) -> str:
    """``overfit/E1a`` → ``E1a``."""
    return experiment.partition("/")[2] or experiment
