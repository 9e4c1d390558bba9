"""A trial as a forked process: what it sends, when it waits, and how it ends. No Ray."""

from __future__ import annotations

import json
import os
import signal
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.trainable.counting_loop import SETTINGS
from trainable.attempts import begin_attempt
from trainable.config import TrialConfig
from trainable.forked import Child, Nursery
from trainable.worker import TrialSpec

pytestmark = pytest.mark.slow


class Opened(Nursery):
    """A nursery that remembers its children, so that a test's channels are closed."""

    def __init__(self) -> None:
        super().__init__("tests.trainable.counting_loop:train")
        self.children: list[Child] = []

    def start(self, spec: TrialSpec) -> Child:
        self.children.append(super().start(spec))
        return self.children[-1]

    def close(self) -> None:
        for child in self.children:
            child.close()
        super().close()


@pytest.fixture(scope="module")
def nursery() -> Iterator[Nursery]:
    nursery = Opened()
    yield nursery
    nursery.close()
    assert not nursery.alive()


def spec(folder: Path, **settings: Any) -> TrialSpec:
    config = TrialConfig(name="overfit/E1a", batch_size_reason=json.dumps(SETTINGS | settings))
    begin_attempt(folder, "me")
    return TrialSpec(
        trial_id=folder.name,
        out_dir=str(folder),
        config=config.model_dump(mode="json"),
        owner="me",
        train="tests.trainable.counting_loop:train",
    )


def message(child: Child, seconds: float = 20.0) -> dict[str, Any]:
    found = child.receive(seconds)
    assert found is not None, "nothing came"
    return found


def alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] not in "ZX"
    except FileNotFoundError:
        return False


def wait_until_gone(pid: int) -> None:
    deadline = time.monotonic() + 10
    while alive(pid) and time.monotonic() < deadline:
        time.sleep(0.02)
    assert not alive(pid)


def test_rows_then_the_outcome_at_most_one_row_ahead(nursery: Nursery, tmp_path: Path) -> None:
    child = nursery.start(spec(tmp_path, steps=4))
    assert message(child)["row"]["step"] == 1
    assert message(child)["row"]["step"] == 2, "it trains on while the first is judged"
    assert child.receive(0.3) is None, "and waits with the next"
    assert (tmp_path / "reached").read_text() == "2"
    child.judged()
    assert message(child)["row"]["step"] == 3
    child.judged()
    assert message(child)["row"]["step"] == 4
    child.judged()
    assert message(child)["outcome"]["status"] == "finished"
    wait_until_gone(child.pid)
    assert (tmp_path / "attempt").read_text() == "1"
    assert "counted to 4" in (tmp_path / "log").read_text()


def test_an_exception_is_an_outcome_and_a_signal_is_told(nursery: Nursery, tmp_path: Path) -> None:
    child = nursery.start(spec(tmp_path / "a", steps=4, crash_at=1))
    assert message(child)["outcome"] == {"status": "failed", "reason": "ValueError: told to crash"}
    assert "Traceback" in (tmp_path / "a" / "log").read_text()

    child = nursery.start(spec(tmp_path / "b", steps=4))
    message(child), message(child)
    os.kill(child.pid, signal.SIGKILL)
    with pytest.raises(EOFError):
        child.receive(10)
    nursery.kill(child)  # it is gone: nothing happens
    assert "killed by SIGKILL" in nursery.ending(child)


def test_a_trial_of_another_owner_is_left_alone(nursery: Nursery, tmp_path: Path) -> None:
    told = spec(tmp_path)
    begin_attempt(tmp_path, "somebody else")
    assert message(nursery.start(told))["outcome"]["status"] == "superseded"


def test_children_share_nothing(nursery: Nursery, tmp_path: Path) -> None:
    """What one trial leaves in its module's memory, the next does not see."""
    for name in ("a", "b"):
        child = nursery.start(spec(tmp_path / name, steps=1))
        assert message(child)["row"]["trials_before"] == 0
        assert "outcome" in message(child)


def test_nobody_outlives_the_nursery(tmp_path: Path) -> None:
    nursery = Opened()
    child = nursery.start(spec(tmp_path, steps=4, step_s=60))
    os.kill(nursery._process.pid, signal.SIGKILL)
    wait_until_gone(child.pid)
    nursery.close()

    nursery = Opened()
    child, other = (nursery.start(spec(tmp_path / n, steps=4, step_s=60)) for n in "ab")
    nursery.kill(other)
    wait_until_gone(other.pid)
    assert alive(child.pid)
    nursery.close()
    wait_until_gone(child.pid)
