"""TensorBoard events of a trial, written in the calling thread.

`tensorboardX.SummaryWriter` writes in a thread, through a queue of ten places: when the disk is
full that thread dies and the training loop waits for ever. Here a failed write is an `OSError` at
once. The records are tensorboardX's own.
"""

from __future__ import annotations

import math
import socket
import struct
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

HPARAM_METRICS = (
    "train/accuracy", "train/exact_accuracy", "train/loss", "train/steps", "eval/accuracy",
    "eval/exact_accuracy", "train/q_halt_accuracy", "grad/encoder_norm",
)  # fmt: skip
"""Metrics beside the options on TensorBoard's HParams page."""

FIRST = ("encoder_type", "encoder_num_layers", "halt_max_steps", "halt_exploration_prob", "lr")
"""Options of which that page shows the columns before anyone chooses: the first five."""

NOT_COMPARED = ("path", "decoder", "batch_size_reason", "num_threads")
"""Options that say nothing about the result."""


class EventFile:
    """One event file; events of earlier files from `purge_step` on are hidden by TensorBoard.

    Raises `ImportError` without tensorboardX, `OSError` when the file cannot be written.
    """

    def __init__(self, folder: Path, *, attempt: int, purge_step: int) -> None:
        from tensorboardX.proto import event_pb2, summary_pb2
        from tensorboardX.record_writer import masked_crc32c

        self._event, self._summary, self._checksum = (
            event_pb2.Event,
            summary_pb2.Summary,
            masked_crc32c,
        )
        folder.mkdir(parents=True, exist_ok=True)
        now = time.time()
        name = f"events.out.tfevents.{int(now)}.{socket.gethostname()}.{attempt}"
        self._file = (folder / name).open("ab", buffering=0)
        self._write(event_pb2.Event(wall_time=now, file_version="brain.Event:2"))
        started = event_pb2.SessionLog(status=event_pb2.SessionLog.START)
        self._write(event_pb2.Event(wall_time=now, step=purge_step, session_log=started))

    def row(self, values: Mapping[str, Any]) -> None:
        """The finite metrics of one row, at its step."""
        found = [
            self._summary.Value(tag=name.replace("@", "_at_"), simple_value=float(value))
            for name, value in values.items()
            if "/" in name and isinstance(value, float | int) and math.isfinite(value)
        ]
        summary = self._summary(value=found)
        self._write(self._event(wall_time=time.time(), step=values["step"], summary=summary))

    def options(self, options: Mapping[str, Any]) -> None:
        """A trial's options for the HParams page. They lie beside the trial's scalars, where
        ``SummaryWriter.add_hparams`` would make a run of its own for them."""
        from tensorboardX.summary import hparams

        values = {
            name: value if isinstance(value, bool | int | float | str) else _text(value)
            for name, value in sorted(options.items(), key=lambda one: (_rank(one[0]), one[0]))
            if name not in NOT_COMPARED
        }
        experiment, start, _ = hparams(values, dict.fromkeys(HPARAM_METRICS, 0.0))
        for summary in (experiment, start):
            self._write(self._event(wall_time=time.time(), summary=summary))

    def end(self, status: str) -> None:
        """How the trial ended, for the same page."""
        from tensorboardX.proto.api_pb2 import Status
        from tensorboardX.proto.plugin_hparams_pb2 import HParamsPluginData, SessionEndInfo
        from tensorboardX.proto.summary_pb2 import SummaryMetadata

        name = "STATUS_SUCCESS" if status in ("finished", "stopped") else "STATUS_FAILURE"
        end = HParamsPluginData(session_end_info=SessionEndInfo(status=Status.Value(name)))
        plugin = SummaryMetadata.PluginData(plugin_name="hparams", content=end.SerializeToString())
        value = self._summary.Value(
            tag="_hparams_/session_end_info", metadata=SummaryMetadata(plugin_data=plugin)
        )
        self._write(self._event(wall_time=time.time(), summary=self._summary(value=[value])))

    def close(self) -> None:
        """Close the file."""
        self._file.close()

    def _write(self, event: Any) -> None:
        data = event.SerializeToString()
        length = struct.pack("<Q", len(data))
        parts = (length, self._check(length), data, self._check(data))
        self._file.write(b"".join(parts))

    def _check(self, data: bytes) -> bytes:
        return struct.pack("<I", self._checksum(data))


def _rank(name: str) -> int:
    return FIRST.index(name) if name in FIRST else len(FIRST)


def _text(value: Any) -> str:
    return ", ".join(map(str, value)) if isinstance(value, list | tuple) else str(value).lower()
