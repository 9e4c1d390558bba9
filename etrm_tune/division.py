"""The share of each stage: what its trials need, put beside what the machine has.

Order of precedence, per role: what was typed (``--workers``, ``--gpus-per-trial``,
``--concurrent``), what a run on disk was begun with (workers, threads), then this file's own
reckoning. Everything is decided before Ray starts, and printed.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from etrm_tune import memory
from etrm_tune.plan import Plan, PlannedTrial
from etrm_tune.resources import (
    MEMORY_SHARE,
    Allotment,
    Machine,
    ResourceError,
    allot,
    choose_sharing,
    gpu_request,
    share_of,
)
from etrm_tune.sharing import COUNTS, Sharing

if TYPE_CHECKING:
    from etrm_tune.command import How

MAX_WORKERS = 4
"""Workers that a decoder is spread over on CPUs, at most, unless --workers says otherwise."""

MeasureFunction = Callable[[PlannedTrial, int, Sequence[int]], Sharing]
"""(trial, threads, counts) → what was measured."""


@dataclass
class Measure:
    """Measurements of a plan: those in plan.json, and new ones of the same form."""

    stored: Mapping[str, Any] | None
    measure: MeasureFunction
    found: dict[str, Any] = field(default_factory=dict)
    """By role, as it stands in plan.json."""

    def __post_init__(self) -> None:
        self.found = dict((self.stored or {}).get("sharing", {}))

    def __call__(self, role: str, trial: PlannedTrial, threads: int, most: int) -> Sharing:
        """How fast trials of a role are side by side on one GPU; measured once per run folder."""
        if role not in self.found:
            counts = [n for n in COUNTS if n <= most]
            self.found[role] = self.measure(trial, threads, counts).to_json()
        return Sharing.from_json(self.found[role])


def measure_here(trial: PlannedTrial, threads: int, counts: Sequence[int]) -> Sharing:
    """Measure on this machine's first GPU, and say so while it takes half a minute."""
    from etrm_tune.costs import Shape, worker_environment
    from etrm_tune.sharing import measure_sharing
    from etrm_tune.terminal import console, note

    most = max(counts)
    note(console(), f"measuring whether up to {most} trials like {trial.trial_id} share a GPU …")
    config = Shape(trial.config.replace(num_threads=threads), 1).worker_config()
    return measure_sharing(config, counts=counts, environment=worker_environment(threads))


def divide(
    plan: Plan,
    machine: Machine,
    how: How,
    stored: Mapping[str, Any] | None,
    *,
    measure: Measure | None = None,
) -> dict[str, Allotment]:
    """The machine's share for each role; threads and workers of a run that was begun stay.

    Raises `ResourceError`, one line, for what can never be placed.
    """
    threads = (stored or {}).get("num_threads", {})
    known = (stored or {}).get("workers", {})
    typed, share = gpu_request(how.gpus_per_trial, how.workers)
    use_gpu = plan.options.profile != "laptop" and machine.gpus > 0 and share > 0
    if how.gpus_per_trial and not use_gpu:
        why = "this machine has none" if not machine.gpus else "profile laptop trains on CPUs"
        raise ResourceError(f"--gpus-per-trial {how.gpus_per_trial:g}: {why}: leave it out")
    shares = {}
    for stage in plan.stages:
        role = stage[0].role
        need = _need(stage, machine, use_gpu=use_gpu)
        workers = typed or known.get(role) or max(spread(role, stage, machine, use_gpu), need)
        concurrent = None if how.concurrent is None else min(how.concurrent, len(stage))
        check_memory(stage, machine, workers, use_gpu=use_gpu)
        part, why = share if use_gpu else 1.0, ""
        if use_gpu and workers == need > 1 and not typed:
            why = f"{need} GPUs each for its memory"
        if measure is not None and use_gpu and how.gpus_per_trial is None and workers == 1:
            part, why = _measured(stage, machine, threads.get(role), concurrent, measure)
        heaviest = max(memory.on_host(t.config, workers=workers, use_gpu=use_gpu) for t in stage)
        shares[role] = allot(
            machine,
            trials=len(stage),
            workers=workers,
            threads=threads.get(role),
            concurrent=concurrent,
            use_gpu=use_gpu,
            gpus_per_worker=part,
            memory=heaviest,
            why=why,
        )
    return shares


def spread(role: str, stage: Sequence[PlannedTrial], machine: Machine, use_gpu: bool) -> int:
    """Workers for each trial of a stage: arms have one, so that an arm is the same alone and in its
    phase; decoders share the CPUs, since small steps gain more from a worker than from a thread
    (`docs/log.md`)."""
    if role != "decoder" or use_gpu:
        return 1
    idle = max(1, machine.cpus // len(stage))
    return max(n for n in range(1, min(idle, MAX_WORKERS) + 1) if _divides(stage, n))


def _divides(stage: Sequence[PlannedTrial], workers: int) -> bool:
    return all(trial.config.global_batch_size % workers == 0 for trial in stage)


def _need(stage: Sequence[PlannedTrial], machine: Machine, *, use_gpu: bool) -> int:
    """GPUs that a trial must be spread over for its memory; 1 where that does not help either."""
    if not use_gpu or machine.gpu_memory is None:
        return 1
    room = MEMORY_SHARE * machine.gpu_memory
    for workers in range(1, machine.gpus + 1):
        largest = max(memory.on_gpu(trial.config, workers=workers) for trial in stage)
        if largest <= room and _divides(stage, workers):
            return workers
    return 1


def check_memory(
    stage: Sequence[PlannedTrial], machine: Machine, workers: int, *, use_gpu: bool
) -> None:
    """Raise `ResourceError` when the parameters of a trial alone exceed a worker's memory."""
    room = machine.gpu_memory if use_gpu else machine.memory
    for trial in stage if room is not None else ():
        certain = memory.tensors(trial.config).certain * (1 if use_gpu else workers)
        if certain > room:  # type: ignore[operator]
            what = "a GPU of this machine has" if use_gpu else "this machine has"
            raise ResourceError(
                f"{trial.trial_id} needs {certain / 1e9:.1f} GB for its parameters alone, {what} "
                f"{(room or 0) / 1e9:.1f} GB: choose a smaller --profile, or a larger machine"
            )


def _measured(
    stage: Sequence[PlannedTrial],
    machine: Machine,
    threads: int | None,
    concurrent: int | None,
    measure: Measure,
) -> tuple[float, str]:
    """A worker's share of a GPU, and why: as many trials together as were measured to be faster."""
    wanted = min(len(stage), concurrent or len(stage))
    most = min(-(-wanted // machine.gpus), machine.cpus // machine.gpus // (threads or 1))
    if most < 2:
        return 1.0, ""
    heaviest = max(stage, key=lambda trial: memory.on_gpu(trial.config))
    found = measure(stage[0].role, heaviest, threads or 1, most)
    if not found.device:
        return 1.0, f"sharing a GPU was not measured: {found.problem}"
    count = choose_sharing(found, most=most)
    rates = ", ".join(f"{n}: {rate:.0f}" for n, rate in found.rates.items())
    return share_of(count), f"rows/s measured by trials on a GPU: {rates}"
