"""The comparison matrix: one row per experiment, its controls and baselines beside it.

Inclusion rule (`INCLUSION`): finished trials and trials stopped by the bar count; a stopped one
with the accuracy it had when it was stopped, which is below every threshold. Missing, crashed,
diverged and unfinished trials do not enter a mean; the notes name them.
"""

from __future__ import annotations

import math

import pandas as pd

from analysis.load import Run
from analysis.metrics import WINDOWED
from analysis.statistics import bootstrap_interval
from search_spaces import rules
from search_spaces.stopping import Bar

INCLUSION = (
    "finished trials and trials stopped by the bar count (a stopped one is below every "
    "threshold); missing, crashed, diverged and unfinished ones do not"
)

CONTROLS = ("zeroed", "shuffled", "other")
"""Demonstration controls: zeroed context, shuffled demonstrations, another puzzle's."""

BASELINES = ("copy", "background")
"""Trivial baselines: copy the input, all background."""

_MEANS = {
    "accuracy": "accuracy",
    "exact": "exact",
    "steps": "steps",
    "halt_max_steps": "halt_max_steps",
    "q_halt_accuracy": "q_halt_accuracy",
    "q_halt_base_rate": "q_halt_base_rate",
    "loss": "loss",
    "stability": "stability",
    "best_accuracy": "best_accuracy",
    "steps_to_80": "steps_to_80",
    "steps_to_90": "steps_to_90",
    "samples_to_90": "samples_to_90",
    "eval_accuracy": "eval/accuracy",
    "eval_exact": "eval/exact_accuracy",
    "pass@1": "eval/pass@1",
    "pass@2": "eval/pass@2",
    "scheduled": "eval/scheduled",
    "num_aug": "num_aug",
    "eval_num_aug": "eval_num_aug",
    **{
        f"control_{name}{suffix}": f"control/{name}{metric}"
        for suffix, metric in (("", "_accuracy"), ("_exact", "_exact_accuracy"))
        for name in ("normal", *CONTROLS)
    },
    "parameters": "parameters",
    "wall_s": "wall_s",
    "samples": "samples",
}
"""Column of the matrix → column of the trials table that is averaged over the counted seeds."""

COLUMNS = (
    "experiment", "n", "seeds", "status", *_MEANS, "baseline", "baseline_exact", "accuracy_low",
    "accuracy_high", "exact_low", "exact_high", "notes",
)  # fmt: skip

_RANK = {"finished": 0, "running": 1, "interrupted": 1, "pending": 1, "stopped": 2, "failed": 3}


def counts(trials: pd.DataFrame) -> pd.Series[bool]:
    """Which trials count by the inclusion rule (`search_spaces.rules.STATUS_COUNTS`)."""
    treated = [
        treatment(str(status), reason)
        for status, reason in zip(trials["status"], trials["reason"], strict=True)
    ]
    return pd.Series([one != "undecided" for one in treated], index=trials.index, dtype=bool)


def treatment(status: str, reason: object) -> rules.Treatment:
    """How a trial enters a rule. A stop by halving or by a person is no answer."""
    if status == "stopped" and not by_bar(reason):
        return "undecided"
    return rules.STATUS_COUNTS.get(status, "undecided")


def by_bar(reason: object) -> bool:
    """Whether a stop's reason is the bar's: rules put their name first."""
    return isinstance(reason, str) and reason.partition(":")[0].strip() == Bar().name


def comparison_matrix(run: Run) -> pd.DataFrame:
    """One row per experiment, best first; the columns are `compare.COLUMNS`.

    ``n`` is the number of seeds that count, ``seeds`` the number planned; every number is the mean
    over the counted seeds, ``accuracy_low`` to ``accuracy_high`` (and ``exact_…``) the bootstrap
    interval of that mean (NaN for one seed). When none counts, an unfinished or crashed experiment
    shows its values so far (the notes say so) and a diverged one shows NaN. ``baseline`` is the
    best trivial baseline over the same rows. Ranked by `accuracy`; then unfinished, stopped,
    crashed, diverged.
    """
    rows = [
        _row(str(experiment), trials)
        for experiment, trials in run.arms.groupby("experiment", sort=False)
    ]
    matrix = pd.DataFrame(rows, columns=[*COLUMNS, "_rank"])
    matrix = matrix.sort_values(
        ["_rank", "accuracy"], ascending=[True, False], kind="stable", na_position="last"
    )
    return matrix.drop(columns="_rank").reset_index(drop=True)


def best_of(values: pd.DataFrame, prefix: str, names: tuple[str, ...], metric: str) -> float:
    """Highest over `names` of the mean of ``<prefix>/<name>_<metric>``; NaN when none is there."""
    means = [_mean(values, f"{prefix}/{name}_{metric}") for name in names]
    known = [mean for mean in means if not math.isnan(mean)]
    return max(known) if known else math.nan


def _row(experiment: str, trials: pd.DataFrame) -> dict[str, object]:
    counted = trials[counts(trials)]
    shown = counted if len(counted) else trials[~trials["status"].isin(["diverged", "pending"])]
    row: dict[str, object] = {
        "experiment": experiment,
        "n": len(counted),
        "seeds": len(trials),
        "status": _status(trials),
    }
    row |= {name: _mean(shown, column) for name, column in _MEANS.items()}
    for name in ("num_aug", "eval_num_aug", "halt_max_steps"):  # known before the first row
        row[name] = _mean(trials, name)
    # A threshold that some counted seed never reached has no mean.
    for name in ("steps_to_80", "steps_to_90", "samples_to_90"):
        if shown[name].isna().any():
            row[name] = math.nan
    for name in ("accuracy", "exact"):
        interval = bootstrap_interval(counted[name].tolist())
        row[f"{name}_low"], row[f"{name}_high"] = interval
    row["baseline"] = best_of(shown, "baseline", BASELINES, "accuracy")
    row["baseline_exact"] = best_of(shown, "baseline", BASELINES, "exact_accuracy")
    row["notes"] = "; ".join(_notes(row, trials, counted, shown))
    ranks = (counted if len(counted) else trials)["status"]
    row["_rank"] = min(_RANK.get(str(status), 4) for status in ranks)
    return row


def _status(trials: pd.DataFrame) -> str:
    shares = trials["status"].value_counts(sort=False)
    if len(shares) == 1:
        return str(shares.index[0])
    return ", ".join(f"{count} {status}" for status, count in shares.items())


def _notes(
    row: dict[str, object], trials: pd.DataFrame, counted: pd.DataFrame, shown: pd.DataFrame
) -> list[str]:
    notes = []
    if trials["seed"].duplicated().any():
        notes.append("one seed occurs twice with different settings: load those runs separately")
    if shown is not counted and len(shown):
        notes.append("not counted: values so far")
    told = ["seed", "status", "step", "reason"]  # the whole width would take most of the time
    left_out = trials[~counts(trials)][told]
    for trial in left_out.itertuples():
        where = f"seed {trial.seed} " if len(trials) > 1 else ""
        why = f" ({trial.reason})" if isinstance(trial.reason, str) else ""
        notes.append(f"{where}{trial.status} at step {trial.step}{why}")
    for trial in counted[counted["status"] == "stopped"][told].itertuples():
        notes.append(f"stopped at step {trial.step}: {trial.reason}")
    if len(counted):
        missed = _missed_targets(row)
        notes.append(f"target missed: {', '.join(missed)}" if missed else "all targets met")
    return notes


def _missed_targets(row: dict[str, object]) -> list[str]:
    columns = {how.metric: name for name, how in WINDOWED.items()}
    missed = [
        target.text
        for target in rules.TARGETS
        if not target.band.contains(_as_float(row[columns[target.measure.metric]]))
    ]
    if not _as_float(row["steps"]) < _as_float(row["halt_max_steps"]):
        missed.append("mean ACT steps below the maximum")
    return missed


def _mean(values: pd.DataFrame, column: str) -> float:
    return float(values[column].mean()) if column in values and len(values) else math.nan


def _as_float(value: object) -> float:
    return value if isinstance(value, float) else math.nan
