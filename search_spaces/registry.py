"""Every series by name, and what a target (`phase1`, `overfit/E2b`, a list) stands for."""

from __future__ import annotations

import functools
from collections.abc import Iterable

from search_spaces import act, debug, decoder, frozen, overfit
from search_spaces.consistency import check_series
from search_spaces.experiment import Experiment, Phase, Revision, Series
from search_spaces.reference import DEFAULT_REVISION, REVISIONS, check_revision
from trainable.errors import ConfigError, nearest

SERIES: dict[str, Series] = {
    series.name: series
    for series in (
        overfit.SERIES,
        debug.SERIES,
        act.SERIES,
        frozen.SERIES,
        decoder.SERIES,
    )
}


def series(name: str) -> Series:
    """The series called `name`. Raises `ConfigError` naming the nearest."""
    if name not in SERIES:
        raise ConfigError(f"unknown series {name!r}{nearest(name, SERIES)}")
    return SERIES[name]


@functools.cache
def _of(name: str, revision: Revision) -> tuple[Experiment, ...]:
    """The experiments of a series, checked against each other once."""
    return check_series(SERIES[name], revision)


def experiments(revision: str = DEFAULT_REVISION) -> tuple[Experiment, ...]:
    """Every arm of the plan, in the documents' order. The decoder recipe is not an arm.

    Raises `ConfigError` where the experiments of a series contradict each other.
    """
    known = check_revision(revision)
    return tuple(
        experiment
        for series in SERIES.values()
        if series.role == "arm"
        for experiment in _of(series.name, known)
    )


def experiment(name: str, *, revision: str = DEFAULT_REVISION) -> Experiment:
    """One experiment by full name: ``experiment("overfit/E2b")``, ``experiment("decoder/trm")``.

    ``experiment("act/E1@L2")`` is act/E1 as a decision for L2 settles it.

    Raises `ConfigError` for an unknown name (naming the nearest) and for one that exists in another
    revision only.
    """
    known = check_revision(revision)
    word, at, winner = name.partition("@")
    found = {e.name: e for series in SERIES for e in _of(series, known)}
    if word in found:
        return _settled((found[word],), word, winner, known)[0] if at else found[word]
    for other in REVISIONS:
        if any(word == e.name for series in SERIES for e in _of(series, other)):
            raise ConfigError(f"{word} is not part of revision {known}: use --revision {other}")
    raise ConfigError(f"unknown experiment {word!r}{nearest(word, found)}")


def _settled(
    arms: Iterable[Experiment], word: str, winner: str, revision: Revision
) -> tuple[Experiment, ...]:
    """`arms` with those that wait for a decision replaced by what `winner` makes of them."""
    settled = []
    waiting = False
    for arm in arms:
        after = SERIES[arm.series].after
        if arm.decided and after is not None:
            waiting = True
            arm = next(e for e in after(revision, winner) if e.name == arm.name)
        settled.append(arm)
    if not waiting:
        raise ConfigError(f"{word} waits for no decision: leave out '@{winner}'")
    return tuple(settled)


def phases(revision: str = DEFAULT_REVISION) -> tuple[Phase, ...]:
    """Every phase of every series."""
    known = check_revision(revision)
    return tuple(phase for series in SERIES.values() for phase in series.phases(known))


def phase(name: str, *, revision: str = DEFAULT_REVISION) -> Phase:
    """One phase by name or path: ``phase("debug1")``, ``phase("debug/phase1")``.

    Raises `ConfigError` naming the nearest.
    """
    found = {p.name: p for p in phases(revision)}
    by_path = {p.path: p for p in found.values()}
    if name not in found | by_path:
        raise ConfigError(f"unknown phase {name!r}{nearest(name, [*found, *by_path])}")
    return (found | by_path)[name]


def targets(revision: str = DEFAULT_REVISION) -> dict[str, tuple[Experiment, ...]]:
    """What can be asked for by one word: each phase, each series of arms, and ``all``."""
    known = check_revision(revision)
    found = {phase.name: phase.experiments for phase in phases(known)}
    for series in SERIES.values():
        if series.role == "arm":
            found[series.name] = _of(series.name, known)
    return found | {"all": experiments(known)}


def resolve_target(
    target: str | Iterable[str], *, revision: str = DEFAULT_REVISION
) -> list[Experiment]:
    """Experiments of a target or of several, in order, each once.

    A target is a word of `targets`, the path of a phase (``debug/phase1``) or the full name of an
    experiment; ``@`` and an ID behind it settle what waits for a decision (``act3@L2``). A string
    may hold several, separated by commas. Raises `ConfigError` for an unknown one, naming the
    nearest, and where two targets settle one experiment differently.
    """
    words = target.split(",") if isinstance(target, str) else list(target)
    words = [word.strip() for word in words if word.strip()]
    if not words:
        raise ConfigError(f"no target given: choose from {', '.join(targets(revision))}")
    chosen: dict[str, Experiment] = {}
    for word in words:
        for arm in _arms_of(word, revision):
            if chosen.setdefault(arm.name, arm) != arm:
                raise ConfigError(f"{arm.name} is asked for with two modes: give one of them")
    return list(chosen.values())


def _arms_of(target: str, revision: str) -> tuple[Experiment, ...]:
    word, at, winner = target.partition("@")
    known = targets(revision) | {p.path: p.experiments for p in phases(revision)}
    arms = known.get(word) or (_named(word, list(targets(revision)), list(known), revision),)
    return _settled(arms, word, winner, check_revision(revision)) if at else arms


def _named(word: str, words: list[str], known: list[str], revision: str) -> Experiment:
    try:
        return experiment(word, revision=revision)
    except ConfigError:
        names = [e.name for r in REVISIONS for e in experiments(r)]
        if word in names:
            raise
        same_id = [name for name in names if name.partition("/")[2] == word]
        hint = nearest(same_id[0] if same_id else word, [*known, *names])
        raise ConfigError(
            f"unknown target {word!r}{hint}: choose from {', '.join(words)} or series/ID"
        ) from None
