"""Every series by name, and what a target (`phase1`, `overfit/E2b`, a list) stands for."""

from __future__ import annotations

from collections.abc import Iterable

from search_spaces import decoder, overfit
from search_spaces.experiment import Experiment, Phase, Series
from search_spaces.reference import DEFAULT_REVISION, REVISIONS, check_revision
from trainable.errors import ConfigError, nearest

SERIES: dict[str, Series] = {
    series.name: series
    for series in (
        overfit.SERIES,
        decoder.SERIES,
    )
}


def series(name: str) -> Series:
    """The series called `name`. Raises `ConfigError` naming the nearest."""
    if name not in SERIES:
        raise ConfigError(f"unknown series {name!r}{nearest(name, SERIES)}")
    return SERIES[name]


def experiments(revision: str = DEFAULT_REVISION) -> tuple[Experiment, ...]:
    """Every arm of the plan, in the documents' order. The decoder recipe is not an arm."""
    known = check_revision(revision)
    return tuple(
        experiment
        for series in SERIES.values()
        if series.role == "arm"
        for experiment in series.experiments(known)
    )


def experiment(name: str, *, revision: str = DEFAULT_REVISION) -> Experiment:
    """One experiment by full name: ``experiment("overfit/E2b")``, ``experiment("decoder/trm")``.

    Raises `ConfigError` for an unknown name (naming the nearest) and for one that exists in another
    revision only.
    """
    known = check_revision(revision)
    found = {e.name: e for series in SERIES.values() for e in series.experiments(known)}
    if name in found:
        return found[name]
    for other in REVISIONS:
        if any(name == e.name for series in SERIES.values() for e in series.experiments(other)):
            raise ConfigError(f"{name} is not part of revision {known}: use --revision {other}")
    raise ConfigError(f"unknown experiment {name!r}{nearest(name, found)}")


def phases(revision: str = DEFAULT_REVISION) -> tuple[Phase, ...]:
    """Every phase of every series."""
    known = check_revision(revision)
    return tuple(phase for series in SERIES.values() for phase in series.phases(known))


def phase(name: str, *, revision: str = DEFAULT_REVISION) -> Phase:
    """One phase by name: ``phase("phase1")``. Raises `ConfigError` naming the nearest."""
    found = {p.name: p for p in phases(revision)}
    if name not in found:
        raise ConfigError(f"unknown phase {name!r}{nearest(name, found)}")
    return found[name]


def targets(revision: str = DEFAULT_REVISION) -> dict[str, tuple[Experiment, ...]]:
    """What can be asked for by one word: each phase, each series of arms, and ``all``."""
    known = check_revision(revision)
    found = {phase.name: phase.experiments for phase in phases(known)}
    for series in SERIES.values():
        if series.role == "arm":
            found[series.name] = series.experiments(known)
    return found | {"all": experiments(known)}


def resolve_target(
    target: str | Iterable[str], *, revision: str = DEFAULT_REVISION
) -> list[Experiment]:
    """Experiments of a target or of several, in order, each once.

    A target is a word of `targets` or the full name of an experiment; a string may hold several,
    separated by commas. Raises `ConfigError` for an unknown one, naming the nearest.
    """
    words = target.split(",") if isinstance(target, str) else list(target)
    words = [word.strip() for word in words if word.strip()]
    if not words:
        raise ConfigError(f"no target given: choose from {', '.join(targets(revision))}")
    known = targets(revision)
    chosen: dict[str, Experiment] = {}
    for word in words:
        for arm in known.get(word) or (_named(word, list(known), revision),):
            chosen[arm.name] = arm
    return list(chosen.values())


def _named(word: str, words: list[str], revision: str) -> Experiment:
    try:
        return experiment(word, revision=revision)
    except ConfigError:
        names = [e.name for r in REVISIONS for e in experiments(r)]
        if word in names:
            raise
        same_id = [name for name in names if name.partition("/")[2] == word]
        hint = nearest(same_id[0] if same_id else word, [*words, *names])
        raise ConfigError(
            f"unknown target {word!r}{hint}: choose from {', '.join(words)} or series/ID"
        ) from None
