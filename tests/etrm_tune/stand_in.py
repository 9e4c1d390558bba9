"""In place of Ray and training: `execute` that ends every trial of a plan at once.

What a trial reaches comes from `Outcomes`; everything before and after (plans, folders, decisions)
is the real thing.
"""

from __future__ import annotations

import json
import time
from dataclasses import dataclass, field
from typing import Any

from etrm_tune.conductor import settle
from etrm_tune.run_folder import FINAL, RunFolder

ROWS = 40


@dataclass
class Outcomes:
    """Accuracy by experiment (`default` for the others), and what was trained."""

    accuracy: dict[str, float] = field(default_factory=dict)
    default: float = 0.95
    status: dict[str, str] = field(default_factory=dict)
    interrupt_in: str | None = None
    """Experiment at which a signal arrives, once."""
    rising: tuple[str, ...] = ()
    """Experiments whose accuracy still rises at the end of the plan's own budget."""
    waiting: bool = False
    """Arms are left pending, as those of a decoder that crashed are."""
    trained: list[str] = field(default_factory=list)
    """``folder/trial`` in the order in which they were trained."""

    def execute(
        self, folder: RunFolder, plan: Any, allotments: Any, signals: Any, how: Any, clock: Any
    ) -> int:
        """Stands for `etrm_tune.command.execute`."""
        for trial in plan.trials:
            known = settle(folder, trial, retry_failed=how.retry_failed)
            if known in FINAL or known == "failed" or (self.waiting and trial.role == "arm"):
                continue
            if trial.config.name == self.interrupt_in:
                self.interrupt_in = None
                folder.write_status(trial.trial_id, "interrupted")
                return 130
            self.train(folder, trial)
        statuses = {folder.read_status(t.trial_id)["status"] for t in plan.trials}
        return 1 if statuses - FINAL else 0

    def train(self, folder: RunFolder, trial: Any) -> None:
        """Leave the files of a trial that trained."""
        name, home = trial.config.name, folder.trial(trial.trial_id)
        self.trained.append(f"{folder.name}/{trial.trial_id}")
        status = self.status.get(name, "finished")
        accuracy = self.accuracy.get(name, self.default)
        lines: list[dict[str, Any]] = [
            {"kind": "start", "schema_version": 1, "attempt": 1, "trial_id": trial.trial_id,
             "identity": trial.identity, "resumed_from": 0, "total_steps": ROWS,
             "time": time.time()}
        ]  # fmt: skip
        speed = 1 if name in self.rising and trial.config.epochs < 500 else 2
        for step in range(1, ROWS + 1):
            share = step / ROWS
            reached = accuracy * min(1.0, speed * share)
            lines.append(
                {"kind": "row", "step": step, "epoch": trial.config.epochs * share,
                 "samples": 32 * step, "time": time.time(), "wall_s": float(step),
                 "train/accuracy": reached,
                 "train/exact_accuracy": accuracy / 2, "train/loss": 1.0, "train/lm_loss": 1.0,
                 "train/q_halt_accuracy": 0.9, "train/q_halt_base_rate": 0.8, "train/steps": 5.0,
                 "train/all_accuracy": reached}
            )  # fmt: skip
        lines[-1] |= {
            f"control/{way}_{score}": value
            for way, value in (("normal", 0.95), ("zeroed", 0.6), ("shuffled", 0.6), ("other", 0.6))
            for score in ("accuracy", "exact_accuracy")
        } | {"eval/pass@1": 0.0, "eval/scheduled": 32.0}
        lines.append({"kind": "end", "status": status, "reason": ""})
        text = "".join(json.dumps(line) + "\n" for line in lines)
        (home / "attempt-1.jsonl").write_text(text)
        if status != "failed":
            result = {"schema_version": 1, "status": status, "step": ROWS, "total_steps": ROWS,
                      "final_checkpoint": f"checkpoints/step-{ROWS}.pt"}  # fmt: skip
            (home / "checkpoints").mkdir(exist_ok=True)
            (home / "checkpoints" / f"step-{ROWS}.pt").write_text("weights")
            (home / "result.json").write_text(json.dumps(result))
        folder.write_status(trial.trial_id, status, "", step=ROWS, attempt=1)
