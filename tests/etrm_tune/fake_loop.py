"""A stand-in for `trainable.loop.train`: same files, same signature, no model.

Settings come as JSON in ``batch_size_reason``: ``accuracy`` (reached at the end), ``steps``,
``step_s``, ``nan_at``, ``crash_at`` (step), ``resume`` every ``checkpoint`` steps, ``more`` (a
dictionary of further metrics), ``memory_at`` (step at which memory runs out), ``killed_at`` (step
at which the process is killed, as the kernel does it), ``diverged_at``.
"""

from __future__ import annotations

import json
import os
import resource
import signal
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

DEFAULTS: dict[str, Any] = {
    "accuracy": 0.9,
    "steps": 20,
    "step_s": 0.05,
    "checkpoint": 5,
    "nan_at": None,
    "crash_at": None,
    "memory_at": None,
    "killed_at": None,
    "diverged_at": None,
    "more": {},
}


@dataclass
class Result:
    status: str
    reason: str
    step: int
    total_steps: int
    last_row: dict[str, Any] = field(default_factory=dict)


def _rank() -> int:
    import torch.distributed as dist

    return dist.get_rank() if dist.is_initialized() else 0


def exhaust_memory() -> None:
    """A real `MemoryError`: the address space may not grow by more than 64 MiB."""
    before = resource.getrlimit(resource.RLIMIT_AS)
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    limit = pages * resource.getpagesize() + 2**26
    resource.setrlimit(resource.RLIMIT_AS, (limit, before[1]))
    try:
        eaten = [bytearray(2**24) for _ in range(64)]
        raise AssertionError(f"{len(eaten)} blocks fitted")
    finally:
        resource.setrlimit(resource.RLIMIT_AS, before)


def train(config, *, out_dir, report, resume_from, progress, attempt) -> Result:
    settings = DEFAULTS | json.loads(config.batch_size_reason or "{}")
    out_dir, steps = Path(out_dir), settings["steps"]
    checkpoints = out_dir / "checkpoints"
    checkpoints.mkdir(exist_ok=True)
    done = max(
        (int(p.stem.removeprefix("step-")) for p in checkpoints.glob("step-*.pt")), default=0
    )
    first = _rank() == 0
    (out_dir / f"pid-{attempt}-{_rank()}").write_text(str(os.getpid()))
    gpu = {name: os.environ.get(name, "") for name in ("CUDA_VISIBLE_DEVICES", "ONE_GPU_SHARE")}
    (out_dir / f"gpu-{attempt}-{_rank()}").write_text(json.dumps(gpu))
    rows = (out_dir / f"attempt-{attempt}.jsonl").open("a", buffering=1) if first else None

    def write(**line: Any) -> None:
        if rows is not None:
            rows.write(json.dumps(line) + "\n")

    write(
        kind="start", schema_version=1, attempt=attempt, trial_id=out_dir.name,
        resumed_from=done, total_steps=steps, time=time.time(),
    )  # fmt: skip
    row: dict[str, Any] = {}
    for step in range(done + 1, steps + 1):
        time.sleep(settings["step_s"])
        if int((out_dir / "current_attempt").read_text()) > attempt:
            return Result("superseded", "a newer attempt is current", step, steps)
        if step == settings["crash_at"]:
            raise ValueError("the fake loop\nwas told to crash")
        if step == settings["memory_at"]:
            exhaust_memory()
        if step == settings["killed_at"]:
            os.kill(os.getpid(), signal.SIGKILL)
        if step == settings["diverged_at"]:
            reason = f"train/loss is not finite at step {step}"
            write(kind="row", **(row | {"step": step, "train/loss": None}))
            write(kind="end", status="diverged", reason=reason)
            return Result("diverged", reason, step, steps, row)
        accuracy = settings["accuracy"] * step / steps
        if settings["nan_at"] and step >= settings["nan_at"]:
            accuracy = float("nan")
        row = {"step": step, "epoch": config.epochs * step / steps, "train/accuracy": accuracy,
               "train/exact_accuracy": 0.0, "train/loss": 1.0, "time": time.time(),
               "wall_s": step * settings["step_s"], "samples": step} | settings["more"]  # fmt: skip
        write(kind="row", **{k: None if v != v else v for k, v in row.items()})
        if step % settings["checkpoint"] == 0 and first:
            (checkpoints / f"step-{step}.pt").write_text("")
        report(row)
    write(kind="end", status="finished", reason="")
    result = Result("finished", "", steps, steps, row)
    if first:
        if not (checkpoints / f"step-{steps}.pt").exists():
            (checkpoints / f"step-{steps}.pt").write_text("")
        final = {
            "schema_version": 1,
            "status": "finished",
            "reason": "",
            "step": steps,
            "total_steps": steps,
            "final_checkpoint": f"checkpoints/step-{steps}.pt",
        }
        (out_dir / "result.json").write_text(json.dumps(final))
    return result
