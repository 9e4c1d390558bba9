"""Runs a plan: its decoders, then its arms, each stage as one Ray Tune experiment.

Nothing of Ray's own state is read back. Which trials still have to run follows from the run
folder; each continues from its own newest checkpoint.
"""

from __future__ import annotations

import logging
import math
import shutil
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Protocol

from ray import tune

from etrm_tune.cluster import relocated
from etrm_tune.estimate import Clock
from etrm_tune.live import LiveTable
from etrm_tune.mirror import Mirror
from etrm_tune.plan import Plan, PlannedTrial
from etrm_tune.population import Population
from etrm_tune.resources import Allotment
from etrm_tune.run_folder import FINAL, RunFolder, RunFolderError, disk_error
from etrm_tune.scheduler import RuleScheduler, our_id
from etrm_tune.search_feed import Feed
from etrm_tune.session import Signals, new_owner
from etrm_tune.trackers import make_trackers
from etrm_tune.tune_events import Follower, what_to_tell
from search_spaces.schedulers import place
from search_spaces.stopping import StoppingRule, phase_rule
from trainable.attempts import begin_attempt, last_attempt
from trainable.checkpoint import list_steps
from trainable.ray_adapter import ACCURACY, TRAIN_FUNCTION, ForkedTrial, RayTrial, TrialSpec

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
    path = home / "checkpoints" / told.name  # whatever the file says, it lies here
    if told.name and path.is_file():
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
    result = folder.read_result(trial.trial_id) or {}
    if status in FINAL:
        damaged = not result and (folder.trial(trial.trial_id) / "result.json").exists()
        if status != "finished" or not damaged:
            return status
        # Its last checkpoint still knows it: going on from there trains nothing.
        folder.write_status(trial.trial_id, "interrupted", "result.json was damaged")
        return "interrupted"
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
    moved: Mapping[str, str] = field(default_factory=dict)
    """Where workers read a decoder or puzzles instead of the path in the plan."""
    trackers: Sequence[str] = ()
    """``mlflow:URI``, ``wandb:PROJECT``."""
    mirror: Mirror | None = None
    """The run folder's copy at a URL."""
    population: Population | None = None
    """Its members are the arms."""

    def __post_init__(self) -> None:
        self.statuses: dict[str, str] = {}
        self.ended: set[str] = set()
        """Trials of this session whose end was recorded."""
        self._callbacks: list[Any] = []

    def planned(self, trial_id: str) -> PlannedTrial | None:
        """A trial of the plan, those that a search has added included."""
        return next((t for t in self.plan.trials if t.trial_id == trial_id), None)

    def prepare(self) -> bool:
        """Settle what earlier runs left; True when there is something to run."""
        self._clear_scratch()
        for trial in self.plan.trials:
            self._set(trial, settle(self.folder, trial, retry_failed=self.retry_failed))
        left = any(self._to_do(stage) for stage in self.plan.stages)
        return left or (self.source is not None and self.source.more())

    def run(self) -> None:
        """Run every stage. Needs a running Ray. Raises `Interrupted` on a signal."""
        if self.trackers:
            self._callbacks = make_trackers(self.trackers, self.folder, self.planned)
        if self.clock is not None:
            self.clock.begin([i for i, status in self.statuses.items() if status in FINAL])
        for stage in self.plan.stages:
            trials = self._to_do(stage)
            if self.population is not None and stage[0].role == "arm":
                self._run_population(stage, self.population)
            elif trials or self._grows(stage):
                self._run_stage(stage, trials)
            self.signals.check()

    def interrupt(self) -> None:
        """Mark what is running as interrupted."""
        for trial in self.plan.trials:
            if self.statuses.get(trial.trial_id) == "running":
                self.finish(trial, "interrupted", "")

    # One stage.

    @property
    def _scratch(self) -> Path:
        """Ray Tune's own files: a folder for each session."""
        return self.folder.path / "ray"

    def _clear_scratch(self) -> None:
        """Those of killed sessions too: the folder is locked, and nobody reads them."""
        shutil.rmtree(self._scratch, ignore_errors=True)

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
        self.table.set_status(
            trial.trial_id, status, str(told.get("reason") or ""), told.get("time")
        )

    def finish(self, trial: PlannedTrial, status: str, reason: str) -> None:
        """Record how a trial ended."""
        self.ended.add(trial.trial_id)
        if self.mirror is not None:
            self.mirror.take(trial.trial_id)
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
        config, until = trial.config, None
        if self.population is not None and trial.role == "arm":
            rates, until = self.population.task(trial)
            config = config.replace(lr_factors=rates.lr_factors)
        self.folder.write_status(trial.trial_id, self.statuses[trial.trial_id], "", attempt=attempt)
        return TrialSpec(
            trial_id=trial.trial_id,
            out_dir=str(home),
            config=relocated(config, self.moved).model_dump(mode="json"),
            until=until,
            owner=owner,
            num_workers=allotment.workers,
            worker_resources=allotment.worker_resources,
            max_failures=WORKER_RESTARTS,
            storage=str(scratch),
            one_machine=not allotment.machine.nodes,
            train=self.train,
            url=self.mirror.url if self.mirror else "",
            token=self.mirror.session if self.mirror else "",
        ).to_json()

    def _adopt(self, trial: PlannedTrial, rule: StoppingRule | None) -> None:
        """Take a trial that a search has just planned into this run."""
        self.plan = replace(self.plan, trials=(*self.plan.trials, trial))
        self.statuses[trial.trial_id] = "pending"
        self.table.add(trial)
        if rule is not None:
            rule.expect(trial.trial_id, trial.config.epochs)

    def _run_population(self, stage: Sequence[PlannedTrial], population: Population) -> None:
        """Round after round, until all have ended or no member gets any further."""
        before: object = None
        while waiting := population.advance(self.statuses):
            trials = [t for t in self._to_do(stage) if t.trial_id in waiting]
            now = [(i, self.statuses[i], self._saved(i)) for i in waiting]
            if not trials or now == before:
                return
            before = now
            self.ended.difference_update(waiting)  # of the round before
            self._run_stage(stage, trials)
            self.signals.check()

    def _saved(self, trial_id: str) -> int:
        saved = list_steps(self.folder.trial(trial_id) / "checkpoints")
        return saved[-1][0] if saved else 0

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
        scratch = self._scratch / owner
        self._clear_scratch()
        try:
            scratch.mkdir(parents=True)
        except OSError as error:
            raise disk_error(scratch, error) from None

        def begin(trial: PlannedTrial) -> str:
            return self._begin(trial, owner, scratch, allotment)

        # At once, so that what an earlier run may have left behind writes to none of them.
        begun = {} if growing else {trial.trial_id: begin(trial) for trial in ready}
        if self.mirror is not None:
            self.mirror.send()
        scheduler = RuleScheduler(rule, self.folder.path / "trials")
        running = {t.trial_id: t for t in ready}
        follower = Follower(self, running, scheduler)
        queue = deque(ready)

        def grow() -> None:
            """Have an arm in the queue, if there is another one."""
            if not queue and growing and self.source is not None:
                found = self.source.grow(self.statuses)
                for trial in found:
                    self._adopt(trial, rule)
                queue.extend(r for t in found if (r := self._ready(t)) is not None)

        def ahead() -> None:
            """While every slot is busy, so that none waits for the searcher. Only for short trials:
            before long ones it is better to know what the others have reached."""
            busy = sum(status == "running" for status in self.statuses.values())
            if busy >= allotment.concurrent:
                grow()

        if growing and allotment.forked:
            follower.idle = ahead

        def take() -> tuple[str, str] | None:
            """Another arm, now that there is room for it."""
            grow()
            if not queue:
                return None
            trial = queue.popleft()
            running[trial.trial_id] = trial
            spec = begun.pop(trial.trial_id, None)
            if spec is None:
                spec = begin(trial)
                if self.mirror is not None:
                    self.mirror.send()
            return trial.trial_id, spec

        kind = ForkedTrial if allotment.forked else RayTrial
        try:
            tuner = tune.Tuner(
                tune.with_resources(kind, allotment.driver_resources),
                tune_config=tune.TuneConfig(
                    scheduler=scheduler,
                    search_alg=Feed(take),
                    num_samples=-1,
                    max_concurrent_trials=allotment.concurrent,
                    reuse_actors=allotment.forked,  # a reused actor of a trainer skips `cleanup`
                    trial_name_creator=our_id,
                    trial_dirname_creator=our_id,
                ),
                run_config=tune.RunConfig(
                    name="tune",
                    storage_path=str(scratch),
                    callbacks=[follower, *self._callbacks],
                    failure_config=tune.FailureConfig(max_failures=TRIAL_RESTARTS),
                    checkpoint_config=tune.CheckpointConfig(
                        checkpoint_frequency=0, checkpoint_at_end=False
                    ),
                    verbose=0,
                ),
            )
            with self.signals.deferred():
                tuner.fit()
        except Exception as error:
            told = what_to_tell(error, scratch)
            if told is None or told is error:
                raise
            raise told from error
        finally:
            for callback in self._callbacks:
                callback.close()
            self._clear_scratch()
        for trial in running.values():
            if trial.trial_id not in self.ended:
                self.finish(trial, "interrupted", "Ray Tune ended before the trial did")
