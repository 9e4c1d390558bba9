"""Phase 1 as a user runs it, at a size of seconds: the real loop, real puzzles, real Ray."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

import analysis
import search_spaces
from trainable.loop import train

SMALL = {"hidden_size": 32, "num_heads": 2, "puzzle_emb_ndim": 32, "halt_max_steps": 4}
BUDGET = {"epochs": 6, "max_train_groups": 12, "max_eval_groups": 2, "eval_num_aug": 1}


def command(folder: Path, *words: str) -> subprocess.CompletedProcess[str]:
    """Run ``python -m etrm_tune.run`` in `folder`, as from a terminal without colours."""
    return subprocess.run(
        [sys.executable, "-m", "etrm_tune.run", *words],
        cwd=folder,
        env=os.environ | {"PYTHONPATH": str(Path(__file__).parents[1]), "NO_COLOR": "1"},
        capture_output=True,
        text=True,
        timeout=500,
        check=False,
    )


@pytest.fixture(scope="module")
def decoder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A TRM trained for a moment on puzzles that no arm sees."""
    arm = search_spaces.resolve("overfit/E1a", profile="laptop", overrides=SMALL | BUDGET)
    recipe = search_spaces.resolve_decoder(arm, overrides={"epochs": 0.5, "max_train_groups": 12})
    folder = tmp_path_factory.mktemp("decoder")
    result = train(recipe.config, out_dir=folder, progress=False)
    assert result.final_checkpoint is not None
    return folder / result.final_checkpoint


@pytest.mark.slow
@pytest.mark.ray
def test_phase1_ends_with_matrix_decisions_and_next_command(tmp_path: Path, decoder: Path) -> None:
    settings = [f"--set={name}={value}" for name, value in (BUDGET | {"halt_max_steps": 4}).items()]
    words = ["phase1", "--profile", "laptop", "--scheduler", "none", "--decoder", str(decoder)]
    words += ["--short-trials", "off"]
    done = command(tmp_path, *words, *settings)
    assert done.returncode == 0, done.stdout + done.stderr
    for text in ("E1a", "E2a", "E2b", "E2c", "observed, n = 1", "Dashboard: http://127.0.0.1"):
        assert text in done.stdout, done.stdout
    assert "Traceback" not in done.stdout + done.stderr

    folder = tmp_path / "runs" / "phase1"
    run = analysis.load(folder)
    assert set(run.trials["status"]) == {"finished"}
    assert list(run.trials["experiment"]) == [
        "overfit/E1a",
        "overfit/E2a",
        "overfit/E2b",
        "overfit/E2c",
    ]
    assert run.trials["control/zeroed_accuracy"].notna().all()
    assert run.trials["baseline/copy_accuracy"].nunique() == 1
    assert (run.curves.groupby("trial_id")["step"].diff().dropna() > 0).all()
    assert len(json.loads((folder / "decisions.json").read_text())) > 0
    assert "E2b" in (folder / "comparison.md").read_text()
    for trial in (folder / "trials").iterdir():
        assert any((trial / "tb").iterdir()), f"no TensorBoard events in {trial.name}"

    again = command(tmp_path, "phase1")
    assert again.returncode == 0
    assert "All 4 trials are done" in again.stdout
    assert "Dashboard" not in again.stdout, "nothing was left to run, Ray need not start"
    other = command(tmp_path, "phase1", "--seeds", "2")
    assert other.returncode == 2
    assert other.stderr.count("\n") == 1 and "--name" in other.stderr


@pytest.mark.slow
@pytest.mark.ray
@pytest.mark.parametrize(("lr", "status"), [("0", "stopped"), ("2e37", "diverged")])
def test_a_run_that_cannot_learn_says_why(tmp_path: Path, lr: str, status: str) -> None:
    budget = BUDGET | {"epochs": 24, "halt_max_steps": 4, "lr": lr, "lr_warmup_steps": 0}
    settings = [f"--set={name}={value}" for name, value in budget.items()]
    rule = "bar" if status == "stopped" else "none"  # NaN would fail the bar first
    words = ["overfit/E4a", "--profile", "laptop", "--scheduler", rule]
    done = command(tmp_path, *words, *settings)
    assert done.returncode == 0, done.stdout + done.stderr
    (trial,) = analysis.load(tmp_path / "runs" / "overfit-E4a").trials.to_dict("records")
    assert trial["status"] == status, trial["reason"]
    if status == "stopped":
        assert trial["reason"].startswith("bar: train/accuracy")
        assert "< 20 %" in trial["reason"]
        assert trial["epoch"] < 24
    else:
        assert "not finite" in trial["reason"]
    assert trial["reason"] in done.stdout
