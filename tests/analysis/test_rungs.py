"""Rungs as data: one row per rung, and the reason beside each row of the curves."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

from analysis import load
from analysis.rungs import COLUMNS, rung_table
from tests.analysis.synthetic_runs import FolderWriter

LINE: dict[str, Any] = {"rung": 50, "rule": "halving", "epoch": 51, "stop": False}


def written(tmp_path: Path) -> FolderWriter:
    writer = FolderWriter(tmp_path / "run")
    for at, name in enumerate(("overfit/E1a", "overfit/E2a", "overfit/E2b")):
        writer.add(name, 0.5 + at / 10)
        lines = [LINE | {"step": 20, "value": 0.5 + at / 10, "reason": f"first {at}", "time": at}]
        if at == 2:
            lines[0] |= {"stop": True, "value": None}
        else:
            late = LINE | {"rung": 90, "rule": "bar", "step": 30, "reason": "later", "time": 9}
            lines += [late, lines[0] | {"time": 10}]  # repeated by a resume
        if at == 0:
            lines.append(LINE | {"rule": "pbt", "rung": 99, "step": 30, "value": 0.1, "time": 11,
                                 "reason": "pbt: copies", "parent": "overfit-E2a-s0"})  # fmt: skip
        text = "".join(json.dumps(line) + "\n" for line in lines)
        (writer.folder(name) / "scheduler.jsonl").write_text(text)
    return writer


def test_one_row_per_rung(tmp_path: Path) -> None:
    table = rung_table(load(written(tmp_path).path))
    assert list(table.columns) == list(COLUMNS)
    halving, bar, pbt = table.to_dict("records")
    assert (halving["rule"], halving["rung"], halving["reached"]) == ("halving", 50, 3)
    assert (halving["survived"], halving["stopped"], halving["copied"]) == (2, 1, 0)
    assert halving["best"] == "overfit-E2a-s0"
    assert list(halving["reasons"].values()) == ["first 0", "first 1", "first 2"]
    assert (bar["rule"], bar["reached"], bar["stopped"]) == ("bar", 2, 0)
    assert (pbt["copied"], pbt["survived"]) == (1, 1)


def test_no_rungs_is_an_empty_table() -> None:
    assert rung_table([]).empty
    assert list(rung_table([]).columns) == list(COLUMNS)


def test_the_reason_stands_beside_its_row(tmp_path: Path) -> None:
    curves = load(written(tmp_path).path).curves
    mine = curves[curves["trial_id"] == "overfit-E1a-s0"].set_index("step")["reason"]
    assert mine[20] == "first 0"
    assert mine[30] == "later; pbt: copies"
    assert mine.drop([20, 30]).isna().all()
    other = curves[curves["trial_id"] == "overfit-E2b-s0"].set_index("step")["reason"]
    assert other[20] == "first 2"
    assert isinstance(other.iloc[0], float) and math.isnan(other.iloc[0])
