"""Runs a plan: its decoders, then its arms, each stage as one Ray Tune experiment.

Nothing of Ray's own state is read back. Which trials still have to run follows from the run
folder; each continues from its own newest checkpoint.
"""

from __future__ import annotations

import contextlib
import logging
import math
import shutil
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Protocol

from ray import tune
from ray.tune.experiment import Trial

from etrm_tune.estimate import Clock
from etrm_tune.live import LiveTable
from etrm_tune.plan import Plan, PlannedTrial
from etrm_tune.resources import Allotment
from etrm_tune.run_folder import FINAL, RunFolder, RunFolderError
from etrm_tune.scheduler import RuleScheduler, our_id
from etrm_tune.search_feed import Feed
from etrm_tune.session import Signals, new_owner
from search_spaces.schedulers import place
from search_spaces.stopping import StoppingRule, phase_rule
from trainable.attempts import begin_attempt, last_attempt
from trainable.ray_adapter import ACCURACY, TRAIN_FUNCTION, RayTrial, TrialSpec

WORKER_RESTARTS = 3
TRIAL_RESTARTS = 2
"""Restarts after the trial's own process died (its workers die with it)."""

logger = logging.getLogger(__name__)


def decoder_checkpoint(folder: RunFolder, trial_id: str) -> Path:
    """The final checkpoint of a finished decoder trial.

    Raises `RunFolderError` when it is gone.
    """
    home = folder.trial(trial_id)
    told = Path(str((folder.read_result(trial_id) or {}).get("final_checkpoint", "")))
    for path in (home / told, home / "checkpoints" / told.name):
        if path.is_file():
            return path
    raise RunFolderError(
        f"the decoder {home} is finished, but its checkpoint is gone: "
        f"restore it, or start a new run with --name NAME"
    )


def settle(folder: RunFolder, trial: PlannedTrial, *, retry_failed: bool) -> str:
    """Status of a trial before a run, with what a killed run left behind put right.

    ``pending`` and ``interrupted`` are to be run; so is ``failed``, here turned into
    ``interrupted``, with ``retry_failed``.
    """
    status = str(folder.read_status(trial.trial_id)["status"])
    if status in FINAL:
        return status
    result = folder.read_result(trial.trial_id) or {}
    if result.get("status") in FINAL:  # it ended, and the run was killed before it could say so
        folder.write_status(
            trial.trial_id, result["status"], result.get("reason") or "", step=result.get("step")
        )
        return str(result["status"])
    if status == "failed" and not retry_failed:
        return status
    if status != "pending":
        folder.write_status(trial.trial_id, "interrupted")
        return "interrupted"
    return status


class Source(Protocol):
    """Where the arms of a search come from, beside those that are planned already."""

    def more(self) -> bool:
        """Whether it may have another one."""

    def grow(self, statuses: Mapping[str, str]) -> list[PlannedTrial]:
        """The next arms, written into the run folder; empty when there are no more."""


@dataclass
class Conductor:
    """One command's work on one locked run folder."""

    folder: RunFolder
    plan: Plan
    allotments: Mapping[str, Allotment]
    """By role."""
    signals: Signals
    table: LiveTable
    retry_failed: bool = False
    train: str = TRAIN_FUNCTION
    stop_rule: Callable[[Sequence[PlannedTrial]], StoppingRule | None] | None = None
    clock: Clock | None = None
    source: Source | None = None

    def __post_init__(self) -> None:
        self.statuses: dict[str, str] = {}

    def prepare(self) -> bool:
        """Settle what earlier runs left; True when there is something to run."""
        for trial in self.plan.trials:
            self._set(trial, settle(self.folder, trial, retry_failed=self.retry_failed))
        left = any(self._to_do(stage) for stage in self.plan.stages)
        return left or (self.source is not None and self.source.more())

    def run(self) -> None:
        """Run every stage. Needs a running Ray. Raises `Interrupted` on a signal."""
        if self.clock is not None:
            self.clock.begin([i for i, status in self.statuses.items() if status in FINAL])
        for stage in self.plan.stages:
            trials = self._to_do(stage)
            if trials or self._grows(stage):
                self._run_stage(stage, trials)
            self.signals.check()

    def interrupt(self) -> None:
        """Mark what is running as interrupted."""
        for trial in self.plan.trials:
            if self.statuses.get(trial.trial_id) == "running":
                self.finish(trial, "interrupted", "")

    # One stage.

    def _to_do(self, stage: Sequence[PlannedTrial]) -> list[PlannedTrial]:
        return [t for t in stage if self.statuses[t.trial_id] in ("pending", "interrupted")]

    def _grows(self, stage: Sequence[PlannedTrial]) -> bool:
        return self.source is not None and stage[0].role == "arm" and self.source.more()

    def _set(self, trial: PlannedTrial, status: str) -> None:
        self.statuses[trial.trial_id] = status
        told = self.folder.read_status(trial.trial_id)
        rows = self.folder.rows(trial.trial_id)
        if rows:
            self.table.load(trial.trial_id, rows)
        self.table.set_status(trial.trial_id, status, str(told.get("reason") or ""))

    def finish(self, trial: PlannedTrial, status: str, reason: str) -> None:
        """Record how a trial ended."""
        rows = self.folder.rows(trial.trial_id)
        step = rows[-1]["step"] if rows else 0
        attempt = last_attempt(self.folder.trial(trial.trial_id))
        self.folder.write_status(trial.trial_id, status, reason, step=step, attempt=attempt)
        self.statuses[trial.trial_id] = status
        self.table.set_status(trial.trial_id, status, reason)
        if self.clock is not None:
            self.clock.tick()

    def _ready(self, trial: PlannedTrial) -> PlannedTrial | None:
        """The trial with its decoder's path; None when that decoder did not finish."""
        if trial.needs is None:
            return trial
        if self.statuses[trial.needs] != "finished":
            reason = f"waits for {trial.needs}, which is {self.statuses[trial.needs]}"
            self.folder.write_status(trial.trial_id, "pending", reason)
            self.table.set_status(trial.trial_id, "pending", reason)
            return None
        path = decoder_checkpoint(self.folder, trial.needs)
        return PlannedTrial(**(vars(trial) | {"config": trial.config.replace(decoder=str(path))}))

    def _rule(self, stage: Sequence[PlannedTrial]) -> StoppingRule | None:
        """The stage's rule, with every row of earlier runs placed on its rungs."""
        if self.stop_rule is not None:
            rule = self.stop_rule(stage)
        elif stage[0].role == "decoder" or self.plan.options.scheduler == "none":
            rule = None  # arms of a stopped decoder could not run at all
        else:
            budgets = {t.trial_id: t.config.epochs for t in stage}
            rule = phase_rule(max(budgets.values()), budgets, metric=ACCURACY)
        if rule is None:
            return None
        reports = []
        for trial in stage:
            for row in self.folder.rows(trial.trial_id):
                value = row.get(ACCURACY)
                if ACCURACY in row and value is None:  # NaN is null in the file
                    value = math.nan
                told = float(row.get("time") or 0.0)
                reports.append((told, trial.trial_id, float(row["epoch"]), value))
        stopped = place(rule, reports)
        for trial in stage:
            reason = stopped.get(trial.trial_id)
            if reason and self.statuses[trial.trial_id] in ("pending", "interrupted"):
                self.finish(trial, "stopped", reason)
        return rule

    def _begin(self, trial: PlannedTrial, owner: str, scratch: Path, allotment: Allotment) -> str:
        """Begin an attempt of a trial; returns its `TrialSpec` as JSON."""
        home = self.folder.trial(trial.trial_id)
        attempt = begin_attempt(home, owner)
        self.folder.write_status(trial.trial_id, self.statuses[trial.trial_id], "", attempt=attempt)
        return TrialSpec(
            trial_id=trial.trial_id,
            out_dir=str(home),
            config=trial.config.model_dump(mode="json"),
            owner=owner,
            num_workers=allotment.workers,
            worker_resources=allotment.worker_resources,
            max_failures=WORKER_RESTARTS,
            storage=str(scratch),
            train=self.train,
        ).to_json()

    def _adopt(self, trial: PlannedTrial, rule: StoppingRule | None) -> None:
        """Take a trial that a search has just planned into this run."""
        self.plan = replace(self.plan, trials=(*self.plan.trials, trial))
        self.statuses[trial.trial_id] = "pending"
        self.table.add(trial)
        if rule is not None:
            rule.expect(trial.trial_id, trial.config.epochs)

    def _run_stage(self, stage: Sequence[PlannedTrial], trials: Sequence[PlannedTrial]) -> None:
        rule = self._rule(stage)
        ready = [r for t in trials if t in self._to_do(stage) and (r := self._ready(t))]
        growing = self._grows(stage)
        if not ready and (trials or not growing):
            # Nothing left, or all of it waits for a decoder, as whatever comes would.
            blocked = any(self.statuses[t.trial_id] == "pending" for t in trials)
            if blocked or not growing:
                return
        allotment = self.allotments[stage[0].role]
        owner = new_owner()
        scratch = self.folder.path / "ray" / owner
        scratch.mkdir(parents=True)

        def begin(trial: PlannedTrial) -> str:
            return self._begin(trial, owner, scratch, allotment)

        scheduler = RuleScheduler(rule, self.folder.path / "trials")
        running = {t.trial_id: t for t in ready}
        follower = _Follower(self, running, scheduler)
        queue = deque(ready)

        def take() -> tuple[str, str] | None:
            """Another arm, now that there is room for it."""
            if not queue and self.source is not None:
                found = self.source.grow(self.statuses)
                for trial in found:
                    self._adopt(trial, rule)
                queue.extend(r for t in found if (r := self._ready(t)) is not None)
            if not queue:
                return None
            trial = queue.popleft()
            running[trial.trial_id] = trial
            return trial.trial_id, begin(trial)

        if growing:
            space: dict[str, Any] = {}
        else:
            specs = {trial.trial_id: begin(trial) for trial in ready}
            space = {"trial_id": tune.grid_search(list(specs)), "specs": specs}
        try:
            tuner = tune.Tuner(
                tune.with_resources(RayTrial, allotment.driver_resources),
                param_space=space,
                tune_config=tune.TuneConfig(
                    scheduler=scheduler,
                    search_alg=Feed(take) if growing else None,
                    num_samples=-1 if growing else 1,
                    max_concurrent_trials=allotment.concurrent,
                    reuse_actors=False,  # a reused actor skips `cleanup`
                    trial_name_creator=our_id,
                    trial_dirname_creator=our_id,
                ),
                run_config=tune.RunConfig(
                    name="tune",
                    storage_path=str(scratch),
                    callbacks=[follower],
                    failure_config=tune.FailureConfig(max_failures=TRIAL_RESTARTS),
                    checkpoint_config=tune.CheckpointConfig(
                        checkpoint_frequency=0, checkpoint_at_end=False
                    ),
                    verbose=0,
                ),
            )
            with self.signals.deferred():
                tuner.fit()
        finally:
            shutil.rmtree(scratch, ignore_errors=True)
            with contextlib.suppress(OSError):
                scratch.parent.rmdir()
        for trial in running.values():
            if self.statuses[trial.trial_id] not in (*FINAL, "failed"):
                self.finish(trial, "interrupted", "Ray Tune ended before the trial did")


class _Follower(tune.Callback):
    """Carries what Tune sees to the table and the run folder, and signals into Tune's loop."""

    def __init__(
        self, conductor: Conductor, trials: dict[str, PlannedTrial], scheduler: RuleScheduler
    ) -> None:
        self.conductor = conductor
        self.trials = trials
        self.scheduler = scheduler
        self.outcomes: dict[str, tuple[str, str]] = {}

    def __reduce__(self) -> tuple[Any, ...]:
        # Tune saves its experiment with pickle; nobody reads it, and a terminal has no pickle.
        return tune.Callback, ()

    def on_step_end(self, iteration: int, trials: list[Trial], **info: Any) -> None:
        self.conductor.table.refresh()
        self.conductor.signals.check()

    def on_trial_start(
        self, iteration: int, trials: list[Trial], trial: Trial, **info: Any
    ) -> None:
        trial_id = our_id(trial)
        self.conductor.statuses[trial_id] = "running"
        self.conductor.folder.write_status(trial_id, "running")
        self.conductor.table.set_status(trial_id, "running")

    def on_trial_result(
        self,
        iteration: int,
        trials: list[Trial],
        trial: Trial,
        result: dict[str, Any],
        **info: Any,
    ) -> None:
        trial_id = our_id(trial)
        if "outcome_status" in result:
            self.outcomes[trial_id] = (result["outcome_status"], result.get("outcome_reason", ""))
        elif "step" in result:
            self.conductor.table.update(trial_id, result)
            if self.conductor.clock is not None:
                self.conductor.clock.see(trial_id, result)

    def on_trial_complete(
        self, iteration: int, trials: list[Trial], trial: Trial, **info: Any
    ) -> None:
        trial_id = our_id(trial)
        status, reason = self.outcomes.get(trial_id, ("interrupted", "the trial ended early"))
        if trial_id in self.scheduler.reasons:
            status, reason = "stopped", self.scheduler.reasons[trial_id]
        if status not in (*FINAL, "failed"):
            status = "interrupted"
        self.conductor.finish(self.trials[trial_id], status, reason)

    def on_trial_error(
        self, iteration: int, trials: list[Trial], trial: Trial, **info: Any
    ) -> None:
        trial_id = our_id(trial)
        if trial_id in self.scheduler.reasons:
            self.conductor.finish(
                self.trials[trial_id], "stopped", self.scheduler.reasons[trial_id]
            )
            return
        lines = [line.strip() for line in str(trial.error_file and _tail(trial)).splitlines()]
        reason = next((line for line in reversed(lines) if line), "the trial's process died")
        self.conductor.finish(self.trials[trial_id], "failed", reason[:500])


def _tail(trial: Trial) -> str:
    with contextlib.suppress(OSError):
        return Path(trial.error_file).read_text(errors="replace")
    return ""
