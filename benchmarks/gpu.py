"""What a GPU gives: one table of speed, memory and sharing at the paper's sizes, in minutes.

Every part runs in a process of its own with a time limit, the most valuable first, so that one that
fails costs the others nothing; results are written after each. `steps-*` time training steps of the
default settings against `parity` settings (the public implementations' work) and against the
ceilings measured in the same run; `tests` runs what is marked `gpu`; `memory` shows which batches
fit; `sharing` runs several trials on the card at once.

    python -m benchmarks.gpu [--out FOLDER] [--budget 420] [--only PART ...]

With `--device cpu` and `--quick` the same code runs anywhere, at tiny sizes: numbers mean nothing.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from benchmarks import gpu_parts
from benchmarks.steps import HEAD, line

PARTS = {
    "ceiling": 60,
    "steps-etrm-all": 130,
    "tests": 200,
    "memory": 100,
    "steps-trm-all": 90,
    "sharing": 100,
    "steps-etrm-32": 70,
    "steps-trm-32": 70,
    "small": 60,
    "cpu": 105,
    "again": 110,
    "again-expandable": 45,
    "evaluation": 40,
}
"""Seconds each part may take; parts joined by + run at the same time."""

FIRST = list(PARTS)[:-4]


def run_part(args: argparse.Namespace) -> None:
    """This process is one part."""
    part: str = args.part
    if part.startswith("steps-"):
        _, kind, which = part.split("-")
        found = gpu_parts.steps(args, kind, which)
    else:
        known: dict[str, Callable[[argparse.Namespace], dict[str, Any]]] = {
            "ceiling": gpu_parts.ceiling,
            "memory": gpu_parts.memory,
            "small": gpu_parts.small,
            "sharing": gpu_parts.sharing,
            "share-worker": gpu_parts.share_worker,
            "tests": gpu_parts.tests,
            "cpu": gpu_parts.cpu,
            "again": gpu_parts.again,
            "again-expandable": gpu_parts.again,
            "evaluation": gpu_parts.evaluation,
        }
        found = known[part](args)
    gpu_parts.save(args, found)


def main() -> None:
    """Run all parts and print what they found."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--out", default=os.environ.get("OUT") or "build/gpu")
    parser.add_argument("--device", default="cuda", choices=["cuda", "cpu"])
    parser.add_argument("--quick", action="store_true", help="tiny sizes, to try the script")
    parser.add_argument("--budget", type=float, default=420, help="seconds for everything")
    parser.add_argument("--only", nargs="*", metavar="PART", default=FIRST, help=" ".join(PARTS))
    parser.add_argument("--batch", type=int)
    parser.add_argument("--part", help=argparse.SUPPRESS)
    parser.add_argument("--worker", help=argparse.SUPPRESS)
    parser.add_argument("--profile", default="workstation", help=argparse.SUPPRESS)
    parser.add_argument("--seconds", type=float, default=4.0, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if unknown := {part for group in args.only for part in group.split("+")} - set(PARTS):
        parser.error(f"no part {', '.join(sorted(unknown))}; known: {' '.join(PARTS)}")
    Path(args.out).mkdir(parents=True, exist_ok=True)
    if args.part:
        run_part(args)
        return
    began = time.perf_counter()
    found: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as folder:
        for group in args.only:
            left = args.budget - (time.perf_counter() - began)
            if left < 10:
                found[group] = {"error": "no time left"}
                continue
            own_limit = max(PARTS[one] for one in group.split("+"))
            limit = min(own_limit * (8 if args.quick else 1), left)
            at = time.perf_counter()
            own = argparse.Namespace(**(vars(args) | {"out": folder}))
            running: dict[str, subprocess.Popen[bytes]] = {}
            for part in group.split("+"):
                own.seconds = limit - 5 if part in ("tests", "cpu") else args.seconds
                running[part] = gpu_parts.start(own, part, ["--out", folder])
            for part, process in running.items():
                try:
                    process.wait(timeout=max(1, limit - (time.perf_counter() - at)))
                    state = "" if process.returncode == 0 else f"exit {process.returncode}"
                except subprocess.TimeoutExpired:
                    process.kill()
                    state = "time limit"
                path = Path(folder) / f"{part}.json"
                found[part] = json.loads(path.read_text()) if path.exists() else {}
                found[part] |= {"state": state} if state else {}
                found[part]["part_s"] = round(time.perf_counter() - at, 1)
            (Path(args.out) / "gpu.json").write_text(json.dumps(found, indent=1) + "\n")
            for name in ("log.txt", "pytest.log"):
                path = Path(folder) / name
                if path.exists():
                    text = path.read_text(errors="replace")[-400_000:]
                    (Path(args.out) / f"gpu-{name}").write_text(text)
            print(f"-- {group}: {found[next(iter(running))].get('state') or 'done'}", flush=True)
        text = summary(found)
        log = Path(folder) / "log.txt"
        if log.exists() and any(part.get("state") for part in found.values()):
            text += "\n-- end of the log\n" + log.read_text(errors="replace")[-2500:]
    (Path(args.out) / "gpu.txt").write_text(text)
    print(text)


def summary(found: dict[str, Any]) -> str:
    """The numbers as text, at most a few thousand characters."""
    lines = []
    top = found.get("ceiling", {})
    peak = top.get("bf16_flops") or float("nan")
    lines.append("ceilings: " + " ".join(f"{k}={_short(v)}" for k, v in top.items()))
    for part, values in found.items():
        if not part.startswith("steps-") and part not in ("small", "again", "again-expandable"):
            continue
        lines.append(f"{part} batch {values.get('batch', '')} {values.get('state', '')}")
        parity = values.get("parity", {}).get("s")
        for name, one in values.items():
            if not isinstance(one, dict):
                continue
            if "error" in one:
                lines.append(f"  {name}: {one['error'][:200]}")
                continue
            ratio = f" parity/this {parity / one['s']:.1f}" if parity else ""
            lines.append(
                f"  {name:10} {one['s'] * 1e3:8.1f} ms (mean {one['mean_s'] * 1e3:.1f}, host "
                f"{one['host_s'] * 1e3:.1f} of which waiting {one['waited_s'] * 1e3:.1f}, data "
                f"{one['data_s'] * 1e3:.1f}, {one['allocations']:.0f} allocations){ratio} "
                f"{one['flops'] / one['s'] / 1e12:.0f} TFLOP/s = "
                f"{100 * one['flops'] / one['s'] / peak:.0f} % "
                f"{one['tokens'] / one['s'] / 1e6:.2f} Mtok/s "
                f"peak {one.get('peak_gb', float('nan')):.1f} GB "
                f"busy {one.get('busy', float('nan')):.2f} "
                f"kernels {one.get('kernels', float('nan')):.0f}"
            )
            if part == "again" or (name in ("default", "compiled") and part == "steps-etrm-all"):
                for key, ms, count in one.get("top", []):
                    lines.append(f"      {ms:7.2f} ms x{count:<4} {key[:60]}")
    if "cpu" in found:
        lines.append(HEAD)
    for job, rows in found.get("cpu", {}).items():
        if isinstance(rows, list):
            lines.append(f"cpu, {job}")
            lines += [line(row) for row in rows]
    for part in ("memory", "sharing", "tests", "evaluation"):
        for name, one in found.get(part, {}).items():
            lines.append(f"{part}: {name}: {_short(one)}")
    return "\n".join(lines) + "\n"


def _short(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:.3g}"
    if isinstance(value, list):
        return "".join(f"\n    {item}" for item in value)
    if isinstance(value, dict):
        return " ".join(f"{k}={_short(v)}" for k, v in value.items())
    return str(value)


if __name__ == "__main__":
    main()
