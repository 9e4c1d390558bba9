"""Kills without Ray: a trial's process dies at random moments, or lives on as an orphan.

A run whose main process died is begun again at once, beside the orphan that still trains. Fifty
kills take half a minute here; whole runs in Ray are killed in `tests/test_random_kills.py`.
``ETRM_KILLS`` (50) and ``ETRM_KILL_SEED`` (0) as there.
"""

from __future__ import annotations

import contextlib
import json
import os
import random
import signal
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.trainable.small_trials import (
    comparable,
    comparable_rows,
    puzzle_folder,
    rows_of,
    same_state,
    tiny,
)
from trainable import checkpoint
from trainable.attempts import begin_attempt
from trainable.config import TrialConfig
from trainable.forked import Child, Nursery
from trainable.worker import TrialSpec

KILLS = int(os.environ.get("ETRM_KILLS", "50"))
SEED = int(os.environ.get("ETRM_KILL_SEED", "0"))
STEPS = 24


@pytest.fixture(scope="module")
def nursery() -> Iterator[Nursery]:
    nursery = Nursery("trainable.loop:TrainResult")  # imports the loop, reads no puzzles
    yield nursery
    nursery.close()


@pytest.fixture(scope="module")
def config(tmp_path_factory: pytest.TempPathFactory) -> TrialConfig:
    folder = puzzle_folder(tmp_path_factory.mktemp("puzzles"))
    # Checkpoints fall between rows as well as on them.
    return tiny(folder, steps=STEPS, log_interval=2, checkpoint_interval=3, max_eval_groups=0)


def drive(child: Child, until: float) -> dict[str, Any] | None:
    """Judge rows until a moment (None), or until the child has told how it ended."""
    while (left := until - time.monotonic()) > 0:
        message = child.receive(timeout=min(left, 0.2))
        if message is None:
            continue
        if "outcome" in message:
            return dict(message["outcome"])
        child.judged()
    return None


class Main:
    """What stands for the main process: owns a trial, and may die without its children."""

    def __init__(self, nursery: Nursery, config: TrialConfig, home: Path) -> None:
        self.nursery, self.config, self.home = nursery, config, home
        self.orphans: list[tuple[threading.Thread, Child]] = []
        self.number = 0
        self.begin()

    def begin(self) -> None:
        """A new session takes the trial over."""
        self.number += 1
        begin_attempt(self.home, f"session {self.number}")

    def child(self) -> Child:
        """A process of this session."""
        values = self.config.model_dump(mode="json")
        owner = f"session {self.number}"
        spec = TrialSpec(self.home.name, str(self.home), values, owner)
        return self.nursery.start(spec)

    def abandon(self, child: Child) -> None:
        """This session dies; its child trains on."""

        def live_on() -> None:
            with contextlib.suppress(EOFError, OSError):
                outcome = drive(child, time.monotonic() + 300)
                assert outcome is not None and outcome["status"] in ("superseded", "finished")

        thread = threading.Thread(target=live_on)
        thread.start()
        self.orphans.append((thread, child))
        self.begin()

    def join(self) -> None:
        """Wait until every orphan has seen that it is one."""
        for thread, child in self.orphans:
            thread.join(timeout=300)
            assert not thread.is_alive(), "an orphan trains for ever"
            child.close()


def check_kept(home: Path, whole: list[dict[str, Any]]) -> None:
    """Every row up to the last checkpoint is there, once, as in the undisturbed run."""
    saved = checkpoint.list_steps(home / "checkpoints")  # before the rows: a row comes first
    last = saved[-1][0] if saved else 0
    now = [comparable(row) for row in read(home) if row["step"] <= last]
    assert now == [comparable(row) for row in whole if row["step"] <= last], last


def read(home: Path) -> list[dict[str, Any]]:
    """Rows as a reader keeps them, also of an attempt that has not begun to write."""
    from analysis.rows import merge, read_attempts

    rows = merge(read_attempts(home, [])) if home.is_dir() else []
    return [{k: v for k, v in row.items() if k != "attempt"} for row in rows]


@pytest.mark.slow
@pytest.mark.timeout(300 + 30 * KILLS)
def test_kills_and_orphans_change_nothing(
    nursery: Nursery, config: TrialConfig, tmp_path: Path
) -> None:
    began = time.monotonic()
    main = Main(nursery, config, tmp_path / "whole")
    child = main.child()
    outcome = drive(child, began + 300)
    child.close()
    assert outcome is not None and outcome["status"] == "finished", outcome
    whole, took = rows_of(tmp_path / "whole"), time.monotonic() - began
    expected = comparable_rows(tmp_path / "whole")
    assert len(whole) == STEPS // 2

    luck, left, number = random.Random(SEED), KILLS, 0
    done: list[str] = []
    while left > 0:
        number += 1
        home = tmp_path / f"disturbed-{number}"
        main = Main(nursery, config, home)
        while True:
            child = main.child()
            moment = time.monotonic() + (luck.random() * took if left > 0 else 300)
            outcome = drive(child, moment)
            if outcome is not None:
                child.close()
                break
            kind = luck.choice(["worker", "main"])
            if kind == "worker":
                os.kill(child.pid, signal.SIGKILL)
                nursery.ending(child)
                child.close()
            else:
                main.abandon(child)
            left -= 1
            done.append(kind)
            check_kept(home, whole)
        assert outcome["status"] == "finished", (outcome, done)
        main.join()
        # As a reader does: an attempt that was killed at once may have written nothing.
        assert [comparable(row) for row in read(home)] == expected, done
        result = json.loads((home / "result.json").read_text())
        assert (result["status"], result["step"]) == ("finished", STEPS)
        states = [checkpoint.newest(one / "checkpoints") for one in (home, tmp_path / "whole")]
        for found in states:
            assert found is not None
            for name in ("wall_s", "last_row"):
                found[1].pop(name)
        same_state(states[0][1], states[1][1])  # type: ignore[index]
        assert not list((home / "checkpoints").glob("*.tmp")), "what a kill left is cleared away"
    print(f"killed over {number} trials: {' '.join(done)}")
