"""What `benchmarks.gpu` measures, part by part; each runs in a process of its own."""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from benchmarks.gpu_timing import busy, config_of, make, on, sync, timed, work_of
from trainable.data import ArcData
from trainable.models import varlen


def save(args: argparse.Namespace, found: dict[str, Any]) -> None:
    """What a part has so far."""
    name = args.part if args.worker is None else f"{args.part}-{args.worker}"
    (Path(args.out) / f"{name}.json").write_text(json.dumps(found, indent=1) + "\n")


def start(args: argparse.Namespace, part: str, more: list[str]) -> subprocess.Popen[bytes]:
    """A part in a process of its own; what it prints goes to the log."""
    command = [sys.executable, "-m", "benchmarks.gpu", "--part", part, "--device", args.device]
    command += ["--quick"] if args.quick else []
    command += ["--seconds", str(args.seconds), *more]
    log = (Path(args.out) / "log.txt").open("ab")
    environment = dict(os.environ)
    if part == "again-expandable":
        environment["PYTORCH_CUDA_ALLOC_CONF"] = "expandable_segments:True"
    return subprocess.Popen(command, stdout=log, stderr=subprocess.STDOUT, env=environment)


# --- parts ---------------------------------------------------------------------------------------


def ceiling(args: argparse.Namespace) -> dict[str, Any]:
    """Matrix products on random data, a copy, and the cost of a launch."""
    device = torch.device(args.device)
    size = 8192 if on(args) else 256
    found: dict[str, Any] = {"torch": torch.__version__, "device": "cpu"}
    if on(args):
        found["device"] = torch.cuda.get_device_name()
        found["memory_gb"] = torch.cuda.get_device_properties(0).total_memory / 2**30

    def rate(run: Callable[[], object], amount: float, repeats: int = 10) -> float:
        for _ in range(3):
            run()
        sync()
        began = time.perf_counter()
        for _ in range(repeats):
            run()
        sync()
        return amount * repeats / (time.perf_counter() - began)

    for name, dtype in (("bf16", torch.bfloat16), ("float32", torch.float32)):
        a, b = (torch.randn(size, size, device=device, dtype=dtype) for _ in range(2))
        found[f"{name}_flops"] = rate(lambda a=a, b=b: a @ b, 2.0 * size**3)  # type: ignore[misc]
    # the shapes of the model: 64 Ki tokens, 512 wide
    x = torch.randn(size * 8, 512, device=device, dtype=torch.bfloat16)
    for name, width in (("qkv", 1536), ("gate_up", 3072)):
        w = torch.randn(width, 512, device=device, dtype=torch.bfloat16)
        flops = 2.0 * x.shape[0] * 512 * width
        found[f"bf16_{name}_flops"] = rate(lambda w=w: x @ w.T, flops)  # type: ignore[misc]
    big = torch.randn(size * size * 4 // 4, device=device)
    found["copy_bytes_s"] = rate(lambda: big.clone(), 2.0 * big.numel() * 4)
    small = torch.zeros(1, device=device)
    found["launch_us"] = 1e6 / rate(lambda: small.add_(1), 1.0, 2000)
    return found


def steps(args: argparse.Namespace, kind: str, which: str) -> dict[str, Any]:
    """Default, full canvas and parity; bucketed attention and compiled blocks for the default."""
    batch = args.batch or ((256 if kind == "etrm" else 768) if on(args) else 2)
    micro = {"etrm": 32, "trm": 128}[kind] if on(args) else 4
    groups = {"max_train_groups": 32 if which == "32" else None}
    found: dict[str, Any] = {"batch": batch}
    data: ArcData | None = None
    variants: list[tuple[str, str, dict[str, Any]]] = [
        ("default", "default", {}),
        ("parity", "parity", {"micro_batch_size": min(micro, batch)}),
        ("bucketed", "default", {}),
        ("full", "full", {"micro_batch_size": min(batch, (4 if kind == "etrm" else 3) * micro)}),
        ("compiled", "default", {"compile": True}),
    ]
    if which == "32":
        variants = variants[:2]
    if not on(args):
        variants = [one for one in variants if one[0] != "compiled"]
    for name, setting, options in variants:
        began = time.perf_counter()
        os.environ[varlen.OFF] = "1" if name == "bucketed" else ""
        try:
            config = config_of(kind, setting, args, global_batch_size=batch, **(groups | options))
            trial = make(config)
            data = trial.data
            few = name in ("parity", "full")
            one: dict[str, Any] = timed(
                trial,
                (2 if few else 8) if on(args) else 1,
                warm=(1 if few else 4 if name == "compiled" else 3) if on(args) else 1,
            )
            one |= work_of(trial)
            if on(args):
                one["peak_gb"] = torch.cuda.max_memory_allocated() / 2**30
            if name in ("default", "compiled") and which == "all":
                one |= busy(trial)
            del trial
        except Exception as error:
            one = {"error": f"{type(error).__name__}: {str(error)[:300]}"}
            traceback.print_exc()
        os.environ[varlen.OFF] = ""
        if on(args):
            torch.cuda.empty_cache()
            torch.cuda.reset_peak_memory_stats()
        one["took_s"] = time.perf_counter() - began
        found[name] = one
        save(args, found)
    found["train_groups"] = len(data.train_groups) if data else 0
    return found


def memory(args: argparse.Namespace) -> dict[str, Any]:
    """Which batches of the paper profile fit into 0.9 of the card, and their peak in GB."""
    found: dict[str, Any] = {}
    if on(args):
        torch.cuda.set_per_process_memory_fraction(0.9)  # tests run beside this
    cases: list[tuple[str, str, str, int, int | None]] = [
        ("etrm 256 demos", "etrm", "default", 256, None),
        ("etrm 256 full", "etrm", "full", 256, None),
        ("etrm 768 demos", "etrm", "default", 768, None),
        ("trm 768 demos", "trm", "default", 768, None),
        ("trm 768 full", "trm", "full", 768, None),
        ("trm 768 full, micro 384", "trm", "full", 768, 384),
        ("etrm 768 full, micro 256", "etrm", "full", 768, 256),
        ("etrm 64 parity", "etrm", "parity", 64, None),
    ]
    if not on(args):
        cases = [(name, kind, setting, 4, None) for name, kind, setting, *_ in cases[:2]]
    for name, kind, setting, batch, micro in cases:
        try:
            options: dict[str, Any] = {"max_train_groups": None, "num_aug": 8}
            options |= {"global_batch_size": batch, "micro_batch_size": micro}
            trial = make(config_of(kind, setting, args, **options))
            for _ in range(2):
                trial.train_step()
            sync()
            found[name] = "fits"
            if on(args):
                found[name] = torch.cuda.max_memory_allocated() / 2**30
            del trial
        except torch.OutOfMemoryError:
            found[name] = "does not fit"
        except Exception as error:
            found[name] = f"{type(error).__name__}: {str(error)[:200]}"
        if on(args):
            torch.cuda.empty_cache()
            torch.cuda.reset_peak_memory_stats()
        save(args, found)
    return found


def small(args: argparse.Namespace) -> dict[str, Any]:
    """Steps of the small profiles, where launching costs more than computing."""
    found: dict[str, Any] = {}
    for profile in ("workstation", "laptop"):
        for name, setting in (
            ("default", "default"),
            ("compiled", "default"),
            ("parity", "parity"),
        ):
            options: dict[str, Any] = {"compile": True} if name == "compiled" else {}
            if profile == "workstation" and name == "parity" and on(args):
                options = {"micro_batch_size": 32}
            if name == "compiled" and not on(args):
                continue
            try:
                more: dict[str, Any] = {} if on(args) else {"global_batch_size": 4}
                config = config_of("etrm", setting, args, profile=profile, **(options | more))
                trial = make(config)
                one: dict[str, Any] = timed(trial, 8 if on(args) else 1, warm=3)
                one |= work_of(trial)
                if name != "parity":
                    one |= busy(trial, top=4)
                del trial
            except Exception as error:
                one = {"error": f"{type(error).__name__}: {str(error)[:200]}"}
            found[f"{profile} {name}"] = one
            save(args, found)
    return found


def share_worker(args: argparse.Namespace) -> dict[str, Any]:
    """One of several trials on the card: steps in the seconds after the common start."""
    profile = args.profile
    batch = {} if on(args) else {"global_batch_size": 4}
    trial = make(config_of("etrm", "default", args, profile=profile, **batch))
    for _ in range(4):
        trial.train_step()
    sync()
    Path(f"{args.out}/ready-{args.worker}").touch()
    while not (Path(args.out) / "go").exists():
        time.sleep(0.002)
    began, done = time.perf_counter(), 0
    while time.perf_counter() - began < args.seconds:
        trial.train_step()
        done += 1
        sync()
    return {"rows_s": done * trial.config.global_batch_size / (time.perf_counter() - began)}


def sharing(args: argparse.Namespace) -> dict[str, Any]:
    """Rows per second of 1, 2, 4 trials at once, summed over them."""
    found: dict[str, Any] = {}
    for profile in ("workstation", "paper"):
        for count in (1, 2, 4) if profile == "workstation" else (1, 2):
            with tempfile.TemporaryDirectory() as folder:
                workers = [
                    start(
                        args,
                        "share-worker",
                        ["--out", folder, "--worker", str(n), "--profile", profile],
                    )
                    for n in range(count)
                ]
                deadline = time.perf_counter() + 60
                while len(list(Path(folder).glob("ready-*"))) < count:
                    if time.perf_counter() > deadline or any(w.poll() for w in workers):
                        break
                    time.sleep(0.01)
                (Path(folder) / "go").touch()
                for worker in workers:
                    with contextlib.suppress(subprocess.TimeoutExpired):
                        worker.wait(timeout=60)
                    worker.kill()
                rates = [
                    json.loads(path.read_text())["rows_s"]
                    for path in Path(folder).glob("share-worker*.json")
                ]
            found[f"{profile} x{count}"] = {"rows_s": sum(rates), "trials": len(rates)}
            save(args, found)
    return found


NAME = re.compile(r"tests/\S+::\S+")


def tests(args: argparse.Namespace) -> dict[str, Any]:
    """Everything marked `gpu`, in several processes; what has run when the time ends counts."""
    files = [
        str(path)
        for path in sorted(Path("tests/trainable").glob("test_*.py"))
        if "mark.gpu" in path.read_text()
    ]
    command = [sys.executable, "-m", "pytest", "-v", "-m", "gpu", *files]
    command += ["-p", "no:cacheprovider", "-p", "no:benchmark", "--no-header", "--tb=short"]
    command += ["-W", "default"]  # another release of torch may warn of something else
    plugin = subprocess.run([sys.executable, "-c", "import xdist"], capture_output=True)
    if plugin.returncode == 0:
        command += ["-n", "8" if on(args) else "1"]
    log = Path(args.out, "pytest.log")
    with log.open("w") as file, contextlib.suppress(subprocess.TimeoutExpired):
        subprocess.run(command, stdout=file, stderr=subprocess.STDOUT, timeout=args.seconds)
    lines = log.read_text(errors="replace").splitlines()
    found: dict[str, Any] = {"last": lines[-1][:200] if lines else "nothing"}
    for word in ("PASSED", "FAILED", "ERROR", "SKIPPED"):  # in whatever order xdist tells them
        found[word] = len(
            {name for line in lines if f" {word} " in f" {line} " for name in NAME.findall(line)}
        )
    found["failed"] = [line[:230] for line in lines if line.startswith(("FAILED", "ERROR"))][:25]
    found["why"] = [line[:160] for line in lines if line.startswith("E  ")][:30]
    return found


CPU_JOBS: list[tuple[int, str]] = [
    (4, "--kind etrm --hidden 512 --data 32 --repeats 2 --cold-parity"),
    (4, "--kind etrm --hidden 512 --data all --repeats 2 --cold-parity"),
    (2, "--kind trm --hidden 512 --data 32 all --repeats 2 --cold-parity"),
    (1, "--kind etrm --hidden 128 --data 32 all --repeats 3 --cold-parity"),
    (1, "--kind trm --hidden 128 --data 32 all --repeats 3"),
    (
        1,
        "--kind trm etrm --hidden 512 --data 32 --dtype float32 bfloat16 --repeats 2 --batch 4 "
        "--parity-repeats 0",
    ),
]
"""Threads and options of `benchmarks.steps`, side by side on cores of their own."""


def cpu(args: argparse.Namespace) -> dict[str, Any]:
    """Steps on the CPU of the same machine, in float32."""
    found: dict[str, Any] = {}
    jobs = CPU_JOBS if on(args) else [(1, "--kind trm --hidden 64 --data small --repeats 1")]
    with tempfile.TemporaryDirectory() as folder:
        running, core = [], 0
        for at, (threads, options) in enumerate(jobs):
            own = (
                ["taskset", "-c", f"{core}-{core + threads - 1}"] if shutil.which("taskset") else []
            )
            command = [
                *own,
                sys.executable,
                "-m",
                "benchmarks.steps",
                "--threads",
                str(threads),
                *options.split(),
            ]
            command += ["--json", f"{folder}/{at}.json"]
            environment = os.environ | {"CUDA_VISIBLE_DEVICES": "", "OMP_NUM_THREADS": str(threads)}
            running.append(subprocess.Popen(command, env=environment))
            core += threads
        deadline = time.perf_counter() + args.seconds
        while any(p.poll() is None for p in running) and time.perf_counter() < deadline:
            time.sleep(0.5)
        for process in running:
            process.kill()
        for at, (threads, options) in enumerate(jobs):
            path = Path(folder) / f"{at}.json"
            found[f"{threads} threads {options}"] = (
                json.loads(path.read_text())["rows"] if path.exists() else []
            )
    return found


def evaluation(args: argparse.Namespace) -> dict[str, Any]:
    """A held-out evaluation, default against parity: 256 rows, 16 ACT steps, 128 wide, float32."""
    path = Path(args.out) / "evaluation-of.json"
    command = [sys.executable, "-m", "benchmarks.evaluation", "--json", str(path)]
    command += [] if on(args) else ["--hidden", "64", "--rows", "2", "--batch", "2"]
    command += [] if on(args) else ["--act-steps", "1"]
    subprocess.run(command, check=True)
    found: dict[str, Any] = json.loads(path.read_text())
    return found


def again(args: argparse.Namespace) -> dict[str, Any]:
    """The settings that matter, once more: every model's default, compiled and parity steps."""
    found: dict[str, Any] = {}
    cases: list[tuple[str, str, str, str, dict[str, Any]]] = [
        ("etrm compiled", "etrm", "default", "paper", {"compile": True}),
        ("etrm", "etrm", "default", "paper", {}),
        ("trm compiled", "trm", "default", "paper", {"compile": True}),
        ("trm", "trm", "default", "paper", {}),
        ("laptop", "etrm", "default", "laptop", {}),
        ("workstation", "etrm", "default", "workstation", {}),
        ("trm full compiled", "trm", "full", "paper", {"compile": True, "micro_batch_size": 256}),
        ("trm full", "trm", "full", "paper", {"micro_batch_size": 256}),
        ("etrm parity", "etrm", "parity", "paper", {"micro_batch_size": 32}),
        ("trm parity", "trm", "parity", "paper", {"micro_batch_size": 128}),
    ]
    if args.part == "again-expandable":
        cases = [cases[0], cases[2], cases[1]]
    for name, kind, setting, profile, options in cases:
        sizes: dict[str, Any] = {}
        if profile == "paper":
            sizes = {"global_batch_size": 256 if kind == "etrm" else 768, "max_train_groups": None}
        if not on(args):
            if "compiled" in name or "parity" in name:
                continue
            sizes["global_batch_size"] = sizes["micro_batch_size"] = 2
            options = {}
        try:
            trial = make(config_of(kind, setting, args, profile=profile, **(sizes | options)))
            few = setting != "default"
            one: dict[str, Any] = timed(trial, 2 if few else 8, warm=1 if few else 4)
            one |= work_of(trial, 1)
            if not few:
                one |= busy(trial, top=8)
            del trial
        except Exception as error:
            one = {"error": f"{type(error).__name__}: {str(error)[:300]}"}
            traceback.print_exc()
        if on(args):
            torch.cuda.empty_cache()
        found[name] = one
        save(args, found)
    return found
