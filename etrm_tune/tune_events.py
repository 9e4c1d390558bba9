"""What Ray Tune tells of trials, carried to the table and the run folder; and its errors."""

from __future__ import annotations

import contextlib
import functools
import logging
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ray import tune
from ray.tune.experiment import Trial

from etrm_tune.plan import PlannedTrial
from etrm_tune.reservations import RELEASE_S, release_orphans
from etrm_tune.run_folder import FINAL, disk_error
from etrm_tune.scheduler import RuleScheduler, our_id
from trainable.errors import FULL, UserError

if TYPE_CHECKING:
    from etrm_tune.conductor import Conductor

logger = logging.getLogger(__name__)


def what_to_tell(error: BaseException, place: Path) -> UserError | None:
    """What a user can act on in an error of Ray Tune, which wraps those of callbacks in its own.

    A full disk meets whoever writes first: Ray's notes at ``place``, or ours in the run folder.
    """
    link: BaseException | None = error
    while link is not None:
        if isinstance(link, UserError):
            return link
        if isinstance(link, OSError) and link.errno in FULL:
            return disk_error(place, link)
        link = link.__cause__ or link.__context__
    for number in FULL:  # the chain is lost where Ray keeps a traceback as text
        if f"[Errno {number}]" in str(error):
            return disk_error(place, OSError(number, os.strerror(number)))
    return None


def _ends_the_run(handler: Callable[..., None]) -> Callable[..., None]:
    """An error of ours in an event ends the run: Ray Tune would take it for the trial's, and would
    run a trial that has ended once more."""

    @functools.wraps(handler)
    def kept(self: Follower, *event: Any, **info: Any) -> None:
        try:
            handler(self, *event, **info)
        except Exception as error:
            logger.debug("%s", handler.__name__, exc_info=True)
            self.error = self.error or error

    return kept


class Follower(tune.Callback):
    """Carries what Tune sees to the table and the run folder, and signals into Tune's loop."""

    def __init__(
        self, conductor: Conductor, trials: dict[str, PlannedTrial], scheduler: RuleScheduler
    ) -> None:
        self.conductor = conductor
        self.trials = trials
        self.scheduler = scheduler
        self.outcomes: dict[str, tuple[str, str]] = {}
        self.idle: Callable[[], None] | None = None
        """Called between two of Tune's events."""
        self.error: Exception | None = None
        """What an event raised first; the end of Tune's step raises it."""
        self.looked = time.monotonic()
        """When orphaned placement groups were last looked for."""

    def __reduce__(self) -> tuple[Any, ...]:
        # Tune saves its experiment with pickle; nobody reads it, and a terminal has no pickle.
        return tune.Callback, ()

    def on_step_end(self, iteration: int, trials: list[Trial], **info: Any) -> None:
        if self.error is not None:
            raise self.error
        self.conductor.table.refresh()
        self.conductor.signals.check()
        if time.monotonic() - self.looked > RELEASE_S:
            release_orphans()
            self.looked = time.monotonic()
        if self.idle is not None:
            self.idle()

    @_ends_the_run
    def on_trial_start(
        self, iteration: int, trials: list[Trial], trial: Trial, **info: Any
    ) -> None:
        trial_id = our_id(trial)
        self.conductor.statuses[trial_id] = "running"
        self.conductor.folder.write_status(trial_id, "running")
        self.conductor.table.set_status(trial_id, "running")

    @_ends_the_run
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

    @_ends_the_run
    def on_trial_complete(
        self, iteration: int, trials: list[Trial], trial: Trial, **info: Any
    ) -> None:
        trial_id = our_id(trial)
        status, reason = self.outcomes.get(trial_id, ("interrupted", "the trial ended early"))
        if trial_id in self.scheduler.reasons:
            status, reason = "stopped", self.scheduler.reasons[trial_id]
        if status not in (*FINAL, "failed"):
            status = "interrupted"
        _forget(trial)
        self.conductor.finish(self.trials[trial_id], status, reason)

    @_ends_the_run
    def on_trial_error(
        self, iteration: int, trials: list[Trial], trial: Trial, **info: Any
    ) -> None:
        trial_id = our_id(trial)
        _forget(trial)
        if trial_id in self.scheduler.reasons:
            self.conductor.finish(
                self.trials[trial_id], "stopped", self.scheduler.reasons[trial_id]
            )
            return
        lines = [line.strip() for line in str(trial.error_file and _tail(trial)).splitlines()]
        reason = next((line for line in reversed(lines) if line), "the trial's process died")
        self.conductor.finish(self.trials[trial_id], "failed", reason[:500])


def _forget(trial: Trial) -> None:
    """Drop Tune's statistics of a trial that has ended: the last values of every metric, which
    nobody reads, and which it keeps until the end of the run (0.15 MB a trial in Ray 2.60)."""
    for statistics in ("metric_analysis", "metric_n_steps"):
        if getattr(trial.run_metadata, statistics, None):
            setattr(trial.run_metadata, statistics, {})


def _tail(trial: Trial) -> str:
    with contextlib.suppress(OSError):
        return Path(trial.error_file).read_text(errors="replace")
    return ""
