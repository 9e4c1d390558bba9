"""What an experiment and a phase are: frozen values, checked when they are declared."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from trainable.config import option_owner

Revision = Literal["2026-01-09", "2026-01-21"]
Options = Mapping[str, Any]
"""Flat options, ``{option name: value}``, as `trainable.config.TrialConfig.replace` takes them."""


@dataclass(frozen=True)
class Experiment:
    """One arm of a series: what differs from the series' common settings, and why.

    Raises `trainable.errors.ConfigError` for an unknown option in `overrides` or `subject`.
    """

    name: str
    """``series/ID``; IDs alone are not unique over the series."""
    title: str
    why: str
    subject: frozenset[str]
    """Options that the experiment is about. A profile touches them by its stated factors only;
    an option may be a subject although its value equals the control's."""
    overrides: Options = field(default_factory=dict, hash=False)
    phase: str | None = None
    control: str | None = None
    """Name of the comparison partner; None for a control."""
    repeats: str | None = None
    """Name of an experiment whose settings this one has exactly; its own run measures noise."""

    def __post_init__(self) -> None:
        object.__setattr__(self, "overrides", dict(self.overrides))
        for option in (*self.overrides, *sorted(self.subject)):
            option_owner(option)

    @property
    def series(self) -> str:
        """The part of the name before the slash."""
        return self.name.partition("/")[0]

    @property
    def id(self) -> str:
        """The part of the name after the slash."""
        return self.name.partition("/")[2]


@dataclass(frozen=True)
class Phase:
    """Experiments that run together and are judged together."""

    name: str
    text: str
    experiments: tuple[Experiment, ...]


@dataclass(frozen=True)
class Series:
    """One document's experiments: common settings, arms by revision, phases."""

    name: str
    title: str
    question: str
    hypothesis: str
    decision_rule: str
    cost: str
    common: Options = field(hash=False)
    experiments: Callable[[Revision], tuple[Experiment, ...]]
    phases: Callable[[Revision], tuple[Phase, ...]]
    role: Literal["arm", "decoder"] = "arm"
    """``decoder``: a recipe that other trials start from, not an arm that is compared."""

    def __post_init__(self) -> None:
        object.__setattr__(self, "common", dict(self.common))
        for option in self.common:
            option_owner(option)


def trial_id(experiment_name: str, seed: int) -> str:
    """Name of one trial: ``trial_id("overfit/E1a", 0) == "overfit-E1a-s0"``."""
    return f"{experiment_name.replace('/', '-')}-s{seed}"
