"""The live table: cells, plain lines in a pipe, no colour where none is wanted."""

from __future__ import annotations

import io
import math

import pytest
from rich.console import Console

from analysis.health import Sign, signs
from etrm_tune import board
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


def test_health_of_a_running_trial_is_shown() -> None:
    file = io.StringIO()
    table = LiveTable(Console(file=file, width=150), [TRIAL], "t")
    table.set_status(TRIAL.trial_id, "running")
    for epoch in range(1, 41):
        healthy = {"grad/encoder_norm": 0.5, "grad/total_norm": 1.0}
        table.update(TRIAL.trial_id, row(epoch, 0.005 * epoch) | healthy)
    screen = Console(file=io.StringIO(), width=150, record=True)
    screen.print(table.render())
    assert " ok " in screen.export_text()
    for epoch in range(41, 61):
        starved = {"grad/encoder_norm": 0.01, "grad/total_norm": 1.0}
        table.update(TRIAL.trial_id, row(epoch, 0.005 * epoch) | starved)
    screen.print(table.render())
    shown = screen.export_text()
    assert "gradient starvation" in shown
    assert "overfit-E1a-s0: gradient starvation: encoder gradient is 1.0 % of the total" in shown
    assert "gradient starvation" in file.getvalue().splitlines()[-1], "in a pipe as well"


def test_health_of_earlier_sessions_counts() -> None:
    table = LiveTable(Console(file=io.StringIO()), [TRIAL], "t")
    starved = {"grad/encoder_norm": 0.01, "grad/total_norm": 1.0}
    table.load(TRIAL.trial_id, [row(epoch, 0.3) | starved for epoch in range(1, 30)])
    table.update(TRIAL.trial_id, row(20, 0.3) | starved)  # resumed from an earlier checkpoint
    screen = Console(file=io.StringIO(), width=150, record=True)
    screen.print(table.render())
    shown = screen.export_text()
    assert "gradient starvation" in shown and "20/100" in shown


def test_a_report_costs_the_same_however_many_came_before(monkeypatch: pytest.MonkeyPatch) -> None:
    looked = []

    def count(rows: list[dict[str, float]], options: dict[str, object]) -> list[Sign]:
        looked.append(len(rows))
        return signs(rows, options)

    monkeypatch.setattr(board, "signs", count)
    line = board.Line("a", 10_000.0, {"epochs": 10_000})
    for step in range(1, 10_001):
        line.add({"step": step, "epoch": float(step), "train/loss": 0.5, "other/metric": 1.0})
        assert line.signs == []
    assert sum(looked) < 250 * 10_000, "each row is looked at some 200 times, not once a report"
    assert looked[0] == 1 and looked[-1] > 0.99 * 10_000
    line.add({"step": 10_001, "epoch": 10_000.0, "train/loss": math.nan})
    line.set("diverged", "", None)
    assert [sign.sign for sign in line.signs] == ["divergence"], "an end is never late"
    assert line.row is not None and line.row["other/metric"] == 1.0
