"""Experiments that contradict themselves or each other are refused with the fix named."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest

from search_spaces import overfit
from search_spaces.consistency import check_series
from search_spaces.experiment import Experiment, Phase, Series
from trainable.errors import ConfigError


def declare(**fields: Any) -> Experiment:
    given = {"name": "x/B", "title": "t", "why": "w", "control": "x/A", "phase": "p",
             "subject": frozenset({"lr"}), "overrides": {"lr": 3e-4}} | fields  # fmt: skip
    return Experiment(**given)


CONTROL = declare(name="x/A", control=None, overrides={})


def series(*arms: Experiment, phase: Callable[[Phase], Phase] = lambda p: p) -> Series:
    return replace(
        overfit.SERIES,
        name="x",
        experiments=lambda revision: arms,
        phases=lambda revision: (phase(Phase("p", "text", arms)),),
    )


@pytest.mark.parametrize(
    ("fields", "told"),
    [
        ({"overrides": {"lr": 3e-4, "weight_decay": 0.0}}, "sets weight_decay, which it does not"),
        ({"subject": frozenset({"lr", "ema_rate"})}, "declares ema_rate as its subject"),
        ({"control": "x/B"}, "its own control"),
        ({"repeats": "x/B"}, "its own control"),
        ({"name": "B"}, "series/ID"),
        ({"name": "x/B/C"}, "series/ID"),
        ({"overrides": {"lrr": 3e-4}}, "did you mean 'lr'"),
    ],
)
def test_an_experiment_that_contradicts_itself(fields: dict[str, Any], told: str) -> None:
    with pytest.raises(ConfigError, match=told) as error:
        declare(**fields)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("arms", "told"),
    [
        ((CONTROL, declare(), declare()), "declared 2 times"),
        ((CONTROL, declare(name="y/B", control=None, overrides={})), "rename it"),
        ((declare(control="x/C"), declare(name="x/D", control=None)), "does not have"),
        ((CONTROL, declare(overrides={"lr": 1e-4})), "whole subject"),
        ((CONTROL, declare(repeats="x/A")), "sets lr otherwise"),
        ((CONTROL, declare(), declare(name="x/C")), "has the settings of x/B"),
        ((CONTROL, declare(phase="q")), "says phase q"),
    ],
)
def test_experiments_that_contradict_each_other(arms: tuple[Experiment, ...], told: str) -> None:
    with pytest.raises(ConfigError, match=told) as error:
        check_series(series(*arms), "2026-01-21")
    assert "\n" not in str(error.value)


def test_an_arm_in_no_phase() -> None:
    broken = series(CONTROL, declare(), phase=lambda p: replace(p, experiments=(CONTROL,)))
    with pytest.raises(ConfigError, match="stands in 0 phases"):
        check_series(broken, "2026-01-21")


def test_sound_series_pass_and_repeats_may_set_the_inherited_value() -> None:
    """0.1 is the weight decay of the reference, which the series does not set itself."""
    again = declare(
        name="x/C", repeats="x/A", subject=frozenset({"weight_decay"}),
        overrides={"weight_decay": 0.1},
    )  # fmt: skip
    assert len(check_series(series(CONTROL, declare(), again), "2026-01-21")) == 3
