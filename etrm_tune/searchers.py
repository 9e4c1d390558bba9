"""Which point of a space to try next: a pure function of what was tried before.

Nothing is kept between two questions. Each time the searcher is made anew from the points tried so
far, in their order, and a seed: a search that was interrupted goes on as if it had not been, and no
state of a searcher's own can be lost. The plan's known points come first, whatever the searcher.

A point is never proposed twice; when a finite space has no other, the answer is None.
"""

from __future__ import annotations

import itertools
import json
import logging
import math
import random
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal

from search_spaces.domains import Choice, Float, Int
from search_spaces.parameters import Parameter, Point, Space
from search_spaces.reference import DEFAULT_REVISION
from trainable.errors import ConfigError, nearest

if TYPE_CHECKING:
    import optuna

POPULATION = 16
"""Points of a generation of NSGA-II: its usual 50 would be most of a search."""

STARTUP = 10
"""Random points before a model is asked, known ones included."""

DRAWS = 50
"""How often a searcher that repeats itself is asked again before the first new point of a fixed
sequence is taken instead."""

GENERATION = "NSGAIISampler:generation"
"""Where Optuna keeps a point's generation."""

Direction = Literal["maximize", "minimize"]
State = Literal["running", "finished", "stopped", "diverged", "failed"]


@dataclass(frozen=True)
class Tried:
    """One point and what became of it."""

    values: Mapping[str, Any]
    """By label, as in `Point.values`."""
    state: State = "running"
    """``diverged``: as bad as a point can be, and told so. ``failed``: its process crashed, which
    says nothing about the point; it is not tried again."""
    objectives: tuple[float, ...] = ()
    """Of a finished point, and the last values of a stopped one."""
    epoch: float = 0.0
    """Where a stopped one was stopped."""
    notes: Mapping[str, Any] = field(default_factory=dict)
    """What the searcher noted when it proposed the point (`Proposal.notes`)."""


@dataclass(frozen=True)
class Proposal:
    """The next point."""

    point: Point
    known: str | None = None
    """Experiment of the plan that is this point."""
    notes: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Question:
    """What a searcher is asked."""

    space: Space
    tried: Sequence[Tried]
    directions: tuple[Direction, ...]
    """``maximize`` or ``minimize``, one per objective."""
    seed: int
    revision: str

    @property
    def number(self) -> int:
        """Points tried so far."""
        return len(self.tried)


def key(values: Mapping[str, Any]) -> str:
    """What makes two points the same."""
    return json.dumps(dict(values), sort_keys=True)


# Fixed sequences.


def _grid(question: Question) -> Iterator[Point]:
    return all_points(question.space, question.revision)


def _random(question: Question) -> Iterator[Point]:
    generator = random.Random(question.seed)
    while True:
        yield question.space.sample(generator, revision=question.revision)


def _quasi_random(question: Question) -> Iterator[Point]:
    from scipy.stats import qmc

    labels = [parameter.label for parameter in question.space.parameters]
    sequence = qmc.Sobol(len(labels), scramble=True, rng=question.seed)
    while True:
        for row in sequence.random(32).tolist():
            place = dict(zip(labels, row, strict=True))

            def suggest(parameter: Parameter, place: dict[str, float] = place) -> Any:
                return parameter.domain.at(place[parameter.label])

            yield question.space.draw(suggest, revision=question.revision)


# Searchers that learn.


def _sampler(name: str, seed: int) -> optuna.samplers.BaseSampler:
    import optuna

    if name == "gp":
        return optuna.samplers.GPSampler(
            seed=seed, n_startup_trials=STARTUP, warn_independent_sampling=False
        )
    if name == "nsga2":
        return optuna.samplers.NSGAIISampler(seed=seed, population_size=POPULATION)
    return optuna.samplers.TPESampler(
        seed=seed,
        n_startup_trials=STARTUP,
        multivariate=True,
        group=True,  # options that are active together are modelled together
        constant_liar=True,
        warn_independent_sampling=False,
    )


def _distribution(parameter: Parameter) -> optuna.distributions.BaseDistribution:
    from optuna import distributions

    domain = parameter.domain
    if isinstance(domain, Float):
        return distributions.FloatDistribution(domain.low, domain.high, log=domain.log)
    if isinstance(domain, Int):
        return distributions.IntDistribution(domain.low, domain.high)
    return distributions.CategoricalDistribution(domain.values)


def _frozen(tried: Tried, question: Question, name: str) -> optuna.trial.FrozenTrial:
    """A point as Optuna keeps it.

    A stopped one is pruned with its last value, a diverged one is pruned without any, which ranks
    below every other. Gaussian processes, NSGA-II and searches with several objectives do not read
    pruned points: to them a stopped one is complete with its last values, and a diverged one with
    the worst value that was seen in each objective (`worst`); so is every value that could not be
    measured. A point that failed has no value, and Optuna's samplers pass over it.
    """
    import optuna

    states = optuna.trial.TrialState
    given = {parameter.label: parameter for parameter in question.space.parameters}
    told: dict[str, Any] = {}
    state = {"running": states.RUNNING, "failed": states.FAIL}.get(tried.state, states.COMPLETE)
    if state == states.COMPLETE:
        prunes = name == "tpe" and len(question.directions) == 1
        values = [
            value if tried.state != "diverged" and math.isfinite(value) else math.nan
            for value in tried.objectives or [math.nan] * len(question.directions)
        ]
        lost = any(map(math.isnan, values))
        if prunes and (lost or tried.state == "stopped"):
            state = states.PRUNED
            if not lost:
                told["intermediate_values"] = {max(1, round(tried.epoch)): values[0]}
        else:
            bad = worst(question)
            told["values"] = [b if math.isnan(v) else v for v, b in zip(values, bad, strict=True)]
    return optuna.trial.create_trial(
        state=state,
        params=dict(tried.values),
        distributions={label: _distribution(given[label]) for label in tried.values},
        system_attrs={GENERATION: 0} | dict(tried.notes) if name == "nsga2" else {},
        **told,
    )


def worst(question: Question) -> list[float]:
    """The worst value of each objective among the points tried; 0 where none was measured.

    Not an arbitrary large number: a Gaussian process would see little else.
    """
    found = []
    for at, direction in enumerate(question.directions):
        seen = [
            one.objectives[at]
            for one in question.tried
            if one.state in ("finished", "stopped") and len(one.objectives) > at
        ]
        seen = [value for value in seen if math.isfinite(value)]
        found.append((min if direction == "maximize" else max)(seen, default=0.0))
    return found


def _ask(question: Question, name: str, attempt: int) -> tuple[Point, dict[str, Any]]:
    """One point from Optuna, from a study that holds exactly what was tried."""
    import optuna

    optuna.logging.set_verbosity(optuna.logging.ERROR)
    logging.getLogger("optuna").setLevel(logging.ERROR)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        seed = random.Random(f"{question.seed} {question.number} {attempt}").getrandbits(31)
        study = optuna.create_study(
            directions=list(question.directions), sampler=_sampler(name, seed)
        )
        for tried in question.tried:
            study.add_trial(_frozen(tried, question, name))
        trial = study.ask()
        point = question.space.draw(
            lambda p: trial._suggest(p.label, _distribution(p)), revision=question.revision
        )
        noted = study.get_trials(deepcopy=False)[trial.number].system_attrs
    return point, {k: v for k, v in noted.items() if k == GENERATION}


SEQUENCES: dict[str, Callable[[Question], Iterator[Point]]] = {
    "grid": _grid,
    "random": _random,
    "quasi-random": _quasi_random,
}
LEARNING = ("tpe", "gp", "nsga2")
SEARCHERS = (*SEQUENCES, "optuna", *LEARNING)
"""Names on the command line; ``optuna`` is its tree-structured Parzen estimator, ``tpe``."""


def check_searcher(name: str, space: Space) -> str:
    """The name of a searcher that fits a space; ``optuna`` becomes ``tpe``.

    Raises `ConfigError` for an unknown one (naming the nearest) and for a grid over a continuous
    option.
    """
    if name not in SEARCHERS:
        raise ConfigError(
            f"unknown searcher {name!r}{nearest(name, SEARCHERS)}: "
            f"choose from {', '.join(SEARCHERS)}"
        )
    if name == "grid" and (endless := continuous(space)):
        raise ConfigError(
            f"a grid needs options with a list of values, {', '.join(endless)} of space "
            f"{space.name} is a range: use --searcher quasi-random, or leave that space out"
        )
    return "tpe" if name == "optuna" else name


def continuous(space: Space) -> list[str]:
    """Options of a space that are ranges of real numbers."""
    return [p.label for p in space.parameters if isinstance(p.domain, Float)]


def all_points(space: Space, revision: str = DEFAULT_REVISION) -> Iterator[Point]:
    """Every point of a space without continuous options, each once."""
    assert not continuous(space), space.name
    widest = max(
        (p.domain.high - p.domain.low + 1 if isinstance(p.domain, Int) else 1)
        for p in space.parameters
    )
    assert all(isinstance(p.domain, Int | Choice) for p in space.parameters)
    return space.grid(int(widest), revision=revision)


def propose(
    name: str,
    space: Space,
    tried: Sequence[Tried],
    *,
    directions: Sequence[Direction] = ("maximize",),
    seed: int = 0,
    revision: str = DEFAULT_REVISION,
) -> Proposal | None:
    """The next point of a search, or None when a finite space holds no other.

    Args:
        name: a searcher; see `check_searcher`, which also says what is raised.
        tried: every point before, in the order in which they were proposed.
        directions: ``maximize`` or ``minimize``, one per objective.
        seed: of the searcher. The answer depends on the arguments alone.
    """
    name = check_searcher(name, space)
    seen = {key(one.values) for one in tried}
    for experiment, point in space.known_points(revision).items():
        if key(point.values) not in seen:
            return Proposal(point, known=experiment)
    if not continuous(space):
        some = itertools.islice(all_points(space, revision), len(seen) + 1)
        if all(key(point.values) in seen for point in some):
            return None
    question = Question(space, tried, tuple(directions), seed, revision)
    if name in LEARNING:
        for attempt in range(DRAWS):
            point, notes = _ask(question, name, attempt)
            if key(point.values) not in seen:
                return Proposal(point, notes=notes)
    sequence = SEQUENCES.get(name, _random)(question)
    new = next(point for point in sequence if key(point.values) not in seen)
    return Proposal(new, notes={})
