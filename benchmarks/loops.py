"""Loops that only report, for `benchmarks.overhead`. Imports nothing that takes time."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

SECOND = 1.0
"""Seconds of a short trial."""


@dataclass
class Counted:
    """What a loop returns, as the training loop would."""

    step: int
    total_steps: int
    status: str = "finished"
    reason: str = ""


def rows(total: int, out_dir: Path, report: Callable[[dict[str, Any]], Any], pause: float) -> None:
    """Report `total` rows of 40 metrics; note when that began and ended."""
    began = time.time()
    for step in range(1, total + 1):
        time.sleep(pause)
        row = {"step": step, "epoch": step, "train/accuracy": 1.0, "train/loss": 0.0}
        report(row | {f"metric/{i}": float(i) for i in range(40)})
    (out_dir / "times.json").write_text(json.dumps([began, time.time()]))


def bare(total: int, out_dir: Path, report: Callable[[dict[str, Any]], Any]) -> None:
    """`count` for the bare pattern."""
    rows(total, out_dir, report, 0.0)


def count(config: Any, *, out_dir: Path, report: Any, **_: Any) -> Counted:
    """A loop of ``config.epochs`` reports, as fast as it can."""
    rows(int(config.epochs), out_dir, report, 0.0)
    return Counted(int(config.epochs), int(config.epochs))


def second(config: Any, *, out_dir: Path, report: Any, attempt: int, **_: Any) -> Counted:
    """A trial of `SECOND` seconds and ten reports, with the rows that a search reads."""
    with (out_dir / f"attempt-{attempt}.jsonl").open("a") as file:

        def both(row: dict[str, Any]) -> None:
            row |= {"time": time.time(), "wall_s": row["step"] / 10, "epoch": row["epoch"] * 10}
            file.write(json.dumps({"kind": "row", **row}) + "\n")
            file.flush()
            report(row)

        rows(10, out_dir, both, SECOND / 10)
    return Counted(10, 10)
