"""The training loop: one trial from its configuration to its result, in plain PyTorch.

It runs in one process, or in several under torch.distributed (each takes its rows of the global
batch; gradients are summed). Ray is not needed. What it leaves in the trial's folder is described
in `docs/architecture.md`.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from tqdm import tqdm

from trainable import checkpoint, trial_state
from trainable.config import TrialConfig
from trainable.records import Recorder, plain, write_json
from trainable.trial import Trial

Report = Callable[[dict[str, Any]], bool | None]


@dataclass(frozen=True)
class TrainResult:
    """How a trial ended. `status`: finished, stopped, diverged or superseded."""

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
) -> TrainResult:
    """Train one trial.

    Args:
        config: the resolved configuration.
        out_dir: the trial's folder; rows, checkpoints, events and ``result.json`` go there.
        report: called with every row on every rank; returning True stops the trial.
        resume_from: a checkpoint of this trial, or "auto" for the newest readable one in `out_dir`.
        progress: show a progress bar on rank 0.
        attempt: number of this attempt (default: the next free one).

    Raises:
        UserError: bad data, configuration or checkpoint, or a folder that cannot be written.
    """
    out_dir = Path(out_dir)
    trial = Trial(config, out_dir)
    recorder = Recorder(out_dir, attempt=attempt, writes=trial.rank == 0)
    try:
        resumed = trial_state.resume(trial, resume_from)
        recorder.start(
            resumed_from=resumed,
            trial_id=out_dir.name,
            identity=trial.identity,
            total_steps=trial.total_steps,
            data_hash=trial.data.data_hash,
            workers=trial.world,
            threads=torch.get_num_threads(),
            parameters=trial.parameters,
        )
        return _run(trial, recorder, report, progress=progress)
    finally:
        recorder.close()


def _run(trial: Trial, recorder: Recorder, report: Report | None, *, progress: bool) -> TrainResult:
    """Step, report, evaluate, save; until the budget is spent or something says stop."""
    config = trial.config
    evaluate_every = trial.steps_of(config.eval_interval)
    bar = tqdm(
        total=trial.total_steps,
        initial=trial.step,
        desc=config.name,
        unit="step",
        disable=not progress or trial.rank > 0,
    )
    status, reason = "finished", None
    while trial.step < trial.total_steps and status == "finished":
        began = time.perf_counter()
        trial.train_step()
        last = trial.step == trial.total_steps
        evaluates = last or trial.step % evaluate_every == 0
        saves = last or trial.step % config.checkpoint_interval == 0
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
                status, reason = "superseded", "a later attempt of this trial has begun"
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
            trial_state.save(trial)
    bar.close()
    if status == "superseded":
        return _result(trial, status, reason)
    recorder.end(status, reason)
    result = _result(trial, status, reason)
    if trial.rank == 0:
        write_json(trial.out_dir / "result.json", {"schema_version": 1, **asdict(result)})
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
