"""Determinism of the training loop, and that a resumed trial repeats an undisturbed one."""

from __future__ import annotations

import json
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
    comparable_rows,
    puzzle_folder,
    rows_of,
    same_state,
    tiny,
)
from trainable import checkpoint
from trainable import trial as trial_module
from trainable.config import TrialConfig
from trainable.errors import CheckpointError, ConfigError, StorageError
from trainable.loop import TrainResult, train


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


def test_an_orphan_leaves_no_checkpoint_behind_a_later_attempt(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An orphan saves between two of its rows, when the next attempt has chosen its checkpoint.

    With the orphan's checkpoint a third attempt would go on without the rows between the two.
    """
    config = tiny(folder, steps=12, log_interval=2, checkpoint_interval=3, max_eval_groups=0)
    run(config, tmp_path / "whole")
    out = tmp_path / "parts"
    original = trial_module.Trial.train_step

    class Killed(BaseException):
        pass

    def dies(trial: Any) -> None:
        if trial.step == 7:
            raise Killed
        original(trial)

    def taken_over(trial: Any) -> None:
        """At step 8 of the orphan the next attempt runs from step 6 to its own end at step 7."""
        if trial.step == 8:
            monkeypatch.setattr(trial_module.Trial, "train_step", dies)
            with pytest.raises(Killed):
                run(config, out, resume_from="auto")
            monkeypatch.setattr(trial_module.Trial, "train_step", original)
        original(trial)

    monkeypatch.setattr(trial_module.Trial, "train_step", taken_over)
    result = run(config, out)
    assert (result.status, result.step) == ("superseded", 9)
    assert not (out / "result.json").exists()
    assert [step for step, _ in checkpoint.list_steps(out / "checkpoints")] == [3, 6]
    run(config, out, resume_from="auto")
    assert comparable_rows(out) == comparable_rows(tmp_path / "whole")
    same_state(final_state(out), final_state(tmp_path / "whole"))


def test_a_full_disk_is_one_line_and_leaves_whole_lines(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Linux's own full device stands in the place of the file that is written."""
    config = tiny(folder, steps=4, checkpoint_interval=2, max_eval_groups=0)
    run(config, tmp_path / "whole")
    out = tmp_path / "parts"
    original = torch.save

    def full(state: Any, file: Any) -> None:
        device = os.open("/dev/full", os.O_WRONLY)
        os.dup2(device, file.fileno())
        os.close(device)
        original(state, file)

    monkeypatch.setattr(torch, "save", full)
    with pytest.raises(StorageError, match=r"disk full while writing .*step-2\.pt") as caught:
        run(config, out, resume_from="auto")
    monkeypatch.undo()
    assert "\n" not in str(caught.value)
    assert [row["step"] for row in rows_of(out)] == [1, 2], "what was written stays readable"
    assert list((out / "checkpoints").iterdir()) == []

    (out / "attempt-2.jsonl").symlink_to("/dev/full")
    with pytest.raises(StorageError, match=r"disk full while writing .*attempt-2\.jsonl"):
        run(config, out, resume_from="auto", attempt=2)
    (out / "attempt-2.jsonl").unlink()
    run(config, out, resume_from="auto")
    assert comparable_rows(out) == comparable_rows(tmp_path / "whole")


def test_a_line_that_does_not_fit_leaves_no_half(tmp_path: Path) -> None:
    """The limit on a file's size cuts a write short: the piece is taken back."""
    code = (
        "import resource, signal, sys; from pathlib import Path\n"
        "from trainable.records import Recorder; from trainable.errors import StorageError\n"
        "signal.signal(signal.SIGXFSZ, signal.SIG_IGN)\n"
        "recorder = Recorder(Path(sys.argv[1]), attempt=None, writes=True)\n"
        "recorder.start(resumed_from=0)\n"
        "recorder.row({'step': 1, 'train/loss': 1.0})\n"
        "size = recorder.path.stat().st_size\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (size + 9, size + 9))\n"
        "try:\n"
        "    recorder.row({'step': 2, 'train/loss': 2.0})\n"
        "except StorageError as error:\n"
        "    print(error)\n"
        "recorder.close()\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, tmp_path], capture_output=True, text=True, check=True
    )
    assert "disk full while writing" in done.stdout and done.stdout.count("\n") == 1
    text = (tmp_path / "attempt-1.jsonl").read_text()
    assert text.endswith("\n") and [json.loads(line)["kind"] for line in text.splitlines()] == [
        "start",
        "row",
    ]


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


def test_a_pause_changes_nothing(folder: Path, tmp_path: Path) -> None:
    config = tiny(folder, steps=6, encoder_type="standard")
    run(config, tmp_path / "whole")
    paused = run(config, tmp_path / "paused", until=3)
    assert (paused.status, paused.step) == ("paused", 3)
    assert not (tmp_path / "paused" / "result.json").exists()
    assert run(config, tmp_path / "paused", until=3, resume_from="auto").status == "paused"
    ended = run(config, tmp_path / "paused", until=6, resume_from="auto")
    assert ended.status == "finished"
    assert comparable_rows(tmp_path / "paused") == comparable_rows(tmp_path / "whole")
    same_state(final_state(tmp_path / "paused"), final_state(tmp_path / "whole"))


def test_rates_follow_their_factors(folder: Path, tmp_path: Path) -> None:
    config = tiny(folder, steps=6, lr_warmup_steps=0, lr_factors=((2, 0.5), (4, 2.0)))
    run(config, tmp_path / "a")
    rates = [row["train/lr"] for row in rows_of(tmp_path / "a")]
    assert rates == pytest.approx([config.lr * f for f in (1, 1, 0.5, 0.5, 2, 2)])
