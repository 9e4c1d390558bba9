"""Short trials as forked processes under Ray Tune: same contracts and curves as with trainers."""

from __future__ import annotations

import json
import os
import signal
from pathlib import Path
from typing import Any

import pytest
import torch

import analysis
from etrm_tune.run_folder import RunFolder
from tests.etrm_tune.test_ray import (
    E1A,
    E2A,
    E2B,
    alive,
    checkpoints,
    descendants,
    run,
    started,
    status,
    steps,
    trial,
    wait_for,
    worker_pids,
)
from tests.test_end_to_end import command

pytestmark = [pytest.mark.slow, pytest.mark.ray]


def test_many_trials_one_actor_each_outcome_kept(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    asked: dict[str, Any] = {
        "forked": True,
        "concurrent": 1,
        "trials": {
            E1A: {"steps": 30},
            E2A: {"steps": 30, "accuracy": 0.1},
            E2B: {"steps": 30, "nan_at": 10},
            "overfit/E2c": {"crash_at": 3},
            "overfit/E3a": {"steps": 5},
        },
    }
    done = run(folder, **asked)
    assert done.returncode == 1, done.stdout + done.stderr
    found = {name: status(folder, name)["status"] for name in asked["trials"]}
    assert list(found.values()) == ["finished", "stopped", "stopped", "failed", "finished"]
    assert steps(folder, E1A) == list(range(1, 31))
    for name in (E2A, E2B):  # judged at 15 of 30; at most one row was under way
        assert status(folder, name)["reason"].startswith("bar: ")
        assert steps(folder, name)[14] == 15 and len(steps(folder, name)) <= 16
    assert "was told to crash" in status(folder, "overfit/E2c")["reason"]
    assert len(set(worker_pids(folder))) == 5, "a process per trial"
    assert not any(alive(pid) for pid in worker_pids(folder))
    plan = RunFolder(folder).read_plan()
    assert plan is not None and plan["starts"]["arm"]["how"] == "forked"
    assert not (folder / "ray").exists()


def test_killed_child_then_killed_run_every_row_once(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    asked = {"forked": True, "trials": {E1A: {"steps": 80, "step_s": 0.1}}}
    with started(folder, **asked) as process:
        wait_for(lambda: checkpoints(folder, E1A) >= 2)
        os.kill(worker_pids(folder)[0], signal.SIGKILL)
        wait_for(lambda: len(worker_pids(folder)) == 2 and checkpoints(folder, E1A) >= 5)
        children = descendants(process.pid)
        process.kill()
        process.wait()
    done = run(folder, **asked)  # at once, orphans may still live
    assert done.returncode == 0, done.stdout + done.stderr
    assert status(folder, E1A)["status"] == "finished"
    assert steps(folder, E1A) == list(range(1, 81))
    attempts = sorted((folder / "trials" / trial(E1A)).glob("attempt-*.jsonl"))
    assert len(attempts) == 3
    wait_for(lambda: not any(alive(pid) for pid in worker_pids(folder)), 30)
    wait_for(lambda: not any(alive(pid) for pid in children), 90)


BUDGET = {
    "epochs": 40,  # eleven steps
    "max_train_groups": 8,
    "max_eval_groups": 1,
    "eval_num_aug": 0,
    "halt_max_steps": 4,
    "log_interval": 1,
}


def test_forked_and_nested_curves_are_equal_bit_for_bit(tmp_path: Path) -> None:
    settings = [f"--set={name}={value}" for name, value in BUDGET.items()]
    words = ["overfit/E4a", "--profile", "laptop", "--scheduler", "none", *settings]
    for name, how in (("forked", "auto"), ("nested", "off")):
        asked = [] if how == "auto" else ["--short-trials", how]
        done = command(tmp_path, *words, "--name", name, *asked)
        assert done.returncode == 0, done.stdout + done.stderr
        kind = "one forked process per trial" if how == "auto" else "a trainer per trial"
        assert kind in done.stdout
    (one, other) = (tmp_path / "runs" / name for name in ("forked", "nested"))
    clocks = ["run", "time", "wall_s", "trial_id", "attempt"]
    curves = [
        analysis.load(path).curves.drop(columns=clocks, errors="ignore") for path in (one, other)
    ]
    assert len(curves[0]) > 5
    assert curves[0].equals(curves[1])
    files = [sorted(path.glob("trials/*/checkpoints/*.pt"))[-1] for path in (one, other)]
    assert files[0].name == files[1].name
    first, second = (torch.load(path, weights_only=True) for path in files)
    for part in ("model", "ema"):
        for name, value in first[part].items():
            assert torch.equal(value, second[part][name]), f"{part} {name}"
    told = json.loads((one / "plan.json").read_text())["starts"]["arm"]
    assert told["how"] == "forked" and "estimated" in told["why"]
