"""Parsed rows that are kept: used while every attempt file is unchanged, and only then."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from synthetic_runs import FolderWriter, phase1, rows

import analysis
from analysis import cache, history
from analysis.history import read_history
from analysis.rows import merge, read_attempts

TABLES = ("trials", "curves", "tasks", "rungs")


@pytest.fixture(scope="module")
def derived(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = phase1(tmp_path_factory.mktemp("runs") / "run", 0.93, 0.85, 0.7, 0.95).path
    analysis.write_derived(path)
    return path


@pytest.fixture
def folder(derived: Path, tmp_path: Path) -> Path:
    """A finished phase 1 whose tables were derived."""
    return Path(shutil.copytree(derived, tmp_path / "run"))


def same(left: analysis.Run, right: analysis.Run) -> None:
    for name in TABLES:
        pd.testing.assert_frame_equal(getattr(left, name), getattr(right, name))
    assert left.notes == right.notes


def from_lines(path: Path) -> analysis.Run:
    """The run as its JSON lines tell it."""
    kept = path / cache.FOLDER
    away = path.parent / "cache-away"
    kept.rename(away)
    try:
        return analysis.load(path)
    finally:
        away.rename(kept)


@pytest.fixture
def parsed(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Names of the trials whose JSON lines are read from now on."""
    found: list[str] = []

    def read(place: Path) -> Any:
        found.append(place.name)
        return read_history(place)

    monkeypatch.setattr(cache, "read_history", read)
    return found


def test_an_unchanged_run_comes_from_the_cache_and_is_equal(
    folder: Path, parsed: list[str]
) -> None:
    kept = analysis.load(folder)
    assert parsed == []
    same(kept, from_lines(folder))
    assert len(parsed) == 4


def test_a_large_cache_is_mapped(folder: Path, parsed: list[str], monkeypatch: Any) -> None:
    monkeypatch.setattr(cache, "MAPPED", 0)
    kept = analysis.load(folder)
    assert parsed == []
    same(kept, from_lines(folder))


def test_only_a_changed_trial_is_read_again(folder: Path, parsed: list[str]) -> None:
    path = folder / "trials" / "overfit-E2a-s0" / "attempt-1.jsonl"
    path.write_text(path.read_text() + json.dumps({"kind": "row", "step": 410, "grad/new": 1.0}))
    run = analysis.load(folder)
    assert parsed == ["overfit-E2a-s0"]
    assert run.trials.set_index("experiment").loc["overfit/E2a", "step"] == 410
    same(run, from_lines(folder))


def test_a_change_of_equal_size_and_time_is_seen(folder: Path, parsed: list[str]) -> None:
    path = folder / "trials" / "overfit-E1a-s0" / "attempt-1.jsonl"
    told, text = path.stat(), path.read_text()
    assert '"train/q_halt_accuracy": 0.9,' in text
    changed = text.replace('"train/q_halt_accuracy": 0.9,', '"train/q_halt_accuracy": 0.1,')
    path.write_text(changed)
    os.utime(path, ns=(told.st_atime_ns, told.st_mtime_ns))
    assert path.stat().st_size == told.st_size
    run = analysis.load(folder)
    assert parsed == ["overfit-E1a-s0"]
    assert run.trials["q_halt_accuracy"].tolist()[0] == pytest.approx(0.1)


def test_attempts_that_come_or_go_are_seen(folder: Path, parsed: list[str]) -> None:
    place = folder / "trials" / "overfit-E2b-s0"
    FolderWriter(folder.parent / "other").attempt(place, 2, rows(0.5, steps=30), resumed_from=0)
    assert analysis.load(folder).trials["rows"].tolist() == [40, 40, 3, 40]
    (place / "attempt-1.jsonl").unlink()
    (place / "attempt-2.jsonl").unlink()
    assert analysis.load(folder).trials["rows"].tolist() == [40, 40, 0, 40]
    assert parsed == ["overfit-E2b-s0"] * 2


def test_a_copied_folder_is_recognised(folder: Path, parsed: list[str], tmp_path: Path) -> None:
    copy = tmp_path / "copy"
    shutil.copytree(folder, copy, copy_function=shutil.copyfile)
    run = analysis.load(copy)
    assert parsed == [] and set(run.curves["run"]) == {"copy"}
    assert len(run.curves) == 160


@pytest.mark.parametrize("name", ["curves.arrow", "curves.json"])
@pytest.mark.parametrize("how", ["missing", "empty", "torn", "flipped", "folder"])
def test_a_damaged_cache_does_no_harm(folder: Path, parsed: list[str], name: str, how: str) -> None:
    path, content = folder / "cache" / name, (folder / "cache" / name).read_bytes()
    middle = len(content) // 2
    flipped = content[:middle] + bytes([content[middle] ^ 1]) + content[middle + 1 :]
    path.unlink()
    if how == "folder":
        path.mkdir()
    elif how != "missing":
        cut = {"empty": b"", "torn": content[:middle], "flipped": flipped}[how]
        path.write_bytes(cut)
    run = analysis.load(folder)
    assert run.trials["accuracy"].tolist() == pytest.approx([0.93, 0.85, 0.7, 0.95])
    if name == "curves.arrow":
        assert len(parsed) == 4


def test_other_code_does_not_trust_the_cache(
    folder: Path, parsed: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cache, "_code", lambda: "another")
    analysis.load(folder)
    assert len(parsed) == 4


def test_an_unchanged_cache_is_not_written_again(folder: Path) -> None:
    before = (folder / "cache" / "curves.arrow").stat().st_mtime_ns
    analysis.write_derived(folder)
    assert (folder / "cache" / "curves.arrow").stat().st_mtime_ns == before


def test_rows_that_are_not_numbers_are_not_kept(folder: Path, parsed: list[str]) -> None:
    path = folder / "trials" / "overfit-E1a-s0" / "attempt-1.jsonl"
    path.write_text(path.read_text() + json.dumps({"kind": "row", "step": 500, "note": "hot"}))
    analysis.write_derived(folder)
    assert not (folder / "cache" / "curves.arrow").exists()
    run = analysis.load(folder)
    assert run.curves["note"].dropna().tolist() == ["hot"]
    assert pd.isna(run.curves["note"].iloc[0])


numbers = st.one_of(st.none(), st.floats(allow_nan=False, allow_infinity=False), st.integers(-9, 9))
row = st.fixed_dictionaries(
    {"step": st.integers(0, 12)},
    optional={"epoch": st.floats(0, 9), "train/loss": numbers, "grad/norm": numbers},
)
attempt = st.tuples(st.lists(row, max_size=6), st.one_of(st.none(), st.integers(0, 12)))


@settings(deadline=None, max_examples=40)
@given(st.lists(attempt, max_size=3), st.booleans(), st.sampled_from(["", "{", '{"kind": "row"}']))
def test_columns_say_what_the_lines_say(
    tmp_path_factory: pytest.TempPathFactory, attempts: Any, ordered: bool, tail: str
) -> None:
    """Arrow's way and the way of one object per row give the same."""
    folder = tmp_path_factory.mktemp("trial")
    for number, (told, resumed) in enumerate(attempts, start=1):
        lines: list[dict[str, Any]] = [{"kind": "row", **one} for one in told]
        if ordered:
            by_step = {one["step"]: one for one in lines}
            lines = [by_step[step] for step in sorted(by_step)]
        start = {"kind": "start", "attempt": number, "total_steps": 12, "resumed_from": resumed}
        text = "".join(json.dumps(line) + "\n" for line in [start, *lines])
        (folder / f"attempt-{number}.jsonl").write_text(text + tail)
    facts, columns = read_history(folder)
    expected = merge(read_attempts(folder, []))
    assert facts.rows == len(expected)
    assert [a.resumed_from for a in facts.attempts] == [resumed for _, resumed in attempts]
    if not expected:
        return
    # A column that only rows undone by a resume had is left without a value.
    frame = pd.DataFrame(columns).dropna(axis=1, how="all")
    wanted = pd.DataFrame(expected).drop(columns="kind").dropna(axis=1, how="all")
    assert set(frame.columns) == set(wanted.columns)
    for name in wanted.columns:
        got = pd.to_numeric(frame[name]).astype("float64")
        pd.testing.assert_series_equal(got, pd.to_numeric(wanted[name]).astype("float64"))


def test_files_as_training_writes_them_take_the_quick_way(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    writer = phase1(tmp_path / "run", 0.9, 0.9, 0.9, 0.9)
    later = [row for row in rows(0.5) if row["step"] > 100]
    writer.attempt(writer.folder("overfit/E1a"), 2, later, resumed_from=100, end="finished")
    monkeypatch.setattr(history, "parse_attempt", None)  # the slow way would fail
    curve = analysis.load(writer.path).curves
    first = curve[curve["experiment"] == "overfit/E1a"]
    assert first["attempt"].tolist() == [1] * 10 + [2] * 30
