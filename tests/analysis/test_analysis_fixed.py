"""Values at a fixed step, and several runs in one set of tables."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path

import pandas as pd
import pytest
from synthetic_runs import FolderWriter, phase1, rows

import analysis
from analysis import columns

EXAMPLE = Path(__file__).parents[2] / "docs" / "example" / "phase1"


def test_values_at_a_step_a_number_of_samples_and_an_epoch(tmp_path: Path) -> None:
    run = analysis.load(phase1(tmp_path / "run", 1.0, 0.8, 0.4, 0.2).path)
    found = analysis.values_at(run, step=105)
    assert found["step"].tolist() == [100] * 4 and found["reached"].all()
    assert found["train/accuracy"].tolist() == pytest.approx([0.5, 0.4, 0.2, 0.1])
    by_samples = analysis.values_at(run, samples=100 * 32, metrics=["train/accuracy"])
    assert by_samples["train/accuracy"].tolist() == found["train/accuracy"].tolist()
    assert list(by_samples.columns)[-1] == "train/accuracy"
    assert analysis.values_at(run, epoch=250)["step"].tolist() == [100] * 4


def test_a_window_takes_the_mean_of_the_last_part(tmp_path: Path) -> None:
    run = analysis.load(phase1(tmp_path / "run", 1.0, 0.8, 0.4, 0.2).path)
    found = analysis.values_at(run, step=100, window=0.3, metrics=["train/accuracy"])
    assert found["train/accuracy"].iloc[0] == pytest.approx((0.40 + 0.45 + 0.5) / 3)


def test_a_curve_is_not_carried_beyond_its_end(tmp_path: Path) -> None:
    writer = FolderWriter(tmp_path / "run")
    writer.add("overfit/E1a", 0.9)
    writer.add("overfit/E2a", 0.9, status="interrupted", steps=100)
    writer.plan_trial("overfit/E2b")
    found = analysis.values_at(analysis.load(writer.path), step=200).set_index("experiment")
    assert found["reached"].tolist() == [True, False, False]
    assert math.isnan(found.loc["overfit/E2a", "train/accuracy"])
    assert math.isnan(found.loc["overfit/E2b", "step"])


def test_values_not_measured_at_the_place_come_from_before_it(tmp_path: Path) -> None:
    writer = FolderWriter(tmp_path / "run")
    lines = rows(0.5)
    lines[4]["eval/accuracy"] = 0.3
    folder = writer.add("overfit/E1a", 0.5)
    writer.attempt(folder, 1, lines)
    run = analysis.load(writer.path)
    assert analysis.values_at(run, step=70)["eval/accuracy"].tolist() == [0.3]
    assert math.isnan(analysis.values_at(run, step=40)["eval/accuracy"][0])
    assert math.isnan(analysis.values_at(run, step=200, window=0.1)["eval/accuracy"][0])


@pytest.mark.parametrize(
    ("asked", "says"),
    [
        ({}, "give step="),
        ({"step": 1, "epoch": 2}, "one place"),
        ({"step": 1, "window": 1.0}, "give a share"),
        ({"step": 1, "metrics": ["train/acuracy"]}, "did you mean 'train/accuracy'"),
    ],
)
def test_a_bad_question_gets_one_line(tmp_path: Path, asked: dict, says: str) -> None:
    run = analysis.load(phase1(tmp_path / "run", 1.0, 0.8, 0.4, 0.2).path)
    with pytest.raises(analysis.ResultsError, match=says):
        analysis.values_at(run, **asked)


def test_the_curve_of_a_trial_also_where_rows_are_scattered(tmp_path: Path) -> None:
    run = analysis.load(phase1(tmp_path / "run", 1.0, 0.8, 0.4, 0.2).path)
    mixed = replace(run, curves=run.curves.sort_values("step", kind="stable"))
    for trial in run.trials.itertuples():
        mine = run.curves[run.curves["trial_id"] == trial.trial_id]
        pd.testing.assert_frame_equal(run.curve("run", trial.trial_id), mine)
        pd.testing.assert_frame_equal(mixed.curve("run", trial.trial_id), mine)
    assert run.curve("run", "nothing").empty


def test_runs_that_differ_are_said_to(tmp_path: Path) -> None:
    first = phase1(tmp_path / "a", 0.9, 0.9, 0.9, 0.9)
    second = FolderWriter(tmp_path / "b", profile="workstation", revision="2026-01-09")
    second.add("overfit/E1b", 0.5)
    notes = " | ".join(analysis.load([first.path, second.path]).notes)
    assert "different profile" in notes and "a: laptop, b: workstation" in notes
    assert "different revision" in notes
    assert analysis.load([first.path, first.path]).notes == ()


def test_every_column_of_a_real_run_is_documented_and_has_its_dtype() -> None:
    """The run that the notebook reads: four experiments and their decoder, as trained."""
    run = analysis.load(EXAMPLE)
    assert len(run.trials) == 5 and set(run.trials["status"]) == {"finished"}
    assert run.notes == () and len(run.curves) > 300 and len(run.tasks) > 0
    for name in ("trials", "curves", "tasks"):
        table = getattr(run, name)
        for column in table.columns:
            entry = columns.describe(name, column)
            assert entry.name != "*", f"{name}.{column} stands under 'any further field'"
            assert entry.meaning and entry.nan, column
            kind = {"int": "i", "float": "f", "str": "O"}.get(entry.dtype)
            assert kind is None or table[column].dtype.kind == kind, f"{name}.{column}"
            if entry.nan == "never NaN":
                assert table[column].notna().all(), f"{name}.{column}"
