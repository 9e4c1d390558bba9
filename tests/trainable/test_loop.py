"""The training loop: what it writes, how it ends, and that it continues bit for bit."""

from __future__ import annotations

import json
import math
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.trainable.small_trials import (
    comparable,
    puzzle_folder,
    rows_of,
    same_state,
    tiny,
)
from trainable import checkpoint
from trainable import trial as trial_module
from trainable.config import TrialConfig
from trainable.errors import ConfigError
from trainable.loop import TrainResult, train
from trainable.trial import Trial

EVERY_ROW = {
    *("step", "epoch", "samples", "time", "wall_s"),
    *(f"train/all_{name}" for name in ("accuracy", "exact_accuracy", "q_halt_accuracy", "steps")),
    *(f"train/{name}" for name in ("loss", "lm_loss", "q_halt_loss", "lr")),
    *(f"grad/{name}" for name in ("encoder_norm", "decoder_norm", "total_norm", "clip_factor")),
}
WITH_HALTED = {
    *(f"train/{name}" for name in ("accuracy", "exact_accuracy", "q_halt_accuracy", "steps")),
    *(f"train/steps_hist/{k}" for k in (1, 2, 3)),
    "train/q_halt_base_rate",
}
ENCODER = {
    *("train/encoder_lr", "train/encoder_frozen", "train/decoder_frozen"),
    *(f"encoder/output_{name}" for name in ("norm", "mean", "std")),
    *("encoder/cross_sample_var", "encoder/within_group_var", "encoder/token_std"),
    "encoder/similarity",
}
EVALUATION = {
    *(f"eval/{name}" for name in ("accuracy", "exact_accuracy", "loss", "lm_loss")),
    *("eval/q_halt_accuracy", "eval/scheduled", "eval/num_aug"),
    *(f"eval/pass@{k}" for k in (1, 2, 5, 10, 100, 1000)),
}
SCORES = ("accuracy", "exact_accuracy")
CONTROLS = {
    *(f"control/{w}_{s}" for w in ("normal", "zeroed", "shuffled", "other") for s in SCORES),
    *(f"baseline/{b}_{s}" for b in ("copy", "background") for s in SCORES),
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return puzzle_folder(tmp_path_factory.mktemp("puzzles"))


def run(config: TrialConfig, out_dir: Path, **options: Any) -> TrainResult:
    return train(config, out_dir=out_dir, progress=False, **options)


def final_state(out_dir: Path) -> dict[str, Any]:
    found = checkpoint.newest(out_dir / "checkpoints")
    assert found is not None
    found[1].pop("wall_s")
    found[1].pop("last_row")
    return found[1]


# --- what a trial leaves -------------------------------------------------------------------------


def test_a_trial_leaves_every_metric_and_file(folder: Path, tmp_path: Path) -> None:
    config = tiny(
        folder, steps=4, encoder_type="lpn_variational", kl_weight=1e-3, checkpoint_interval=2
    )
    seen: list[dict[str, Any]] = []
    result = run(config, tmp_path, report=lambda row: seen.append(row))
    assert (result.status, result.reason, result.step) == ("finished", None, 4)
    rows = rows_of(tmp_path)
    assert [row["step"] for row in rows] == [1, 2, 3, 4]
    halted = 0
    for row in rows:
        assert row.keys() >= EVERY_ROW | ENCODER | {"train/kl_loss"}
        halted += "train/accuracy" in row
        assert (row.keys() >= WITH_HALTED) == ("train/accuracy" in row)
        assert ("eval/accuracy" in row) == ("control/normal_accuracy" in row) == (row["step"] == 4)
    assert 0 < halted < 4
    last = rows[-1]
    assert last.keys() >= EVALUATION | CONTROLS
    assert last["eval/pass@1000"] is None and last["eval/pass@2"] is not None
    assert last["train/kl_loss"] > 0 and last["grad/encoder_norm"] > 0
    assert [comparable(row) for row in rows[:3]] == [comparable(row) for row in seen[:3]]
    assert math.isnan(seen[-1]["eval/pass@1000"]), "in memory it is NaN"

    lines = [json.loads(line) for line in (tmp_path / "attempt-1.jsonl").read_text().splitlines()]
    start, end = lines[0], lines[-1]
    facts = {"kind": "start", "schema_version": 1, "attempt": 1, "resumed_from": 0, "workers": 1}
    assert start.items() >= facts.items() and start["trial_id"] == tmp_path.name
    assert start["total_steps"] == 4 and start["identity"] and start["versions"]["torch"]
    assert (end["kind"], end["status"], end["reason"]) == ("end", "finished", None)
    text = (tmp_path / "result.json").read_text()
    written = json.loads(text, parse_constant=lambda name: pytest.fail(f"{name} is not JSON"))
    assert written["status"] == "finished" and written["last_row"]["step"] == 4
    assert written["final_checkpoint"] == "checkpoints/step-4.pt"
    assert {task["task"] for task in written["tasks"]} == {"ev000", "ev001"}
    assert written["exposure"]["evaluated"] == ["ev000", "ev001"]
    assert written["parameters"] > written["encoder_parameters"] > 0
    assert any(path.name.startswith("events.") for path in (tmp_path / "tb").iterdir())
    saved = [step for step, _ in checkpoint.list_steps(tmp_path / "checkpoints")]
    assert saved == [2, 4], "bounded by keep_checkpoints"


def test_retention_is_bounded(folder: Path, tmp_path: Path) -> None:
    config = tiny(folder, checkpoint_interval=1, keep_checkpoints=1, max_eval_groups=0)
    run(config, tmp_path)
    assert [path.name for path in (tmp_path / "checkpoints").iterdir()] == ["step-4.pt"]


def test_a_trm_trains_its_table_and_has_no_encoder_columns(folder: Path, tmp_path: Path) -> None:
    config = tiny(folder, kind="trm", puzzle_emb_lr=0.5)
    run(config, tmp_path)
    last = rows_of(tmp_path)[-1]
    assert last.keys() >= EVERY_ROW | EVALUATION and last["grad/encoder_norm"] == 0
    assert not last.keys() & (ENCODER | CONTROLS | {"train/kl_loss"})
    table = final_state(tmp_path)["model"]["inner.puzzle_emb.weights"]
    assert 0 < int((table != 0).any(1).sum()) < len(table)


def test_counts_of_steps_epochs_and_samples(folder: Path, tmp_path: Path) -> None:
    config = tiny(folder, steps=6, log_interval=4, max_eval_groups=0, halt_exploration_prob=0.0)
    run(config, tmp_path)
    rows = rows_of(tmp_path)
    assert [row["step"] for row in rows] == [4, 6], "the last step is always a row"
    # untrained rows run all 3 steps: 4 rows begin at step 1, and 4 at step 4
    assert [row["samples"] for row in rows] == [8, 8]
    assert rows[0]["train/steps_hist/3"] == 1.0 and rows[0]["train/steps"] == 3
    assert rows[0]["epoch"] == pytest.approx(4 * config.epochs / 6.5)


def test_staggered_rows_begin_evenly_spread_for_ever(folder: Path, tmp_path: Path) -> None:
    """Without halting by the Q-head (its bias starts at -5) a row ends after all its ACT steps."""
    config = tiny(
        folder, stagger_starts=True, global_batch_size=6, halt_exploration_prob=0.0, lr=0.0
    )
    trial = Trial(config, tmp_path)
    ended = []
    for _ in range(9):
        trial.train_step()
        (carry,) = trial.carries
        ended.append(carry.halted.nonzero()[:, 0].tolist())
    assert ended == [[0, 1], [2, 3], [4, 5]] * 3
    together = Trial(config.replace(stagger_starts=False), tmp_path / "together")
    counts = []
    for _ in range(6):
        together.train_step()
        counts.append(int(together.carries[0].halted.sum()))
    assert counts == [0, 0, 6] * 2


def test_runs_without_ray(folder: Path, tmp_path: Path) -> None:
    program = (
        "import sys\n"
        "from trainable.loop import train\nfrom trainable.config import TrialConfig\n"
        "config = TrialConfig.model_validate_json(sys.stdin.read())\n"
        "train(config, out_dir=sys.argv[1], progress=False)\n"
        "assert 'ray' not in sys.modules, 'the loop imported Ray'\n"
    )
    subprocess.run(
        [sys.executable, "-c", program, tmp_path],
        input=tiny(folder, steps=1, max_eval_groups=0).model_dump_json(),
        text=True,
        check=True,
    )
    assert (tmp_path / "result.json").exists()


# --- how a trial ends ----------------------------------------------------------------------------


def test_report_stops_a_trial(folder: Path, tmp_path: Path) -> None:
    config = tiny(folder, steps=50)
    result = run(config, tmp_path, report=lambda row: row["step"] == 3)
    assert result.status == "stopped" and result.reason and result.step == 3
    assert result.final_checkpoint == "checkpoints/step-3.pt"
    assert json.loads((tmp_path / "result.json").read_text())["status"] == "stopped"
    last = json.loads((tmp_path / "attempt-1.jsonl").read_text().splitlines()[-1])
    assert last["kind"] == "end" and last["status"] == "stopped"


def test_a_loss_that_is_not_finite_is_diverged(folder: Path, tmp_path: Path) -> None:
    config = tiny(folder, steps=20, lr=1e37, lr_warmup_steps=0, checkpoint_interval=1)
    seen: list[dict[str, Any]] = []
    result = run(config, tmp_path, report=lambda row: seen.append(row))
    assert result.status == "diverged" and result.step < 20
    assert result.reason is not None and f"step {result.step}" in result.reason
    row = rows_of(tmp_path)[-1]
    assert row["step"] == result.step and row["train/loss"] is None
    assert math.isnan(seen[-1]["train/loss"]) and "eval/accuracy" not in row
    assert json.loads((tmp_path / "result.json").read_text())["last_row"]["train/loss"] is None
    saved = checkpoint.list_steps(tmp_path / "checkpoints")
    assert all(step < result.step for step, _ in saved), "broken weights are not kept"


@pytest.mark.parametrize("broken", ["loss", "weights"])
def test_broken_weights_never_reach_a_checkpoint(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, broken: str
) -> None:
    """A checkpoint between two rows is checked by itself; a finite loss is not enough."""
    original = trial_module.Trial.train_step

    def breaks(trial: Any) -> None:
        original(trial)
        if trial.step == 4:
            with torch.no_grad():
                trial.model.inner.lm_head.weight[3, 1] = math.nan
            if broken == "loss":  # the next step's loss and gradients are not finite either
                trial.step -= 1
                original(trial)

    monkeypatch.setattr(trial_module.Trial, "train_step", breaks)
    config = tiny(folder, steps=12, log_interval=5, checkpoint_interval=2, keep_checkpoints=9)
    result = run(config, tmp_path)
    what = "train/loss is" if broken == "loss" else "weights are"
    assert (result.status, result.reason) == ("diverged", f"{what} not finite at step 4")
    assert [step for step, _ in checkpoint.list_steps(tmp_path / "checkpoints")] == [2]
    row = rows_of(tmp_path)[-1]
    assert row["step"] == 4 and (row["train/loss"] is None) == (broken == "loss")

    monkeypatch.undo()
    again = run(config, tmp_path, resume_from="auto")
    assert again.status == "finished" and again.step == 12


def test_a_trial_that_is_stopped_with_broken_weights_is_diverged(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    original = trial_module.Trial.train_step

    def breaks(trial: Any) -> None:
        original(trial)
        if trial.step == 3:
            with torch.no_grad():
                next(trial.model.parameters()).fill_(math.inf)

    monkeypatch.setattr(trial_module.Trial, "train_step", breaks)
    result = run(tiny(folder, steps=9), tmp_path, report=lambda row: row["step"] == 3)
    assert result.status == "diverged" and result.final_checkpoint is None


def test_a_superseded_attempt_quits(folder: Path, tmp_path: Path) -> None:
    def report(row: dict[str, Any]) -> None:
        if row["step"] == 2:
            (tmp_path / "current_attempt").write_text("2")

    result = run(tiny(folder, steps=50), tmp_path, report=report, attempt=1)
    assert result.status == "superseded" and result.step == 2
    assert not (tmp_path / "result.json").exists() and result.final_checkpoint is None
    assert json.loads((tmp_path / "attempt-1.jsonl").read_text().splitlines()[-1])["kind"] == "row"


def test_rate_zero_leaves_every_weight(folder: Path, tmp_path: Path) -> None:
    config = tiny(folder, lr=0.0, checkpoint_interval=1, keep_checkpoints=9, max_eval_groups=0)
    run(config, tmp_path)
    states = [checkpoint.read_own(p) for _, p in checkpoint.list_steps(tmp_path / "checkpoints")]
    assert len(states) == 4
    for state in states[1:]:
        same_state(state["model"], states[0]["model"])
    for name, value in states[0]["ema"].items():
        assert torch.allclose(states[-1]["ema"][name], value, atol=1e-6)


def test_nothing_to_train_is_refused(folder: Path, tmp_path: Path) -> None:
    for options in ({"freeze_encoder": True}, {"encoder_freeze_steps": 2}):
        with pytest.raises(ConfigError, match="nothing to train"):
            run(tiny(folder, freeze_decoder_steps=2, **options), tmp_path)


def test_a_single_puzzle_trains_to_the_end(folder: Path, tmp_path: Path) -> None:
    config = tiny(folder, epochs=4, max_train_groups=1, max_eval_groups=0, num_aug=0)
    result = run(config, tmp_path)
    assert result.status == "finished"
    assert result.last_row["control/normal_accuracy"] is not None
    assert result.last_row["control/other_accuracy"] is None, "there is no other puzzle"
