"""Gives trials that failed or diverged another attempt.

A trial that is opened again goes on from its newest checkpoint, which holds finite weights: rows
after it are dropped, as those of a killed attempt are.
"""

from __future__ import annotations

import json
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from analysis.rows import SCHEMA_VERSION
from etrm_tune.run_folder import FINAL, RunFolder, RunFolderError, disk_error
from trainable.attempts import begin_attempt
from trainable.errors import nearest

RETRIED = ("failed", "diverged")
"""Statuses of trials that are tried again."""


def open_run(path: Path | str) -> tuple[RunFolder, dict[str, Any]]:
    """A run folder and its plan. Raises `RunFolderError` where there is none."""
    folder = RunFolder(path)
    plan = folder.read_plan() if (folder.path / "plan.json").is_file() else None
    if plan is None:
        if (folder.path / "config.json").is_file():
            run = Path(path).parent.parent
            raise RunFolderError(f"{path} is one trial: give its run, {run}")
        raise RunFolderError(f"{path} holds no run: give a folder such as runs/phase1")
    return folder, plan


def to_retry(folder: RunFolder, plan: Mapping[str, Any], asked: Sequence[str]) -> list[str]:
    """The trials to open again: those asked for, else all that failed or diverged.

    Raises `RunFolderError` naming the first one asked for that cannot be retried.
    """
    known = [str(trial["trial_id"]) for trial in plan["trials"]]
    told = {trial_id: folder.read_status(trial_id) for trial_id in known}
    for trial_id in asked:
        if trial_id not in told:
            raise RunFolderError(
                f"{folder.path} has no trial {trial_id!r}{nearest(trial_id, known)}: "
                f"etrm-tune status {folder.path} lists them"
            )
        status = told[trial_id]["status"]
        if status not in RETRIED:
            fix = (
                "to check it, etrm-tune reproduce it"
                if status in FINAL
                else "leave its name out, it is continued anyway"
            )
            raise RunFolderError(f"{trial_id} is {status}, not {' or '.join(RETRIED)}: {fix}")
    found = [t for t in known if told[t]["status"] in RETRIED and (not asked or t in asked)]
    for trial_id in found:
        if origin := told[trial_id].get("taken_from"):
            home = (folder.path / str(origin)).resolve()
            raise RunFolderError(
                f"{trial_id} was taken from {home}: retry it there, with etrm-tune retry {home}"
            )
    return found


def reopen(folder: RunFolder, trial_id: str, *, from_start: bool = False) -> int:
    """Make an ended trial one that is to be continued; returns the step that it goes on from.

    Its attempts, its log and its old result stay. With `from_start` its checkpoints are set aside.
    """
    from trainable.checkpoint import list_steps  # imports torch

    home = folder.trial(trial_id)
    attempt = begin_attempt(home, "retry")
    try:
        result = home / "result.json"
        if result.exists():
            result.replace(home / f"result-before-attempt-{attempt}.json")
        checkpoints = home / "checkpoints"
        if from_start and checkpoints.is_dir():
            checkpoints.replace(home / f"checkpoints-before-attempt-{attempt}")
        saved = list_steps(checkpoints)
        step = saved[-1][0] if saved else 0
        line = {
            "kind": "start",
            "schema_version": SCHEMA_VERSION,
            "attempt": attempt,
            "trial_id": trial_id,
            "resumed_from": step,
            "time": time.time(),
            "retry": True,
        }
        (home / f"attempt-{attempt}.jsonl").write_text(json.dumps(line) + "\n", encoding="utf-8")
    except OSError as error:
        raise disk_error(home, error) from None
    folder.write_status(trial_id, "interrupted", "", attempt=attempt, step=step)
    return step
