"""Reads run folders into pandas tables.

The JSON lines that training wrote are the truth; the derived tables in the folder (parquet, CSV)
are for other programs and never read back, so a damaged one does no harm: `analysis.write_derived`
writes them anew.
"""

from __future__ import annotations

import math
import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pandas as pd

from analysis.columns import fixed
from analysis.metrics import summarize
from analysis.rows import Attempt, ResultsError, merge, read_attempts, read_lines, read_object
from trainable.errors import nearest

TERMINAL = ("finished", "stopped", "diverged", "failed")

PathLike = str | os.PathLike[str]


@dataclass(frozen=True)
class Run:
    """One run folder, or several together, as tidy tables (columns: `analysis.COLUMNS`)."""

    trials: pd.DataFrame = field(repr=False)
    """One row per trial, in the order of the plan."""
    curves: pd.DataFrame = field(repr=False)
    """One row per trial and report."""
    tasks: pd.DataFrame = field(repr=False)
    """One row per trial and held-out puzzle, where the evaluation recorded it."""
    rungs: pd.DataFrame = field(repr=False)
    """One row per trial and rung that the scheduler judged, as it wrote them."""
    plans: dict[str, dict[str, Any]]
    """plan.json by run folder name."""
    paths: tuple[Path, ...]
    notes: tuple[str, ...] = ()
    """What was unreadable or left out while loading."""

    @property
    def plan(self) -> dict[str, Any]:
        """plan.json of the (first) run."""
        return next(iter(self.plans.values()))

    @property
    def arms(self) -> pd.DataFrame:
        """The trials that are experiments, without the decoders trained for them."""
        return self.trials[self.trials["role"] != "decoder"]


def load(path: PathLike | Iterable[PathLike]) -> Run:
    """Read one run folder, or several into one `Run`.

    A trial that lies in several folders with the same identity is counted once: the one that got
    furthest. Raises `ResultsError` (one line, names the fix) for a folder that is not there, is not
    a run folder, or was written by a newer version.

    >>> run = load("runs/phase1")                                   # doctest: +SKIP
    >>> run.trials.sort_values("accuracy")[["trial_id", "accuracy"]]  # doctest: +SKIP
    """
    given = [path] if isinstance(path, str | os.PathLike) else list(path)
    if not given:
        raise ResultsError("no run folder given: name at least one, for example runs/phase1")
    notes: list[str] = []
    plans: dict[str, dict[str, Any]] = {}
    trials: list[dict[str, Any]] = []
    curves: list[pd.DataFrame] = []
    tasks: list[dict[str, Any]] = []
    rungs: list[dict[str, Any]] = []
    paths = tuple(dict.fromkeys(Path(one).resolve() for one in given))
    for folder in paths:
        name = folder.name if folder.name not in plans else str(folder)
        plans[name] = _read_plan(folder)
        for trial_id in _trial_ids(plans[name], folder):
            trial = _read_trial(folder / "trials" / trial_id, name, trial_id, plans[name], notes)
            trials.append(trial.summary)
            curves.append(trial.curve)
            tasks.extend(trial.tasks)
            rungs.extend(trial.rungs)
    trials_df = _table("trials", pd.DataFrame(trials))
    keep = _without_repeats(trials_df, notes)
    kept_keys = set(zip(trials_df["run"][keep], trials_df["trial_id"][keep], strict=True))
    present = [curve for curve in curves if not curve.empty]
    curves_df = pd.concat(present, ignore_index=True) if present else pd.DataFrame()
    tables = [_table("curves", curves_df), _table("tasks", pd.DataFrame(tasks))]
    tables.append(pd.DataFrame(rungs if rungs else {"run": [], "trial_id": []}))
    if not keep.all():
        trials_df = trials_df[keep].reset_index(drop=True)
        tables = [_only(table, kept_keys) for table in tables]
    return Run(trials_df, tables[0], tables[1], tables[2], plans, paths, tuple(notes))


def split_trial_id(trial_id: str) -> tuple[str, int]:
    """``overfit-E1a-s0`` → ``("overfit/E1a", 0)``; a name of another form keeps seed 0."""
    head, dash, tail = trial_id.rpartition("-s")
    stem, seed = (head, int(tail)) if dash and tail.isdigit() else (trial_id, 0)
    return stem.replace("-", "/", 1), seed


@dataclass
class _Trial:
    summary: dict[str, Any]
    curve: pd.DataFrame
    tasks: list[dict[str, Any]]
    rungs: list[dict[str, Any]]


def _read_plan(folder: Path) -> dict[str, Any]:
    if not folder.is_dir():
        siblings = [p.name for p in folder.parent.iterdir()] if folder.parent.is_dir() else []
        raise ResultsError(
            f"there is no run folder {folder}{nearest(folder.name, siblings)}: "
            f"give the folder that a run printed, for example runs/phase1"
        )
    path = folder / "plan.json"
    plan = read_object(path)
    if plan is not None:
        return plan
    if path.exists():
        raise ResultsError(
            f"{path} is damaged: restore it, or run its command again into a new folder"
        )
    inside = sorted(p.parent.name for p in folder.glob("*/plan.json"))
    if inside:
        raise ResultsError(
            f"{folder} holds run folders and is none itself: give one of {', '.join(inside)}"
        )
    raise ResultsError(
        f"{folder} is not a run folder (no plan.json): "
        f"give the folder that a run printed, for example runs/phase1"
    )


def _trial_ids(plan: Mapping[str, Any], folder: Path) -> list[str]:
    """Trials of the plan in its order, then folders that the plan does not name."""
    planned = [str(_entry(trial).get("trial_id", "")) for trial in plan.get("trials", [])]
    root = folder / "trials"
    found = sorted(p.name for p in root.iterdir() if p.is_dir()) if root.is_dir() else []
    return list(dict.fromkeys([*filter(None, planned), *found]))


def _entry(planned: Any) -> dict[str, Any]:
    """What plan.json says about one trial: an object, or its trial_id alone."""
    return dict(planned) if isinstance(planned, Mapping) else {"trial_id": str(planned)}


def _read_trial(
    folder: Path, run: str, trial_id: str, plan: Mapping[str, Any], notes: list[str]
) -> _Trial:
    attempts = read_attempts(folder, notes) if folder.is_dir() else []
    described = read_object(folder / "config.json") or {}
    if folder.is_dir() and not described:
        notes.append(f"{folder}: config.json is missing or damaged, its options are unknown")
    result = read_object(folder / "result.json") or {}
    config = _flat_config(described.get("config", {}))
    said = [entry for entry in map(_entry, plan.get("trials", [])) if entry["trial_id"] == trial_id]
    entry = said[0] if said else {}
    experiment, seed = split_trial_id(trial_id)
    experiment = str(config.get("name", entry.get("name", experiment)))
    seed = int(config.get("seed", entry.get("seed", seed)))
    key = {"run": run, "trial_id": trial_id, "experiment": experiment, "seed": seed}

    rows = merge(attempts)
    curve = _curve(rows, key)
    last = rows[-1] if rows else {}
    started = [a.start["total_steps"] for a in attempts if a.start.get("total_steps") is not None]
    total_steps = float(started[-1]) if started else math.nan
    status, reason = _status(folder, attempts, result, bool(rows))
    rungs = read_lines(folder / "scheduler.jsonl", notes)
    stops = [rung["reason"] for rung in rungs if rung.get("stop") and rung.get("reason")]
    if status == "stopped" and stops:  # the loop only knows that it was told to stop
        reason = str(stops[-1])
    guess = "decoder" if experiment.startswith("decoder/") else "arm"
    summary: dict[str, Any] = {
        **key,
        "series": experiment.split("/")[0],
        "role": described.get("role", entry.get("role", guess)),
        "identity": described.get("identity", entry.get("identity")),
        "status": status,
        "reason": reason,
        "attempts": len(attempts),
        "rows": len(rows),
        "step": int(last.get("step", 0)),
        "total_steps": total_steps,
        "epoch": _number(last.get("epoch")),
        "samples": _number(last.get("samples")),
        "wall_s": _number(last.get("wall_s")),
        "profile": config.get("profile", plan.get("profile")),
        "revision": config.get("revision", plan.get("revision")),
        "encoder_type": config.get("encoder_type") if config.get("kind") != "trm" else None,
        "parameters": _parameters(result, attempts),
    }
    for option in ("num_aug", "eval_num_aug", "halt_max_steps", "halt_exploration_prob"):
        summary[option] = _number(config.get(option))
    summary |= summarize(curve)
    recorded = {
        f"result/{name}": float(value)
        for name, value in result.items()
        if isinstance(value, int | float) and name not in ("schema_version", "parameters")
    }
    options = {f"config/{name}": value for name, value in config.items()}
    tasks = result.get("tasks")
    return _Trial(
        summary | recorded | options,
        curve,
        [_task(key, task) for task in tasks] if isinstance(tasks, list) else [],
        [{"run": run, "trial_id": trial_id} | rung for rung in rungs],
    )


def _status(
    folder: Path, attempts: list[Attempt], result: Mapping[str, Any], has_rows: bool
) -> tuple[str, str | None]:
    """Status and reason: the conductor's word, or the loop's own where it knows more.

    A conductor that was killed leaves "running" behind; when the attempt that it spoke of has
    written its end, that end counts.
    """
    told = read_object(folder / "status.json") or {}
    status, reason = told.get("status"), told.get("reason")
    end = attempts[-1].end if attempts else {}
    if status not in TERMINAL and end.get("status") in (*TERMINAL, "interrupted"):
        current = told.get("attempt")
        if not isinstance(current, int) or current <= attempts[-1].number:
            status, reason = end["status"], end.get("reason")
    if status is None and result.get("status") in TERMINAL:
        status, reason = result["status"], result.get("reason")
    if status is None:
        status = "interrupted" if has_rows else "pending"
    return str(status), str(reason) if reason else None


def _curve(rows: list[dict[str, Any]], key: Mapping[str, Any]) -> pd.DataFrame:
    if not rows:
        return pd.DataFrame()
    frame = pd.DataFrame(rows).drop(columns=["kind", *key], errors="ignore")
    for column in frame.columns:
        if "/" in str(column):  # a metric: numbers, null or absent
            frame[column] = pd.to_numeric(frame[column], errors="coerce").astype("float64")
    return pd.concat([pd.DataFrame(dict(key), index=frame.index), frame], axis=1)


def _table(name: str, frame: pd.DataFrame) -> pd.DataFrame:
    """`frame` with the documented columns first, in order, in their dtypes."""
    first = fixed(name)
    known = {column.name for column in first}
    rest = [column for column in frame.columns if column not in known]
    frame = frame.reindex(columns=[*(column.name for column in first), *rest])
    dtypes = {"int": "int64", "float": "float64", "str": "str"}
    typed = {c.name: dtypes[c.dtype] for c in first if c.dtype != "any"}
    return frame.astype(typed).reset_index(drop=True).copy()


def _without_repeats(trials: pd.DataFrame, notes: list[str]) -> pd.Series[bool]:
    """Which trials to keep when folders overlap: of each identity the one that got furthest."""
    key = trials[["run", "trial_id", "identity", "status", "step"]]
    order = key.assign(
        _known=trials["identity"].where(trials["identity"].notna(), trials["run"]),
        _done=trials["status"].isin(TERMINAL),
    ).sort_values(["_done", "step"], ascending=False, kind="stable")
    repeated = order.duplicated(["trial_id", "_known"], keep="first").reindex(trials.index)
    for row in trials[repeated].itertuples():
        notes.append(f"{row.run}/{row.trial_id} also lies in another folder: counted once")
    return ~repeated


def _only(table: pd.DataFrame, keys: set[tuple[str, str]]) -> pd.DataFrame:
    mask = [key in keys for key in zip(table["run"], table["trial_id"], strict=True)]
    return table[mask].reset_index(drop=True)


def _flat_config(config: Mapping[str, Any]) -> dict[str, Any]:
    """Options by flat name; options of a name that the code no longer knows are kept."""
    flat = {k: v for k, v in config.items() if not isinstance(v, Mapping)}
    for part in ("model", "data"):
        if isinstance(config.get(part), Mapping):
            flat |= config[part]
    return {
        name: ", ".join(map(str, value)) if isinstance(value, list | tuple) else value
        for name, value in flat.items()
    }


def _parameters(result: Mapping[str, Any], attempts: list[Attempt]) -> float:
    for source in (result, *(attempt.start for attempt in reversed(attempts))):
        for name in ("parameters", "num_parameters", "n_parameters"):
            if isinstance(source.get(name), int | float):
                return float(source[name])
    return math.nan


def _task(key: Mapping[str, Any], task: Any) -> dict[str, Any]:
    values = dict(task) if isinstance(task, Mapping) else {"task": str(task)}
    return dict(key) | {"task": str(values.get("task", values.get("task_id", "")))} | values


def _number(value: Any) -> float:
    return float(value) if isinstance(value, int | float) else math.nan
