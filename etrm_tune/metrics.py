"""Our numbers as Ray metrics, for Prometheus: what each trial measured last, labelled by trial.

Ray exports them on its node's metrics port (`discovered` tells Prometheus which), with ``ray_`` in
front. A gauge that is not sent again disappears after about 20 seconds: so those of a trial are
sent as long as it runs, and are gone soon after it has ended.
"""

from __future__ import annotations

import contextlib
import json
import logging
import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from etrm_tune.board import STATUSES, Board
from etrm_tune.plan import PlannedTrial
from etrm_tune.run_folder import RunFolder, write_atomic

SEND_S = 5.0
"""Seconds between two sends of all values. Ray passes on what it has every 10 s."""
LABELS = ("run", "experiment", "trial", "seed", "role")
DISCOVERY = ".prometheus"
"""Folder beside the runs, with one file of scrape targets for each run that goes on."""

ROWS: Mapping[str, tuple[str, str]] = {
    "etrm_train_accuracy": ("train/accuracy", "token accuracy of halted rows, 0 to 1"),
    "etrm_train_exact_accuracy": ("train/exact_accuracy", "share of halted rows wholly right"),
    "etrm_train_loss": ("train/loss", "loss per row"),
    "etrm_train_lm_loss": ("train/lm_loss", "loss of the answer, per row"),
    "etrm_train_q_halt_accuracy": ("train/q_halt_accuracy", "how often the Q-head is right"),
    "etrm_train_act_steps": ("train/steps", "ACT steps of halted rows"),
    "etrm_train_kl_loss": ("train/kl_loss", "KL of variational encoders, per row"),
    "etrm_lr": ("train/lr", "learning rate of the decoder"),
    "etrm_encoder_lr": ("train/encoder_lr", "learning rate of the encoder"),
    "etrm_grad_encoder_norm": ("grad/encoder_norm", "gradient norm of the encoder, unclipped"),
    "etrm_grad_decoder_norm": ("grad/decoder_norm", "gradient norm of the decoder, unclipped"),
    "etrm_grad_total_norm": ("grad/total_norm", "gradient norm of all parameters, unclipped"),
    "etrm_encoder_cross_sample_var": (
        "encoder/cross_sample_var",
        "variance of the encoder's output between puzzles",
    ),
    "etrm_eval_accuracy": ("eval/accuracy", "token accuracy on held-out puzzles, 0 to 1"),
    "etrm_eval_exact_accuracy": ("eval/exact_accuracy", "held-out queries wholly right"),
    "etrm_step": ("step", "optimizer steps done"),
    "etrm_epoch": ("epoch", "epochs done"),
}
"""Metric → column of a trial's rows, and what it is."""

DERIVED: Mapping[str, str] = {
    "etrm_step_seconds": "seconds per optimizer step, since the row before",
    "etrm_progress": "part of the budget that is done, 0 to 1",
    "etrm_eta_seconds": "seconds until the trial ends at its present rate",
    "etrm_health_signs": "signs of ill health, by level",
}
COUNTS = "etrm_trials"
"""Trials of a run by status."""

Send = Callable[[str, str, tuple[str, ...], float, dict[str, str]], None]
"""Name, description, label names, value, labels."""

logger = logging.getLogger(__name__)


@dataclass
class RayGauges:
    """Sends values through `ray.util.metrics`; needs a running Ray."""

    _gauges: dict[str, Any] = field(default_factory=dict)

    def __call__(
        self, name: str, text: str, keys: tuple[str, ...], value: float, labels: dict[str, str]
    ) -> None:
        from ray.util.metrics import Gauge

        if name not in self._gauges:
            self._gauges[name] = Gauge(name, description=text, tag_keys=keys)
        self._gauges[name].set(value, tags=labels)


class RunMetrics:
    """Looks on while a run goes on (`onlookers.Onlookers`) and sends its numbers."""

    def __init__(self, run: str, board: Board, names: Mapping[str, PlannedTrial], send: Send):
        self.run = run
        self.board = board
        self.send = send
        self._labels = {trial_id: self._label(trial) for trial_id, trial in names.items()}
        self._seconds: dict[str, tuple[float, float, float]] = {}
        self._sent = -math.inf

    def _label(self, trial: PlannedTrial) -> dict[str, str]:
        return {
            "run": self.run,
            "experiment": str(trial.config.name),
            "trial": trial.trial_id,
            "seed": str(trial.config.seed),
            "role": trial.role,
        }

    def add(self, trial: PlannedTrial) -> None:
        """One more trial."""
        self._labels[trial.trial_id] = self._label(trial)

    def update(self, trial_id: str, row: Mapping[str, Any]) -> None:
        """A report: what a step took."""
        step, wall = float(row.get("step") or 0), float(row.get("wall_s") or 0.0)
        before = self._seconds.get(trial_id)
        if before is None or step <= before[0]:
            self._seconds[trial_id] = (step, wall, math.nan)
        else:
            self._seconds[trial_id] = (step, wall, (wall - before[1]) / (step - before[0]))

    def refresh(self, *, force: bool = False) -> None:
        """Send everything again, every `SEND_S` seconds."""
        now = time.monotonic()
        if not force and now - self._sent < SEND_S:
            return
        self._sent = now
        try:
            for name, text, keys, value, labels in self.values(time.time()):
                self.send(name, text, keys, value, labels)
        except Exception:  # numbers on a dashboard are not worth a run
            logger.warning("Ray metrics could not be sent", exc_info=True)

    def values(
        self, now: float
    ) -> Iterator[tuple[str, str, tuple[str, ...], float, dict[str, str]]]:
        """Everything that is sent: of running trials their finite numbers, and the counts."""
        counts = self.board.counts()
        for status in STATUSES:
            labels = {"run": self.run, "status": status}
            yield (
                COUNTS,
                "trials by status",
                ("run", "status"),
                float(counts.get(status, 0)),
                labels,
            )
        for trial_id, line in self.board.lines.items():
            if line.status != "running" or line.row is None or trial_id not in self._labels:
                continue
            labels = self._labels[trial_id]
            for name, (column, text) in ROWS.items():
                yield from _finite(name, text, line.row.get(column), labels)
            derived = {
                "etrm_step_seconds": self._seconds.get(trial_id, (0.0, 0.0, math.nan))[2],
                "etrm_progress": line.share,
                "etrm_eta_seconds": line.eta_s(now),
            }
            for name, value in derived.items():
                yield from _finite(name, DERIVED[name], value, labels)
            for level in ("warning", "critical"):
                found = sum(sign.level == level for sign in line.signs)
                name = "etrm_health_signs"
                keys = (*LABELS, "level")
                yield name, DERIVED[name], keys, float(found), {**labels, "level": level}


def _finite(
    name: str, text: str, value: Any, labels: dict[str, str]
) -> Iterator[tuple[str, str, tuple[str, ...], float, dict[str, str]]]:
    if value is not None and math.isfinite(value):
        yield name, text, LABELS, float(value), labels


def scrape_targets() -> list[str]:
    """Metrics ports of the living nodes of the Ray that this process is connected to."""
    import ray

    return sorted(
        f"{node['NodeManagerAddress']}:{node['MetricsExportPort']}"
        for node in ray.nodes()
        if node.get("Alive") and (node.get("MetricsExportPort") or 0) > 0
    )


@contextlib.contextmanager
def discovered(folder: RunFolder, targets: Callable[[], Sequence[str]]) -> Iterator[None]:
    """Tell Prometheus (monitoring/prometheus.yml) where this run is scraped, while it goes on.

    Files of runs that were killed are removed.
    """
    home = folder.path.parent / DISCOVERY
    mine = home / f"{folder.name}.json"
    try:
        for other in home.glob("*.json"):
            if not RunFolder(folder.path.parent / other.stem).in_use():
                other.unlink(missing_ok=True)
        found = [{"targets": list(targets()), "labels": {"job": "etrm-tune"}}]
        write_atomic(mine, json.dumps(found) + "\n")
    except Exception as error:  # nor is this
        logger.warning("Prometheus cannot find this run: %s", error)
    try:
        yield
    finally:
        with contextlib.suppress(OSError):
            Path(mine).unlink(missing_ok=True)
            home.rmdir()  # where it was the last one
