"""A folder that a plan has prepared is for that trial alone."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.trainable.small_trials import puzzle_folder, tiny
from trainable.data import ArcData
from trainable.errors import DataError
from trainable.loop import train


def test_other_puzzles_than_planned_are_refused(tmp_path: Path) -> None:
    config = tiny(puzzle_folder(tmp_path / "puzzles"), steps=1)
    out = tmp_path / "trial"
    out.mkdir()
    identity = config.identity(data_hash=ArcData.from_config(config).data_hash)
    (out / "config.json").write_text(json.dumps({"identity": identity}))
    assert train(config, out_dir=out, progress=False).status == "finished"

    (out / "config.json").write_text(json.dumps({"identity": "of other puzzles"}))
    with pytest.raises(DataError, match=r"not those of the plan .*of other puzzles.*every machine"):
        train(config, out_dir=out, progress=False)
    assert not (out / "attempt-2.jsonl").exists()
