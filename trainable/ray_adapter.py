"""One trial inside Ray: a Tune trial whose `TorchTrainer` workers run the training loop.

The only file of this room that knows Ray. The shape, and what it avoids:

- A *class* Trainable runs ``TorchTrainer.fit()`` in a thread. (A function driver hangs when Tune is
  busy for longer than the rest of ``fit`` after the last report.)
- Reports come through an *unbounded* queue, filled by a callback in the controller. (A bounded one
  freezes the controller, so that it cannot be aborted.)
- ``cleanup`` asks the controller to abort and waits, which returns the workers' placement group at
  once. (Killing the controller leaves the group reserved, and the next trial waits for ever.)
- Ray's checkpoints are not used: the loop's own are the only source of a resume.

Needs ``ControllerCallback.after_controller_start`` and ``TrainController.abort``, which are
internal to Ray: `TESTED_RAY` names the versions with which the tests of this file passed.
"""

from __future__ import annotations

import contextlib
import importlib
import json
import logging
import math
import os
import queue as queue_module
import threading
import time
import traceback
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import ray
import ray.train
import torch
from ray import tune
from ray.train import FailureConfig, RunConfig, ScalingConfig, UserCallback
from ray.train.collective import broadcast_from_rank_zero
from ray.train.torch import TorchTrainer, get_device
from ray.train.v2._internal.execution.callback import ControllerCallback
from ray.train.v2.api.config import LoggingConfig
from ray.util.queue import Queue

from trainable.attempts import SupersededError, claim_attempt
from trainable.config import TrialConfig

TESTED_RAY = ("2.60.0",)
"""Ray versions with which the tests of this file passed."""

TRAIN_FUNCTION = "trainable.loop:train"

EPOCH, ACCURACY = "epoch", "train/accuracy"

_RAY_ENVIRONMENT = {
    # A report is taken once per poll: 2 s by default, which would be the cost of a row.
    "RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": "0.05",  # until rows show their pace
    "RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S": "300",
    "RAY_TRAIN_ENABLE_PREEMPTION_WATCHER": "0",
    "RAY_TRAIN_ENABLE_PRINT_PATCH": "0",
    "RAY_TRAIN_ENABLE_WORKER_STRUCTURED_LOGGING": "0",  # it would log every row
    "RAY_TRAIN_V2_ENABLED": "1",
    "RAY_worker_niceness": "0",  # 15 by default
    # Workers train in a thread, whose arena gives large blocks back at once: 13,000 page faults a
    # second without these.
    "MALLOC_ARENA_MAX": "1",
    "MALLOC_MMAP_THRESHOLD_": str(2**30),
    "MALLOC_TRIM_THRESHOLD_": str(2**31),
    "RAY_CHDIR_TO_TRIAL_DIR": "0",
    "RAY_AIR_NEW_OUTPUT": "0",
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_DEDUP_LOGS": "0",
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "1",  # a worker without a GPU sees none
    "RAY_TQDM": "0",
    "TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "1",
    "TUNE_DISABLE_SIGINT_HANDLER": "1",
    "TUNE_DISABLE_STRICT_METRIC_CHECKING": "1",  # a row without a halted one has no accuracy
    "TUNE_WARN_EXCESSIVE_EXPERIMENT_CHECKPOINT_SYNC_THRESHOLD_S": "0",
}


def ray_environment() -> dict[str, str]:
    """Variables that must be set before ``ray.init``; values already set by the user win."""
    return {name: os.environ.get(name, value) for name, value in _RAY_ENVIRONMENT.items()}


@dataclass(frozen=True)
class TrialSpec:
    """What a Tune trial needs to know, as plain values that survive a trip through JSON."""

    trial_id: str
    out_dir: str
    config: dict[str, Any]
    owner: str
    """Token of the conductor that started this trial (`begin_attempt`)."""
    num_workers: int = 1
    worker_resources: dict[str, float] = field(default_factory=lambda: {"CPU": 1.0})
    max_failures: int = 3
    """Restarts after a worker died; each resumes from the loop's newest checkpoint."""
    storage: str = ""
    """Scratch folder that Ray writes to and nobody reads."""
    train: str = TRAIN_FUNCTION
    """``module:function`` with the signature of `trainable.loop.train`."""

    @property
    def use_gpu(self) -> bool:
        """Whether a worker asks for a GPU or a share of one."""
        return self.worker_resources.get("GPU", 0) > 0

    def to_json(self) -> str:
        """One line of JSON."""
        return json.dumps(asdict(self))

    @classmethod
    def from_json(cls, text: str) -> TrialSpec:
        """Inverse of `to_json`."""
        return cls(**json.loads(text))


# The worker: one process of a trial.


def load_function(path: str) -> Callable[..., Any]:
    """The function that ``module:function`` names."""
    module, _, name = path.partition(":")
    function = getattr(importlib.import_module(module), name)
    assert callable(function), path
    return function  # type: ignore[no-any-return]


def set_threads(count: int) -> None:
    """Torch's threads of this process, whatever Ray has derived from CPU shares."""
    for variable in ("OMP_NUM_THREADS", "MKL_NUM_THREADS"):
        os.environ[variable] = str(count)
    torch.set_num_threads(count)


def one_line(error: BaseException) -> str:
    """An exception's type and last line of text, without Ray's tracebacks around it."""
    failures = getattr(error, "worker_failures", None)
    if isinstance(failures, Mapping) and failures:
        rank, cause = next(iter(failures.items()))
        return f"worker {rank}: {one_line(cause)}"
    base = getattr(error, "_base_exc", None) or getattr(error, "cause", None)
    if isinstance(base, BaseException) and base is not error:
        return one_line(base)
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    name = type(error).__name__
    if name in ("RayActorError", "ActorDiedError", "ActorUnavailableError"):
        return "a worker process died (killed, or out of memory)"
    text = lines[-1] if lines else ""
    return text if text.startswith(name) else f"{name}: {text}"[:500]


def run_worker(settings: dict[str, str]) -> dict[str, Any]:
    """Body of every `TorchTrainer` worker: threads, attempt number, then the loop.

    Returns ``status``, ``reason``, ``step``, ``total_steps``. An exception of a single worker comes
    back as status ``failed``, since it would only come again; with several workers it is
    raised, because the others wait in a collective and must be restarted with it.
    """
    spec = TrialSpec.from_json(settings["spec"])
    out_dir = Path(spec.out_dir)
    context = ray.train.get_context()
    rank, world_size = context.get_world_rank(), context.get_world_size()
    config = TrialConfig(**spec.config)
    set_threads(config.num_threads)
    # Else a line with every row.
    logging.getLogger("ray.train.v2._internal.execution.context").setLevel(logging.WARNING)
    if spec.use_gpu:
        torch.cuda.set_device(get_device())

    attempt = -1
    if rank == 0:
        with contextlib.suppress(SupersededError):
            attempt = claim_attempt(out_dir, spec.owner)
    attempt = broadcast_from_rank_zero(attempt)
    if attempt < 0:
        return {"status": "superseded", "reason": "another run took this trial over"}

    def report(row: Mapping[str, Any]) -> bool:
        ray.train.report(dict(row))
        return False  # Tune stops a trial by stopping its workers

    with (
        (out_dir / ("log" if rank == 0 else f"log-{rank}")).open("a", buffering=1) as log,
        contextlib.redirect_stdout(log),
        contextlib.redirect_stderr(log),
    ):
        try:
            result = load_function(spec.train)(
                config,
                out_dir=out_dir,
                report=report,
                resume_from="auto",
                progress=False,
                attempt=attempt,
            )
        except Exception as error:
            traceback.print_exc()
            if world_size > 1:
                raise
            return {"status": "failed", "reason": one_line(error)}
    return {
        "status": result.status,
        "reason": result.reason or "",
        "step": result.step,
        "total_steps": result.total_steps,
    }


# The controller's side and the trial's side.


FASTEST_POLL, SLOWEST_POLL = 0.05, 1.0
"""Seconds between two polls of a controller. Every poll runs in the training process too."""


def poll_interval(gap: float) -> float:
    """Seconds between polls where rows come `gap` seconds apart: a row waits an eighth at most."""
    return min(max(gap / 8, FASTEST_POLL), SLOWEST_POLL)


class ForwardReports(UserCallback):
    """In the controller: rank 0's rows into the queue; polls are as frequent as rows ask for."""

    def __init__(self, queue: Queue) -> None:
        self.queue = queue
        self.last = math.nan

    def after_report(self, run_context: Any, metrics: Any, checkpoint: Any) -> None:
        self.queue.put(("row", metrics[0]))
        now = time.monotonic()
        gap, self.last = now - self.last, now
        controller = _this_actor()
        if math.isfinite(gap) and hasattr(controller, "_health_check_interval_s"):
            controller._health_check_interval_s = poll_interval(gap)


def _this_actor() -> Any:
    """The actor in whose process this runs (None outside one, or where Ray keeps it elsewhere)."""
    worker = getattr(ray._private.worker, "global_worker", None)
    return getattr(worker, "actors", {}).get(getattr(worker, "actor_id", None))


class SendHandle(ControllerCallback):
    """In the controller: its own handle into the queue, so that it can be aborted."""

    def __init__(self, queue: Queue) -> None:
        self.queue = queue

    def after_controller_start(self, train_run_context: Any) -> None:
        self.queue.put(("controller", ray.get_runtime_context().current_actor))


class RayTrial(tune.Trainable):
    """A Tune trial that is one `TorchTrainer` run.

    Its parameters: ``trial_id``, and ``specs``, a `TrialSpec` as JSON for every trial.

    It reports every row that rank 0 reports, then one last result with ``done`` and
    ``outcome_status``, ``outcome_reason``.
    """

    def setup(self, config: dict[str, Any]) -> None:
        self.spec = TrialSpec.from_json(config["specs"][config["trial_id"]])
        self.queue = Queue(actor_options={"num_cpus": 0})
        self.controller: Any = None
        self.last_row: dict[str, Any] = {EPOCH: 0, ACCURACY: float("nan")}
        self.outcome = {"status": "failed", "reason": "the trainer ended without a result"}
        self.thread = threading.Thread(target=self._fit, name="fit", daemon=True)
        self.thread.start()

    def _fit(self) -> None:
        spec = self.spec
        trainer = TorchTrainer(
            run_worker,
            train_loop_config={"spec": spec.to_json()},
            scaling_config=ScalingConfig(
                num_workers=spec.num_workers,
                use_gpu=spec.use_gpu,
                resources_per_worker=dict(spec.worker_resources),
            ),
            run_config=RunConfig(
                # A name of its own: a repeated one makes Ray restore its own state.
                name=f"{spec.trial_id}-{time.time_ns()}",
                storage_path=spec.storage,
                failure_config=FailureConfig(
                    max_failures=spec.max_failures, controller_failure_limit=3
                ),
                callbacks=[ForwardReports(self.queue), SendHandle(self.queue)],
                logging_config=LoggingConfig(log_level="WARNING"),
            ),
        )
        try:
            self.outcome = trainer.fit().return_value or self.outcome
        except Exception as error:
            self.outcome = {"status": "failed", "reason": one_line(error)}

    def _take(self, timeout: float) -> dict[str, Any] | None:
        """Next row, or None when nothing came within ``timeout`` seconds."""
        try:
            kind, value = self.queue.get(timeout=timeout)
        except queue_module.Empty:
            return None
        if kind == "controller":
            self.controller = value
            return None
        return dict(value)

    def get_auto_filled_metrics(self, *args: Any, **kwargs: Any) -> dict[str, Any]:
        # Without the parameters, which would travel with every row.
        filled: dict[str, Any] = super().get_auto_filled_metrics(*args, **kwargs)
        return filled | {"config": {}}

    def step(self) -> dict[str, Any]:
        while True:
            running = self.thread.is_alive()  # asked first: what came before is in the queue
            row = self._take(timeout=0.5 if running else 0.05)
            if row is not None:
                self.last_row = row
                return row
            if not running and not self.queue.qsize():
                outcome = {f"outcome_{key}": value for key, value in self.outcome.items()}
                return {**self.last_row, **outcome, "done": True}

    def save_checkpoint(self, checkpoint_dir: str) -> dict[str, Any]:
        return {}  # nothing of Ray's is ever restored

    def load_checkpoint(self, checkpoint: Any) -> None:
        """Nothing to load: the loop resumes from its own checkpoints."""

    def cleanup(self) -> None:
        deadline = time.monotonic() + 60
        while self.thread.is_alive() and time.monotonic() < deadline:
            if self.controller is None:  # still starting: its handle is on the way
                self._take(timeout=0.2)
                continue
            with contextlib.suppress(ray.exceptions.RayError):
                ray.get(self.controller.abort.remote(), timeout=20)
            self.thread.join(timeout=5)
        self.queue.shutdown(force=True)
