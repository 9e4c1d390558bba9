"""The training loop: what it writes, how it ends, and that it continues bit for bit."""

from __future__ import annotations

import json
import math
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.trainable.small_trials import (
    comparable,
    comparable_rows,
    puzzle_folder,
    rows_of,
    same_state,
    tiny,
)
from trainable import checkpoint
from trainable import trial as trial_module
from trainable.config import TrialConfig
from trainable.errors import CheckpointError, ConfigError
from trainable.loop import TrainResult, train

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


# --- freezing ------------------------------------------------------------------------------------


def weights_by_step(config: TrialConfig, out_dir: Path) -> list[dict[str, torch.Tensor]]:
    run(config, out_dir)
    return [
        checkpoint.read_own(path)["model"]
        for _, path in checkpoint.list_steps(out_dir / "checkpoints")
    ]


def moved(before: dict[str, torch.Tensor], after: dict[str, torch.Tensor], part: str) -> set[bool]:
    names = [n for n in before if n.startswith(part) and not n.endswith("_init")]
    return {not torch.equal(before[n], after[n]) for n in names}


@pytest.mark.parametrize("scale", [0.0, 0.5])
def test_freezing_is_per_group(folder: Path, tmp_path: Path, scale: float) -> None:
    """With `encoder_lr_scale` 0 the encoder takes the decoder's rate and freezes all the same."""
    options = {"checkpoint_interval": 1, "keep_checkpoints": 9, "max_eval_groups": 0}
    options |= {"encoder_lr_scale": scale, "weight_decay": 0.1, "lr_warmup_steps": 0}

    config = tiny(folder, steps=4, freeze_decoder_steps=2, **options)
    w = weights_by_step(config, tmp_path / "decoder")
    assert moved(w[0], w[1], "inner.") == {False} and moved(w[0], w[1], "encoder.") == {True}
    assert moved(w[1], w[2], "inner.") == {True} == moved(w[1], w[2], "encoder.")
    rows = rows_of(tmp_path / "decoder")
    assert [row["train/decoder_frozen"] for row in rows] == [1, 1, 0, 0]
    assert [row["grad/decoder_norm"] == 0 for row in rows] == [True, True, False, False]
    assert all(row["grad/encoder_norm"] > 0 for row in rows)

    config = tiny(folder, steps=4, encoder_freeze_steps=2, **options)
    w = weights_by_step(config, tmp_path / "encoder")
    assert moved(w[0], w[1], "inner.") == {True} and moved(w[0], w[1], "encoder.") == {False}
    assert moved(w[1], w[2], "inner.") == {True} == moved(w[1], w[2], "encoder.")
    rows = rows_of(tmp_path / "encoder")
    assert [row["train/encoder_frozen"] for row in rows] == [1, 1, 0, 0]
    assert [row["grad/encoder_norm"] == 0 for row in rows] == [True, True, False, False]

    config = tiny(folder, steps=3, freeze_encoder=True, **options)
    w = weights_by_step(config, tmp_path / "never")
    assert moved(w[0], w[2], "encoder.") == {False} and moved(w[0], w[2], "inner.") == {True}
    assert [row["train/encoder_frozen"] for row in rows_of(tmp_path / "never")] == [1, 1, 1]


def test_frozen_gradients_do_not_enter_the_clip_norm(folder: Path, tmp_path: Path) -> None:
    options = {"grad_clip_norm": 1e-3, "max_eval_groups": 0, "steps": 1}
    run(tiny(folder, encoder_freeze_steps=1, **options), tmp_path)
    (row,) = rows_of(tmp_path)
    assert row["grad/total_norm"] == row["grad/decoder_norm"] > 0
    assert row["grad/clip_factor"] == pytest.approx(1e-3 / row["grad/total_norm"], rel=1e-3)


def test_the_encoder_has_its_own_rate(folder: Path, tmp_path: Path) -> None:
    run(tiny(folder, steps=3, encoder_lr_scale=0.25, max_eval_groups=0), tmp_path)
    for row in rows_of(tmp_path):
        assert row["train/encoder_lr"] == pytest.approx(0.25 * row["train/lr"])
    assert [row["train/lr"] for row in rows_of(tmp_path)] == pytest.approx([5e-4, 1e-3, 1e-3])


def test_a_group_that_thaws_is_warmed_up_if_asked(folder: Path, tmp_path: Path) -> None:
    """By default it joins at the full rate, as in the reference (A16)."""
    options = {"max_eval_groups": 0, "lr_warmup_steps": 0, "steps": 8, "encoder_lr_scale": 0.5}
    for warmup, thawed in ((0, [1, 1, 1, 1, 1]), (4, [0.25, 0.5, 0.75, 1, 1])):
        for group, name in (("freeze_decoder_steps", "lr"), ("encoder_freeze_steps", "encoder_lr")):
            out = tmp_path / f"{warmup}-{name}"
            frozen = {group: 3} | ({"unfreeze_warmup_steps": warmup} if warmup else {})
            run(tiny(folder, **frozen, **options), out)
            rows, rates = rows_of(out), {"lr": 1e-3, "encoder_lr": 5e-4}
            base = rates.pop(name)
            assert [row[f"train/{name}"] / base for row in rows[3:]] == pytest.approx(thawed)
            ((other, rate),) = rates.items()
            assert all(row[f"train/{other}"] == pytest.approx(rate) for row in rows)


def test_the_encoder_has_its_own_decay(folder: Path, tmp_path: Path) -> None:
    """Explicit, never a silent tenth (A20): one step with zero gradient shows lr · decay."""
    for given, expected in ((None, 0.2), (0.05, 0.05), (0.0, 0.0)):
        config = tiny(
            folder,
            steps=1,
            lr=0.1,
            lr_warmup_steps=0,
            weight_decay=0.2,
            encoder_weight_decay=given,
            encoder_lr_scale=0.5,
        )
        updater = trial_module.Trial(config, tmp_path).updater
        for params, rate, decay in (
            (updater.decoder_params, 0.1, 0.2),
            (updater.encoder_params, 0.05, expected),
        ):
            before = [p.detach().clone() for p in params]
            for p in params:
                p.grad = torch.zeros_like(p)
            updater.update(1)
            for p, old in zip(params, before, strict=True):
                assert torch.allclose(p, old * (1 - rate * decay), rtol=1e-6, atol=0)


def test_staged_training_freezes_then_joins(folder: Path, tmp_path: Path) -> None:
    """The staged configuration with one rate for both (`encoder_lr_scale` 0; defect A4)."""
    config = tiny(
        folder,
        steps=6,
        freeze_decoder_steps=3,
        encoder_lr_scale=0.0,
        checkpoint_interval=1,
        keep_checkpoints=9,
        max_eval_groups=0,
    )
    w = weights_by_step(config, tmp_path)
    for step in range(1, 6):
        assert moved(w[step - 1], w[step], "encoder.") == {True}
        assert moved(w[step - 1], w[step], "inner.") == {step >= 3}
    rows = rows_of(tmp_path)
    assert all(row["train/lr"] == row["train/encoder_lr"] for row in rows)


# --- determinism and resume ----------------------------------------------------------------------


def test_the_same_seed_gives_the_same_rows(folder: Path, tmp_path: Path) -> None:
    config = tiny(folder, encoder_type="hybrid_variational", kl_weight=1e-3, max_eval_groups=0)
    torch.manual_seed(1)
    run(config, tmp_path / "a")
    torch.manual_seed(2)  # torch's global generator has no part in it
    run(config, tmp_path / "b")
    run(config.replace(seed=1), tmp_path / "c")
    rows = [comparable_rows(tmp_path / name) for name in "abc"]
    assert rows[0] == rows[1]
    assert not set(rows[0]) & set(rows[2])
    same_state(final_state(tmp_path / "a"), final_state(tmp_path / "b"))


def test_evaluating_changes_nothing_else(folder: Path, tmp_path: Path) -> None:
    plain = tiny(folder, steps=6, encoder_type="lpn_variational", kl_weight=1e-3)
    often = plain.replace(eval_interval=plain.epochs / 6)
    none = plain.replace(max_eval_groups=0)
    trained = []
    for name, config in (("plain", plain), ("often", often), ("none", none)):
        run(config, tmp_path / name)
        rows = [json.loads(row) for row in comparable_rows(tmp_path / name)]
        evaluated = sum("eval/accuracy" in row for row in rows)
        assert evaluated == {"plain": 1, "often": 6, "none": 0}[name]
        kept = [{k: v for k, v in row.items() if not k.startswith("eval")} for row in rows]
        trained.append(kept)
    assert trained[0] == trained[2]
    # the group order is drawn anew every eval_interval, as published: the first steps agree
    assert trained[0][0] == trained[1][0]
    same_state(final_state(tmp_path / "plain")["model"], final_state(tmp_path / "none")["model"])


VARIANTS: list[dict[str, Any]] = [
    {},
    {"kind": "trm", "canvas": "full", "steps": 3},
    {"encoder_type": "hybrid_variational", "kl_weight": 1e-3, "ema": False},
    {"freeze_decoder_steps": 3, "no_ACT_continue": False, "grad_clip_norm": 1.0},
]


@pytest.mark.parametrize("options", VARIANTS, ids=str)
def test_a_resumed_trial_repeats_an_undisturbed_one(
    folder: Path, tmp_path: Path, options: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    steps = options.get("steps", 7)
    config = tiny(
        folder,
        **(options | {"steps": steps}),
        log_interval=2,
        checkpoint_interval=1,
        keep_checkpoints=3,
        halt_max_steps=4,
    )
    run(config, tmp_path / "whole")

    # dies at a step that is not a log step, in the middle of an interval
    class Killed(BaseException):
        pass

    original = trial_module.Trial.train_step
    dies = 4 if steps == 7 else 2

    def fails(trial: Any) -> None:
        if trial.step == dies:
            raise Killed
        original(trial)

    monkeypatch.setattr(trial_module.Trial, "train_step", fails)
    with pytest.raises(Killed):
        run(config, tmp_path / "parts", resume_from="auto")
    monkeypatch.undo()
    # the newest is damaged: the one before it, at an odd step, is used
    path = tmp_path / "parts" / "checkpoints" / f"step-{dies}.pt"
    path.write_bytes(path.read_bytes()[:1000])
    result = run(config, tmp_path / "parts", resume_from="auto")
    assert result.status == "finished" and result.step == steps
    start = json.loads((tmp_path / "parts" / "attempt-2.jsonl").read_text().splitlines()[0])
    assert start["resumed_from"] == dies - 1
    assert comparable_rows(tmp_path / "parts") == comparable_rows(tmp_path / "whole")
    same_state(final_state(tmp_path / "parts"), final_state(tmp_path / "whole"))
    times = [row["wall_s"] for row in rows_of(tmp_path / "parts")]
    assert times == sorted(times), "training time goes on over attempts"


def test_resuming_a_finished_trial_changes_nothing(folder: Path, tmp_path: Path) -> None:
    config = tiny(folder, steps=2)
    first = run(config, tmp_path)
    before = comparable_rows(tmp_path)
    second = run(config, tmp_path, resume_from="auto")
    assert comparable_rows(tmp_path) == before
    assert str(second) == str(first) and second.last_row == first.last_row
    stopped = run(tiny(folder, steps=9), tmp_path / "b", report=lambda row: row["step"] == 2)
    assert stopped.status == "stopped"
    assert run(tiny(folder, steps=9), tmp_path / "b", resume_from="auto").step == 9


def test_a_killed_process_is_resumed(folder: Path, tmp_path: Path) -> None:
    config = tiny(folder, steps=12, log_interval=2, checkpoint_interval=5, max_eval_groups=0)
    run(config, tmp_path / "whole")
    program = (
        "import sys, time\n"
        "from trainable.loop import train\nfrom trainable.config import TrialConfig\n"
        "config = TrialConfig.model_validate_json(sys.stdin.read())\n"
        "def report(row):\n"
        "    if row['step'] == 8:\n"
        "        print('here', flush=True)\n"
        "        time.sleep(60)\n"
        "train(config, out_dir=sys.argv[1], progress=False, report=report)\n"
    )
    out = tmp_path / "parts"
    with subprocess.Popen(
        [sys.executable, "-c", program, out],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as process:
        assert process.stdin is not None and process.stdout is not None
        process.stdin.write(config.model_dump_json())
        process.stdin.close()
        assert process.stdout.readline().strip() == "here"
        os.kill(process.pid, signal.SIGKILL)
    assert process.returncode == -signal.SIGKILL and not (out / "result.json").exists()
    assert [row["step"] for row in rows_of(out)] == [2, 4, 6, 8], "everything so far is kept"
    with (out / "attempt-1.jsonl").open("a") as file:
        file.write('{"kind": "row", "step": 1')  # a torn line
    torn = (out / "attempt-1.jsonl").read_text().rsplit("\n", 1)[0] + "\n"
    run(config, out, resume_from="auto")
    (out / "attempt-1.jsonl").write_text(torn)
    assert comparable_rows(out) == comparable_rows(tmp_path / "whole")
    same_state(final_state(out), final_state(tmp_path / "whole"))


def test_a_checkpoint_of_another_trial_is_refused(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = tiny(folder, steps=1, max_eval_groups=0)
    run(config, tmp_path / "a")
    path = tmp_path / "a" / "checkpoints" / "step-1.pt"

    def refused(config: TrialConfig, text: str) -> None:
        with pytest.raises(CheckpointError, match=text) as caught:
            run(config, tmp_path / "b", resume_from=path)
        assert "\n" not in str(caught.value) and "new name" in str(caught.value)

    refused(config.replace(lr=2e-3), "another configuration")
    refused(config.replace(max_train_groups=2), "another configuration or data")
    assert run(config.replace(log_interval=7), tmp_path / "c", resume_from=path).step == 1
    version = checkpoint.SEMANTICS_VERSION
    monkeypatch.setattr(checkpoint, "SEMANTICS_VERSION", 99)
    refused(config, f"semantics version {version}, this is 99")


def test_uneven_workers_are_refused(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(trial_module, "ranks", lambda: (0, 3))
    with pytest.raises(ConfigError, match="global_batch_size 4 does not divide by 3"):
        run(tiny(folder), tmp_path)


def test_arms_start_from_the_same_decoder(folder: Path, tmp_path: Path) -> None:
    states = {}
    for name in ("standard", "hybrid_standard"):
        config = tiny(folder, steps=1, lr=0.0, encoder_type=name, max_eval_groups=0)
        run(config, tmp_path / name)
        states[name] = final_state(tmp_path / name)["model"]
    first, second = states.values()
    for name in first.keys() & second.keys():
        assert torch.equal(first[name], second[name]), name


def test_time_is_training_time(folder: Path, tmp_path: Path) -> None:
    config = tiny(folder, steps=3, max_eval_groups=0)
    result = run(config, tmp_path, report=lambda _: time.sleep(0.2))
    rows = rows_of(tmp_path)
    assert rows[-1]["time"] - rows[0]["time"] > 0.4
    assert rows[-1]["wall_s"] < result.wall_s
