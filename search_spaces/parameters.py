"""What a search space is: options with their domains, conditions between them, known points.

Values are those of the plan (published sizes). A point becomes an `Experiment` and is resolved like
an arm, so that a profile scales it by the same factors: lr 1e-4 means what it means in the plan.
"""

from __future__ import annotations

import functools
import itertools
import random
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from search_spaces.domains import Domain
from search_spaces.experiment import Experiment, Options
from search_spaces.reference import DEFAULT_REVISION
from search_spaces.registry import experiment as find_experiment
from search_spaces.resolve import resolve
from trainable.config import option_owner
from trainable.errors import ConfigError

When = Mapping[str, tuple[Any, ...]]
"""A condition: every option named has one of the values beside it. Empty: always."""


def holds(when: When, options: Options) -> bool:
    """Whether a configuration meets a condition."""
    return all(options[option] in values for option, values in when.items())


@dataclass(frozen=True)
class Parameter:
    """An option that a search varies.

    Raises `ConfigError` for an unknown option, naming the nearest.
    """

    option: str
    domain: Domain
    why: str
    when: When = field(default_factory=dict, hash=False)
    """Where it is active; elsewhere it would have no effect or another range."""
    tag: str = ""
    """Tells the parameters of one option apart: encoder depth by family."""

    def __post_init__(self) -> None:
        for option in (self.option, *self.when):
            option_owner(option)

    @property
    def label(self) -> str:
        """Name for a searcher, unique within a space: ``encoder_num_layers[lpn]``."""
        return f"{self.option}[{self.tag}]" if self.tag else self.option


@dataclass(frozen=True)
class Follows:
    """Options that are not searched but follow from others, unless the search varies them."""

    options: Options = field(hash=False)
    when: When = field(default_factory=dict, hash=False)


@dataclass(frozen=True)
class Point:
    """One choice in a space: `values` by label of the active parameters, `options` to set."""

    values: Mapping[str, Any]
    options: Options


@dataclass(frozen=True)
class Space:
    """Parameters over a base experiment."""

    name: str
    question: str
    parameters: tuple[Parameter, ...]
    base: str = "overfit/E1a"
    """Experiment whose settings a point changes; also its comparison partner."""
    follows: tuple[Follows, ...] = ()
    known: tuple[str, ...] = ()
    """Experiments of the plan that are points of the space."""

    def draw(
        self, suggest: Callable[[Parameter], Any], *, revision: str = DEFAULT_REVISION
    ) -> Point:
        """Build one point, define-by-run: `suggest` is asked for each active parameter in order.

        Raises `ConfigError` for a value outside a parameter's domain.
        """
        plan = dict(_plan(self.base, revision))
        values: dict[str, Any] = {}
        options: dict[str, Any] = {}
        for parameter in self.parameters:
            if not holds(parameter.when, plan):
                continue
            value = suggest(parameter)
            if not parameter.domain.contains(value):
                raise ConfigError(
                    f"space {self.name}: {parameter.label} cannot be {value!r}: "
                    f"choose from {parameter.domain}"
                )
            values[parameter.label] = value
            options[parameter.option] = plan[parameter.option] = value
        searched = {parameter.option for parameter in self.parameters}
        for rule in self.follows:
            if holds(rule.when, plan):
                options |= {o: v for o, v in rule.options.items() if o not in searched}
        return Point(values, options)

    def sample(self, generator: random.Random, *, revision: str = DEFAULT_REVISION) -> Point:
        """One random point."""
        return self.draw(lambda p: p.domain.sample(generator), revision=revision)

    def grid(self, points: int = 3, *, revision: str = DEFAULT_REVISION) -> Iterator[Point]:
        """Every combination, with at most `points` values per range; each point once."""
        axes = [parameter.domain.grid(points) for parameter in self.parameters]
        seen: set[tuple[tuple[str, Any], ...]] = set()
        for values in itertools.product(*axes):
            given = dict(zip((p.label for p in self.parameters), values, strict=True))
            point = self.draw(_by(given, "label"), revision=revision)
            key = tuple(point.values.items())
            if key not in seen:
                seen.add(key)
                yield point

    def known_points(self, revision: str = DEFAULT_REVISION) -> dict[str, Point]:
        """The plan's experiments in this space, by name; those of the revision."""
        known = {}
        for name in self.known:
            try:
                plan = _plan(name, revision)
            except ConfigError:
                continue  # not part of this revision
            known[name] = self.draw(_by(plan, "option"), revision=revision)
        return known

    def experiment(self, point: Point, identifier: str) -> Experiment:
        """The point as an experiment of the base's series, compared with the base."""
        base = find_experiment(self.base)
        searched = {parameter.option for parameter in self.parameters}
        told = ", ".join(f"{label} {value}" for label, value in point.values.items())
        return Experiment(
            name=f"{base.series}/{identifier}",
            title=told,
            why=f"A point of the search over {self.name}.",
            subject=frozenset(point.options.keys() & searched),
            overrides=point.options,
            consequences=frozenset(point.options.keys() - searched),
            control=self.base,
        )


def _by(values: Mapping[str, Any], key: str) -> Callable[[Parameter], Any]:
    """Suggest the value that stands under a parameter's ``label`` or ``option``."""
    return lambda parameter: values[getattr(parameter, key)]


@functools.cache
def _plan(name: str, revision: str) -> Options:
    """Flat configuration of an experiment at the published sizes."""
    return resolve(name, revision=revision, profile="paper").plan
