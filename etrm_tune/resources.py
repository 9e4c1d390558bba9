"""How many trials run at once, with how many threads and which share of the machine.

A trial asks Ray twice: for its driver (a sliver of a CPU) and for its workers. Both fit into
``workers × threads`` CPUs, so that two trials of one thread really run at once on two cores, and
``concurrent × workers × threads`` never exceeds the machine: every trial that was admitted gets its
workers, and no two wait for each other.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

from trainable.errors import UserError

DRIVER_CPUS = 0.01
"""Ray refuses 0. The driver waits for reports; it needs no core."""

OBJECT_STORE_BYTES = 128 * 2**20
"""Rows and configurations travel through Ray, tensors do not."""

GPU_THREADS = 8
"""Torch threads of a worker that has a GPU, at most."""


class ResourceError(UserError):
    """The machine cannot run what was asked for."""


@dataclass(frozen=True)
class Machine:
    """What this process may use."""

    cpus: int
    gpus: int = 0


def _cgroup_cpus() -> float:
    """CPU quota of the container, infinite where there is none."""
    try:
        quota, period = Path("/sys/fs/cgroup/cpu.max").read_text().split()
        return float("inf") if quota == "max" else int(quota) / int(period)
    except (OSError, ValueError):
        return float("inf")


def this_machine() -> Machine:
    """CPUs that this process may run on (affinity, container quota) and visible GPUs."""
    import torch

    affinity = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else 0
    cpus = min(affinity or os.cpu_count() or 1, _cgroup_cpus())
    return Machine(cpus=max(1, int(cpus)), gpus=torch.cuda.device_count())


def available_memory() -> int | None:
    """Bytes that new processes may take, where the system says so."""
    try:
        lines = Path("/proc/meminfo").read_text().splitlines()
        free = next(int(line.split()[1]) * 1024 for line in lines if "MemAvailable" in line)
    except (OSError, StopIteration, ValueError):
        return None
    try:  # a container's own limit
        folder = Path("/sys/fs/cgroup")
        used = int((folder / "memory.current").read_text())
        return min(free, int((folder / "memory.max").read_text()) - used)
    except (OSError, ValueError):
        return free


@dataclass(frozen=True)
class Allotment:
    """What each trial of a stage gets."""

    machine: Machine
    concurrent: int
    workers: int
    threads: int
    use_gpu: bool = False

    @property
    def worker_resources(self) -> dict[str, float]:
        """Ray resources of one worker; with the driver they stay within the trial's share."""
        resources = {"CPU": round(self.threads - DRIVER_CPUS, 4)}
        return resources | ({"GPU": 1.0} if self.use_gpu else {})

    @property
    def driver_resources(self) -> dict[str, float]:
        """Ray resources of the Tune trial itself."""
        return {"CPU": DRIVER_CPUS}

    def __str__(self) -> str:
        workers = "1 worker" if self.workers == 1 else f"{self.workers} workers"
        threads = "1 thread" if self.threads == 1 else f"{self.threads} threads"
        at_once = (
            "1 trial at a time" if self.concurrent == 1 else f"{self.concurrent} trials at once"
        )
        gpu = f" and {self.workers} of {self.machine.gpus} GPUs" if self.use_gpu else ""
        return f"{at_once}, each {workers} × {threads}{gpu}, on {self.machine.cpus} CPUs"


def allot(
    machine: Machine,
    *,
    trials: int,
    workers: int = 1,
    threads: int | None = None,
    concurrent: int | None = None,
    use_gpu: bool = False,
) -> Allotment:
    """Divide the machine among ``trials``.

    ``threads`` None means as many as leave every trial that runs at once its share;
    ``concurrent`` None means as many trials as fit. Raises `ResourceError` at once when not
    even one trial fits, or fewer than ``concurrent``.
    """
    if workers < 1 or (concurrent is not None and concurrent < 1):
        raise ResourceError("--workers and --concurrent must be 1 or more")
    gpu_slots = machine.gpus // workers if use_gpu else trials
    if use_gpu and gpu_slots < 1:
        raise ResourceError(
            f"{workers} workers need {workers} GPUs, this machine has {machine.gpus}: "
            f"give --workers {max(1, machine.gpus)}"
        )
    needed = workers * (threads or 1)
    cpu_slots = machine.cpus // needed
    if cpu_slots < 1:
        fix = (
            f"give --workers {max(1, machine.cpus // (threads or 1))}"
            if workers > 1
            else "run on a larger machine, or start a new run with --name NAME"
        )
        raise ResourceError(
            f"one trial needs {needed} CPUs ({workers} × {threads or 1} threads), this machine has "
            f"{machine.cpus}: {fix}"
        )
    slots = min(gpu_slots, cpu_slots)
    if concurrent is not None and concurrent > slots:
        raise ResourceError(
            f"--concurrent {concurrent} needs {concurrent * needed} CPUs"
            + (f" and {concurrent * workers} GPUs" if use_gpu else "")
            + f", this machine has {machine.cpus}"
            + (f" and {machine.gpus}" if use_gpu else "")
            + f": give --concurrent {slots}"
        )
    at_once = max(1, min(concurrent or slots, trials))
    if threads is None:
        threads = max(1, machine.cpus // (at_once * workers))
        if use_gpu:
            threads = min(threads, GPU_THREADS)
    return Allotment(machine, at_once, workers, threads, use_gpu)
