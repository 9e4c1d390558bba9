"""One trial runs out of memory, is killed, or diverges: the others go on. Without Ray."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

import pytest

from trainable.attempts import begin_attempt
from trainable.config import TrialConfig
from trainable.forked import Child, Nursery
from trainable.worker import TrialSpec

TRAIN = "fake_loop:train"


def start(nursery: Nursery, home: Path, **settings: Any) -> Child:
    begin_attempt(home, "owner")
    config = TrialConfig(name="overfit/E1a", epochs=100, batch_size_reason=json.dumps(settings))
    values = config.model_dump(mode="json")
    return nursery.start(TrialSpec(home.name, str(home), values, "owner", train=TRAIN))


def end(nursery: Nursery, child: Child) -> dict[str, Any] | str:
    """The outcome of a trial, or how its process ended."""
    deadline = time.monotonic() + 300
    while time.monotonic() < deadline:
        try:
            message = child.receive(timeout=1.0)
        except EOFError:
            return nursery.ending(child, timeout=60.0)
        if message is None:
            continue
        if "outcome" in message:
            child.close()
            return dict(message["outcome"])
        child.judged()
    raise AssertionError("it did not end")


def rows(home: Path) -> list[int]:
    lines = (home / "attempt-1.jsonl").read_text().splitlines()
    return [line["step"] for line in map(json.loads, lines) if line["kind"] == "row"]


@pytest.mark.slow
def test_what_befalls_one_trial_is_its_own(tmp_path: Path) -> None:
    asked: dict[str, dict[str, Any]] = {
        "memory": {"memory_at": 7},
        "killed": {"killed_at": 7},
        "diverged": {"diverged_at": 7},
        "fine": {"steps": 30},
    }
    nursery = Nursery(TRAIN)
    try:
        trials = {name: start(nursery, tmp_path / name, **one) for name, one in asked.items()}
        ends = {name: end(nursery, child) for name, child in trials.items()}
        for child in trials.values():
            child.close()
    finally:
        nursery.close()
    memory, killed = ends["memory"], ends["killed"]
    assert memory == {"status": "failed", "reason": "out of memory"}, "a real MemoryError"
    assert "MemoryError" in (tmp_path / "memory" / "log").read_text()
    assert killed == "its process was killed by SIGKILL (by hand, or out of memory)"
    assert isinstance(ends["diverged"], dict) and isinstance(ends["fine"], dict)
    assert ends["diverged"]["status"] == "diverged"
    assert ends["diverged"]["reason"] == "train/loss is not finite at step 7"
    assert ends["fine"]["status"] == "finished"
    assert rows(tmp_path / "fine") == list(range(1, 31))
    for name in ("memory", "killed"):
        assert rows(tmp_path / name) == list(range(1, 7)), "what was measured is kept"
