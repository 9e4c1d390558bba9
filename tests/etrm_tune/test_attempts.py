"""Attempt numbers: one owner at a time, a new number for every worker that writes."""

from __future__ import annotations

from pathlib import Path

import pytest

from trainable.attempts import (
    SupersededError,
    begin_attempt,
    claim_attempt,
    holding,
    is_current,
    last_attempt,
)


def test_first_worker_takes_the_conductors_number(tmp_path: Path) -> None:
    assert last_attempt(tmp_path) == 0
    assert begin_attempt(tmp_path, "a") == 1
    assert claim_attempt(tmp_path, "a") == 1


def test_restarted_worker_gets_a_new_number(tmp_path: Path) -> None:
    begin_attempt(tmp_path, "a")
    (tmp_path / f"attempt-{claim_attempt(tmp_path, 'a')}.jsonl").write_text("")
    assert claim_attempt(tmp_path, "a") == 2
    assert (tmp_path / "current_attempt").read_text() == "2"


def test_orphan_of_an_earlier_run_cannot_begin(tmp_path: Path) -> None:
    begin_attempt(tmp_path, "old")
    (tmp_path / f"attempt-{claim_attempt(tmp_path, 'old')}.jsonl").write_text("")
    assert begin_attempt(tmp_path, "new") == 2
    with pytest.raises(SupersededError):
        claim_attempt(tmp_path, "old")
    assert claim_attempt(tmp_path, "new") == 2


def test_numbers_go_on_when_the_counter_was_lost(tmp_path: Path) -> None:
    (tmp_path / "attempt-7.jsonl").write_text("")
    assert begin_attempt(tmp_path, "a") == 8


def test_only_the_current_attempt_puts_files_in_place(tmp_path: Path) -> None:
    first = begin_attempt(tmp_path, "old")
    with holding(tmp_path, first):
        assert is_current(tmp_path, first)
    second = begin_attempt(tmp_path, "new")
    with pytest.raises(SupersededError), holding(tmp_path, first):
        pytest.fail("an orphan got in")
    with holding(tmp_path, second):
        pass
    assert not is_current(tmp_path, first)
