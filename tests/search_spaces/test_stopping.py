"""Stopping rules on curves like those that trials record."""

from __future__ import annotations

import json
import math
import random

import pytest

from search_spaces.schedulers import (
    Median,
    check_scheduler,
    place,
    rules_of,
    rung_lines,
    search_rule,
)
from search_spaces.stopping import Bar, Decision, Halving, StoppingRule, phase_rule
from trainable.errors import ConfigError

NAN = math.nan


def curve(final: float, *, epochs: float = 1000, every: float = 9.4) -> list[tuple[float, float]]:
    """A saturating accuracy curve with reports every `every` epochs."""
    count = int(epochs / every)
    return [(round(i * every, 2), final * (1 - math.exp(-6 * i / count))) for i in range(1, count)]


def feed(rule: StoppingRule, trial: str, points: list[tuple[float, float]]) -> list[Decision]:
    """Report until told to stop."""
    decisions = []
    for epoch, value in points:
        decisions.append(rule.on_report(trial, epoch, value))
        if decisions[-1].stop:
            break
    return decisions


def test_bar_stops_a_run_that_does_not_learn_and_says_why() -> None:
    rule = phase_rule(1000)
    assert not rule.on_report("a", 499, 0.01).stop
    decision = rule.on_report("a", 502, 0.123)
    assert decision.stop
    assert (decision.rule, decision.rung) == ("bar", 500)
    assert decision.reason == (
        "bar: train/accuracy 12.3 % < 20 % at epoch 500 of 1000 "
        "(rung 500, first report at epoch 502)"
    )


def test_bar_is_judged_once_at_the_first_report_at_or_after_the_milestone() -> None:
    rule = phase_rule(1000)
    assert rule.on_report("a", 500, 0.25).rung == 500
    for epoch, value in ((510, 0.01), (900, 0.0)):
        assert rule.on_report("a", epoch, value) == Decision(stop=False)
    late = phase_rule(1000)
    assert late.on_report("b", 10, 0.0) == Decision(stop=False)
    assert late.on_report("b", 730, 0.1).stop


@pytest.mark.parametrize(
    ("value", "stop"),
    [(0.2, False), (0.19999, True), (0.95, False), (NAN, True), (math.inf, True), (None, True)],
)
def test_bar_threshold(value: float | None, stop: bool) -> None:
    assert phase_rule(1000).on_report("a", 500, value).stop is stop


def test_a_value_just_below_the_bar_is_not_shown_as_the_bar() -> None:
    assert "19.998 % < 20 %" in phase_rule(1000).on_report("a", 500, 0.19998).reason


def test_not_a_number_is_said_plainly() -> None:
    assert "not a number is not ≥ 20 %" in phase_rule(1000).on_report("a", 500, NAN).reason


def test_bar_follows_each_trials_budget() -> None:
    rule = StoppingRule([Bar()], budget=1000, budgets={"long": 2500})
    assert not rule.on_report("long", 600, 0.0).stop
    assert rule.on_report("long", 1250, 0.0).rung == 1250
    published = phase_rule(100_000)
    assert not published.on_report("a", 49_999, 0.1).stop
    assert published.on_report("a", 50_000, 0.1).stop


def test_a_report_without_the_metric_is_judged_by_a_fresh_value() -> None:
    """No row may have halted in one interval: all rows can halt in step with each other."""
    rule = phase_rule(1000)
    rule.on_report("a", 490, 0.8)
    assert not rule.on_report("a", 500, None).stop
    rule.on_report("stale", 300, 0.8)
    assert rule.on_report("stale", 500, None).stop
    rule.on_report("nan", 490, NAN)
    assert rule.on_report("nan", 500, None).stop


@pytest.mark.parametrize("scheduler", ["asha", "median"])
def test_a_trial_is_compared_when_it_has_measured_something(scheduler: str) -> None:
    """No row of a trial of many ACT steps can have halted by an early rung."""
    rule = search_rule(scheduler, 800)
    assert rule is not None
    for trial, value in (("a", 0.3), ("b", 0.4), ("c", 0.5)):
        rule.on_report(trial, 170, value)
    assert rule.on_report("slow", 170, None) == Decision(stop=False)
    assert all("slow" not in rung.entries for rung in rule.rungs)
    late = rule.on_report("slow", 230, 0.9)
    assert not late.stop
    assert "first report at epoch 230" in late.reason
    # Half of the budget is the end of patience; what is not a number never waits.
    assert not rule.on_report("never", 399, None).stop
    assert rule.on_report("never", 400, None).stop
    assert rule.on_report("nan", 170, NAN).stop


def test_nothing_measured_on_a_rung_is_said_plainly() -> None:
    rule = StoppingRule([Halving(2, (100,))], budget=1000)
    rule.on_report("a", 100, NAN)
    assert "which are no numbers either at epoch" in rule.on_report("b", 100, NAN).reason


def test_learning_curves_pass_the_bar_and_flat_ones_stop_there() -> None:
    rule = phase_rule(1000)
    assert not feed(rule, "good", curve(0.92))[-1].stop
    assert not feed(rule, "half", curve(0.51))[-1].stop
    flat = feed(rule, "flat", curve(0.12))
    assert flat[-1].stop
    assert flat[-1].rung == 500
    assert len(flat) == math.ceil(500 / 9.4)


def test_halving_keeps_the_top_share_of_those_that_arrived() -> None:
    rule = StoppingRule([Halving(2, (100,))], budget=1000)
    values = [0.5, 0.4, 0.6, 0.55, 0.45]
    # k = 1, 1, 1, 2, 2 of n = 1 … 5
    stops = [rule.on_report(f"t{i}", 100, v).stop for i, v in enumerate(values)]
    assert stops == [False, True, False, False, True]


def test_halving_ties_share_their_fate_and_nan_never_survives() -> None:
    rule = StoppingRule([Halving(3, (100,))], budget=1000)
    assert rule.on_report("nan", 100, NAN).stop
    assert not rule.on_report("a", 100, 0.5).stop
    assert not rule.on_report("b", 100, 0.5).stop
    assert not rule.on_report("c", 100, 0.5).stop
    assert rule.on_report("d", 100, 0.4999).stop
    assert rule.on_report("nan2", 100, NAN).stop


def test_halving_counts_diverged_trials_as_the_last() -> None:
    rule = StoppingRule([Halving(2, (100,))], budget=1000)
    for i in range(3):
        rule.on_report(f"nan{i}", 100, NAN)
    assert not rule.on_report("a", 100, 0.1).stop
    assert not rule.on_report("b", 100, 0.05).stop  # k = 2 of 5


def test_halving_against_an_independent_ranking() -> None:
    rng = random.Random(0)
    for eta in (2, 3, 4):
        rule = StoppingRule([Halving(eta, (10,))], budget=100)
        seen: list[float] = []
        for i in range(60):
            value = rng.choice([round(rng.random(), 1), NAN])
            seen.append(value)
            better = sum(1 for v in seen if v > value)
            keep = max(1, len(seen) // eta)
            expected = math.isnan(value) or better >= keep
            assert rule.on_report(f"t{i}", 10, value).stop is expected


def test_halving_rungs_are_reached_late_and_together() -> None:
    rule = StoppingRule([Halving(2, (100, 200, 400))], budget=1000)
    decision = rule.on_report("a", 250, 0.5)
    assert (decision.stop, decision.rung) == (False, 200)
    assert len(decision.all_reasons) == 2
    assert [(r.milestone, list(r.entries)) for r in rule.rungs] == [(100, ["a"]), (200, ["a"])]
    assert rule.rungs[0].entries["a"].epoch == 250


def test_geometric_rungs() -> None:
    assert Halving.geometric(3, budget=1000, first=50).rungs == (50, 150, 450)


def test_both_rules_and_the_reason_of_the_one_that_stops() -> None:
    rule = StoppingRule([Bar(), Halving(2, (500,))], budget=1000)
    assert not rule.on_report("a", 500, 0.9).stop
    second = rule.on_report("b", 500, 0.6)
    assert second.stop and second.rule == "halving"
    assert second.reason.startswith("halving: train/accuracy 60.0 % not among the best 1 of 2")
    third = rule.on_report("c", 500, 0.1)
    assert third.stop and third.rule == "bar"
    assert [r.split(":")[0] for r in third.all_reasons] == ["bar", "halving"]


def test_replays_change_nothing() -> None:
    rule = StoppingRule([Bar(), Halving(2, (100, 300))], budget=1000)
    curves = {f"t{i}": curve(0.3 + 0.1 * i) for i in range(5)}
    first = {t: feed(rule, t, points) for t, points in curves.items()}
    state = rule.state()
    again = {t: feed(rule, t, points) for t, points in reversed(curves.items())}
    assert again == first
    assert rule.state()["rungs"] == state["rungs"]


def test_a_stopped_trial_is_told_so_again_but_only_from_there_on() -> None:
    rule = phase_rule(1000)
    told = rule.on_report("a", 505, 0.1)
    assert rule.on_report("a", 515, 0.9).reason == told.reason
    assert rule.on_report("a", 515, 0.9).stop
    assert not rule.on_report("a", 480, 0.1).stop  # resumed from an earlier checkpoint
    assert not rule.on_report("a", 502, 0.1).stop


def test_a_restart_in_the_middle_decides_as_an_unbroken_run() -> None:
    def rules() -> StoppingRule:
        return StoppingRule([Bar(), Halving(2, (100, 300))], budget=1000)

    curves = {f"t{i}": curve(0.15 + 0.1 * i) for i in range(6)} | {"n": [(120.0, NAN)]}
    events = [(t, e, v) for t, points in curves.items() for e, v in points]
    random.Random(1).shuffle(events)
    events.sort(key=lambda event: event[1])

    whole, first = rules(), rules()
    expected = [whole.on_report(*event) for event in events]
    half = len(events) // 2
    got = [first.on_report(*event) for event in events[:half]]
    second = rules()
    second.restore(json.loads(json.dumps(first.state(), allow_nan=False)))
    # A resume repeats what came after the checkpoint.
    for event in events[half - 20 : half]:
        second.on_report(*event)
    got += [second.on_report(*event) for event in events[half:]]
    assert got == expected
    assert any(d.stop for d in expected)


def test_state_of_another_kind_is_refused() -> None:
    state = phase_rule(1000).state()
    with pytest.raises(ConfigError, match="new folder"):
        phase_rule(1000, metric="eval/accuracy").restore(state)
    with pytest.raises(ConfigError, match="version"):
        phase_rule(1000).restore(state | {"version": 99})


def test_contradictory_rules_are_refused() -> None:
    for bad in (
        lambda: Halving(1, (10,)),
        lambda: Halving(2, ()),
        lambda: Bar(at_fraction=0),
        lambda: Halving.geometric(1, budget=10, first=1),
        lambda: StoppingRule([Bar(), Bar(0.3)], budget=10),
        lambda: StoppingRule([Bar()], budget=math.inf),
    ):
        with pytest.raises(ConfigError):
            bad()


def test_a_trial_that_comes_later_brings_its_own_budget() -> None:
    rule = phase_rule(1000)
    rule.expect("late", 100)
    assert rule.on_report("late", 60, 0.1).stop
    assert not rule.on_report("other", 60, 0.1).stop
    with pytest.raises(ConfigError, match="above 0"):
        rule.expect("never", 0)


def test_median_needs_others_and_then_stops_the_lower_half() -> None:
    rule = StoppingRule([Median()], budget=100)
    assert not rule.on_report("a", 10, 0.0).stop
    for trial, value in (("a", 0.1), ("b", 0.5), ("c", 0.9)):
        assert not rule.on_report(trial, 20, value).stop
    assert not rule.on_report("tie", 20, 0.5).stop
    decision = rule.on_report("d", 21, 0.4)
    assert decision.stop
    assert decision.reason == (
        "median: train/accuracy 40.0 % < 50.0 %, the median of 4 others at epoch 20 of 100 "
        "(rung 20, first report at epoch 21)"
    )


def test_median_stops_what_is_not_a_number_even_alone_and_ranks_it_last() -> None:
    rule = StoppingRule([Median()], budget=100)
    for trial in "abc":
        assert rule.on_report(trial, 20, NAN).stop
    assert not rule.on_report("d", 20, 0.0).stop


def test_schedulers_by_name() -> None:
    asha = search_rule("asha", 800)
    assert asha is not None
    assert {n: r.milestones(800) for n, r in asha.rules.items()} == {
        "bar": (400,),
        "halving": (100, 300),
    }
    assert search_rule("none", 800) is None
    with pytest.raises(ConfigError, match="did you mean 'asha'"):
        search_rule("ash", 800)


def test_schedulers_with_settings() -> None:
    (bar,) = rules_of("bar:0.15@0.25", 800)
    assert bar == Bar(0.15, 0.25, name="own bar") and bar.milestones(800) == (200,)
    plain, halving = rules_of("asha:0.125,0.5", 800)
    assert plain == Bar() and halving.milestones(800) == (100, 400)
    assert rules_of("asha", 800)[1].milestones(800) == (100, 300)
    assert check_scheduler("median") == "median"
    for wrong in ("bar:", "bar:15", "bar:15@0.5", "bar:0.2@x", "asha:0.5,2", "asha:", "none:1"):
        with pytest.raises(ConfigError, match=f"scheduler '{wrong}': give {wrong[:3]}"):
            rules_of(wrong, 800)


@pytest.mark.parametrize("scheduler", ["bar", "asha", "median"])
def test_recorded_curves_replayed_by_time_decide_as_they_did_live(scheduler: str) -> None:
    generator = random.Random(3)
    curves = {f"t{i}": curve(generator.random()) for i in range(9)}
    curves["nan"] = [(epoch, NAN if epoch > 100 else value) for epoch, value in curve(0.9)]
    curves["late"] = [(epoch, value) for epoch, value in curve(0.5) if epoch > 600]
    curves["tie"] = list(curves["t0"])
    live = search_rule(scheduler, 1000)
    assert live is not None
    recorded: list[tuple[float, str, float, float | None]] = []
    waiting, clock = {t: list(points) for t, points in curves.items()}, 0.0
    stopped: dict[str, str] = {}
    while waiting:  # three at once, as slots free up
        trial = generator.choice(list(waiting)[:3])
        epoch, value = waiting[trial].pop(0)
        clock += 1
        recorded.append((clock, trial, epoch, value))
        decision = live.on_report(trial, epoch, value)
        if decision.stop:
            stopped[trial] = decision.reason
        if decision.stop or not waiting[trial]:
            del waiting[trial]
    assert "nan" in stopped
    generator.shuffle(recorded)
    again = search_rule(scheduler, 1000)
    assert again is not None
    # A restart repeats rows after the checkpoint; nothing is decided twice.
    repeated = [(clock + at, *row[1:]) for at, row in enumerate(recorded[:20])]
    assert place(again, recorded + repeated) == stopped
    assert again.state()["rungs"] == live.state()["rungs"]


def test_rung_lines_say_who_survived_and_why_not() -> None:
    rule = search_rule("asha", 800)
    assert rule is not None
    for trial, value in (("a", 0.3), ("b", 0.6), ("c", 0.1), ("d", NAN)):
        rule.on_report(trial, 100, value)
    rule.on_report("a", 400, 0.1)
    first, second, bar = rung_lines(rule.rungs)
    assert (first.rule, first.milestone, first.reached) == ("halving", 100, 4)
    assert first.survivors == ("b", "a")
    assert list(first.stopped) == ["c", "d"]
    assert "best 1 of 4" in first.stopped["d"]
    assert (second.milestone, second.survivors) == (300, ("a",))
    assert (bar.rule, bar.survivors, list(bar.stopped)) == ("bar", (), ["a"])
