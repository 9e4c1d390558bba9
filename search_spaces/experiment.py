"""What an experiment and a phase are: frozen values, checked when they are declared."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from trainable.config import option_owner
from trainable.errors import ConfigError

Revision = Literal["2026-01-09", "2026-01-21"]
Options = Mapping[str, Any]
"""Flat options, ``{option name: value}``, as `trainable.config.TrialConfig.replace` takes them."""


@dataclass(frozen=True)
class Experiment:
    """One arm of a series: what differs from the series' common settings, and why.

    Raises `ConfigError` for an unknown option in `overrides` or `subject` (naming the nearest), and
    for a declaration that contradicts itself: an override that is neither subject nor consequence,
    an arm's subject that it does not set, an arm that is its own control. What concerns several
    experiments is checked by `search_spaces.consistency`.
    """

    name: str
    """``series/ID``; IDs alone are not unique over the series."""
    title: str
    why: str
    subject: frozenset[str]
    """Options that the experiment is about. A profile touches them by its stated factors only;
    an option may be a subject although its value equals the control's."""
    overrides: Options = field(default_factory=dict, hash=False)
    consequences: frozenset[str] = frozenset()
    """Overrides that follow from the subject without being it: the smaller batch that a larger
    encoder needs, with its reason."""
    phase: str | None = None
    control: str | None = None
    """Name of the comparison partner; None for a control."""
    repeats: str | None = None
    """Name of an experiment whose settings this one has exactly; its own run measures noise."""
    decided: frozenset[str] = frozenset()
    """Overrides whose value a run decides. Until it has, the default that the series states holds;
    `Series.after` gives the experiment with the winner's values."""

    def __post_init__(self) -> None:
        object.__setattr__(self, "overrides", dict(self.overrides))
        for option in (*self.overrides, *sorted(self.subject)):
            option_owner(option)
        self._check()

    def _check(self) -> None:
        series, slash, identifier = self.name.partition("/")
        if not (series and slash and identifier) or "/" in identifier:
            raise ConfigError(f"experiment {self.name!r}: write the name as series/ID")
        stray = sorted(self.overrides.keys() - self.subject - self.consequences)
        if stray:
            raise ConfigError(
                f"{self.name} sets {', '.join(stray)}, which it does not declare: "
                f"add it to subject, or to consequences if it follows from the subject"
            )
        unset = sorted(self.subject - self.overrides.keys())
        if self.control is not None and unset:
            raise ConfigError(
                f"{self.name} declares {', '.join(unset)} as its subject and does not set it: "
                f"set it, or take it out of subject"
            )
        if self.name in (self.control, self.repeats):
            raise ConfigError(f"{self.name} is its own control: name another experiment, or None")

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
    """One word, unique over the series: ``phase1``, ``debug1``."""
    text: str
    experiments: tuple[Experiment, ...]

    @property
    def path(self) -> str:
        """Its name within its series: ``overfit/phase1``, ``debug/phase1``, ``debug/gaps``."""
        series = self.experiments[0].series
        rest = self.name.removeprefix(series)
        return f"{series}/phase{rest}" if rest[0].isdigit() else f"{series}/{rest.lstrip('_')}"


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
    after: Callable[[Revision, str], tuple[Experiment, ...]] | None = None
    """``after(revision, winner)``: the experiments that wait for a decision, as the experiment
    `winner` (its ID) settles them. Raises `ConfigError` for an ID that cannot win."""
    role: Literal["arm", "decoder"] = "arm"
    """``decoder``: a recipe that other trials start from, not an arm that is compared."""

    def __post_init__(self) -> None:
        object.__setattr__(self, "common", dict(self.common))
        for option in self.common:
            option_owner(option)


def trial_id(experiment_name: str, seed: int) -> str:
    """Name of one trial: ``trial_id("overfit/E1a", 0) == "overfit-E1a-s0"``."""
    return f"{experiment_name.replace('/', '-')}-s{seed}"
