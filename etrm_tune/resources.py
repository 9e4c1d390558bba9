"""How many trials run at once, with how many threads and which share of the machine.

A trial asks Ray twice: for its driver (a sliver of a CPU) and for its workers. Both fit into
``workers × threads`` CPUs, so that two trials of one thread really run at once on two cores, and
``concurrent × workers × threads`` never exceeds the machine: every trial that was admitted gets its
workers, and no two wait for each other. GPUs are counted the same way: a worker has a whole one, or
a share of one where several small trials on a GPU were measured to be faster than one
(`etrm_tune.sharing`). What does not fit is refused before anything starts.
"""

from __future__ import annotations

import math
import os
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from trainable.errors import UserError

if TYPE_CHECKING:
    from etrm_tune.sharing import Sharing

DRIVER_CPUS = 0.01
"""Ray refuses 0. The driver waits for reports; it needs no core."""

OBJECT_STORE_BYTES = 128 * 2**20
"""Rows and configurations travel through Ray, tensors do not."""

GPU_THREADS = 8
"""Torch threads of a worker that has a GPU, at most."""

SHARING_GAIN = 1.10
"""Sharing a GPU must give so many times the rows per second of fewer trials at once. Below it the
noise of a short measurement decides, and every trial would end later for nothing."""

MEMORY_SHARE = 0.9
"""Share of a memory that trials are planned to fill."""


class ResourceError(UserError):
    """The machine cannot run what was asked for."""


@dataclass(frozen=True)
class Machine:
    """What this process may use."""

    cpus: int
    gpus: int = 0
    memory: int | None = None
    """Bytes that new processes may take; None where unknown."""
    gpu_memory: int | None = None
    """Bytes of the smallest GPU; None without one."""
    nodes: tuple[tuple[int, int], ...] = ()
    """(CPUs, GPUs) of every node of a cluster; a worker lies on one of them."""

    def places(self, threads: int, gpu: float = 0.0) -> int:
        """Workers of so many threads, and of such a share of a GPU, that fit side by side."""
        per_gpu = math.floor(1 / gpu + 1e-9) if gpu else 0
        return sum(
            min(cpus // threads, gpus * per_gpu if gpu else cpus)
            for cpus, gpus in self.nodes or ((self.cpus, self.gpus),)
        )


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
    gpus = torch.cuda.device_count()
    sizes = [torch.cuda.get_device_properties(at).total_memory for at in range(gpus)]
    return Machine(max(1, int(cpus)), gpus, available_memory(), min(sizes, default=None))


def describe_machine() -> dict[str, str]:
    """What a report says of this machine: usable CPUs, processor, memory, GPUs, system."""
    import platform

    import torch

    told = {"CPUs": str(this_machine().cpus)}
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        named = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
        total = Path("/proc/meminfo").read_text().split()[1]
    except (OSError, IndexError):
        named, total = [platform.processor()], ""
    if named and named[0]:
        told["processor"] = named[0]
    if total.isdigit():
        told["memory"] = f"{int(total) / 2**20:.0f} GiB"
    gpus = [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]
    if gpus:
        told["GPUs"] = ", ".join(f"{gpus.count(name)} × {name}" for name in dict.fromkeys(gpus))
    return told | {"system": f"{platform.system()} {platform.machine()}"}


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


def choose_sharing(measured: Sharing, *, most: int | None = None) -> int:
    """How many trials share a GPU: as many as were measured to be faster, at most ``most``.

    A larger number must finish `SHARING_GAIN` times the rows per second of the smaller one that it
    replaces, and its trials must fit into the GPU's memory. 1 where nothing was measured.
    """
    chosen, best = 1, measured.rates.get(1, math.inf)
    for count, rate in sorted(measured.rates.items()):
        if most is not None and count > most:
            break
        room = MEMORY_SHARE * measured.total_memory
        fits = not room or count * measured.gpu_memory <= room
        if fits and rate >= SHARING_GAIN * best:
            chosen, best = count, rate
    return chosen


def share_of(count: int) -> float:
    """Ray's share of a GPU of which ``count`` trials have one each: rounded down to its unit, a
    ten-thousandth, so that as many really fit."""
    return 1.0 if count == 1 else math.floor(10_000 / count) / 10_000


def gpu_request(per_trial: float | None, workers: int | None) -> tuple[int | None, float]:
    """(workers, GPUs of each worker) from ``--gpus-per-trial`` and ``--workers``.

    A share below 1 is for a single worker: processes of one trial cannot share a GPU (NCCL). None
    for workers means that the plan decides. Raises `ResourceError` for what cannot be placed.
    """
    if per_trial is None:
        return workers, 1.0
    if not 0 <= per_trial < math.inf:
        raise ResourceError(f"--gpus-per-trial {per_trial:g}: give 0 (train on CPUs) or more")
    if per_trial == 0:
        return workers, 0.0
    if per_trial < 1:
        if (workers or 1) > 1:
            raise ResourceError(
                f"--gpus-per-trial {per_trial:g} with --workers {workers}: workers of one trial "
                f"cannot share a GPU; give --gpus-per-trial {workers}, or --workers 1"
            )
        if per_trial < 1e-4:
            raise ResourceError(f"--gpus-per-trial {per_trial:g}: Ray counts in steps of 0.0001")
        return 1, math.floor(per_trial * 10_000 + 1e-6) / 10_000
    if per_trial != int(per_trial):
        raise ResourceError(
            f"--gpus-per-trial {per_trial:g}: give a whole number, or a share below 1 such as 0.5"
        )
    if workers not in (None, int(per_trial)):
        raise ResourceError(
            f"--gpus-per-trial {per_trial:g} with --workers {workers}: every worker has one GPU; "
            f"leave one of them out"
        )
    return int(per_trial), 1.0


@dataclass(frozen=True)
class Allotment:
    """What each trial of a stage gets."""

    machine: Machine
    concurrent: int
    workers: int
    threads: int
    use_gpu: bool = False
    gpus_per_worker: float = 1.0
    """With `use_gpu`: 1, or a share of one."""
    why: str = ""
    """What decided, beyond CPUs and GPUs, in words."""
    forked: bool = False
    """Trials are forked processes, without a trainer: see `etrm_tune.short`."""

    @property
    def worker_resources(self) -> dict[str, float]:
        """Ray resources of one worker; with the driver they stay within the trial's share."""
        resources = {"CPU": round(self.threads - DRIVER_CPUS, 4)}
        return resources | ({"GPU": self.gpus_per_worker} if self.use_gpu else {})

    @property
    def driver_resources(self) -> dict[str, float]:
        """Ray resources of the Tune trial itself; all of them where it has no trainer."""
        if self.forked:
            return self.worker_resources | {"CPU": float(self.threads)}
        return {"CPU": DRIVER_CPUS}

    def __str__(self) -> str:
        one = "forked process" if self.forked else "worker"
        workers = f"1 {one}" if self.workers == 1 else f"{self.workers} workers"
        threads = "1 thread" if self.threads == 1 else f"{self.threads} threads"
        at_once = (
            "1 trial at a time" if self.concurrent == 1 else f"{self.concurrent} trials at once"
        )
        gpu = ""
        if self.use_gpu and self.gpus_per_worker < 1:
            of = f" of {self.machine.gpus} GPUs" if self.machine.gpus > 1 else ""
            gpu = f" and {self.gpus_per_worker:.3g} of a GPU{of}"
        elif self.use_gpu:
            gpu = f" and {self.workers} of {self.machine.gpus} GPUs"
        why = f" ({self.why})" if self.why else ""
        nodes = f" of {len(self.machine.nodes)} nodes" if len(self.machine.nodes) > 1 else ""
        return (
            f"{at_once}, each {workers} × {threads}{gpu}, on {self.machine.cpus} CPUs{nodes}{why}"
        )


def allot(
    machine: Machine,
    *,
    trials: int,
    workers: int = 1,
    threads: int | None = None,
    concurrent: int | None = None,
    use_gpu: bool = False,
    gpus_per_worker: float = 1.0,
    memory: int = 0,
    why: str = "",
) -> Allotment:
    """Divide the machine among ``trials``.

    ``threads`` None means as many as leave every trial that runs at once its share;
    ``concurrent`` None means as many trials as fit. ``memory``: bytes of the host that one trial
    takes, all its workers together; they bound how many run at once, never below 1 (an estimate
    refuses nothing). Raises `ResourceError` at once when not even one trial fits, or fewer than
    ``concurrent``.
    """
    if workers < 1 or (concurrent is not None and concurrent < 1):
        raise ResourceError("--workers and --concurrent must be 1 or more")
    assert 0 < gpus_per_worker <= 1, gpus_per_worker
    assert workers == 1 or gpus_per_worker == 1, "workers of one trial do not share a GPU"
    gpu_slots = machine.cpus  # no fewer than CPUs allow
    if use_gpu:
        gpu_slots = machine.gpus // workers * math.floor(1 / gpus_per_worker + 1e-9)
    if gpu_slots < 1:
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
    share = gpus_per_worker if use_gpu else 0.0
    slots = min(gpu_slots, cpu_slots)
    if machine.nodes:
        slots = min(slots, machine.places(threads or 1, share) // workers)
        if slots < 1:
            raise ResourceError(
                f"one trial needs {workers} × {threads or 1} CPUs, and no node of the cluster has "
                f"room for such a worker: give --workers, or start a new run with --name NAME"
            )
    if concurrent is not None and concurrent > slots:
        raise ResourceError(
            f"--concurrent {concurrent} needs {concurrent * needed} CPUs"
            + (f" and {concurrent * workers * gpus_per_worker:g} GPUs" if use_gpu else "")
            + f", this machine has {machine.cpus}"
            + (f" and {machine.gpus}" if use_gpu else "")
            + f": give --concurrent {slots}"
        )
    if concurrent is None and memory and machine.memory is not None:
        fits = max(1, int(MEMORY_SHARE * machine.memory / memory))
        if fits < min(slots, trials):
            told = f"memory: {memory / 1e9:.1f} GB each of {machine.memory / 1e9:.1f} GB"
            slots, why = fits, f"{why}; {told}" if why else told
    at_once = max(1, min(concurrent or slots, trials))
    if threads is None:
        threads = max(1, machine.cpus // (at_once * workers))
        while machine.nodes and threads > 1 and machine.places(threads, share) < at_once * workers:
            threads -= 1
        if use_gpu:
            threads = min(threads, GPU_THREADS)
    return Allotment(machine, at_once, workers, threads, use_gpu, gpus_per_worker, why)
