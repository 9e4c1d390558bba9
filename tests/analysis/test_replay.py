"""Recorded curves played back to stopping rules."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
from synthetic_runs import FolderWriter, phase1, rows

import analysis
from analysis.replay import read_curves, recorded_decisions, spearman, value_at
from etrm_tune.commands import replay as command
from search_spaces.schedulers import search_rule
from search_spaces.stopping import Bar, Halving, Rule, StoppingRule


def late_riser(path: Path) -> FolderWriter:
    """Six full curves; the best of all is the lowest until the middle."""
    writer = FolderWriter(path)
    for at, final in enumerate((0.3, 0.4, 0.5, 0.6, 0.7)):
        writer.add("overfit/E1a", final, seed=at)
    folder = writer.add("overfit/E1b", 0.9)
    curve = rows(0.9)
    for row in curve[:25]:
        row["train/accuracy"] = 0.1
    writer.attempt(folder, 1, curve, end="finished")
    return writer


def test_the_bar_stops_what_is_below_and_says_what_it_would_have_lost(tmp_path: Path) -> None:
    found = analysis.replay(analysis.load(late_riser(tmp_path / "run").path), Bar(), orders=5)
    assert [stop.trial_id for stop in found.stops] == ["overfit-E1b-s0"]
    stop = found.stops[0]
    assert (stop.epoch, stop.value, stop.final) == (500, 0.1, 0.9) and stop.full
    assert stop.saved_s == pytest.approx(0.4 * 200)
    assert found.winner == "overfit-E1b-s0" and found.recorded.lost_winner
    assert found.recorded.saved == pytest.approx(1 / 12)
    assert found.recorded.regret == pytest.approx(0.2)
    assert found.lost == 5 and found.saved == pytest.approx(1 / 12)  # no order changes a bar
    assert "the winner overfit-E1b-s0 would have been stopped" in found.text()


def test_halving_depends_on_who_comes_first(tmp_path: Path) -> None:
    run = analysis.load(phase1(tmp_path / "run", 0.9, 0.8, 0.7, 0.6).path)
    rule = Halving(2, (100.0,))
    found = analysis.replay(run, rule, orders=12)
    assert len({order.stopped for order in found.orders}) > 1
    assert all(not order.lost_winner for order in found.orders)  # it is the best on every rung
    again = analysis.replay(run, rule, orders=12)
    assert again.orders == found.orders
    assert analysis.replay(run, rule, orders=12, seed=1).orders != found.orders


def test_replay_equals_the_live_rule_on_the_same_rows(tmp_path: Path) -> None:
    """Missing and undefined values, a resumed attempt, and two rules together."""
    writer = FolderWriter(tmp_path / "run")
    for at, final in enumerate((0.15, 0.5, 0.9)):
        folder = writer.add("overfit/E1a", final, seed=at)
        curve = rows(final)
        for number, row in enumerate(curve):
            row["time"] += 0.1 * at
            if at == 1 and number % 3 == 0:
                del row["train/accuracy"]
            if at == 2 and number == 19:
                row["train/accuracy"] = None
        writer.attempt(folder, 1, curve[:22])
        writer.attempt(folder, 2, curve[15:], resumed_from=150, end="finished")
    rules: list[Rule] = [Bar(), Halving(2, (250.0, 750.0))]
    live = StoppingRule(rules, budget=1000, metric="train/accuracy")
    seen: list[tuple[float, str, dict[str, Any]]] = []
    for at in range(3):
        name = f"overfit-E1a-s{at}"
        for number in (1, 2):
            file = writer.path / "trials" / name / f"attempt-{number}.jsonl"
            for line in file.read_text().splitlines():
                row = json.loads(line)
                if row["kind"] == "row" and (number == 2 or row["step"] <= 150):
                    seen.append((row["time"], name, row))
    told: dict[str, list[tuple[float, str, bool]]] = {f"overfit-E1a-s{at}": [] for at in range(3)}
    stopped = set()
    for _, name, row in sorted(seen, key=lambda one: one[0]):
        value = row.get("train/accuracy")
        if "train/accuracy" in row and value is None:
            value = math.nan
        if name in stopped:
            continue
        decision = live.on_report(name, row["epoch"], value)
        if decision.rung is not None:
            told[name].append((row["epoch"], decision.reason, decision.stop))
        if decision.stop:
            stopped.add(name)
    played = recorded_decisions(read_curves(analysis.load(writer.path)), rules)
    again = {
        name: [(epoch, one.reason, one.stop) for epoch, one in decisions]
        for name, decisions in played.items()
    }
    assert again == told
    assert stopped == {"overfit-E1a-s0", "overfit-E1a-s2"}  # the bar; not a number


def test_rank_correlation(tmp_path: Path) -> None:
    assert spearman([1, 2, 3], [10, 20, 90]) == pytest.approx(1)
    assert spearman([1, 2, 2, 4], [1, 3, 2, 4]) == pytest.approx(0.9486833)
    assert math.isnan(spearman([1, 2], [1, 2])) and math.isnan(spearman([1, 1, 1], [1, 2, 3]))
    found = analysis.replay(analysis.load(late_riser(tmp_path / "run").path), Bar(), orders=0)
    by_share = {one.fraction: one for one in found.correlations}
    assert by_share[0.5].n == 6 and by_share[0.75].rho == pytest.approx(1)
    assert by_share[0.5].rho == pytest.approx(1 - 6 * (25 + 5) / (6 * 35))


def test_recommends_only_with_enough_full_curves(tmp_path: Path) -> None:
    few = analysis.replay(
        analysis.load(phase1(tmp_path / "few", 0.9, 0.8, 0.3, 0.1).path), "bar", orders=2
    )
    assert few.recommended_bar is None and not few.recommended_rungs
    assert "4 full curves of 4: too few" in few.caveat
    writer = FolderWriter(tmp_path / "many")
    for at, final in enumerate((0.9, 0.88, 0.5, 0.4, 0.3, 0.2)):
        writer.add("overfit/E1a", final, seed=at)
    writer.add("overfit/E1b", 0.1, status="stopped", steps=200)
    many = analysis.replay(analysis.load(writer.path), "bar", orders=3)
    bar = many.recommended_bar
    assert bar is not None and many.curves == 7 and many.full == 6
    # at 12.5 % of the budget the two to keep stand at 22 %: 15 % keeps them by a margin
    assert (bar.threshold, bar.at_fraction) == (0.15, 0.125)
    assert value_at(read_curves(analysis.load(writer.path))[1], 0.125) == pytest.approx(0.22)
    assert many.recommended_rungs[0] == 0.125
    assert "6 full curves of 7" in many.caveat


def test_what_is_recommended_can_be_given_to_a_search_and_replayed(tmp_path: Path) -> None:
    writer = FolderWriter(tmp_path / "run")
    for at, final in enumerate((0.9, 0.88, 0.5, 0.4, 0.3, 0.2)):
        writer.add("overfit/E1a", final, seed=at)
    run = analysis.load(writer.path)
    found = analysis.replay(run, "bar", orders=0)
    told = "\n".join(found.advice())
    assert "--scheduler bar:0.15@0.125)" in told and "phases keep the plan's" in told
    assert found.recommended_rungs == (0.125, 0.375), "each at least three times later"
    assert "search --scheduler asha:0.125,0.375)" in told
    again = analysis.replay(run, "bar:0.15@0.125", orders=3)
    assert [stop.final for stop in again.stops] == [0.5, 0.4, 0.3, 0.2] and again.lost == 0
    assert all(stop.reason.startswith("own bar: ") for stop in again.stops)
    live = search_rule("asha:0.125,0.375", 1000)
    assert live is not None
    played = recorded_decisions(read_curves(run), live.rules.values())
    stopped = {name for name, told in played.items() if told and told[-1][1].stop}
    halved = analysis.replay(run, "asha:0.125,0.375", orders=0)
    assert {stop.trial_id for stop in halved.stops} == stopped and len(stopped) == 5
    assert analysis.replay(run, "none", orders=1).stops == ()


def test_times_stopped_over_the_orders(tmp_path: Path) -> None:
    run = analysis.load(phase1(tmp_path / "run", 0.9, 0.8, 0.7, 0.6).path)
    found = analysis.replay(run, Halving(2, (100.0,)), orders=12)
    counted = {name: sum(name in o.stopped for o in found.orders) for name in found.times_stopped}
    assert found.times_stopped == counted and "overfit-E1a-s0" not in counted
    low, high = found.saved_range
    assert low <= found.saved <= high and low < high
    assert "stopped in how many of the 12: " in found.text()
    assert f"({100 * low:.0f} to {100 * high:.0f} %)" in found.text()


def test_runs_without_full_curves_or_rows(tmp_path: Path) -> None:
    writer = FolderWriter(tmp_path / "run")
    writer.plan_trial("overfit/E1a")
    with pytest.raises(analysis.ResultsError, match="no arm has reported"):
        analysis.replay(analysis.load(writer.path), "bar")
    writer.add("overfit/E2a", math.nan, status="failed", steps=50)
    found = analysis.replay(analysis.load(writer.path), "asha", orders=2)
    assert found.winner is None and "no full curve" in found.text()
    json.dumps(found.to_json(), allow_nan=False)


def test_the_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    import argparse

    parser = argparse.ArgumentParser()
    command.add(parser.add_subparsers())
    path = str(late_riser(tmp_path / "run").path)
    args = parser.parse_args(["replay", path, "--rule", "asha", "--orders", "2"])
    assert args.action(args) == 0
    out = capsys.readouterr().out
    assert "6 curves, 6 full" in out and "caveat:" in out
    args = parser.parse_args(["replay", path, "--json", "--orders", "0", "--threshold", "0.05"])
    assert args.action(args) == 0
    assert json.loads(capsys.readouterr().out)["stops"] == []
    args = parser.parse_args(["replay", path, "--eta", "3"])
    with pytest.raises(Exception, match="--rule asha"):
        args.action(args)
