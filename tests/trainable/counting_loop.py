"""In place of `trainable.loop.train`: counts; settings are JSON in ``batch_size_reason``."""

from __future__ import annotations

import json
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

SETTINGS: dict[str, Any] = {"steps": 3, "step_s": 0.0, "crash_at": None}

trials = 0


def train(config: Any, *, out_dir: Path, report: Any, attempt: int, **_: Any) -> SimpleNamespace:
    global trials
    settings = json.loads(config.batch_size_reason)
    (out_dir / "attempt").write_text(str(attempt))
    for step in range(1, settings["steps"] + 1):
        if step == settings["crash_at"]:
            raise ValueError("told to crash")
        time.sleep(settings["step_s"])
        (out_dir / "reached").write_text(str(step))
        report({"step": step, "trials_before": trials, "train/loss": float("nan")})
    trials += 1
    print(f"counted to {settings['steps']}")
    return SimpleNamespace(
        status="finished", reason="", step=settings["steps"], total_steps=settings["steps"]
    )
