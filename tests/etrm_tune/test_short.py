"""When trials are forked rather than given a trainer."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from etrm_tune import short
from etrm_tune.cli import short_trials
from etrm_tune.plan import Options, Plan, PlannedTrial
from etrm_tune.resources import Allotment, Machine
from trainable.config import TrialConfig
from trainable.errors import ConfigError

ARM = Allotment(Machine(2), 2, 1, 1)


def plan(role: str = "arm") -> Plan:
    config = TrialConfig(name="overfit/E1a")
    trial = PlannedTrial("overfit-E1a-s0", role, config, config.identity())
    return Plan(Options("overfit/E1a", "laptop", "2026-01-21", 1), (trial,))


@pytest.mark.parametrize(("seconds", "how"), [(5.0, "forked"), (59.0, "forked"), (61.0, "trainer")])
def test_the_longest_trial_decides(
    seconds: float, how: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(short, "longest", lambda plan: seconds)
    (start,) = short.choose(plan(), {"arm": ARM}, None, None).values()
    assert start.how == how
    assert f"{seconds:.0f} s" in start.why and "60 s" in start.why
    assert short.apply({"arm": ARM}, {"arm": start})["arm"].forked is (how == "forked")


def never(plan: Plan) -> float:
    raise AssertionError("nothing is to be estimated")


def test_what_is_said_wins_then_what_is_stored(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(short, "longest", never)

    def how(asked: bool | None, stored: dict[str, Any] | None, **more: Any) -> str:
        (start,) = short.choose(plan(), {"arm": replace(ARM, **more)}, asked, stored).values()
        return start.how

    begun = {"starts": {"arm": {"how": "forked", "why": "short"}}}
    assert how(None, begun) == "forked"
    assert how(False, begun) == "trainer"
    assert how(True, None) == "forked"
    assert how(None, {}) == "trainer", "a run from before there was a choice"
    assert how(True, None, workers=2) == "trainer", "a fork is one worker"
    assert how(None, None, use_gpu=True) == "trainer"


def test_a_forked_trial_asks_ray_for_its_whole_share_at_once() -> None:
    forked = replace(ARM, forked=True, threads=3)
    assert forked.driver_resources == {"CPU": 3.0}
    shared = replace(forked, use_gpu=True, gpus_per_worker=0.5)
    assert shared.driver_resources == {"CPU": 3.0, "GPU": 0.5}
    assert "1 forked process × 3 threads" in str(forked)


def test_the_estimate_grows_with_the_work(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("etrm_tune.measure.product_rate", lambda seconds: 1e11)
    small = TrialConfig(
        name="overfit/E1a", epochs=1, data={"max_train_groups": 2, "train_subsets": ["training"]}
    )
    one, many = (
        Plan(plan().options, (PlannedTrial("t", "arm", config, ""),))
        for config in (small, small.replace(epochs=100_000))
    )
    assert 0 < short.longest(one) < short.longest(many)


def test_the_option() -> None:
    assert [short_trials(word) for word in (None, "on", "off")] == [None, True, False]
    with pytest.raises(ConfigError, match="on, off"):
        short_trials("yes")
