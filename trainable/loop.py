"""The training loop: one trial from its configuration to its result, in plain PyTorch.

It runs in one process, or in several under torch.distributed (each takes its rows of the global
batch; gradients are summed). Ray is not needed. What it leaves in the trial's folder is described
in `docs/architecture.md`.
"""

from __future__ import annotations

import contextlib
import json
import math
import socket
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import torch
from tqdm import tqdm

from trainable import checkpoint, kernels, trial_state
from trainable.attempts import SupersededError, holding
from trainable.config import TrialConfig
from trainable.errors import DataError
from trainable.records import Recorder, plain, write_json
from trainable.trial import Trial

Report = Callable[[dict[str, Any]], bool | None]
LATE = "a later attempt of this trial has begun"


@dataclass(frozen=True)
class TrainResult:
    """How a trial ended. `status`: finished, stopped, diverged, superseded or paused."""

    status: str
    reason: str | None
    step: int
    total_steps: int
    wall_s: float
    parameters: int
    encoder_parameters: int
    final_checkpoint: str | None
    last_row: dict[str, Any]
    exposure: dict[str, list[str]]
    tasks: list[dict[str, Any]] = field(repr=False)


def train(
    config: TrialConfig,
    *,
    out_dir: str | Path,
    report: Report | None = None,
    resume_from: str | Path | None = None,
    progress: bool = True,
    attempt: int | None = None,
    until: int | None = None,
) -> TrainResult:
    """Train one trial.

    Args:
        config: the resolved configuration.
        out_dir: the trial's folder; rows, checkpoints, events and ``result.json`` go there.
        report: called with every row on every rank; returning True stops the trial.
        resume_from: a checkpoint of this trial, or "auto" for the newest readable one in `out_dir`.
        progress: show a progress bar on rank 0.
        attempt: number of this attempt (default: the next free one).
        until: pause after this step with a checkpoint, status ``paused``, if it is before the end;
            resuming continues as if there had been no pause.

    Raises:
        UserError: bad data, configuration or checkpoint, or a folder that cannot be written.
    """
    out_dir = Path(out_dir)
    trial = Trial(config, out_dir)
    _check_planned(trial)
    recorder = Recorder(out_dir, attempt=attempt, writes=trial.rank == 0)
    try:
        resumed = trial_state.resume(trial, resume_from)
        recorder.start(
            resumed_from=resumed,
            options=config.flat(),
            trial_id=out_dir.name,
            identity=trial.identity,
            total_steps=trial.total_steps,
            data_hash=trial.data.data_hash,
            workers=trial.world,
            threads=torch.get_num_threads(),
            parameters=trial.parameters,
            cpu=kernels.description(),
            **({"lineage": trial.lineage} if trial.lineage else {}),
        )
        return _run(trial, recorder, report, progress=progress, until=until)
    finally:
        recorder.close()


def _check_planned(trial: Trial) -> None:
    """Raise `DataError` where a plan wants another trial in this folder: on another machine, whose
    puzzles are not those that were planned with."""
    try:
        planned = json.loads((trial.out_dir / "config.json").read_text()).get("identity")
    except (OSError, ValueError, AttributeError):
        return
    if planned not in (None, trial.identity):
        raise DataError(
            f"the puzzles or the decoder on {socket.gethostname()} are not those of the plan "
            f"({trial.out_dir.name} is {trial.identity} here, {planned} in the plan; puzzles "
            f"{trial.data.data_hash}): make them the same on every machine"
        )


def _run(
    trial: Trial,
    recorder: Recorder,
    report: Report | None,
    *,
    progress: bool,
    until: int | None = None,
) -> TrainResult:
    """Step, report, evaluate, save; until the budget is spent or something says stop."""
    config = trial.config
    guard = partial(holding, trial.out_dir, recorder.attempt)
    evaluate_every = trial.steps_of(config.eval_interval)
    bar = tqdm(
        total=trial.total_steps,
        initial=trial.step,
        desc=config.name,
        unit="step",
        disable=not progress or trial.rank > 0,
    )
    status, reason = "finished", None
    if until is not None and trial.step >= until and trial.step < trial.total_steps:
        status, reason = "paused", f"paused at step {trial.step}"
    while trial.step < trial.total_steps and status == "finished":
        began = time.perf_counter()
        trial.train_step()
        last = trial.step == trial.total_steps
        evaluates = last or trial.step % evaluate_every == 0
        pauses = trial.step == until and not last
        saves = last or pauses or trial.step % config.checkpoint_interval == 0
        broken = saves and not trial.is_finite()
        if broken or evaluates or trial.step % config.log_interval == 0:
            row = trial.measure()
            what = "weights are" if broken else ""
            if not math.isfinite(row["train/loss"]):
                what = "train/loss is"
            if what:
                status, reason = "diverged", f"{what} not finite at step {trial.step}"
            else:
                if evaluates:
                    row |= trial.evaluate() | trial.compare()
                if last:
                    row |= trial.controls()
            trial.wall_s += time.perf_counter() - began
            began = time.perf_counter()
            row["wall_s"] = trial.wall_s
            recorder.row(row)
            trial.last_row = row
            stop = bool(report(row)) if report is not None else False
            superseded = recorder.superseded()
            if trial.any(stop or superseded) and status == "finished" and not last:
                status = "stopped"
                reason = "the reporting function said stop"
            if trial.any(superseded):
                status, reason = "superseded", LATE
            bar.set_postfix(
                accuracy=f"{row.get('train/accuracy', math.nan):.3f}",
                loss=f"{row['train/loss']:.3f}",
            )
        trial.wall_s += time.perf_counter() - began
        bar.update()
        if status == "stopped" and not saves:
            saves = trial.is_finite()
            if not saves:
                status, reason = "diverged", f"weights are not finite at step {trial.step}"
        if saves and status in ("finished", "stopped"):
            recorder.sync()
            if not trial_state.save(trial, guard=guard):
                status, reason = "superseded", LATE
        if pauses and status == "finished":
            status, reason = "paused", f"paused at step {trial.step}"
    bar.close()
    if status == "paused":
        recorder.end("interrupted", reason)
    if status in ("superseded", "paused"):
        return _result(trial, status, reason)
    recorder.end(status, reason)
    result = _result(trial, status, reason)
    if trial.rank == 0:
        values = {"schema_version": 1, **asdict(result)}
        with contextlib.suppress(SupersededError):
            write_json(trial.out_dir / "result.json", values, guard=guard)
    return result


def _result(trial: Trial, status: str, reason: str | None) -> TrainResult:
    saved = checkpoint.list_steps(trial.out_dir / "checkpoints")
    return TrainResult(
        status=status,
        reason=reason,
        step=trial.step,
        total_steps=trial.total_steps,
        wall_s=trial.wall_s,
        parameters=trial.parameters,
        encoder_parameters=sum(p.numel() for p in trial.updater.encoder_params),
        final_checkpoint=str(saved[-1][1].relative_to(trial.out_dir)) if saved else None,
        last_row=plain(trial.last_row),
        exposure=trial.exposure,
        tasks=trial.tasks,
    )
