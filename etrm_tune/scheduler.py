"""Ray's ASHA scheduler, deciding by a `search_spaces.stopping.StoppingRule`.

The rule is the same pure class that `analysis` replays; here it only meets Tune. Halving as Ray has
it stays off: Ray's never stops on NaN and skips a report without the metric in silence, so halving,
where a search wants it, is one of the rule's own parts.
"""

from __future__ import annotations

import json
import math
import time
from pathlib import Path
from typing import Any

from ray.tune.experiment import Trial
from ray.tune.schedulers import AsyncHyperBandScheduler, TrialScheduler

from etrm_tune.run_folder import disk_error
from search_spaces.stopping import Decision, StoppingRule
from trainable.ray_adapter import ACCURACY, EPOCH

_NEVER = 1e18
"""Epochs of the inherited scheduler's first rung: none is ever reached."""


def our_id(trial: Trial) -> str:
    """The plan's name of a Tune trial."""
    return str(trial.config["trial_id"])


class RuleScheduler(AsyncHyperBandScheduler):
    """Asks ``rule`` at every report, and keeps why a trial was stopped in ``reasons``.

    Every report that reaches a rung is appended to ``trials/<id>/scheduler.jsonl``. A metric that
    is missing counts as not measured; one that is not a number fails the bar.
    """

    def __init__(self, rule: StoppingRule | None, trials_folder: Path) -> None:
        super().__init__(
            time_attr=EPOCH,
            metric=ACCURACY,
            mode="max",
            max_t=_NEVER,
            grace_period=_NEVER,
            stop_last_trials=False,
        )
        self.rule = rule
        self.trials_folder = trials_folder
        self.reasons: dict[str, str] = {}

    def set_search_properties(self, metric: str | None, mode: str | None, **spec: Any) -> bool:
        """Metric and mode are this scheduler's own."""
        return metric in (None, ACCURACY) and mode in (None, "max")

    def on_trial_result(self, tune_controller: Any, trial: Trial, result: dict[str, Any]) -> str:
        """Continue or stop; called by Tune for every row but the last, which is already done."""
        action: str = super().on_trial_result(tune_controller, trial, result)
        if self.rule is None or EPOCH not in result:
            return action
        trial_id = our_id(trial)
        value = result.get(ACCURACY)
        decision = self.rule.on_report(trial_id, float(result[EPOCH]), value)
        self._record(trial_id, result, decision)
        if decision.stop:
            self.reasons[trial_id] = decision.reason
            return str(TrialScheduler.STOP)
        return action

    def _record(self, trial_id: str, result: dict[str, Any], decision: Decision) -> None:
        """One line for each rung that the report was placed on."""
        value = result.get(ACCURACY)
        for rule, milestone, entry in decision.placed:
            line = {
                "rung": milestone,
                "rule": rule,
                "epoch": result[EPOCH],
                "step": result.get("step"),
                "value": value if value is not None and math.isfinite(value) else None,
                "stop": entry.stop,
                "reason": entry.reason,
                "time": time.time(),
            }
            path = self.trials_folder / trial_id / "scheduler.jsonl"
            try:
                with path.open("a") as file:
                    file.write(json.dumps(line) + "\n")
            except OSError as error:
                raise disk_error(path, error) from None

    def on_trial_complete(self, tune_controller: Any, trial: Trial, result: dict[str, Any]) -> None:
        """A finished trial takes no rung: its last row was already judged."""
        self._trial_info.pop(trial.trial_id, None)

    def on_trial_remove(self, tune_controller: Any, trial: Trial) -> None:
        """Forget a trial that never ran, or that failed."""
        self._trial_info.pop(trial.trial_id, None)
