"""TensorBoard events of a trial: scalars and options in one folder, so that one run shows both."""

from __future__ import annotations

import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from tensorboardX.proto.api_pb2 import Status
from tensorboardX.proto.event_pb2 import Event
from tensorboardX.proto.plugin_hparams_pb2 import HParamsPluginData

from trainable.config import TrialConfig
from trainable.events import HPARAM_METRICS
from trainable.records import Recorder

CONFIG = TrialConfig().replace(
    epochs=10, encoder_type="hybrid_variational", kl_weight=0.1, halt_max_steps=8
)


def events(folder: Path) -> Iterator[Any]:
    """Every event of a folder's files, oldest file first."""
    for path in sorted(folder.rglob("events.*")):
        data, at = path.read_bytes(), 0
        while at < len(data):
            (length,) = struct.unpack_from("<Q", data, at)
            yield Event.FromString(data[at + 12 : at + 12 + length])
            at += 16 + length


def told(folder: Path) -> dict[str, Any]:
    """What each HParams tag says."""
    return {
        value.tag: HParamsPluginData.FromString(value.metadata.plugin_data.content)
        for event in events(folder)
        for value in event.summary.value
        if value.tag.startswith("_hparams_/")
    }


def record(folder: Path, status: str = "finished", **start: Any) -> None:
    recorder = Recorder(folder, attempt=None, writes=True)
    recorder.start(**{"resumed_from": 0, "options": CONFIG.flat()} | start)
    recorder.row({"step": 1 + start.get("resumed_from", 0), "train/accuracy": 0.5, "epoch": 1.0})
    recorder.end(status, None)


def test_options_stand_beside_the_scalars(tmp_path: Path) -> None:
    record(tmp_path)
    found = told(tmp_path / "tb")
    start = found["_hparams_/session_start_info"].session_start_info.hparams
    assert start["encoder_type"].string_value == "hybrid_variational"
    assert start["halt_max_steps"].number_value == 8
    assert start["ema"].bool_value is True
    assert start["train_subsets"].string_value == "training, evaluation, concept"
    assert start["encoder_weight_decay"].string_value == "none"
    assert not {"path", "decoder", "num_threads"} & set(start)
    experiment = found["_hparams_/experiment"].experiment
    assert {info.name for info in experiment.hparam_infos} == set(start)
    assert tuple(info.name.tag for info in experiment.metric_infos) == HPARAM_METRICS
    assert [path for path in (tmp_path / "tb").iterdir() if path.is_dir()] == [], "no run beside it"


@pytest.mark.parametrize(
    ("status", "shown"),
    [("finished", "SUCCESS"), ("stopped", "SUCCESS"), ("diverged", "FAILURE")],
)
def test_how_it_ended(tmp_path: Path, status: str, shown: str) -> None:
    record(tmp_path, status)
    end = told(tmp_path / "tb")["_hparams_/session_end_info"].session_end_info
    assert Status.Name(end.status) == f"STATUS_{shown}"


def test_a_resumed_trial_keeps_one_set_of_options(tmp_path: Path) -> None:
    record(tmp_path, "interrupted")
    record(tmp_path, resumed_from=1)
    steps = [e.step for e in events(tmp_path / "tb") for v in e.summary.value if "/acc" in v.tag]
    assert steps == [1, 2]
    assert len(told(tmp_path / "tb")) == 3


def test_options_are_not_needed(tmp_path: Path) -> None:
    record(tmp_path, options=None)
    assert "_hparams_/session_start_info" not in told(tmp_path / "tb")
