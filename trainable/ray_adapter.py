"""One trial inside Ray: a Tune trial whose `TorchTrainer` workers run the training loop, or, where
trials are shorter than a trainer's start, a Tune trial that forks one process for it.

The only file of this room that knows Ray. The trainer's shape, and what it avoids:

- A *class* Trainable runs ``TorchTrainer.fit()`` in a thread. (A function driver hangs when Tune is
  busy for longer than the rest of ``fit`` after the last report.)
- Reports come through an *unbounded* queue, filled by a callback in the controller. (A bounded one
  freezes the controller, so that it cannot be aborted.)
- ``cleanup`` asks the controller to abort and waits, which returns the workers' placement group at
  once. (Killing the controller leaves the group reserved, and the next trial waits for ever.)
- Ray's checkpoints are not used: the loop's own are the only source of a resume.
- As few of Ray's helper processes as it takes, and what waits is woken, not asking: beside two
  trials on two cores Ray's processes took a quarter of both (`docs/log.md`, 2026-11-29).

Needs ``ControllerCallback.after_controller_start`` and ``TrainController.abort``, which are
internal to Ray: `TESTED_RAY` names the versions with which the tests of this file passed.
"""

from __future__ import annotations

import contextlib
import logging
import math
import os
import queue as queue_module
import secrets
import socket
import threading
import time
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any

import ray
import ray.train
import torch
from ray import tune
from ray.train import FailureConfig, RunConfig, ScalingConfig, UserCallback
from ray.train.backend import Backend
from ray.train.collective import broadcast_from_rank_zero
from ray.train.torch import TorchConfig, TorchTrainer, get_device
from ray.train.v2._internal.callbacks.datasets import DatasetsCallback
from ray.train.v2._internal.callbacks.placement_group_callback import PlacementGroupCleanerCallback
from ray.train.v2._internal.execution.callback import ControllerCallback
from ray.train.v2.api.config import LoggingConfig
from ray.util.queue import Queue

from trainable.attempts import SupersededError, claim_attempt
from trainable.forked import Child, Nursery
from trainable.mirrored import elsewhere
from trainable.worker import (
    SUPERSEDED,
    TRAIN_FUNCTION,
    TrialSpec,
    keep_to_share,
    outcome_of,
    run_loop,
    set_threads,
)

__all__ = ["TRAIN_FUNCTION", "ForkedTrial", "RayTrial", "TrialSpec"]

TESTED_RAY = ("2.60.0",)
"""Ray versions with which the tests of this file passed."""

EPOCH, ACCURACY = "epoch", "train/accuracy"

_RAY_ENVIRONMENT = {
    # A report is taken once per poll: 2 s by default, which would be the cost of a row.
    "RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": "0.03",  # until rows show their pace
    "RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S": "300",
    "RAY_TRAIN_ENABLE_PREEMPTION_WATCHER": "0",
    "RAY_TRAIN_ENABLE_PRINT_PATCH": "0",
    "RAY_TRAIN_ENABLE_WORKER_STRUCTURED_LOGGING": "0",  # it would log every row
    "RAY_TRAIN_ENABLE_STATE_TRACKING": "1",  # the dashboard's list of train runs
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


# The worker: one process of a trial.


def run_worker(settings: dict[str, str]) -> dict[str, Any]:
    """Body of every `TorchTrainer` worker: threads, attempt number, then the loop (`run_loop`)."""
    spec = TrialSpec.from_json(settings["spec"])
    context = ray.train.get_context()
    rank, world_size = context.get_world_rank(), context.get_world_size()
    set_threads(int(spec.config["num_threads"]))
    # Else a line with every row.
    logging.getLogger("ray.train.v2._internal.execution.context").setLevel(logging.WARNING)
    if spec.use_gpu:
        torch.cuda.set_device(get_device())
        keep_to_share(spec)

    with elsewhere(spec) as send_rows:
        attempt = -1
        if rank == 0:
            with contextlib.suppress(SupersededError):
                attempt = claim_attempt(Path(spec.out_dir), spec.owner)
        attempt = broadcast_from_rank_zero(attempt)
        if attempt < 0:
            return SUPERSEDED

        def report(row: Mapping[str, Any]) -> bool:
            send_rows()
            ray.train.report(dict(row))
            return False  # Tune stops a trial by stopping its workers

        return run_loop(spec, attempt, report, rank=rank, world=world_size)


# Workers of one machine meet without a port: `torch`'s store listens on every interface, and anyone
# who reaches it may write there.


@dataclass
class MeetingConfig(TorchConfig):
    """`TorchConfig` for the workers of one machine."""

    folder: str = ""
    """Where they meet."""

    @property
    def backend_cls(self) -> type[Backend]:
        return MeetingBackend


class MeetingBackend(Backend):
    """Process groups by way of a file."""

    share_cuda_visible_devices = True

    def on_start(self, worker_group: Any, backend_config: MeetingConfig) -> None:
        """Every worker joins, after each start of the group."""
        file = Path(backend_config.folder) / f"meeting-{secrets.token_hex(8)}"
        gpus = worker_group.get_resources_per_worker().get("GPU", 0)
        how = ("nccl" if gpus else "gloo", f"file://{file}", backend_config.timeout_s)
        worker_group.execute(join_group, *how)

    def on_shutdown(self, worker_group: Any, backend_config: MeetingConfig) -> None:
        """The group ends; workers that died have nothing to leave."""
        if len(worker_group) > 1:
            with contextlib.suppress(Exception):
                ray.get(worker_group.execute_async(leave_group), timeout=LEAVE_S)


LEAVE_S = 30.0
WAIT_S = 10.0
"""For a message of the trainer, whose end is one: a wait that ends without is an exception."""


def join_group(backend: str, init_method: str, timeout_s: int) -> None:
    """In a worker: the process group of all."""
    context = ray.train.get_context()
    rank, world_size = context.get_world_rank(), context.get_world_size()
    loopback = next((name for _, name in socket.if_nameindex() if name.startswith("lo")), None)
    if loopback is not None:
        os.environ.setdefault("GLOO_SOCKET_IFNAME", loopback)
    torch.distributed.init_process_group(
        backend,
        init_method=init_method,
        rank=rank,
        world_size=world_size,
        timeout=timedelta(seconds=timeout_s),
    )


def leave_group() -> None:
    """In a worker."""
    if torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()


# The controller's side and the trial's side.


FASTEST_POLL, SLOWEST_POLL = 0.03, 1.0
"""Seconds between two polls of a controller. Every poll runs in the training process too."""


def poll_interval(gap: float) -> float:
    """Seconds between polls where rows come `gap` seconds apart: a row waits a quarter at most."""
    return min(max(gap / 4, FASTEST_POLL), SLOWEST_POLL)


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


class OurTrainer(TorchTrainer):
    """Without two helper processes of Ray's: one for Ray Data, which no trial uses, and one that
    asks the dashboard every second whether the controller lives, to free its placement group.
    `etrm_tune.reservations` frees such groups for all trials, with one look at all."""

    def _create_default_callbacks(self) -> list[Any]:
        callbacks: list[Any] = super()._create_default_callbacks()
        if ray.__version__ not in TESTED_RAY:
            return callbacks
        left_out = (PlacementGroupCleanerCallback, DatasetsCallback)
        return [callback for callback in callbacks if not isinstance(callback, left_out)]


class OurTrial(tune.Trainable):
    """A Tune trial, however it trains.

    Its parameters: ``trial_id``, and ``specs``, a `TrialSpec` as JSON for every trial.

    It reports every row that rank 0 reports, then one last result with ``done`` and
    ``outcome_status``, ``outcome_reason``.
    """

    def begin(self, config: dict[str, Any]) -> None:
        self.spec = TrialSpec.from_json(config["specs"][config["trial_id"]])
        self.last_row: dict[str, Any] = {EPOCH: 0, ACCURACY: float("nan")}

    def ended(self, outcome: Mapping[str, Any]) -> dict[str, Any]:
        """The last result."""
        told = {f"outcome_{key}": value for key, value in outcome.items()}
        return {**self.last_row, **told, "done": True}

    def get_auto_filled_metrics(self, *args: Any, **kwargs: Any) -> dict[str, Any]:
        # Without the parameters, which would travel with every row.
        filled: dict[str, Any] = super().get_auto_filled_metrics(*args, **kwargs)
        return filled | {"config": {}}

    def save_checkpoint(self, checkpoint_dir: str) -> dict[str, Any]:
        return {}  # nothing of Ray's is ever restored

    def load_checkpoint(self, checkpoint: Any) -> None:
        """Nothing to load: the loop resumes from its own checkpoints."""


class ForkedTrial(OurTrial):
    """Trials of one process each, one after the other, forked by this actor's nursery.

    For trials that are short beside the start of a trainer. Tune hands the actor from trial to
    trial (``reuse_actors``); what the one before left behind is ended by `reset_config`. A trial
    begins with the first `step`: Tune may make an actor for a trial, and give the trial to another
    one that has become free while this one imports.
    """

    def setup(self, config: dict[str, Any]) -> None:
        self.nursery: Nursery | None = None
        self.child: Child | None = None
        self.begin(config)
        self.nursery = Nursery(self.spec.train)

    def begin(self, config: dict[str, Any]) -> None:
        super().begin(config)
        self.restarts, self.unjudged = 0, False

    def _start(self) -> None:
        if self.nursery is None or not self.nursery.alive():
            self.nursery = Nursery(self.spec.train)
        self.child = self.nursery.start(self.spec)

    def reset_config(self, new_config: dict[str, Any]) -> bool:
        self._stop()
        self.begin(new_config)
        return True

    def step(self) -> dict[str, Any]:
        if self.child is None:
            self._start()
        assert self.child is not None and self.nursery is not None
        if self.unjudged:
            self.child.judged()
            self.unjudged = False
        while True:
            try:
                message = self.child.receive(timeout=1.0)
            except EOFError:
                how = self.nursery.ending(self.child)
                self._stop()
                if self.restarts >= self.spec.max_failures:
                    times = f"{self.restarts + 1} times"
                    return self.ended({"status": "failed", "reason": f"{how}, {times}"})
                self.restarts += 1
                self._start()
                continue
            if message is None:
                continue
            if "outcome" in message:
                return self.ended(message["outcome"])
            self.last_row, self.unjudged = message["row"], True
            return self.last_row

    def _stop(self) -> None:
        if self.child is not None and self.nursery is not None:
            self.nursery.kill(self.child)
            self.child = None

    def cleanup(self) -> None:
        self._stop()
        if self.nursery is not None:
            self.nursery.close()


class RayTrial(OurTrial):
    """A Tune trial that is one `TorchTrainer` run."""

    def setup(self, config: dict[str, Any]) -> None:
        self.begin(config)
        self.queue = Queue(actor_options={"num_cpus": 0})
        self.controller: Any = None
        self.outcome = {"status": "failed", "reason": "the trainer ended without a result"}
        self.thread = threading.Thread(target=self._fit, name="fit", daemon=True)
        self.thread.start()

    def _fit(self) -> None:
        spec = self.spec
        meeting = None
        if spec.one_machine:
            Path(spec.storage).mkdir(parents=True, exist_ok=True)
            meeting = MeetingConfig(folder=spec.storage)
        trainer = OurTrainer(
            run_worker,
            torch_config=meeting,
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
            self.outcome = outcome_of(error)
        finally:
            with contextlib.suppress(ray.exceptions.RayError):  # the queue's actor may be gone
                self.queue.put(("end", None))

    def _take(self, timeout: float) -> tuple[str, Any]:
        """What came next and its value; ("nothing", None) after ``timeout`` seconds."""
        try:
            kind, value = self.queue.get(timeout=timeout)
        except queue_module.Empty:
            return "nothing", None
        if kind == "controller":
            self.controller = value
        return kind, value

    def step(self) -> dict[str, Any]:
        while True:
            running = self.thread.is_alive()  # asked first: what came before is in the queue
            kind, value = self._take(timeout=WAIT_S if running else 0.05)
            if kind == "row":
                self.last_row = dict(value)
                return self.last_row
            if kind == "end" or (kind == "nothing" and not running):
                return self.ended(self.outcome)

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
