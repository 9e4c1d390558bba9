"""What a run says about one experiment: its value or why it has none, controls, held-out score."""

from __future__ import annotations

import math
from dataclasses import dataclass, field

import pandas as pd

from analysis.compare import BASELINES, CONTROLS, best_of, treatment
from analysis.load import Run
from analysis.margins import CONTROL_MARGIN, GENERALISES, GRID_MARGIN
from analysis.statistics import bootstrap_interval
from search_spaces.rules import CONFIDENCE

NOT_READ = "this accuracy does not show that the demonstrations are read"


@dataclass(frozen=True)
class Observation:
    """One experiment over its seeds.

    `value` is the mean accuracy of its trials; an experiment that was stopped by the bar in every
    seed counts as below every threshold. `problem` says why nothing can be decided; None when it
    can. An experiment is observed only when every planned seed gave an answer, so that a seed that
    crashed or diverged is not silently left out of a mean.
    """

    experiment: str
    n: int = 0
    value: float = math.nan
    low: float = math.nan
    high: float = math.nan
    """Bootstrap interval of `value` over the seeds; NaN for one seed."""
    stopped: int = 0
    problem: str | None = None
    numbers: dict[str, float] = field(default_factory=dict)
    held_out: str = ""
    controls: str = ""
    reads: bool | None = None
    """Whether accuracy exceeds the controls by the margin; None when they were not measured."""

    @property
    def id(self) -> str:
        """The experiment's name without its series."""
        return self.experiment.partition("/")[2] or self.experiment

    @property
    def judged(self) -> float:
        """The value that a threshold sees: NaN undecided, minus infinity when stopped."""
        if self.problem is not None:
            return math.nan
        return -math.inf if self.stopped == self.n else round(self.value, 9)

    @property
    def label(self) -> str:
        """``observed, n = 1``, or ``not decided``."""
        return f"observed, n = {self.n}" if self.problem is None else "not decided"

    @property
    def told(self) -> str:
        """The value in words: ``E1a 93.1 %``, ``E2b stopped by the bar at 11.0 %``."""
        if self.problem is not None:
            return self.problem
        if self.stopped == self.n:
            return f"{self.id} was stopped by the bar at {percent(self.value)}"
        some = f" ({self.stopped} of {self.n} seeds stopped by the bar)" if self.stopped else ""
        return f"{self.id} {percent(self.value)}{interval_text(self.low, self.high)}{some}"


def problem_of(run: Run, experiment: str) -> str | None:
    """Why nothing can be decided about an experiment; None when it can."""
    name, trials = experiment.partition("/")[2], run.arm(experiment)
    return f"{name} is not part of this run" if trials.empty else _problem(name, trials)


def observe(run: Run, experiment: str) -> Observation:
    """Read one experiment off a run; a missing one is an `Observation` with a `problem`."""
    name, trials = experiment.partition("/")[2], run.arm(experiment)
    if trials.empty:
        return Observation(experiment, problem=f"{name} is not part of this run")
    problem = _problem(name, trials)
    low, high = bootstrap_interval(trials["accuracy"].tolist())
    return Observation(
        experiment=experiment,
        n=len(trials),
        value=_mean(trials, "accuracy"),
        low=low,
        high=high,
        stopped=int((trials["status"] == "stopped").sum()),
        problem=problem,
        numbers=_numbers(trials),
        held_out=_held_out(name, trials),
        controls=_controls(name, trials),
        reads=_reads(trials),
    )


def percent(value: float) -> str:
    """``93.1 %``; more digits where one would round onto a whole percent; ``?`` for NaN."""
    if math.isnan(value):
        return "?"
    for digits in (1, 2, 3):
        text = f"{100 * value:.{digits}f}"
        if float(text) % 1 or abs(100 * value - float(text)) < 1e-7:
            break
    return f"{text} %"


def interval_text(low: float, high: float) -> str:
    """`` (95 % interval 90.1 to 94.0 %)``; empty without an interval."""
    if math.isnan(low):
        return ""
    return f" ({100 * CONFIDENCE:g} % interval {100 * low:.1f} to {100 * high:.1f} %)"


def controls_gap(trials: pd.DataFrame, metric: str) -> tuple[float, float]:
    """(with the true demonstrations, with the best control) of ``accuracy`` or
    ``exact_accuracy``, NaN where not measured."""
    return _mean(trials, f"control/normal_{metric}"), best_of(trials, "control", CONTROLS, metric)


def _problem(name: str, trials: pd.DataFrame) -> str | None:
    if trials["seed"].duplicated().any():
        return f"{name} occurs twice with one seed and different settings: load the runs separately"
    for trial in trials[["seed", "status", "reason", "step", "accuracy"]].itertuples():
        status, reason = str(trial.status), trial.reason
        where = f"{name} (seed {trial.seed})" if len(trials) > 1 else name
        why = f": {reason}" if isinstance(reason, str) else ""
        if treatment(status, reason) == "undecided":
            said = {
                "diverged": f"diverged at step {trial.step}{why}",
                "failed": f"crashed at step {trial.step}{why}",
                "pending": f"has not started{why}",
                "stopped": f"was not stopped by the bar{why}",
            }.get(status, f"is unfinished ({status} at step {trial.step})")
            return f"{where} {said}"
        if status == "finished" and math.isnan(float(str(trial.accuracy))):
            return f"{where} has no train/accuracy in its last rows"
    return None


def _numbers(trials: pd.DataFrame) -> dict[str, float]:
    columns = {
        "train accuracy": "accuracy",
        "train exact accuracy": "exact",
        "steps to 90 %": "steps_to_90",
        "parameters": "parameters",
        "training seconds": "wall_s",
        "held-out pass@1": "eval/pass@1",
    }
    numbers = {name: _mean(trials, column) for name, column in columns.items()}
    numbers["best trivial baseline"] = best_of(trials, "baseline", BASELINES, "accuracy")
    numbers["normal demonstrations"], numbers["best control"] = controls_gap(trials, "accuracy")
    numbers["train accuracy, low"], numbers["train accuracy, high"] = bootstrap_interval(
        trials["accuracy"].tolist()
    )
    exact = controls_gap(trials, "exact_accuracy")
    numbers["normal demonstrations, exact"], numbers["best control, exact"] = exact
    return {name: value for name, value in numbers.items() if not math.isnan(value)}


def _held_out(name: str, trials: pd.DataFrame) -> str:
    score = _mean(trials, "eval/pass@1")
    if math.isnan(score):
        return f"{name}: held-out pass@1 was not measured: whether it generalises is not known"
    scheduled = _mean(trials, "eval/scheduled")
    of = "" if math.isnan(scheduled) else f" of {scheduled:.0f} puzzles"
    votes = _mean(trials, "eval_num_aug")
    aug = "" if math.isnan(votes) else f", eval_num_aug {votes:.0f}"
    verdict = "does generalise" if score >= GENERALISES else "does not generalise"
    bound = f"from {100 * GENERALISES:g} % on, ours"
    return f"{name}: held-out pass@1 {percent(score)}{of}{aug}: {verdict} ({bound})"


def _controls(name: str, trials: pd.DataFrame) -> str:
    tokens, tokens_control = controls_gap(trials, "accuracy")
    grids, grids_control = controls_gap(trials, "exact_accuracy")
    read = _reads(trials)
    if read is None:
        return (
            f"{name}: the demonstration controls were not measured: whether the demonstrations "
            f"are read is not known"
        )
    numbers = (
        f"tokens {percent(tokens)} against {percent(tokens_control)} with the best control"
        f"{_which(trials, 'accuracy')}, grids {percent(grids)} against {percent(grids_control)}"
        f"{_which(trials, 'exact_accuracy')}, margins "
        f"{100 * CONTROL_MARGIN:g} and {100 * GRID_MARGIN:g} points"
    )
    if read:
        return f"{name}: the demonstrations are used ({numbers})"
    return f"{name}: {NOT_READ} ({numbers})"


def _which(trials: pd.DataFrame, metric: str) -> str:
    """`` (shuffled)``: the control that came closest."""
    means = {name: _mean(trials, f"control/{name}_{metric}") for name in CONTROLS}
    known = {name: mean for name, mean in means.items() if not math.isnan(mean)}
    return f" ({max(known, key=lambda name: known[name])})" if known else ""


def _reads(trials: pd.DataFrame) -> bool | None:
    margins = {"accuracy": CONTROL_MARGIN, "exact_accuracy": GRID_MARGIN}
    pairs = {metric: controls_gap(trials, metric) for metric in margins}
    gaps = {metric: normal - control for metric, (normal, control) in pairs.items()}
    known = {metric: gap for metric, gap in gaps.items() if not math.isnan(gap)}
    return any(round(gap, 9) > margins[m] for m, gap in known.items()) if known else None


def _mean(trials: pd.DataFrame, column: str) -> float:
    return float(trials[column].mean()) if column in trials and len(trials) else math.nan
