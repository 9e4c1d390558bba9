"""The live table: cells, plain lines in a pipe, no colour where none is wanted."""

from __future__ import annotations

import io
import math

import pytest
from rich.console import Console

from etrm_tune.live import LiveTable, duration, percent
from etrm_tune.plan import PlannedTrial
from trainable.config import TrialConfig

TRIAL = PlannedTrial("overfit-E1a-s0", "arm", TrialConfig(epochs=100), "id")


def row(epoch: float, accuracy: float) -> dict[str, float]:
    return {"step": int(epoch), "epoch": epoch, "train/accuracy": accuracy, "train/loss": 0.5}


def test_plain_lines_are_occasional() -> None:
    file = io.StringIO()
    with LiveTable(Console(file=file, width=200), [TRIAL], "t") as table:
        table.set_status(TRIAL.trial_id, "running")
        for epoch in range(1, 101):
            table.update(TRIAL.trial_id, row(epoch, 0.5))
        table.set_status(TRIAL.trial_id, "stopped", "bar: too low")
    lines = file.getvalue().splitlines()
    assert 8 <= len(lines) <= 14
    assert lines[-1].startswith("overfit-E1a-s0 stopped")
    assert "accuracy 50.0 %" in lines[-1]
    assert "(bar: too low)" in lines[-1]
    assert "\x1b" not in file.getvalue()


def test_terminal_has_one_table_and_obeys_no_color(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NO_COLOR", "1")
    file = io.StringIO()
    console = Console(file=file, force_terminal=True, width=120)
    with LiveTable(console, [TRIAL], "runs/phase1") as table:
        table.set_status(TRIAL.trial_id, "running")
        table.update(TRIAL.trial_id, row(40, math.nan))
        table.set_status(TRIAL.trial_id, "diverged", "loss is not finite")
    shown = file.getvalue()
    assert "40/100" in shown
    assert "nan" in shown
    assert "loss is not finite" in shown
    assert "\x1b[3" not in shown.replace("\x1b[3m", "")  # no foreground colours


def test_a_row_without_accuracy_keeps_the_last_one_on_show() -> None:
    file = io.StringIO()
    table = LiveTable(Console(file=file, width=120), [TRIAL], "t")
    table.update(TRIAL.trial_id, row(10, 0.25))
    table.update(TRIAL.trial_id, {"step": 11, "epoch": 11})
    Console(file=file, width=120).print(table.render())
    assert "25.0 %" in file.getvalue().splitlines()[-2]


def test_small_formats() -> None:
    assert [duration(s) for s in (None, math.inf, 75, 3675)] == ["", "", "1:15", "1:01:15"]
    assert [percent(v) for v in (None, math.nan, 0.914)] == ["", "nan", "91.4 %"]
