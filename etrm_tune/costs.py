"""What a plan costs: work from shapes, seconds and memory from a short measurement.

A dry run trains a few real steps of every distinct configuration, in as many processes at once as
trials will run, and stops after `MEASURE_S` seconds. What could not be measured is taken from
the measured configuration nearest in size, in proportion to its operations; on a machine too slow
for a single step, from the speed of its matrix products.
"""

from __future__ import annotations

import json
import math
import os
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from etrm_tune.plan import Plan, PlannedTrial
from etrm_tune.resources import Allotment
from trainable.config import TrialConfig

if TYPE_CHECKING:
    from trainable.flops import Work

MEASURE_S = 18.0
"""Seconds that the measuring processes have in all, their own start included."""

SHAPE_S = 2.0
"""Seconds for one configuration, at least: fewer are measured where that does not fit."""

PROCESS_START_S = 4.0
"""Seconds until a measuring process takes its first step."""

TRIAL_START_S = 8.0
"""Seconds that Ray needs to start and end one trial (processes, imports)."""

EFFICIENCY = 0.5
"""Share of the speed of plain matrix products that a training step reaches, where nothing else is
known (a laptop's steps reach 0.3 to 0.6)."""


@dataclass(frozen=True)
class Shape:
    """What decides how long a step takes: one worker's share of a trial."""

    config: TrialConfig
    workers: int

    @property
    def key(self) -> str:
        """Equal for configurations whose steps cost the same."""
        flat = self.config.flat()
        for option in _NO_COST:
            flat.pop(option, None)
        return json.dumps([flat, self.workers], sort_keys=True, default=str)

    def worker_config(self) -> dict[str, Any]:
        """What one worker trains, with a fresh decoder of the same size."""
        rows = max(1, self.config.global_batch_size // self.workers)
        own = self.config.replace(
            global_batch_size=rows, pretrained_decoder=False, decoder=None, decoder_ref=None,
            identity_weight=0.0,  # needs the embeddings of a trained decoder, and costs little
        )  # fmt: skip
        return own.model_dump(mode="json")


_NO_COST = (
    "name", "seed", "profile", "revision", "epochs", "eval_interval", "log_interval",
    "checkpoint_interval", "keep_checkpoints", "batch_size_reason", "lr", "lr_min_ratio",
    "lr_warmup_steps", "beta1", "beta2", "weight_decay", "puzzle_emb_lr", "puzzle_emb_weight_decay",
    "grad_clip_norm", "ema_rate", "kl_weight", "encoder_lr_scale", "pretrained_decoder", "decoder",
    "decoder_ref", "decoder_l_cycles", "decoder_puzzles", "halt_max_steps", "halt_exploration_prob",
    "max_eval_groups", "eval_num_aug", "encoder_freeze_steps",
)  # fmt: skip
"""Options that do not change what a training step costs."""


@dataclass(frozen=True)
class Measured:
    """What one worker's step costs: seconds, and peak bytes of its process and of its GPU."""

    step_s: float
    memory: int = 0
    gpu_memory: int = 0
    steps: int = 0


@dataclass(frozen=True)
class TrialCost:
    """One trial's estimate. `basis` says where the seconds come from."""

    trial_id: str
    role: str
    work: Work
    measured: Measured
    basis: str
    workers: int

    @property
    def seconds(self) -> float:
        """From its start to its end, evaluations included."""
        return TRIAL_START_S + self.work.step_equivalents * self.measured.step_s

    @property
    def memory(self) -> int:
        """Peak bytes of all its workers."""
        return self.measured.memory * self.workers

    def to_json(self) -> dict[str, Any]:
        """Plain values for plan.json."""
        return {
            "seconds": round(self.seconds, 1),
            "step_s": self.measured.step_s,
            "steps": self.work.steps,
            "step_flops": self.work.step,
            "flops": self.work.total,
            "parameters": asdict(self.work.parameters),
            "basis": self.basis,
        } | ({"memory": self.memory} if self.memory else {})


def plan_work(plan: Plan) -> dict[str, Work]:
    """Work of every trial. Reads each distinct data set once."""
    from trainable.data import ArcData
    from trainable.flops import trial_work

    sets: dict[str, ArcData] = {}
    found: dict[str, Work] = {}
    by_config: dict[str, Work] = {}
    for trial in plan.trials:
        config = trial.config.replace(seed=0)  # seeds differ in draws, not in sizes
        of = json.dumps([config.data.model_dump(), config.model.kind, config.model.canvas])
        key = json.dumps(config.flat() | {"name": ""}, default=str)
        if key not in by_config:
            if of not in sets:
                sets[of] = ArcData.from_config(config)
            by_config[key] = trial_work(config, sets[of])
        found[trial.trial_id] = by_config[key]
    return found


def from_rate(work: Work, rate: float, workers: int) -> Measured:
    """A step's seconds from a worker's operations per second."""
    return Measured(work.step / workers / rate)


def dry_costs(
    plan: Plan, allotments: Mapping[str, Allotment], *, done: Sequence[str] = ()
) -> list[TrialCost]:
    """Estimate every trial that is not `done`, from a measurement of `MEASURE_S` seconds."""
    trials = [t for t in plan.trials if t.trial_id not in done]
    works = plan_work(plan)
    shapes = {t.trial_id: Shape(t.config, allotments[t.role].workers) for t in trials}
    weight: dict[str, float] = {}
    for trial in trials:
        key = shapes[trial.trial_id].key
        weight[key] = weight.get(key, 0.0) + works[trial.trial_id].total
    by_key = {shape.key: shape for shape in shapes.values()}
    step_work = {shapes[t.trial_id].key: works[t.trial_id].step for t in trials}
    names = {shapes[t.trial_id].key: t.trial_id for t in reversed(trials)}
    chosen = sorted(by_key, key=lambda key: -weight[key])
    processes = max((a.concurrent * a.workers for a in allotments.values()), default=1)
    known, speed = measure_shapes([by_key[key] for key in chosen], step_work, processes, allotments)
    costs = []
    for trial in trials:
        shape, work = shapes[trial.trial_id], works[trial.trial_id]
        if shape.key in known:
            measured, basis = known[shape.key], "measured"
        elif known:
            measured, near = _nearest(work, shape, known, by_key, step_work)
            basis = f"as {names[near]}, by operations"
        else:
            measured = from_rate(work, EFFICIENCY * speed, shape.workers)
            basis = "speed of matrix products"
        costs.append(TrialCost(trial.trial_id, trial.role, work, measured, basis, shape.workers))
    return costs


def _nearest(
    work: Work,
    shape: Shape,
    known: Mapping[str, Measured],
    by_key: Mapping[str, Shape],
    step_work: Mapping[str, float],
) -> tuple[Measured, str]:
    """The measured configuration nearest in operations, of the same kind where there is one."""
    kind = shape.config.model.kind
    alike = [key for key in known if by_key[key].config.model.kind == kind] or list(known)
    near = min(alike, key=lambda key: abs(math.log(step_work[key] / work.step)))
    share = (work.step / shape.workers) / (step_work[near] / by_key[near].workers)
    one = known[near]
    scaled = Measured(one.step_s * share, int(one.memory), int(one.gpu_memory))
    return scaled, near


def measure_shapes(
    shapes: Sequence[Shape],
    step_work: Mapping[str, float],
    processes: int,
    allotments: Mapping[str, Allotment],
) -> tuple[dict[str, Measured], float]:
    """Measure the first shapes that fit into the time, several processes side by side.

    Returns what was measured by `Shape.key`, and the mean speed of matrix products.
    """
    if not shapes or MEASURE_S <= 0:
        from etrm_tune.measure import product_rate

        return {}, product_rate(0.05)
    fits = processes * max(1, int((MEASURE_S - PROCESS_START_S) / SHAPE_S))
    chosen = list(shapes[:fits])
    chosen += [chosen[i % len(chosen)] for i in range(processes - len(chosen))]
    chosen.sort(key=lambda shape: step_work[shape.key] / shape.workers)
    lists = [chosen[at::processes] for at in range(processes)]
    environment = worker_environment(max(a.threads for a in allotments.values()))
    end = time.monotonic() + MEASURE_S
    started = []
    gpus = max((a.machine.gpus for a in allotments.values() if a.use_gpu), default=0)
    for at, part in enumerate(lists):
        own = environment | {"CUDA_VISIBLE_DEVICES": str(at % gpus) if gpus else ""}
        process = subprocess.Popen(
            [sys.executable, "-m", "etrm_tune.measure"],
            env=own, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL,
            text=True,
        )  # fmt: skip
        assert process.stdin is not None
        asked = {"seconds": MEASURE_S, "configs": [shape.worker_config() for shape in part]}
        process.stdin.write(json.dumps(asked))
        process.stdin.close()
        process.stdin = None
        started.append((process, part))
    found: dict[str, list[Measured]] = {}
    speeds = []
    try:
        for process, part in started:
            lines = _lines(process, end + SHAPE_S)
            speeds += [line["product_rate"] for line in lines[:1]]
            for shape, line in zip(part, lines[1:], strict=False):
                found.setdefault(shape.key, []).append(Measured(**line))
    finally:
        for process, _ in started:
            process.kill()
    middle = {key: sorted(v, key=lambda m: m.step_s)[len(v) // 2] for key, v in found.items()}
    from etrm_tune.measure import product_rate

    return middle, sum(speeds) / len(speeds) if speeds else product_rate()


def _lines(process: subprocess.Popen[str], until: float) -> list[dict[str, Any]]:
    """What a measuring process has written by `until`, when it is ended."""
    try:
        output, _ = process.communicate(timeout=max(0.1, until - time.monotonic()))
    except subprocess.TimeoutExpired:
        process.kill()
        output, _ = process.communicate()
    return [json.loads(line) for line in output.splitlines() if line.endswith("}")]


def worker_environment(threads: int) -> dict[str, str]:
    """The workers' own variables, since they change how fast memory is had."""
    from trainable.ray_adapter import ray_environment

    root = str(Path(__file__).resolve().parents[1])
    paths = [root, *filter(None, os.environ.get("PYTHONPATH", "").split(os.pathsep))]
    own = {"PYTHONPATH": os.pathsep.join(dict.fromkeys(paths)), "OMP_NUM_THREADS": str(threads)}
    return dict(os.environ) | ray_environment() | own


def makespan(
    stages: Sequence[Sequence[PlannedTrial]],
    seconds: Mapping[str, float],
    allotments: Mapping[str, Allotment],
) -> float:
    """Wall time of the stages one after another, each trial starting as soon as one has ended."""
    total = 0.0
    for stage in stages:
        free = [0.0] * allotments[stage[0].role].concurrent
        for trial in stage:
            at = free.index(min(free))
            free[at] += seconds.get(trial.trial_id, 0.0)
        total += max(free)
    return total
