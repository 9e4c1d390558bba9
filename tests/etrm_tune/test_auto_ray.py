"""``auto`` as a user runs it: real trials of seconds in real Ray, killed once and continued."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

import analysis
from etrm_tune.run_folder import RunFolder

pytestmark = [pytest.mark.slow, pytest.mark.ray]

ROOT = Path(__file__).parents[2]
SIZES = {"hidden_size": 32, "num_heads": 2, "puzzle_emb_ndim": 32, "num_aug": 0, "eval_num_aug": 0}
BUDGET = {
    "epochs": 640,  # 80 steps: rows halt together at multiples of 16
    "eval_interval": 640,
    "H_cycles": 1,
    "max_train_groups": 4,
    "max_eval_groups": 1,
    "lr": 3e-3,
    "lr_warmup_steps": 0,
    "checkpoint_interval": 20,
}


def easy_puzzles(folder: Path) -> Path:
    """Puzzles whose every output is one cell of one colour: learnt within a few steps."""
    folder.mkdir()
    for subset, count in (("training", 8), ("evaluation", 1)):
        challenges, solutions = {}, {}
        for number in range(count):
            pairs = [{"input": [[number, n], [n, 1]], "output": [[1]]} for n in range(3)]
            name = f"{subset[:2]}{number:03d}"
            challenges[name] = {"train": pairs[:2], "test": [{"input": pairs[2]["input"]}]}
            solutions[name] = [pairs[2]["output"]]
        (folder / f"arc-agi_{subset}_challenges.json").write_text(json.dumps(challenges))
        (folder / f"arc-agi_{subset}_solutions.json").write_text(json.dumps(solutions))
    return folder


def begin(folder: Path, *words: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-m", "etrm_tune.run", *words],
        cwd=folder,
        env=os.environ | {"PYTHONPATH": str(ROOT), "NO_COLOR": "1", "OMP_NUM_THREADS": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


@pytest.mark.timeout(1500)
def test_auto_walks_real_trials_and_continues_after_a_kill(tmp_path: Path) -> None:
    settings = [f"--set={name}={value}" for name, value in (SIZES | BUDGET).items()]
    data = str(easy_puzzles(tmp_path / "puzzles"))
    words = ["auto", "--profile", "laptop", "--data", data, *settings]
    first = begin(tmp_path, *words)
    folder = RunFolder(tmp_path / "runs" / "phase1")
    try:
        deadline = time.monotonic() + 600
        while not folder.rows("overfit-E1a-s0") and first.poll() is None:
            assert time.monotonic() < deadline, "no arm has begun"
            time.sleep(0.5)
    finally:
        first.kill()
        output, _ = first.communicate()
    assert first.returncode < 0, f"ended before it was killed: {output}"
    second = begin(tmp_path, *words)
    output, _ = second.communicate(timeout=1400)
    assert second.returncode == 0, output
    way = json.loads((tmp_path / "runs" / "auto.json").read_text())
    assert [stage["folder"] for stage in way["stages"]] == ["phase1", "phase2", "phase3"], output
    assert way["stages"][2]["default"] and "Not decided, the default is taken" in output
    assert "the way taken" in output and "Traceback" not in output

    phase1, phase3 = (RunFolder(tmp_path / "runs" / name) for name in ("phase1", "phase3"))
    plan: dict[str, Any] = phase1.read_plan() or {}
    assert len(plan["sessions"]) == 2
    assert plan["estimate"]["wall_s"] > 0
    assert "estimated" in output and "took" in output
    assert folder.read_status("decoder-trm-s0")["attempt"] >= 1
    for trial_id in ("decoder-trm-s0", "overfit-E1a-s0", "overfit-E2a-s0", "overfit-E1b-s0"):
        assert phase3.read_status(trial_id)["taken_from"]
    run = analysis.load(phase3.path)
    assert set(run.trials["status"]) == {"finished"}
    assert run.trials["trial_id"].is_unique
    again = begin(tmp_path, "auto")
    output, _ = again.communicate(timeout=300)
    assert again.returncode == 0 and "phase3 is done" in output and "Dashboard" not in output
