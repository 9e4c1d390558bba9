"""Answers on disk, and what a checkpoint has seen."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from trainable.errors import DataError, StorageError
from trainable.exposure import exposure_to
from trainable.submission import check_submission, write_submission, write_tasks

ENTRY = {"attempt_1": [[1, 2]], "attempt_2": []}


def test_a_submission_is_written_as_it_is(tmp_path: Path) -> None:
    answers = {"a": [ENTRY, ENTRY]}
    check_submission(answers, {"a": 2})
    write_submission(tmp_path / "new" / "submission.json", answers)
    assert json.loads((tmp_path / "new" / "submission.json").read_text()) == answers
    assert [path.name for path in (tmp_path / "new").iterdir()] == ["submission.json"]
    with pytest.raises(StorageError, match="cannot write"):
        write_submission(tmp_path / "new" / "submission.json" / "x", answers)


@pytest.mark.parametrize(
    ("answers", "says"),
    [
        ({}, "'a' has no of 1"),
        ({"a": []}, "0 of 1"),
        ({"a": [ENTRY], "b": [ENTRY]}, "'b' was not asked"),
        ({"a": [{"attempt_1": [[1]]}]}, "attempt_2 of 'a'"),
        ({"a": [ENTRY | {"attempt_1": [[10]]}]}, "attempt_1"),
        ({"a": [ENTRY | {"attempt_1": [[1], [1, 2]]}]}, "attempt_1"),
        ({"a": [ENTRY | {"attempt_1": [[0] * 31]}]}, "attempt_1"),
        ({"a": [ENTRY | {"attempt_1": [[0.5]]}]}, "attempt_1"),
    ],
)
def test_an_incomplete_or_malformed_submission_is_refused(answers: Any, says: str) -> None:
    with pytest.raises(DataError, match=says):
        check_submission(answers, {"a": 1})


def test_tasks_are_written_with_missing_ranks(tmp_path: Path) -> None:
    tasks = [{"task": "a", "best_rank": 2}, {"task": "b", "best_rank": None}]
    write_tasks(tmp_path, tasks)
    for table in (pd.read_parquet(tmp_path / "tasks.parquet"), pd.read_csv(tmp_path / "tasks.csv")):
        assert table["task"].tolist() == ["a", "b"]
        assert table["best_rank"][0] == 2 and pd.isna(table["best_rank"][1])


def test_exposure_tells_queries_from_demonstrations_and_known_from_unknown() -> None:
    roles = {"trained": ["a", "b"], "trained_demos": ["c"], "evaluated": ["c"]}
    seen = exposure_to(["c", "a"], roles, decoder=False)
    assert (seen.queries, seen.demos, seen.decoder_queries) == (("a",), ("c",), ())
    with pytest.raises(DataError, match=r"1 of the 2 puzzles \(a …\).*--allow-seen"):
        seen.refuse_seen("x.pt")
    exposure_to(["c"], roles, decoder=False).refuse_seen("x.pt")  # by demonstrations alone

    from_foreign = exposure_to(["c"], roles, decoder=True)
    assert from_foreign.decoder_queries is None and from_foreign.queries == ()
    assert any("decoder" in line and "unknown" in line for line in from_foreign.lines())
    ours = exposure_to(["c", "d"], roles | {"decoder_trained": ["d"]}, decoder=True)
    assert ours.decoder_queries == ("d",) and ours.to_json()["decoder_queries"] == 1
    ours.refuse_seen("x.pt")  # a decoder's exposure is told, not refused
    assert "queries of 1" in ours.lines()[1]

    foreign = exposure_to(["c"], None, decoder=False)
    foreign.refuse_seen("x.pt")
    assert set(foreign.to_json().values()) == {None}
    assert all("unknown" in line for line in foreign.lines())
