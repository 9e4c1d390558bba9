"""Run folders become tables: merging, damage, versions, every column documented."""

from __future__ import annotations

import json
import math
import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from synthetic_runs import BAR, TOTAL, FolderWriter, phase1, rows

import analysis
from analysis import columns
from analysis import rows as rows_module
from analysis.load import split_trial_id
from analysis.metrics import measure, reached, stability
from search_spaces import rules
from trainable.errors import UserError


def test_a_run_has_one_row_per_trial_in_plan_order(tmp_path: Path) -> None:
    run = analysis.load(phase1(tmp_path / "phase1", 0.93, 0.85, 0.7, 0.95).path)
    assert run.plan["target"] == "phase1"
    assert run.trials["trial_id"].tolist() == [
        f"overfit-{e}-s0" for e in ("E1a", "E2a", "E2b", "E2c")
    ]
    first = run.trials.iloc[0]
    assert first["status"] == "finished"
    assert first["accuracy"] == pytest.approx(0.93)
    assert first["exact"] == pytest.approx(0.465)
    assert first["step"] == first["total_steps"] == TOTAL
    assert first["wall_s"] == pytest.approx(160)
    assert first["control/normal_accuracy"] == 0.95
    assert first["eval/pass@1"] == 0.0
    assert first["num_aug"] == 0 and first["eval_num_aug"] == 8
    assert run.trials["encoder_type"].tolist()[1] == "hybrid_variational"
    assert len(run.curves) == 4 * 40
    assert run.notes == ()


def test_final_values_are_means_of_the_last_tenth_of_the_steps(tmp_path: Path) -> None:
    writer = FolderWriter(tmp_path / "run")
    folder = writer.add("overfit/E1a", 0.5)
    lines = rows(0.5)
    for row in lines:
        row["train/accuracy"] = 1.0 if row["step"] > 360 else 0.0
    lines[-1]["train/accuracy"] = None  # measured, and not a number
    writer.attempt(folder, 1, lines, end="finished")
    trial = analysis.load(writer.path).trials.iloc[0]
    assert trial["accuracy"] == 1.0  # rows 370, 380, 390; 360 lies outside
    assert trial["best_accuracy"] == 1.0


def test_a_level_is_reached_when_three_rows_hold_it() -> None:
    values = [0.5, 0.9, 0.5, np.nan, 0.9, 0.91, np.nan, 0.95, 0.4]
    curve = pd.DataFrame({"step": range(10, 100, 10), "train/accuracy": values})
    assert reached(curve, 0.9) == 4
    assert reached(curve, 0.92) is None
    assert reached(curve.head(6), 0.9) is None
    assert reached(curve.head(0), 0.9) is None


def test_windows_of_one_row_and_of_all_rows() -> None:
    curve = pd.DataFrame({"step": [10, 20, 30], "train/loss": [3.0, 1.0, 2.0]})
    last = rules.Measure("train/loss", 0, "last", "")
    assert measure(curve, last) == 2.0
    assert measure(curve, rules.Measure("train/loss", 1, "best", "")) == 3.0
    assert measure(curve, rules.Measure("train/loss", 1, "mean", "")) == 2.0
    assert math.isnan(measure(curve, rules.Measure("absent", 1, "mean", "")))


def test_stability_is_zero_for_a_steady_fall_and_not_for_noise() -> None:
    steps = np.arange(10, 310, 10)
    steady = pd.DataFrame({"step": steps, "train/loss": 3.0 - steps / 100})
    noisy = steady.assign(**{"train/loss": 3.0 + (-1.0) ** np.arange(30)})
    assert stability(steady) == pytest.approx(0, abs=1e-9)
    assert stability(noisy) == pytest.approx(2.0, rel=0.05)


def test_steps_and_samples_to_a_level(tmp_path: Path) -> None:
    run = analysis.load(phase1(tmp_path / "run", 1.0, 0.85, 0.5, 0.5).path)
    first, second = run.trials.iloc[0], run.trials.iloc[1]
    assert first["steps_to_90"] == 180 and first["samples_to_90"] == 180 * 32
    assert second["steps_to_80"] == 190 and math.isnan(second["steps_to_90"])


def test_attempts_are_merged_and_undone_rows_dropped(tmp_path: Path) -> None:
    writer = FolderWriter(tmp_path / "run")
    folder = writer.add("overfit/E1a", 0.5, status="running", steps=120)
    later = [row | {"train/accuracy": 0.77} for row in rows(0.5) if 100 < row["step"] <= 150]
    writer.attempt(folder, 2, later, resumed_from=100)
    last = [row | {"train/accuracy": 0.88} for row in rows(0.5) if 130 < row["step"] <= 160]
    writer.attempt(folder, 10, last, resumed_from=130)
    curve = analysis.load(writer.path).curves
    assert curve["step"].tolist() == list(range(10, 170, 10))
    attempts = dict(zip(curve["step"], curve["attempt"], strict=True))
    assert attempts[100] == 1 and attempts[110] == 2 and attempts[130] == 2 and attempts[140] == 10


def test_a_retry_from_nothing_drops_everything_before(tmp_path: Path) -> None:
    writer = FolderWriter(tmp_path / "run")
    folder = writer.add("overfit/E1a", 0.5, status="running")
    writer.attempt(folder, 2, rows(0.9, steps=50), resumed_from=0)
    curve = analysis.load(writer.path).curves
    assert curve["step"].max() == 50 and set(curve["attempt"]) == {2}


def test_a_torn_last_line_is_ignored_and_other_damage_noted(tmp_path: Path) -> None:
    writer = phase1(tmp_path / "run", 0.9, 0.9, 0.9, 0.9)
    torn = writer.folder("overfit/E1a") / "attempt-1.jsonl"
    torn.write_bytes(torn.read_bytes() + b'{"kind": "row", "step": 9999, "train/acc\xff')
    assert analysis.load(writer.path).notes == ()
    lines = torn.read_text(errors="replace").split("\n")
    lines[3] = "\x00\x00\x00"
    torn.write_text("\n".join(lines))
    run = analysis.load(writer.path)
    assert len(run.notes) == 1 and "line 4" in run.notes[0]
    assert run.trials.iloc[0]["rows"] == 39


def test_two_rows_at_one_step_become_one(tmp_path: Path) -> None:
    writer = FolderWriter(tmp_path / "run")
    folder = writer.add("overfit/E1a", 0.5)
    lines = [*rows(0.5), {"kind": "row", "step": TOTAL, "control/zeroed_accuracy": 0.3}]
    writer.attempt(folder, 1, lines, end="finished")
    trial = analysis.load(writer.path).trials.iloc[0]
    assert trial["rows"] == 40
    assert trial["control/zeroed_accuracy"] == 0.3 and trial["accuracy"] == pytest.approx(0.5)


def test_status_comes_from_the_conductor_or_the_last_attempts_end(tmp_path: Path) -> None:
    writer = FolderWriter(tmp_path / "run")
    writer.add("overfit/E1a", 0.1, status="stopped", reason=BAR, steps=200)
    killed = writer.add("overfit/E2a", 0.9, status="running")
    writer.attempt(killed, 1, rows(0.9), end="finished")  # the loop ended, the conductor had died
    again = writer.add("overfit/E2b", 0.9, status="running")
    writer.attempt(again, 1, rows(0.9, steps=50), end="interrupted")
    (again / "status.json").write_text(json.dumps({"status": "running", "attempt": 2}))
    writer.add("overfit/E2c", 0.9, status=None)
    writer.plan_trial("overfit/E1b")
    trials = analysis.load(writer.path).trials.set_index("experiment")
    assert trials["status"].tolist() == ["stopped", "finished", "running", "interrupted", "pending"]
    assert trials.loc["overfit/E1a", "reason"] == BAR
    assert pd.isna(trials.loc["overfit/E2a", "reason"])
    assert trials.loc["overfit/E1b", "role"] == "arm"


def test_a_superseded_attempt_does_not_end_a_trial(tmp_path: Path) -> None:
    writer = FolderWriter(tmp_path / "run")
    folder = writer.add("overfit/E1a", 0.9, status="running")
    writer.attempt(folder, 1, rows(0.9, steps=100), end="superseded")
    assert analysis.load(writer.path).trials.iloc[0]["status"] == "running"


def test_every_column_is_documented_and_has_its_dtype(tmp_path: Path) -> None:
    writer = phase1(tmp_path / "run", 0.9, 0.9, 0.9, 0.9)
    writer.add(
        "decoder/trm",
        0.8,
        role="decoder",
        result={"parameters": 123456, "peak_gb": 1.5, "tasks": [{"task": "00d62c1b", "rank": 3}]},
    )
    empty = FolderWriter(tmp_path / "empty")
    for run in (analysis.load(writer.path), analysis.load(empty.path)):
        for name in ("trials", "curves", "tasks"):
            table = getattr(run, name)
            assert [c.name for c in columns.fixed(name)] == list(table.columns)[
                : len(columns.fixed(name))
            ]
            for column in table.columns:
                entry = columns.describe(name, column)
                assert entry.nan and entry.meaning
                kind = table[column].dtype.kind
                if entry.dtype == "int":
                    assert kind == "i", column
                elif entry.dtype == "float":
                    assert kind == "f", column
                elif entry.dtype == "str":
                    assert isinstance(table[column].dtype, pd.StringDtype), column
    run = analysis.load(writer.path)
    assert run.trials.iloc[-1]["parameters"] == 123456
    assert run.trials.iloc[-1]["result/peak_gb"] == 1.5
    assert run.tasks.iloc[0][["task", "rank"]].tolist() == ["00d62c1b", 3]
    with pytest.raises(KeyError):
        columns.describe("trials", "made_up")


def test_scheduler_decisions_are_read(tmp_path: Path) -> None:
    writer = phase1(tmp_path / "run", 0.9, 0.9, 0.9, 0.9)
    line = json.dumps({"rung": 500, "stop": False, "reason": "bar: fine"})
    (writer.folder("overfit/E2a") / "scheduler.jsonl").write_text(line + "\n" + line[:9])
    rungs = analysis.load(writer.path).rungs
    assert rungs[["trial_id", "rung"]].values.tolist() == [["overfit-E2a-s0", 500]]


def test_several_folders_and_a_trial_that_lies_in_two(tmp_path: Path) -> None:
    first = phase1(tmp_path / "a" / "phase1", 0.9, 0.9, 0.9, 0.9)
    second = FolderWriter(tmp_path / "b" / "phase1")
    second.add("overfit/E1a", 0.5, status="interrupted", steps=100)
    second.add("overfit/E1b", 0.5)
    run = analysis.load([first.path, second.path])
    assert len(run.trials) == 5 and len(run.plans) == 2
    control = run.trials[run.trials["experiment"] == "overfit/E1a"]
    assert control["status"].tolist() == ["finished"]
    assert len(run.curves[run.curves["experiment"] == "overfit/E1a"]) == 40
    assert any("overfit-E1a-s0" in note for note in run.notes)


@pytest.mark.parametrize(
    ("make", "says"),
    [
        (lambda path: None, "there is no run folder .*did you mean 'phase1'"),
        (lambda path: path.mkdir(), "not a run folder"),
        (lambda path: FolderWriter(path / "inner"), "give one of inner"),
        (lambda path: path.write_text("x"), "there is no run folder"),
        (
            lambda path: (path.mkdir(), (path / "plan.json").write_text("{")),
            "plan.json is damaged: restore it",
        ),
        (lambda path: FolderWriter(path, schema_version=99), "schema version 99.*install"),
        (lambda path: FolderWriter(path, schema_version=0), "schema version 0.*never released"),
    ],
)
def test_bad_folders_get_one_line_with_the_fix(tmp_path: Path, make, says) -> None:
    (tmp_path / "phase1").mkdir()
    make(tmp_path / "phase2")
    with pytest.raises(UserError, match=says) as caught:
        analysis.load(tmp_path / "phase2")
    assert "\n" not in str(caught.value)


def test_no_folder_at_all_is_refused() -> None:
    with pytest.raises(UserError, match="no run folder given"):
        analysis.load([])


def test_older_versions_go_through_their_readers(tmp_path: Path, monkeypatch) -> None:
    writer = FolderWriter(tmp_path / "run", schema_version=0, goal="phase1")
    monkeypatch.setitem(rows_module.UPGRADES, 0, lambda old: old | {"target": old["goal"]})
    assert analysis.load(writer.path).plan["target"] == "phase1"


def test_damaged_trial_files_leave_the_rest_readable(tmp_path: Path) -> None:
    writer = phase1(tmp_path / "run", 0.9, 0.91, 0.9, 0.9)
    (writer.folder("overfit/E2a") / "config.json").write_text("{")
    (writer.folder("overfit/E2a") / "status.json").write_text("")
    run = analysis.load(writer.path)
    trial = run.trials.set_index("experiment").loc["overfit/E2a"]
    assert trial["status"] == "finished" and trial["accuracy"] == pytest.approx(0.91)
    assert any("config.json" in note for note in run.notes)


@pytest.mark.parametrize(
    ("trial", "expected"),
    [
        ("overfit-E5a_low-s12", ("overfit/E5a_low", 12)),
        ("decoder-trm-s0", ("decoder/trm", 0)),
        ("something", ("something", 0)),
    ],
)
def test_names_of_trials(trial: str, expected: tuple[str, int]) -> None:
    assert split_trial_id(trial) == expected


def test_analysis_imports_neither_torch_nor_ray() -> None:
    code = "import sys, analysis; sys.exit(bool({'torch', 'ray'} & set(sys.modules)))"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
