"""Do default and parity settings learn the same? Paired seeds of the laptop profile on one GPU.

Parity settings do what the public implementations do: 30 × 30 canvas, every demonstration slot and
every PAD cell encoded and attended. At dozens of times the cost they need a GPU; default and parity
of every seed run side by side there, each in a process of its own, without Ray. The arms are the
decoder recipe (`trm`) and E1a (`etrm`), which starts from the seed's decoder of the same settings:
the pairs differ in the settings alone, from the first step of the decoder on.

Accuracy is `train/accuracy` over halted rows, mean of the rows in the last 10 % of the steps, as in
every table; a difference is parity − default of one seed, its interval Student's t over seeds.

    python -m benchmarks.same_learning [--seeds 5] [--budget 400] [--dtype auto] [--out FOLDER]

`--dtype auto` takes float32, the profile's type, if the time allows, else bfloat16 for both arms.
If the time runs out the pairs are compared over the same steps, those that both have reached.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
from scipy.stats import ttest_1samp

import search_spaces
from search_spaces.resolve import resolve_decoder
from trainable.config import TrialConfig
from trainable.loop import train
from trainable.trial import Trial

SETTINGS = ("default", "parity")


def configs(seed: int, setting: str, args: argparse.Namespace) -> tuple[TrialConfig, TrialConfig]:
    """Decoder and arm of a seed."""
    arm = search_spaces.resolve("overfit/E1a", profile="laptop", seed=seed)
    decoder = resolve_decoder(arm)
    shared: dict[str, Any] = {
        "forward_dtype": args.dtype,
        "max_eval_groups": 0,
        "checkpoint_interval": 100_000,
        "num_threads": 1,
        "log_interval": 5,
    }
    if setting == "parity":
        shared |= {"parity": True, "canvas": "full"}
    if args.quick:
        shared |= {"epochs": 3.0, "global_batch_size": 4, "hidden_size": 32, "puzzle_emb_ndim": 32}
        shared |= {"max_train_groups": 4, "H_cycles": 1, "max_demos": 2}
    return decoder.config.replace(**shared), arm.config.replace(**shared)


def accuracy(rows: list[dict[str, Any]], *, start: float, end: float) -> float:
    """Mean `train/accuracy` of the rows with start < step ≤ end."""
    found = [
        r["train/accuracy"] for r in rows if start < r["step"] <= end and "train/accuracy" in r
    ]
    return statistics.fmean(found) if found else math.nan


def worker(args: argparse.Namespace) -> None:
    """Train a seed's decoder and arm at one setting; rows are written as they come."""
    seed, setting = int(args.worker.split(":")[0]), args.worker.split(":")[1]
    folder = Path(args.out) / f"{setting}-{seed}"
    decoder, arm = configs(seed, setting, args)
    for name, config in (("trm", decoder), ("etrm", arm)):
        rows: list[dict[str, Any]] = []
        state = {"steps": 0, "done": False}
        path = folder / f"{name}.json"
        folder.mkdir(parents=True, exist_ok=True)

        def report(
            row: dict[str, Any], rows: Any = rows, path: Any = path, state: Any = state
        ) -> None:
            rows.append({k: row[k] for k in ("step", "train/accuracy", "train/loss") if k in row})
            path.write_text(json.dumps({**state, "rows": rows}))
            if time.time() > args.until:
                raise SystemExit("no time left")

        if name == "etrm":
            saved = sorted((folder / "trm" / "checkpoints").glob("*.pt"))
            config = config.replace(decoder=str(saved[-1]))
        result = train(config, out_dir=folder / name, report=report, progress=False)
        state |= {"steps": result.total_steps, "done": result.status == "finished"}
        path.write_text(json.dumps({**state, "rows": rows, "wall_s": result.wall_s}))


def parity_step_s(args: argparse.Namespace) -> float:
    """Seconds of a parity step of E1a, alone on the device."""
    _, arm = configs(0, "parity", args)
    arm = arm.replace(pretrained_decoder=False)
    trial = Trial(arm, Path(tempfile.gettempdir()) / "unused")
    for _ in range(2):
        trial.train_step()
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    began = time.perf_counter()
    for _ in range(3):
        trial.train_step()
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return (time.perf_counter() - began) / 3


def compare(folder: Path, seeds: int) -> dict[str, Any]:
    """Per-seed accuracies and paired differences of what has been trained."""
    found: dict[str, Any] = {}
    for name in ("trm", "etrm"):
        pairs = []
        for seed in range(seeds):
            runs = []
            for setting in SETTINGS:
                path = folder / f"{setting}-{seed}" / f"{name}.json"
                runs.append(json.loads(path.read_text()) if path.exists() else {"rows": []})
            if not all(run["rows"] for run in runs):
                continue
            end = min(run["rows"][-1]["step"] for run in runs)
            values = [accuracy(run["rows"], start=0.9 * end, end=end) for run in runs]
            pairs.append(
                {
                    "seed": seed,
                    "steps": end,
                    "whole": all(run["done"] for run in runs),
                    **dict(zip(SETTINGS, values, strict=True)),
                    "difference": values[1] - values[0],
                    **{f"{s}_wall_s": r.get("wall_s") for s, r in zip(SETTINGS, runs, strict=True)},
                }
            )
        one: dict[str, Any] = {"pairs": pairs, "n": len(pairs)}
        differences = [p["difference"] for p in pairs if not math.isnan(p["difference"])]
        if len(differences) > 1:
            low, high = ttest_1samp(differences, 0.0).confidence_interval(0.95)
            one |= {"mean": statistics.fmean(differences), "low": float(low), "high": float(high)}
            one["inside"] = one["low"] > -0.03 and one["high"] < 0.03
        found[name] = one
    return found


def text_of(found: dict[str, Any]) -> str:
    """The comparison as text."""
    lines = [f"same learning: {found['dtype']}, {found['device']}, {found['took_s']:.0f} s"]
    for name in ("trm", "etrm"):
        one = found[name]
        lines.append(f"{name}: train/accuracy of halted rows, last 10 % of steps")
        for p in one["pairs"]:
            lines.append(
                f"  seed {p['seed']}: default {100 * p['default']:.1f} %, parity "
                f"{100 * p['parity']:.1f} %, parity - default {100 * p['difference']:+.1f} points"
                f" ({p['steps']} steps{'' if p['whole'] else ', cut short'})"
            )
        if "mean" in one:
            lines.append(
                f"  mean {100 * one['mean']:+.2f} points, 95 % interval {100 * one['low']:+.2f} to "
                f"{100 * one['high']:+.2f} (n = {one['n']}); inside ±3: "
                f"{'yes' if one['inside'] else 'no'}"
            )
    return "\n".join(lines) + "\n"


def main() -> None:
    """Run all pairs and print the comparison."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--budget", type=float, default=400, help="seconds for everything")
    parser.add_argument("--dtype", choices=["auto", "float32", "bfloat16"], default="auto")
    parser.add_argument("--out", default=os.environ.get("OUT") or "build/same_learning")
    parser.add_argument("--quick", action="store_true", help="tiny sizes, to try the script")
    parser.add_argument("--worker", help=argparse.SUPPRESS)
    parser.add_argument("--until", type=float, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.worker:
        worker(args)
        return
    out = Path(args.out)
    out.mkdir(parents=True, exist_ok=True)
    began = time.time()
    until = began + args.budget - 15
    found: dict[str, Any] = {
        "device": torch.cuda.get_device_name() if torch.cuda.is_available() else "cpu"
    }
    if args.dtype == "auto":
        args.dtype = "float32"
        step = parity_step_s(args)
        arm = configs(0, "parity", args)[1]
        steps = int(arm.epochs * 36 / arm.global_batch_size)  # 36 rows in an epoch
        # decoders cost about half as much again; the device is shared by all parity runs
        need = 1.6 * step * steps * args.seeds
        found |= {"parity_step_s": step, "float32_needs_s": need}
        if need > args.budget - 60:
            args.dtype = "bfloat16"
        print(
            f"parity step {step:.3f} s in float32: {need:.0f} s for all; {args.dtype}", flush=True
        )
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
    with tempfile.TemporaryDirectory() as folder:
        running = []
        for seed in range(args.seeds):
            for setting in SETTINGS:
                command = [sys.executable, "-m", "benchmarks.same_learning"]
                command += ["--worker", f"{seed}:{setting}", "--dtype", args.dtype]
                command += ["--until", str(until), "--out", folder]
                command += ["--quick"] if args.quick else []
                log = (Path(folder) / "log.txt").open("ab")
                running.append(subprocess.Popen(command, stdout=log, stderr=subprocess.STDOUT))
        while any(p.poll() is None for p in running):
            time.sleep(1)
            if time.time() > until + 8:
                for process in running:
                    process.kill()
        found |= compare(Path(folder), args.seeds)
        told = (Path(folder) / "log.txt").read_text(errors="replace")[-3000:]
        codes = [p.returncode for p in running]
        curves = {
            str(path.relative_to(folder)): json.loads(path.read_text())["rows"]
            for path in sorted(Path(folder).glob("*/*.json"))
            if path.name in ("trm.json", "etrm.json")
        }
    found |= {"dtype": args.dtype, "took_s": time.time() - began}
    (out / "same_learning.json").write_text(json.dumps(found | {"curves": curves}) + "\n")
    text = text_of(found)
    (out / "same_learning.txt").write_text(text)
    if any(codes):
        print(f"exit codes {codes}\n{told}")
    print(text)


if __name__ == "__main__":
    main()
