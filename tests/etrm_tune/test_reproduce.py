"""A trial trained again from its saved file: equal bit for bit, or the first difference."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from etrm_tune import cli
from etrm_tune.reproduce import compare, rerun
from tests.trainable.small_trials import puzzle_folder, tiny
from trainable.config import TrialConfig
from trainable.loop import train

TRIAL = "overfit-E1a-s0"


@pytest.fixture(scope="module")
def recorded(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A trial of four steps as a run leaves it."""
    root = tmp_path_factory.mktemp("reproduce")
    config = tiny(puzzle_folder(root / "puzzles"), steps=4, max_eval_groups=0, name="overfit/E1a")
    home = root / "run" / "trials" / TRIAL
    train(config, out_dir=home, progress=False)
    (root / "run" / "plan.json").write_text('{"schema_version": 1, "trials": []}')
    told = {"schema_version": 1, "trial_id": TRIAL, "config": config.model_dump(mode="json")}
    (home / "config.json").write_text(json.dumps(told))
    return home


def test_the_same_trial_is_equal_bit_for_bit(
    recorded: Path, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    before = {path: path.read_bytes() for path in recorded.iterdir() if path.is_file()}
    assert cli.main(["reproduce", str(recorded), "--out", str(tmp_path / "again")]) == 0
    shown = capsys.readouterr().out
    assert "4 of 4 rows are equal bit for bit" in shown
    assert "versions, threads, workers: as recorded" in shown
    assert (tmp_path / "again" / "attempt-1.jsonl").exists()
    after = {path: path.read_bytes() for path in recorded.iterdir() if path.is_file()}
    assert before == after, "the trial itself is only read"


def test_the_first_difference_and_other_versions_are_told(
    recorded: Path, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    home = tmp_path / "run" / "trials" / TRIAL
    home.mkdir(parents=True)
    (home / "config.json").write_bytes((recorded / "config.json").read_bytes())
    lines = [json.loads(line) for line in (recorded / "attempt-1.jsonl").read_text().splitlines()]
    lines[0]["versions"]["torch"] = "1.0"
    lines[0]["threads"] = 7
    lines[2]["train/loss"] *= 1 + 1e-6
    lines[3]["train/lm_loss"] *= 1.5
    text = "".join(json.dumps(line) + "\n" for line in lines)
    (home / "attempt-1.jsonl").write_text(text)
    assert cli.main(["reproduce", str(home / "config.json"), "--steps", "3"]) == 1
    shown = capsys.readouterr().out
    assert "1 of 3 rows are equal" in shown
    assert "first difference at step 2: train/loss" in shown and "(1.0e-06 relative)" in shown
    assert "largest difference: train/lm_loss at step 3 (3.3e-01 relative)" in shown
    assert "torch: 1.0 then" in shown and "threads: 7 then, 1 now" in shown
    assert cli.main(["reproduce", str(home), "--steps", "1", "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert told["equal"] is True and told["rows_compared"] == 1
    assert "threads: 7 then, 1 now" in told["surroundings"]


def test_rows_missing_on_either_side_are_named() -> None:
    def rows(*steps: int, **more: Any) -> list[dict[str, Any]]:
        return [{"step": step, "time": step, "a/b": None, **more} for step in steps]

    assert compare(rows(1, 2), rows(1, 2)).same, "two that are no numbers are equal"
    found = compare(rows(1, 2, 3), rows(2, 4))
    assert (found.missing, found.more, found.same) == ([1, 3], [4], False)
    found = compare(rows(1), rows(1, extra=1.0))
    assert found.first == (1, "extra", None, 1.0)
    assert compare(rows(1, 2, 9), rows(1, 2), until=2).same


def test_what_is_no_trial_is_one_line(
    recorded: Path, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    def refused(*words: object) -> str:
        assert cli.main(["reproduce", *map(str, words)]) == 2
        err = capsys.readouterr().err
        assert err.startswith("error: ") and len(err.strip().splitlines()) == 1
        return err

    assert f"is a run: give one of its trials, such as {recorded}" in refused(recorded.parents[1])
    wrong = recorded.parent / "overfit-E1b-s0"
    assert f"did you mean '{TRIAL}'" in refused(wrong)
    (tmp_path / "empty").mkdir()
    assert "no readable config.json" in refused(tmp_path / "empty")
    (tmp_path / "empty" / "config.json").write_bytes((recorded / "config.json").read_bytes())
    assert "no rows to compare with" in refused(tmp_path / "empty")
    assert "is not empty" in refused(recorded, "--out", tmp_path)
    assert "1 or more" in refused(recorded, "--steps", 0)
    told = json.loads((recorded / "config.json").read_text())
    told["config"]["lr"] = "fast"
    (tmp_path / "empty" / "config.json").write_text(json.dumps(told))
    (tmp_path / "empty" / "attempt-1.jsonl").write_bytes(
        (recorded / "attempt-1.jsonl").read_bytes()
    )
    assert "lr" in refused(tmp_path / "empty")


@pytest.mark.slow
def test_a_trial_of_two_workers_is_repeated_with_two(
    recorded: Path, capfd: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    told = json.loads((recorded / "config.json").read_text())
    home = tmp_path / "run" / "trials" / TRIAL
    rerun(TrialConfig(**told["config"]), home, workers=2, steps=None, progress=False)
    (home / "config.json").write_text(json.dumps(told))
    assert cli.main(["reproduce", str(home), "--steps", "2"]) == 0
    shown = capfd.readouterr().out
    assert "2 of 2 rows are equal bit for bit" in shown and "as recorded" in shown
