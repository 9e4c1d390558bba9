"""The comparison matrix, the summary and the derived files."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pandas as pd
import pytest
from synthetic_runs import BAR, FolderWriter, phase1

import analysis
from analysis import compare
from analysis.derived import FILES
from analysis.text import WIDTH, summary_text
from trainable.errors import UserError


def mixed(path: Path) -> FolderWriter:
    """Every status, the best experiment in the middle, and a decoder."""
    writer = FolderWriter(path)
    writer.add("decoder/trm", 0.88, role="decoder", options={"num_aug": 4})
    writer.add("overfit/E1b", 0.15, status="stopped", reason=BAR, steps=200)
    writer.add("overfit/E2a", 0.91, status="diverged", reason="loss is not finite at step 210")
    writer.add("overfit/E1a", 0.91, result={"parameters": 400_000})
    writer.add("overfit/E2b", 0.85, status="failed", reason="OutOfMemory | details")
    writer.add("overfit/E2c", 0.95, **{"eval/pass@1": 0.0625})
    writer.plan_trial("overfit/E1c")
    return writer


def test_the_matrix_is_ranked_with_unanswered_and_stopped_last(tmp_path: Path) -> None:
    matrix = analysis.comparison_matrix(analysis.load(mixed(tmp_path / "run").path))
    assert tuple(matrix.columns) == compare.COLUMNS
    ids = [name.partition("/")[2] for name in matrix["experiment"]]
    assert ids == ["E2c", "E1a", "E1c", "E1b", "E2b", "E2a"]
    assert matrix["n"].tolist() == [1, 1, 0, 1, 0, 0]
    rows = matrix.set_index("experiment")
    best = rows.loc["overfit/E2c"]
    assert best["accuracy"] == pytest.approx(0.95) and best["exact"] == pytest.approx(0.475)
    assert best["pass@1"] == 0.0625 and best["eval_num_aug"] == 8 and best["num_aug"] == 0
    assert best["control_zeroed"] == 0.70 and best["control_other_exact"] == 0.01
    assert best["baseline"] == 0.65 and best["steps_to_90"] == 190
    assert rows.loc["overfit/E1a", "parameters"] == 400_000
    assert "whole grids above 50 %" in best["notes"]
    assert math.isnan(rows.loc["overfit/E2a", "accuracy"])
    assert "diverged at step 400 (loss is not finite" in rows.loc["overfit/E2a", "notes"]
    assert "values so far" in rows.loc["overfit/E2b", "notes"]
    assert BAR in rows.loc["overfit/E1b", "notes"]
    assert rows.loc["overfit/E1c", "notes"] == "pending at step 0"


def test_targets(tmp_path: Path) -> None:
    writer = FolderWriter(tmp_path / "run")
    writer.add("overfit/E1a", 1.0, **{"train/exact_accuracy": 1.0})
    writer.add("overfit/E3a", 0.9, options={"halt_max_steps": 5})
    notes = analysis.comparison_matrix(analysis.load(writer.path)).set_index("experiment")["notes"]
    assert notes["overfit/E1a"] == "all targets met"
    assert "mean ACT steps below the maximum" in notes["overfit/E3a"]
    assert "token accuracy above 90 %" in notes["overfit/E3a"]


def test_seeds_are_averaged_over_those_that_count(tmp_path: Path) -> None:
    writer = FolderWriter(tmp_path / "run")
    writer.add("overfit/E1a", 0.95, seed=0)
    writer.add("overfit/E1a", 0.85, seed=1)
    writer.add("overfit/E1a", 0.10, seed=2, status="diverged")
    row = analysis.comparison_matrix(analysis.load(writer.path)).iloc[0]
    assert row["accuracy"] == pytest.approx(0.90)
    assert (row["n"], row["seeds"]) == (2, 3)
    assert row["status"] == "2 finished, 1 diverged" and "seed 2 diverged" in row["notes"]
    assert math.isnan(row["steps_to_90"])  # seed 1 never reached it


def test_the_summary_says_what_limits_the_numbers(tmp_path: Path) -> None:
    text = summary_text(analysis.load(mixed(tmp_path / "run").path))
    flat = " ".join(text.split())
    assert max(map(len, text.splitlines())) <= WIDTH
    for said in (
        "laptop profile: scaled, not the published sizes",
        "revision 2026-01-21",
        "num_aug 0 in training",
        "eval_num_aug 8",
        "trained here on puzzles disjoint from the arms'",
        "decoder-trm-s0 finished at step 400, train accuracy 88.0 %",
        compare.INCLUSION,
        "E1a: standard encoder validated [observed, n = 1]",
        "E2a: not decided",
        "E2a diverged at step 400",
        "python -m etrm_tune.run phase2 --profile laptop",
        "held-out pass@1 6.2 % of 32 puzzles, eval_num_aug 8: does generalise",
    ):
        assert said in flat, said
    assert "decoder/trm" not in text.split("Comparison")[1]


def test_long_names_and_many_seeds_fit(tmp_path: Path) -> None:
    writer = FolderWriter(tmp_path / "run")
    for seed, status in enumerate(["finished", "finished", "diverged", "failed"]):
        writer.add("overfit/E5a_baseline", 1.0, seed=seed, status=status, reason="x" * 300)
    perfect = {
        f"{family}_{metric}": 1.0
        for family in ("control/normal", "control/zeroed", "control/shuffled", "control/other",
                       "baseline/copy")
        for metric in ("accuracy", "exact_accuracy")
    }  # fmt: skip
    writer.add("overfit/E1a", 1.0, **perfect, **{"eval/pass@1": 1.0, "eval/accuracy": 1.0})
    text = summary_text(analysis.load(writer.path))
    assert max(map(len, text.splitlines())) <= WIDTH
    assert "100.0/100.0 %" in text


def test_the_paper_profile_is_not_called_scaled(tmp_path: Path) -> None:
    writer = FolderWriter(tmp_path / "run", profile="paper", options={"decoder": "trm.pt"})
    writer.add("overfit/E1a", 0.95, options={"profile": "paper"})
    text = " ".join(summary_text(analysis.load(writer.path)).split())
    assert "scaled" not in text and "given checkpoint trm.pt" in text
    assert "conditional on one decoder" in text


def test_a_run_without_a_decoder_says_so(tmp_path: Path) -> None:
    writer = FolderWriter(tmp_path / "run")
    writer.add("overfit/E4b", 0.95)
    text = summary_text(analysis.load(writer.path))
    assert "decoder: none, the arms train from scratch" in text
    assert "no decision point applies" in text


def test_a_plan_without_any_folder_has_a_summary(tmp_path: Path) -> None:
    writer = FolderWriter(tmp_path / "run")
    assert "No experiment" in summary_text(analysis.load(writer.path))
    writer.plan_trial("overfit/E1a")
    assert "E1a has not started" in summary_text(analysis.load(writer.path))


def test_derived_files(tmp_path: Path) -> None:
    path = mixed(tmp_path / "run").path
    run = analysis.write_derived(path)
    assert {p.name for p in path.iterdir() if p.is_file()} == {"plan.json", *FILES}
    for name in ("trials", "curves", "tasks"):
        read = pd.read_parquet(path / f"{name}.parquet")
        table = getattr(run, name)
        assert read.shape == table.shape
    curves = pd.read_parquet(path / "curves.parquet")
    assert curves["train/accuracy"].equals(run.curves["train/accuracy"])
    matrix = pd.read_csv(path / "comparison.csv")
    assert matrix["experiment"].tolist()[0] == "overfit/E2c"
    decisions = json.loads((path / "decisions.json").read_text())
    assert decisions["schema_version"] == 1
    assert [d["name"] for d in decisions["decisions"]][:2] == ["E1a", "E2a"]
    assert decisions["next"]["command"].startswith("python -m etrm_tune.run phase2")
    assert (path / "summary.txt").read_text() == summary_text(run)
    markdown = (path / "comparison.md").read_text()
    assert "scaled, not the published sizes" in markdown and "OutOfMemory / details" in markdown
    widths = {line.count("|") for line in markdown.splitlines() if line.startswith("| overfit")}
    assert len(widths) == 2  # two tables, every row whole


def test_damaged_derived_files_are_written_anew(tmp_path: Path) -> None:
    path = phase1(tmp_path / "run", 0.93, 0.85, 0.7, 0.95).path
    analysis.write_derived(path)
    before = (path / "curves.parquet").read_bytes()
    (path / "curves.parquet").write_bytes(b"PAR1 nothing")
    (path / "decisions.json").write_text("{")
    assert len(analysis.load(path).curves) == 160
    analysis.write_derived(path)
    assert (path / "curves.parquet").read_bytes() == before
    assert json.loads((path / "decisions.json").read_text())["decisions"]


def test_a_failed_write_keeps_the_old_file_and_names_the_fix(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = phase1(tmp_path / "run", 0.93, 0.85, 0.7, 0.95).path
    analysis.write_derived(path)
    before = (path / "summary.txt").read_text()

    def full(self: Path, target: Path) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "replace", full)
    with pytest.raises(UserError, match=r"No space left on device: free some space") as caught:
        analysis.write_derived(path)
    assert "\n" not in str(caught.value)
    assert (path / "summary.txt").read_text() == before
    assert not list(path.glob(".*tmp"))


def test_mixed_option_types_survive_the_parquet_file(tmp_path: Path) -> None:
    writer = phase1(tmp_path / "run", 0.9, 0.9, 0.9, 0.9)
    config = writer.folder("overfit/E1a") / "config.json"
    values = json.loads(config.read_text())
    values["config"]["added_later"] = 3
    config.write_text(json.dumps(values))
    other = writer.folder("overfit/E2a") / "config.json"
    values = json.loads(other.read_text())
    values["config"]["added_later"] = "three"
    other.write_text(json.dumps(values))
    analysis.write_derived(writer.path)
    read = pd.read_parquet(writer.path / "trials.parquet")
    assert read["config/added_later"].tolist()[:2] == ["3", "three"]
