"""Do several small trials on one GPU finish more rows per second than one? Measured, without Ray.

A small model leaves a GPU waiting for the CPU between its kernels; a second process fills the
gaps. How much that gives depends on the model, the GPU and the CPU, so it is measured where the
plan runs: `measure_sharing` starts as many processes as may share, each with a trial of its own
that is ready to train, and lets 1, 2, 4 of them train at once for a few seconds. Waiting processes
hold memory and compute nothing. `etrm_tune.resources.choose_sharing` decides from the rates.

``python -m etrm_tune.sharing`` is one of those processes. Needs torch, numpy and what
`trainable.trial` imports; neither Ray nor rich.
"""

from __future__ import annotations

import contextlib
import json
import os
import queue
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import IO, Any

COUNTS = (1, 2, 4)
"""Trials at once on one GPU that are tried."""

SECONDS, ROUNDS = 2.0, 3
"""Each count trains for so long, in so many rounds that take turns."""

START_S = 180.0
"""Until every process has taken its first steps (imports, CUDA, kernels), at most."""

CONTEXT_BYTES = 600 * 2**20
"""GPU memory that a process takes beside torch's own: the CUDA context, cuBLAS' workspaces."""

WARM_STEPS = 3
"""Steps before anything is measured."""


@dataclass(frozen=True)
class Sharing:
    """What was measured on one device."""

    device: str
    rates: Mapping[int, float] = field(default_factory=dict)
    """Rows per second of all trials together, by how many trained at once."""
    single: Mapping[int, tuple[float, ...]] = field(default_factory=dict)
    """The same by round."""
    gpu_memory: int = 0
    """Bytes of one trial on the GPU, its CUDA context included; 0 on a CPU."""
    total_memory: int = 0
    """Bytes of the device, 0 where unknown."""
    problem: str = ""
    """Why not every count was measured, in one line."""

    def to_json(self) -> dict[str, Any]:
        """Plain values for plan.json."""
        values = asdict(self)
        for name in ("rates", "single"):
            values[name] = {str(count): value for count, value in values[name].items()}
        return values

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> Sharing:
        """Inverse of `to_json`; what it does not know is left out."""
        known = {k: v for k, v in values.items() if k in cls.__dataclass_fields__}
        known["rates"] = {int(n): float(v) for n, v in values.get("rates", {}).items()}
        known["single"] = {int(n): tuple(v) for n, v in values.get("single", {}).items()}
        return cls(**known)

    def __str__(self) -> str:
        rates = ", ".join(f"{n} at once {rate:.0f} rows/s" for n, rate in self.rates.items())
        return f"{self.device}: {rates or 'nothing measured'}"


class _Process:
    """One trial in a process of its own; answers come as JSON lines."""

    def __init__(self, command: Sequence[str], environment: Mapping[str, str]) -> None:
        self.errors = tempfile.TemporaryFile("w+")  # noqa: SIM115 - closed in `end`
        self.process = subprocess.Popen(
            list(command),
            env=dict(environment),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self.errors,
            text=True,
        )
        self.lines: queue.Queue[dict[str, Any] | None] = queue.Queue()
        assert self.process.stdout is not None
        self.reader = threading.Thread(target=self._read, args=(self.process.stdout,), daemon=True)
        self.reader.start()

    def _read(self, out: IO[str]) -> None:
        for line in out:
            with contextlib.suppress(json.JSONDecodeError):
                self.lines.put(json.loads(line))
        self.lines.put(None)

    def tell(self, value: Mapping[str, Any]) -> None:
        """Send one line; a process that has died is noticed when it does not answer."""
        assert self.process.stdin is not None
        with contextlib.suppress(OSError):
            self.process.stdin.write(json.dumps(value) + "\n")
            self.process.stdin.flush()

    def answer(self, timeout: float) -> dict[str, Any] | None:
        """Its next line; None when it has died or is late."""
        with contextlib.suppress(queue.Empty):
            return self.lines.get(timeout=max(0.01, timeout))
        return None

    def ended(self) -> bool:
        """Whether it has died; one that closed its output has a moment for it."""
        try:
            self.process.wait(timeout=0.01 if self.reader.is_alive() else 5)
        except subprocess.TimeoutExpired:
            return False
        return True

    def last_words(self) -> str:
        """The last line that it wrote to its standard error."""
        with contextlib.suppress(OSError, ValueError):
            self.errors.seek(0)
            lines = [line.strip() for line in self.errors if line.strip()]
            return lines[-1][:200] if lines else ""
        return ""

    def end(self) -> None:
        """Kill it."""
        self.process.kill()
        self.process.wait()
        self.reader.join(timeout=5)
        for file in (self.process.stdin, self.process.stdout, self.errors):
            with contextlib.suppress(OSError):
                file.close()  # type: ignore[union-attr]


def measure_sharing(
    config: Mapping[str, Any],
    *,
    counts: Sequence[int] = COUNTS,
    seconds: float = SECONDS,
    rounds: int = ROUNDS,
    start_s: float = START_S,
    environment: Mapping[str, str] | None = None,
    command: Sequence[str] = (sys.executable, "-m", "etrm_tune.sharing"),
) -> Sharing:
    """Rows per second of 1, 2, … trials of ``config`` at once on one device.

    Args:
        config: a `TrialConfig` as plain values, without a pretrained decoder.
        counts: how many at once, ascending. Those that do not fit into memory are left out.
        seconds: of each measurement; ``rounds`` of them take turns, the median counts.
        start_s: until the processes are ready, at most.
        environment: of the processes; ``CUDA_VISIBLE_DEVICES`` chooses the GPU.
        command: that starts one process.

    The device of the result is empty when not even one trial could train; ``problem`` says why.
    """
    started: list[_Process] = []
    ready: list[tuple[_Process, dict[str, Any]]] = []
    problem = ""
    environment = dict(os.environ if environment is None else environment)
    try:
        until = time.monotonic() + start_s
        for _ in range(max(counts)):
            started.append(_Process(command, environment))
            started[-1].tell({"config": dict(config), "warm": WARM_STEPS})
        for process in started:
            told = process.answer(until - time.monotonic())
            if told is None or "error" in told:
                late = "" if process.ended() else "it was not ready in time"
                problem = str((told or {}).get("error") or late or process.last_words())
                process.end()
            else:
                ready.append((process, told))
        if not ready:
            return Sharing("", problem=problem or "the measuring process died")
        first = ready[0][1]
        found: dict[int, list[float]] = {n: [] for n in counts if n <= len(ready)}
        for _ in range(rounds):
            for count in list(found):
                rate = _rate([process for process, _ in ready[:count]], seconds)
                if rate is None:
                    problem = problem or f"one of {count} trials at once died"
                    found.pop(count)
                else:
                    found[count].append(rate)
        rates = {n: statistics.median(told) for n, told in found.items() if told}
        memory = max(int(told.get("gpu_memory", 0)) for _, told in ready)
        return Sharing(
            str(first.get("device", "cpu")),
            rates,
            {n: tuple(round(r, 1) for r in told) for n, told in found.items() if told},
            memory + CONTEXT_BYTES if memory else 0,
            int(first.get("total_memory", 0)),
            problem,
        )
    finally:
        for process in started:
            process.end()


def _rate(processes: Sequence[_Process], seconds: float) -> float | None:
    """Rows per second of processes that train at once; None when one did not answer."""
    for process in processes:
        process.tell({"seconds": seconds})
    total = 0.0
    for process in processes:
        told = process.answer(10 * seconds + 30)
        if told is None or "error" in told:
            return None
        total += told["rows"] / told["seconds"]
    return total


def serve(lines: IO[str], out: IO[str]) -> None:
    """A process's side: make a trial ready, then train for as long as it is told, each time."""
    import torch

    from trainable.config import TrialConfig
    from trainable.trial import Trial

    asked = json.loads(lines.readline())
    cuda = torch.cuda.is_available()

    def say(values: Mapping[str, Any]) -> None:
        out.write(json.dumps(values) + "\n")
        out.flush()

    def step(trial: Trial) -> None:
        trial.train_step()
        if cuda:
            torch.cuda.synchronize()

    with tempfile.TemporaryDirectory() as folder:
        try:
            trial = Trial(TrialConfig(**asked["config"]), Path(folder))
            for _ in range(int(asked["warm"])):
                step(trial)
        except torch.cuda.OutOfMemoryError:
            say({"error": "out of GPU memory"})
            return
        facts: dict[str, Any] = {"device": "cpu", "gpu_memory": 0, "total_memory": 0}
        if cuda:
            facts = {
                "device": torch.cuda.get_device_name(),
                "gpu_memory": torch.cuda.max_memory_reserved(),
                "total_memory": torch.cuda.get_device_properties(0).total_memory,
            }
        say({"ready": True, **facts})
        for line in lines:
            wanted = float(json.loads(line)["seconds"])
            done, began = 0, time.perf_counter()
            while done == 0 or time.perf_counter() - began < wanted:
                step(trial)
                done += 1
            rows = done * trial.config.global_batch_size
            say({"rows": rows, "seconds": time.perf_counter() - began})


def main() -> int:
    """Entry point of a measuring process."""
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # whatever prints, prints elsewhere
    serve(sys.stdin, answers)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
