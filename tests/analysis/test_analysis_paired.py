"""Arms compared over paired seeds at equal samples seen."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest
from synthetic_runs import BAR, FolderWriter, rows, seeds

import analysis
from analysis.paired import compare, paired
from search_spaces import rules

CONTROL = [0.90, 0.91, 0.92, 0.93, 0.94, 0.95, 0.96, 0.97]


def above(gain: float) -> list[float]:
    """The control's accuracies, higher by about `gain`, seed by seed."""
    return [value + gain + 0.001 * (i % 3) for i, value in enumerate(CONTROL)]


def test_differences_are_taken_within_a_seed(tmp_path: Path) -> None:
    values = {"overfit/E1a": CONTROL, "overfit/E1b": above(0.02)}
    run = analysis.load(seeds(tmp_path / "run", values).path)
    found = paired(run, "overfit/E1b", "overfit/E1a", rules.TRAIN_ACCURACY)
    assert found.n == 8 and found.seeds == tuple(range(8))
    assert found.differences == pytest.approx([0.02, 0.021, 0.022] * 2 + [0.02, 0.021])
    assert found.p == pytest.approx(2 / 256) and found.significant and found.better
    # Between the seeds the arms overlap; the pairs tell them apart.
    assert found.low == pytest.approx(0.0204, abs=3e-4)
    assert found.smallest < 0.005
    for said in ("E1b", "at equal samples (12800)", "n = 8", "p = 0.0078", "interval"):
        assert said in found.told


def test_comparison_is_at_equal_samples_seen(tmp_path: Path) -> None:
    """The longer run's end does not count: both are read where the shorter one stopped."""
    writer = FolderWriter(tmp_path / "run")
    writer.add("overfit/E1a", 0.9, steps=200)
    writer.add("overfit/E1b", 0.9, steps=400)
    folder = writer.folder("overfit/E1b")
    late = [row | {"train/accuracy": 0.99} if row["step"] > 200 else row for row in rows(0.9)]
    writer.attempt(folder, 1, late, end="finished")
    run = analysis.load(writer.path)
    assert run.trials.set_index("experiment").loc["overfit/E1b", "accuracy"] == pytest.approx(0.99)
    found = paired(run, "overfit/E1b", "overfit/E1a", rules.TRAIN_ACCURACY)
    assert found.samples == (6400.0,)
    assert found.differences == pytest.approx([0.0])


def test_the_row_is_the_last_one_at_or_below_the_smaller_end(tmp_path: Path) -> None:
    writer = FolderWriter(tmp_path / "run")
    writer.add("overfit/E1a", 0.5, steps=400)
    writer.add("overfit/E1b", 0.5, steps=400)
    half = [row | {"samples": row["samples"] // 2 + 5} for row in rows(0.5)]  # half the batch
    writer.attempt(writer.folder("overfit/E1b"), 1, half, end="finished")
    found = paired(analysis.load(writer.path), "overfit/E1b", "overfit/E1a", rules.TRAIN_ACCURACY)
    assert found.samples == (6405.0,)
    # E1a is read at 6,400 samples (step 200), over its steps 190 and 200.
    assert found.right_mean == pytest.approx((0.5 * 190 / 200 + 0.5) / 2)
    assert found.left_mean == pytest.approx(0.5)


def test_too_few_seeds_name_the_number_that_is_needed(tmp_path: Path) -> None:
    values = {"overfit/E1a": CONTROL[:3], "overfit/E1b": above(0.03)[:3]}
    run = analysis.load(seeds(tmp_path / "run", values).path)
    found = compare(run, rules.PHASE2)["exploration helps (E1b)"]
    assert not found.enough and not found.significant
    assert found.needed == 8 and "needs N ≥ 8" in found.too_few and "p ≥ 0.25" in found.too_few
    assert math.isinf(found.smallest)


def test_holm_counts_the_planned_comparisons(tmp_path: Path) -> None:
    values = {"overfit/E1a": CONTROL, "overfit/E1b": above(0.02), "overfit/E3a": above(-0.05)}
    run = analysis.load(seeds(tmp_path / "run", values).path)
    found = compare(run, rules.PHASE2)
    assert found["exploration helps (E1b)"].p_holm == pytest.approx(5 * 2 / 256)
    assert found["maximal steps matter (E3a)"].p_holm == pytest.approx(5 * 2 / 256)
    assert "E1c is not part of this run" in str(found["exploration helps (E1c)"].problem)


def test_seeds_without_a_partner_are_named(tmp_path: Path) -> None:
    values = {"overfit/E1a": CONTROL[:4], "overfit/E1b": above(0.02)[:2]}
    run = analysis.load(seeds(tmp_path / "run", values).path)
    found = paired(run, "overfit/E1b", "overfit/E1a", rules.TRAIN_ACCURACY)
    assert found.n == 2 and "seeds 2, 3 lack a partner" in found.told


def test_a_stopped_arm_is_compared_where_it_stopped(tmp_path: Path) -> None:
    writer = FolderWriter(tmp_path / "run")
    writer.add("overfit/E1a", 0.95)
    writer.add("overfit/E1b", 0.12, status="stopped", reason=BAR, steps=200)
    found = paired(analysis.load(writer.path), "overfit/E1b", "overfit/E1a", rules.TRAIN_ACCURACY)
    assert found.mean < -0.7 and "1 of 1 E1b stopped by the bar, compared there" in found.told


@pytest.mark.parametrize("status", ["diverged", "failed", "running"])
def test_a_seed_without_an_answer_leaves_the_comparison_open(tmp_path: Path, status: str) -> None:
    writer = seeds(tmp_path / "run", {"overfit/E1a": CONTROL[:2], "overfit/E1b": above(0.02)[:1]})
    writer.add("overfit/E1b", 0.9, seed=1, status=status)
    found = paired(analysis.load(writer.path), "overfit/E1b", "overfit/E1a", rules.TRAIN_ACCURACY)
    assert found.problem is not None and "seed 1" in found.problem


def test_arms_of_other_data_or_decoders_are_not_compared(tmp_path: Path) -> None:
    writer = FolderWriter(tmp_path / "run")
    writer.add("overfit/E1a", 0.9, options={"decoder_ref": "one"})
    writer.add("overfit/E1b", 0.9, options={"num_aug": 8, "decoder_ref": "two"})
    found = paired(analysis.load(writer.path), "overfit/E1b", "overfit/E1a", rules.TRAIN_ACCURACY)
    assert "differ in num_aug (0, 8): not comparable" in str(found.problem)
    assert "seed 0 start from different decoders" in str(found.problem)


def test_no_common_seed(tmp_path: Path) -> None:
    writer = FolderWriter(tmp_path / "run")
    writer.add("overfit/E1a", 0.9, seed=0)
    writer.add("overfit/E1b", 0.9, seed=1)
    found = paired(analysis.load(writer.path), "overfit/E1b", "overfit/E1a", rules.TRAIN_ACCURACY)
    assert found.problem == "E1b and E1a have no seed in common"


def test_numbers_of_a_comparison_are_plain_json(tmp_path: Path) -> None:
    values = {"overfit/E1a": CONTROL[:2], "overfit/E1b": above(0.02)[:2]}
    run = analysis.load(seeds(tmp_path / "run", values).path)
    json.dumps([decision.to_json() for decision in analysis.decide(run)], allow_nan=False)
