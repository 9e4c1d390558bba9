"""A run as the decisions see it: observations by experiment, comparisons by phase, read once."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace

import pandas as pd

from analysis.load import Run
from analysis.observe import Observation, observe
from analysis.paired import Paired, compare, mixed
from search_spaces import rules
from search_spaces.rules import ComparisonRule


class View:
    """`view[name]` is an `Observation`; `view.compare(family)` a phase's paired comparisons."""

    def __init__(self, run: Run) -> None:
        self.run = run
        self._present = set(run.arms["experiment"])
        self._seen: dict[str, Observation] = {}
        self._compared: dict[tuple[str, ...], dict[str, Paired]] = {}

    def __getitem__(self, experiment: str) -> Observation:
        if experiment not in self._seen:
            self._seen[experiment] = observe(self.run, experiment)
        return self._seen[experiment]

    def has(self, *experiments: str) -> bool:
        """Whether the run holds (a plan for) any of these."""
        return not self._present.isdisjoint(experiments)

    def present(self, experiments: Iterable[str]) -> list[str]:
        """Those that the run holds, in the given order."""
        return [name for name in experiments if name in self._present]

    def compare(self, family: Sequence[ComparisonRule]) -> dict[str, Paired]:
        """Comparisons of a family by the rule's name (`paired.compare`)."""
        key = tuple(rule.name for rule in family)
        if key not in self._compared:
            self._compared[key] = compare(self.run, family)
        return self._compared[key]

    def problems(self, *experiments: str) -> list[str]:
        """Why these arms cannot be set against each other; empty when they can."""
        own = [self[name].problem for name in experiments]
        found = [problem for problem in own if problem is not None]
        arms = self.run.arms
        return found or mixed(arms[arms["experiment"].isin(experiments)])

    def mean(self, experiment: str, column: str) -> float:
        """Mean of a column of the trials table over the experiment's seeds; NaN without one."""
        trials = self.trials(experiment)
        return float(trials[column].mean()) if column in trials and len(trials) else float("nan")

    def trials(self, experiment: str) -> pd.DataFrame:
        """The experiment's rows of the trials table."""
        return self.run.arm(experiment)

    def curves(self, experiment: str) -> list[pd.DataFrame]:
        """The curve of every seed, sorted by step."""
        keys = self.trials(experiment)[["run", "trial_id"]].itertuples(index=False)
        return [self.run.curve(str(run), str(trial_id)) for run, trial_id in keys]


def mixed_plans(run: Run) -> str | None:
    """Why the trials of a run cannot be decided together; None when they can."""
    for column in ("revision", "profile"):
        values = sorted(run.arms[column].dropna().unique())
        if len(values) > 1:
            return f"trials of {column}s {', '.join(values)} are loaded together: load one"
    return None


def by_data(run: Run) -> tuple[Run, Run]:
    """(trials at the plan's size, trials on every puzzle) of a run.

    An arm of a series that is made for 32 groups, but trained without `max_train_groups`, answers
    the question about the full data set and none of the plan's rules. An arm that was given more
    epochs (`rules.EXTENSION`) replaces its shorter self.
    """
    trials = run.trials
    full = pd.Series(False, index=trials.index)
    if "config/max_train_groups" in trials and "config/num_aug" in trials:
        known = trials["config/num_aug"].notna()
        full = known & trials["config/max_train_groups"].isna() & (trials["role"] != "decoder")
        full &= trials["series"] != "frozen"  # `staged` is made for every group
    rest = _longest(trials[~full])
    return replace(run, trials=rest), replace(run, trials=trials[full])


def _longest(trials: pd.DataFrame) -> pd.DataFrame:
    """Of an extended arm and its shorter self, the one with more epochs."""
    if "config/epochs" not in trials:
        return trials
    extendable = trials["experiment"].isin(rules.EXTENSION.arms)
    most = trials.groupby(["experiment", "seed"])["config/epochs"].transform("max")
    return trials[~extendable | ~(trials["config/epochs"] < most)]


def still_rising(curve: pd.DataFrame, metric: str = rules.TRAIN_ACCURACY.metric) -> bool | None:
    """Whether a curve still rises (`rules.STILL_RISING`); None when too little was measured."""
    how = rules.STILL_RISING
    if metric not in curve or curve.empty:
        return None
    steps, last = curve["step"], float(curve["step"].iloc[-1])
    late = curve[steps > (1 - how.window) * last][metric].dropna()
    earlier = curve[(steps > (1 - 2 * how.window) * last) & (steps <= (1 - how.window) * last)]
    before = earlier[metric].dropna()
    if late.empty or before.empty:
        return None
    return bool(late.mean() - before.mean() > how.margin)
