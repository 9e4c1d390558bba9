"""What the experiments of a series must agree on, checked before any of them is used."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from search_spaces.experiment import Experiment, Revision, Series
from search_spaces.reference import REFERENCE, revision_overrides
from trainable.config import TrialConfig
from trainable.errors import ConfigError, nearest


def check_series(series: Series, revision: Revision) -> tuple[Experiment, ...]:
    """The experiments of a series in a revision, once they are found to agree.

    Raises `ConfigError`, naming the experiment and the fix, for a name used twice or of another
    series, an unknown control, an arm that does not differ from its control in anything that it
    declares, a repeat that is none, two arms alike, and a phase that names an arm twice or leaves
    one out.
    """
    arms = series.experiments(revision)
    by_name = {arm.name: arm for arm in arms}
    for name, times in Counter(arm.name for arm in arms).items():
        if times > 1:
            raise ConfigError(f"{name} is declared {times} times: give each its own ID")
    for arm in arms:
        if arm.series != series.name:
            raise ConfigError(f"{arm.name} is declared in series {series.name}: rename it")
        for partner in (arm.control, arm.repeats):
            if partner is not None and partner not in by_name:
                raise ConfigError(
                    f"{arm.name} is compared with {partner}, which series {series.name} does not "
                    f"have in revision {revision}{nearest(partner, by_name)}"
                )
    below = TrialConfig().flat() | dict(REFERENCE) | revision_overrides(revision)
    settings = {arm.name: below | dict(series.common) | dict(arm.overrides) for arm in arms}
    for arm in arms:
        _check_differences(arm, settings)
    _check_distinct(arms, settings)
    _check_phases(series, revision, arms)
    return arms


def _check_differences(arm: Experiment, settings: Mapping[str, Mapping[str, Any]]) -> None:
    own = settings[arm.name]
    if arm.repeats is not None:
        changed = _differing(own, settings[arm.repeats])
        if changed:
            raise ConfigError(
                f"{arm.name} repeats {arm.repeats} and sets {', '.join(changed)} otherwise: "
                f"leave out the setting, or repeats"
            )
    elif arm.control is not None:
        changed = _differing(own, settings[arm.control])
        if not arm.subject & set(changed):
            raise ConfigError(
                f"{arm.name} has its whole subject ({', '.join(sorted(arm.subject))}) in common "
                f"with its control {arm.control}: set something, or declare repeats"
            )


def _check_distinct(arms: Sequence[Experiment], settings: Mapping[str, Mapping[str, Any]]) -> None:
    seen: list[Experiment] = []
    for arm in arms:
        if arm.repeats is not None:
            continue
        for other in seen:
            if not _differing(settings[arm.name], settings[other.name]):
                raise ConfigError(
                    f"{arm.name} has the settings of {other.name}: "
                    f"declare repeats={other.name!r}, or set something"
                )
        seen.append(arm)


def _check_phases(series: Series, revision: Revision, arms: Sequence[Experiment]) -> None:
    phases = series.phases(revision)
    if not phases:
        return
    placed = Counter(arm.name for phase in phases for arm in phase.experiments)
    for arm in arms:
        if placed[arm.name] != 1:
            raise ConfigError(
                f"{arm.name} stands in {placed[arm.name]} phases of series {series.name}: "
                f"every arm belongs to one"
            )
    for phase in phases:
        for arm in phase.experiments:
            if arm.phase != phase.name:
                raise ConfigError(f"{arm.name} says phase {arm.phase}, but stands in {phase.name}")


def _differing(one: Mapping[str, Any], other: Mapping[str, Any]) -> list[str]:
    return sorted(o for o in one if one[o] != other[o] and o != "batch_size_reason")
