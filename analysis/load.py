"""Reads run folders into pandas tables.

The JSON lines that training wrote are the truth. The derived tables in the folder (parquet, CSV)
are for other programs and never read back. Rows that `analysis.write_derived` parsed before are
taken from its cache while they are unchanged (`analysis.cache`).
"""

from __future__ import annotations

import functools
import json
import math
import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa

from analysis.cache import RunRows, read_rows
from analysis.columns import COLUMNS, fixed
from analysis.history import Facts
from analysis.metrics import summarize
from analysis.rows import Attempt, ResultsError, check_trial_id, read_lines, read_object
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

    def curve(self, run: str, trial_id: str) -> pd.DataFrame:
        """The rows of one trial in `curves`, by step; quick also where there are many trials."""
        spans = self._spans.get((run, trial_id), [])
        if len(spans) == 1:
            return self.curves.iloc[spans[0]]
        return pd.concat([self.curves.iloc[one] for one in spans]) if spans else self.curves.head(0)

    @functools.cached_property
    def _spans(self) -> dict[tuple[str, str], list[slice]]:
        """Where each trial's rows lie in `curves`."""
        keys = self.curves[["run", "trial_id"]]
        new = (keys != keys.shift()).any(axis=1).to_numpy()
        starts = np.flatnonzero(new).tolist()
        found: dict[tuple[str, str], list[slice]] = {}
        ends = [*starts[1:], len(keys)] if starts else []  # no row yet: no span
        for start, end in zip(starts, ends, strict=True):
            key = (str(keys["run"].iloc[start]), str(keys["trial_id"].iloc[start]))
            found.setdefault(key, []).append(slice(start, end))
        return found

    @functools.cached_property
    def arms(self) -> pd.DataFrame:
        """The trials that are experiments, without the decoders trained for them."""
        return self.trials[self.trials["role"] != "decoder"]

    def arm(self, experiment: str) -> pd.DataFrame:
        """The rows of `arms` of one experiment, its seeds; none where it is not part of the run."""
        return self._arms.get(experiment, self.arms.head(0))

    @functools.cached_property
    def _arms(self) -> dict[str, pd.DataFrame]:
        return {str(name): arm for name, arm in self.arms.groupby("experiment", sort=False)}


def load(path: PathLike | Iterable[PathLike]) -> Run:
    """Read one run folder, or several into one `Run`.

    A trial that lies in several folders with the same identity is counted once: the one that got
    furthest. Raises `ResultsError` (one line, names the fix) for a folder that is not there, is not
    a run folder, or was written by a newer version.

    >>> run = load("runs/phase1")                                   # doctest: +SKIP
    >>> run.trials.sort_values("accuracy")[["trial_id", "accuracy"]]  # doctest: +SKIP
    """
    return read([path] if isinstance(path, str | os.PathLike) else list(path))[0]


def read(given: list[PathLike]) -> tuple[Run, list[RunRows]]:
    """`load`, and the rows by folder as they were read."""
    if not given:
        raise ResultsError("no run folder given: name at least one, for example runs/phase1")
    notes: list[str] = []
    plans: dict[str, dict[str, Any]] = {}
    trials: list[_Trial] = []
    found: list[RunRows] = []
    paths = tuple(dict.fromkeys(Path(one).resolve() for one in given))
    for folder in paths:
        name = folder.name if folder.name not in plans else str(folder)
        plan = plans[name] = _read_plan(folder)
        planned = {entry["trial_id"]: entry for entry in map(_entry, plan.get("trials", []))}
        trial_ids = _trial_ids(planned, folder)
        rows = read_rows(folder, trial_ids)
        found.append(rows)
        for trial_id in trial_ids:
            place, entry, facts = folder / "trials" / trial_id, planned.get(trial_id), rows.facts
            trials.append(_read_trial(place, name, plan, entry or {}, facts[trial_id], notes))
    trials_df = _table("trials", pd.DataFrame([trial.summary for trial in trials]))
    keep = _without_repeats(trials_df, notes)
    curves = _curves(found, trials, keep.tolist())
    kept = [trial for trial, stays in zip(trials, keep, strict=True) if stays]
    tasks = _table("tasks", pd.DataFrame([task for trial in kept for task in trial.tasks]))
    rungs = pd.DataFrame(
        [rung for trial in kept for rung in trial.rungs] or {"run": [], "trial_id": []}
    )
    curves["reason"] = _reasons(curves, kept)
    notes += _differences(plans)
    trials_df = trials_df[keep].reset_index(drop=True)
    return Run(trials_df, curves, tasks, rungs, plans, paths, tuple(notes)), found


def split_trial_id(trial_id: str) -> tuple[str, int]:
    """``overfit-E1a-s0`` → ``("overfit/E1a", 0)``; a name of another form keeps seed 0."""
    head, dash, tail = trial_id.rpartition("-s")
    stem, seed = (head, int(tail)) if dash and tail.isdigit() else (trial_id, 0)
    return stem.replace("-", "/", 1), seed


@dataclass
class _Trial:
    summary: dict[str, Any]
    rows: int
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


def _trial_ids(planned: Iterable[str], folder: Path) -> list[str]:
    """Trials of the plan in its order, then folders that the plan does not name."""
    planned = [check_trial_id(name, folder / "plan.json") for name in filter(None, planned)]
    root = folder / "trials"
    found = sorted(p.name for p in root.iterdir() if p.is_dir()) if root.is_dir() else []
    return list(dict.fromkeys([*planned, *found]))


def _entry(planned: Any) -> dict[str, Any]:
    """What plan.json says about one trial: an object, or its trial_id alone."""
    entry = dict(planned) if isinstance(planned, Mapping) else {"trial_id": planned}
    return entry | {"trial_id": str(entry.get("trial_id", ""))}


def _read_trial(
    folder: Path,
    run: str,
    plan: Mapping[str, Any],
    entry: Mapping[str, Any],
    facts: Facts,
    notes: list[str],
) -> _Trial:
    trial_id, attempts, last = folder.name, facts.attempts, facts.last
    notes.extend(facts.notes)
    described = read_object(folder / "config.json") or {}
    if folder.is_dir() and not described:
        notes.append(f"{folder}: config.json is missing or damaged, its options are unknown")
    result = read_object(folder / "result.json") or {}
    config = _flat_config(described.get("config", {}))
    experiment, seed = split_trial_id(trial_id)
    experiment = str(config.get("name", entry.get("name", experiment)))
    seed = int(config.get("seed", entry.get("seed", seed)))
    key = {"run": run, "trial_id": trial_id, "experiment": experiment, "seed": seed}

    started = [a.start["total_steps"] for a in attempts if a.start.get("total_steps") is not None]
    total_steps = float(started[-1]) if started else math.nan
    status, reason = _status(folder, attempts, result, bool(facts.rows))
    rungs = _once(read_lines(folder / "scheduler.jsonl", notes))
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
        "rows": facts.rows,
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
    summary |= facts.summary or summarize(pd.DataFrame())
    recorded = {
        f"result/{name}": float(value)
        for name, value in result.items()
        if isinstance(value, int | float) and name not in ("schema_version", "parameters")
    }
    options = {f"config/{name}": value for name, value in config.items()}
    tasks = result.get("tasks")
    return _Trial(
        summary | recorded | options,
        facts.rows,
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


def _curves(found: list[RunRows], trials: list[_Trial], keep: list[bool]) -> pd.DataFrame:
    """The curves table: the key of each trial beside its rows. Large columns are not copied."""
    at, frames = 0, []
    for rows in found:
        mine, stays = trials[at : at + len(rows.facts)], keep[at : at + len(rows.facts)]
        at += len(mine)
        counts = [trial.rows for trial in mine]
        if not sum(counts):
            continue
        columns: dict[str, Any] = dict(rows.columns)
        if not all(stays):
            mask = np.repeat(stays, counts)
            columns = {name: values[mask] for name, values in columns.items()}
            mine = [trial for trial, stay in zip(mine, stays, strict=True) if stay]
            counts = [trial.rows for trial in mine]
            if not sum(counts):
                continue
        for name in ("run", "trial_id", "experiment"):
            columns[name] = _repeated([str(trial.summary[name]) for trial in mine], counts)
        columns["seed"] = np.repeat([trial.summary["seed"] for trial in mine], counts)
        frames.append(_ordered("curves", columns))
    if len(frames) == 1:
        return frames[0]
    return _table("curves", pd.concat(frames, ignore_index=True) if frames else pd.DataFrame())


def _once(lines: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Decisions without repetition: a resume repeats the rows after its checkpoint."""
    found: dict[Any, dict[str, Any]] = {}
    for line in lines:
        found.setdefault((line.get("rule"), line.get("rung")), line)
    return list(found.values())


def _reasons(curves: pd.DataFrame, trials: list[_Trial]) -> Any:
    """The scheduler's reason beside each row that reached a rung; several are joined."""
    steps = curves["step"].to_numpy()
    told: dict[int, str] = {}
    at = 0
    for trial in trials:
        mine = steps[at : at + trial.rows]
        for rung in trial.rungs:
            step, reason = rung.get("step"), rung.get("reason")
            if isinstance(step, int) and reason:
                place = int(np.searchsorted(mine, step))
                if place < len(mine) and mine[place] == step:
                    before = told.get(at + place)
                    told[at + place] = f"{before}; {reason}" if before else str(reason)
        at += trial.rows
    where = np.zeros(len(steps), dtype=np.int32)
    where[list(told)] = range(1, len(told) + 1)
    indices = pa.array(where - 1, mask=where == 0)
    whole = pa.DictionaryArray.from_arrays(indices, pa.array(list(told.values()), pa.string()))
    return pa.table({"values": whole.cast(pa.large_string())}).to_pandas()["values"].array


def _repeated(values: list[str], counts: list[int]) -> Any:
    """Each string as often as its count, as pandas strings."""
    indices = pa.array(np.repeat(np.arange(len(values), dtype=np.int32), counts))
    whole = pa.DictionaryArray.from_arrays(indices, pa.array(values)).cast(pa.large_string())
    return pa.table({"values": whole}).to_pandas()["values"].array  # without a copy


def _ordered(name: str, columns: dict[str, Any]) -> pd.DataFrame:
    """`_table` without copying: documented columns first, in order, in their dtypes."""
    length = len(columns["step"])
    ordered: dict[str, Any] = {}
    for column in fixed(name):
        values = columns.pop(column.name, None)
        if values is None:
            values = np.full(length, math.nan)
        if column.dtype == "float" and values.dtype != np.float64:
            values = pd.to_numeric(pd.Series(values), errors="coerce").to_numpy(np.float64)
        ordered[column.name] = values
    rest = {c: v.array if isinstance(v, pd.Series) else v for c, v in columns.items()}
    return pd.DataFrame(ordered | rest, copy=False)


def _differences(plans: Mapping[str, Mapping[str, Any]]) -> list[str]:
    """What several runs do not share although their numbers would have to."""
    notes = []
    for name in ("profile", "revision", "data", "num_threads", "packages"):
        told = {run: plan.get(name) for run, plan in plans.items() if plan.get(name) is not None}
        if len({json.dumps(value, sort_keys=True) for value in told.values()}) > 1:
            shown = ", ".join(
                run if name == "packages" else f"{run}: {value}" for run, value in told.items()
            )
            notes.append(f"runs of different {name} are loaded together ({shown})")
    return notes


def _table(name: str, frame: pd.DataFrame) -> pd.DataFrame:
    """`frame` with the documented columns first, in order, in their dtypes."""
    first = fixed(name)
    known = {column.name for column in first}
    rest = [column for column in frame.columns if column not in known]
    frame = frame.reindex(columns=[*(column.name for column in first), *rest])
    dtypes = {"int": "int64", "float": "float64", "str": "str"}
    typed = {c.name: dtypes[c.dtype] for c in first if c.dtype != "any"}
    for column in rest:  # of a family: None, where nothing was measured, is NaN
        known_as = [c for c in COLUMNS[name] if c.covers(str(column))]
        if known_as and known_as[0].dtype == "float":
            frame[column] = pd.to_numeric(frame[column], errors="coerce")
            typed[column] = "float64"
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
