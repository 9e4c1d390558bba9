"""A process that trains a few real steps of given configurations and says what they cost.

``python -m etrm_tune.measure`` reads one JSON object from its input: ``configs`` (list of
configurations), ``seconds`` (time for all of them, from the start of the process) and ``work``
(operations of a step, by configuration). It writes one JSON line for each configuration as soon as
it is measured, after a first line with the process's speed at matrix products. A configuration for
which there is no time left has no line.
"""

from __future__ import annotations

import contextlib
import gc
import json
import resource
import statistics
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

PROBE = 512
"""Side of the matrices whose product measures a process's speed."""


def product_rate(seconds: float = 0.2) -> float:
    """Floating point operations per second of a float32 matrix product."""
    import torch

    device = "cuda" if torch.cuda.is_available() else "cpu"
    a = torch.rand(PROBE, PROBE, device=device)
    count, began = 0, time.perf_counter()
    while time.perf_counter() - began < seconds:
        for _ in range(4):
            a @ a
        count += 4
    if device == "cuda":
        torch.cuda.synchronize()
    return count * 2 * PROBE**3 / (time.perf_counter() - began)


def _reset_peak() -> None:
    with contextlib.suppress(OSError):  # Linux alone; elsewhere the peak of the whole process
        Path("/proc/self/clear_refs").write_text("5")


def _peak_bytes() -> int:
    """Peak resident memory since `_reset_peak`, or of the process."""
    with contextlib.suppress(OSError):
        for line in Path("/proc/self/status").read_text().splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) * 1024
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


def measure(config: dict[str, Any], until: float) -> dict[str, Any]:
    """Train until ``time.monotonic()`` is ``until``, at least one step.

    Returns ``step_s`` (median, the first left out where there are more), ``steps``,
    ``memory`` (peak bytes of the process), ``gpu_memory``.
    """
    import torch

    from trainable.config import TrialConfig
    from trainable.trial import Trial

    _reset_peak()
    cuda = torch.cuda.is_available()
    if cuda:
        torch.cuda.reset_peak_memory_stats()
    with tempfile.TemporaryDirectory() as folder:
        trial = Trial(TrialConfig(**config), Path(folder))
        times: list[float] = []
        while not times or time.monotonic() + times[-1] < until:
            began = time.perf_counter()
            trial.train_step()
            if cuda:
                torch.cuda.synchronize()
            times.append(time.perf_counter() - began)
    return {
        "step_s": statistics.median(times[1:] or times),
        "steps": len(times),
        "memory": _peak_bytes(),
        "gpu_memory": torch.cuda.max_memory_allocated() if cuda else 0,
    }


def main() -> int:
    """Entry point of the process."""
    began = time.monotonic()
    asked = json.load(sys.stdin)
    end = began + float(asked["seconds"])
    print(json.dumps({"product_rate": product_rate()}), flush=True)
    configs = asked["configs"]
    for at, config in enumerate(configs):
        left = end - time.monotonic()
        if left <= 0 and at:  # the first is always begun: who waits decides how long
            break
        found = measure(config, time.monotonic() + left / (len(configs) - at))
        print(json.dumps(found), flush=True)
        gc.collect()
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
