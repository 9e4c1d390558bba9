"""The least that runs a `TorchTrainer` inside a Tune trial, to measure ours beside it.

A class Trainable, ``fit`` in a thread, an unbounded queue filled by a callback of the controller;
nothing is stopped, resumed, recorded or drawn.
"""

from __future__ import annotations

import importlib
import threading
from pathlib import Path
from typing import Any

import ray.train
from ray import tune
from ray.train import RunConfig, ScalingConfig, UserCallback
from ray.train.torch import TorchTrainer
from ray.util.queue import Empty, Queue


def loop(settings: dict[str, Any]) -> None:
    """The worker: the loop of ``module:function``, each row a report."""
    module, _, name = settings["train"].partition(":")
    train = getattr(importlib.import_module(module), name)
    train(settings["epochs"], Path(settings["out_dir"]), lambda row: ray.train.report(dict(row)))


class Forward(UserCallback):
    """Rank 0's rows into the queue."""

    def __init__(self, queue: Queue) -> None:
        self.queue = queue

    def after_report(self, run_context: Any, metrics: Any, checkpoint: Any) -> None:
        self.queue.put(metrics[0])


class BareTrial(tune.Trainable):
    """One trainer; its rows are Tune's results."""

    def setup(self, config: dict[str, Any]) -> None:
        self.queue = Queue(actor_options={"num_cpus": 0})
        trainer = TorchTrainer(
            loop,
            train_loop_config=config,
            scaling_config=ScalingConfig(
                num_workers=1, resources_per_worker={"CPU": config["cpus"] - 0.01}
            ),
            run_config=RunConfig(
                name=config["name"],
                storage_path=config["storage"],
                callbacks=[Forward(self.queue)],
            ),
        )
        self.last: dict[str, Any] = {}
        self.thread = threading.Thread(target=trainer.fit, daemon=True)
        self.thread.start()

    def step(self) -> dict[str, Any]:
        while True:
            running = self.thread.is_alive()
            try:
                self.last = self.queue.get(timeout=0.5 if running else 0.05)
                return dict(self.last)
            except Empty:
                if not running:
                    return {**self.last, "done": True}


def run(config: dict[str, Any], storage: str) -> None:
    """One Tune experiment of one bare trial. Needs a running Ray."""
    tune.Tuner(
        tune.with_resources(BareTrial, {"CPU": 0.01}),
        param_space=config,
        run_config=tune.RunConfig(name="bare", storage_path=storage, verbose=0),
    ).fit()
