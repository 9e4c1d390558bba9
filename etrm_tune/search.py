"""A search as it lies in a run folder: its options, its points, and what became of each.

plan.json holds, beside the plan, ``search``: what was asked for, and ``points``, a list that only
grows. The searcher's knowledge is that list and the rows of its trials; see `etrm_tune.searchers`.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any

import pandas as pd

from analysis.metrics import measure
from etrm_tune.plan import Options, Plan, PlannedTrial, Sources, plan_experiments
from etrm_tune.population import SCHEDULER as PBT
from etrm_tune.population import Population, check_population, label
from etrm_tune.run_folder import FINAL, RunFolder, RunFolderError
from etrm_tune.searchers import Direction, Proposal, State, Tried, check_searcher, propose
from search_spaces import space
from search_spaces.domains import Float
from search_spaces.experiment import Experiment
from search_spaces.parameters import Point, Space
from search_spaces.registry import experiment as find_experiment
from search_spaces.rules import TRAIN_ACCURACY
from trainable.config import TrialConfig
from trainable.errors import ConfigError, nearest

DEFAULT_TRIALS = 32
Rows = Sequence[Mapping[str, Any]]


# Objectives.


def _accuracy(rows: Rows, config: TrialConfig) -> float:
    return measure(pd.DataFrame(list(rows)).astype({"step": float}), TRAIN_ACCURACY)


def _act_steps(rows: Rows, config: TrialConfig) -> float:
    told = [row["train/steps"] for row in rows if row.get("train/steps") is not None]
    return float(told[-1]) if told else math.nan


def _time(rows: Rows, config: TrialConfig) -> float:
    epoch, seconds = rows[-1].get("epoch"), rows[-1].get("wall_s")
    return float(seconds) / float(epoch) * config.epochs if epoch and seconds else math.nan


def _parameters(rows: Rows, config: TrialConfig) -> float:
    from trainable.flops import count_parameters

    found = count_parameters(config.model)
    return float(found.decoder + found.encoder)


@dataclass(frozen=True)
class Objective:
    """What a search looks for."""

    name: str
    direction: Direction
    unit: str
    value: Callable[[Rows, TrialConfig], float] = field(repr=False)
    """From a trial's rows (at least one) and its configuration; NaN where it was not measured."""


OBJECTIVES: dict[str, Objective] = {
    one.name: one
    for one in (
        Objective("accuracy", "maximize", "train accuracy", _accuracy),
        Objective("act_steps", "minimize", "ACT steps", _act_steps),
        Objective("time", "minimize", "s for the whole budget", _time),
        Objective("parameters", "minimize", "trained parameters", _parameters),
    )
}


def check_objectives(text: str) -> tuple[str, ...]:
    """``"accuracy,time"`` → names. Raises `ConfigError` naming the nearest."""
    names = tuple(dict.fromkeys(word.strip() for word in text.split(",") if word.strip()))
    for name in names:
        if name not in OBJECTIVES:
            raise ConfigError(
                f"unknown objective {name!r}{nearest(name, OBJECTIVES)}: "
                f"choose from {', '.join(OBJECTIVES)}"
            )
    if not names:
        raise ConfigError(f"no objective given: choose from {', '.join(OBJECTIVES)}")
    return names


# What was asked for.


@dataclass(frozen=True)
class SearchOptions:
    """Options of a search; None means "not said"."""

    space: str
    searcher: str | None = None
    objectives: tuple[str, ...] | None = None
    seed: int | None = None
    trials: int | None = None
    """Points, the known ones and those of earlier sessions included."""

    def merged(self, stored: Mapping[str, Any] | None) -> SearchOptions:
        """Completed from a search on disk, or by defaults. More trials may be asked for.

        Raises `RunFolderError` naming the first option that contradicts it.
        """
        known: dict[str, Any] = {
            "searcher": "tpe",
            "objectives": ["accuracy"],
            "seed": 0,
            "trials": DEFAULT_TRIALS,
        }
        known |= {"space": self.space} if stored is None else dict(stored)
        for name in ("space", "searcher", "objectives", "seed"):
            said = getattr(self, name)
            said = list(said) if isinstance(said, tuple) else said
            if stored is None:
                known[name] = known[name] if said is None else said
            elif said not in (None, known[name]):
                option = "objective" if name == "objectives" else name
                raise RunFolderError(
                    f"the search was begun with --{option} {_words(known[name])}, not "
                    f"{_words(said)}: leave the option out to continue it, or start a new search "
                    f"with --name NAME"
                )
        return SearchOptions(
            known["space"],
            known["searcher"],
            tuple(known["objectives"]),
            known["seed"],
            self.trials or known["trials"],
        )


def _words(value: Any) -> str:
    return ",".join(map(str, value)) if isinstance(value, list) else str(value)


@dataclass(frozen=True)
class SearchPoint:
    """A point that was proposed."""

    name: str
    """Its experiment: the plan's own for a known point, else ``overfit/search-007``."""
    values: Mapping[str, Any]
    known: bool = False
    notes: Mapping[str, Any] = field(default_factory=dict)


@dataclass
class Search:
    """A search in a run folder; the conductor's source of arms (`etrm_tune.conductor.Source`)."""

    folder: RunFolder
    options: Options
    """Complete."""
    asked: SearchOptions
    """Complete."""
    sources: Sources
    points: list[SearchPoint] = field(default_factory=list)
    exhausted: bool = False
    threads: Mapping[str, int] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.trials: dict[str, PlannedTrial] = {}
        self._measured: dict[str, tuple[tuple[float, ...], float]] = {}
        self.population: Population | None = None
        self._rounds: list[dict[str, Any]] = []
        self.asked = replace(
            self.asked, searcher=check_searcher(str(self.asked.searcher), self.space)
        )

    @property
    def space(self) -> Space:
        """The space that is searched."""
        return space(self.asked.space)

    @property
    def objectives(self) -> list[Objective]:
        """In the order asked for; the first one ranks the table."""
        return [OBJECTIVES[name] for name in self.asked.objectives or ()]

    @property
    def directions(self) -> tuple[Direction, ...]:
        """``maximize`` or ``minimize``, one per objective."""
        return tuple(one.direction for one in self.objectives)

    @property
    def is_population(self) -> bool:
        """Whether its trials copy each other while they train."""
        return self.options.scheduler == PBT

    # Planning.

    def load(self, stored: Mapping[str, Any] | None) -> None:
        """Points of a search on disk; a new one begins with the known points."""
        if self.is_population:
            check_population(self.space, int(self.asked.trials or 0))
        if stored is not None:
            self.points = [SearchPoint(**point) for point in stored["points"]]
            self.exhausted = self.is_population
            self._rounds = list(stored.get("population", []))
            if self.is_population and len(self.points) < int(self.asked.trials or 0):
                raise RunFolderError(
                    f"--trials {self.asked.trials}: a population keeps its {len(self.points)} "
                    f"members: leave the option out, or start a new search with --name NAME"
                )
            return
        while self.is_population and len(self.points) < int(self.asked.trials or 0):
            proposal = self._propose([Tried(point.values) for point in self.points])
            if proposal is None:
                break
            self.points.append(self._named(replace(proposal, known=None)))
        self.exhausted = self.is_population
        while not self.is_population and len(self.points) < int(self.asked.trials or 0):
            proposal = self._propose([Tried(point.values) for point in self.points])
            if proposal is None or proposal.known is None:
                break
            self.points.append(self._named(proposal))
        if not self.points:  # a space without known points in this revision
            proposal = self._propose([])
            assert proposal is not None, "a space has at least one point"
            self.points.append(self._named(proposal))

    def plan(self) -> Plan:
        """Every trial so far; decoders first, then points in order, each with its seeds."""
        plan = self.planned(self.points)
        order = {point.name: at for at, point in enumerate(self.points)}
        arms = sorted(
            (t for t in plan.trials if t.role == "arm"),
            key=lambda t: (order[t.config.name], t.config.seed),
        )
        self.trials = {t.trial_id: t for t in arms}
        return replace(plan, trials=(*(t for t in plan.trials if t.role != "arm"), *arms))

    def planned(self, points: Sequence[SearchPoint]) -> Plan:
        """The trials of some points, seed by seed, with the decoders that they need."""
        experiments = [self.experiment(point) for point in points]
        plan = plan_experiments(experiments, self.options, self.sources)
        if not self.is_population:
            return plan
        told = label([point.values for point in self.points], int(self.asked.seed or 0))
        return replace(plan, trials=tuple(self._member(trial, told) for trial in plan.trials))

    def _member(self, trial: PlannedTrial, told: str) -> PlannedTrial:
        if trial.role != "arm":
            return trial
        config = trial.config.replace(population=told)
        identity = config.identity(data_hash=self.sources.data_hash(config))
        return replace(trial, config=config, identity=identity)

    def populate(self, total_steps: int) -> None:
        """Make the population of the planned trials, with what was judged before."""
        members = list(self.trials.values())
        first, values = members[0].config.lr, self.points[0].values
        scale = first / float(values["lr"])  # a profile scales rates
        domain = next(p.domain for p in self.space.parameters if p.option == "lr")
        assert isinstance(domain, Float)
        self.population = Population(
            self.folder,
            int(self.asked.seed or 0),
            total_steps,
            (domain.low * scale, domain.high * scale),
            lambda: self.folder.update_plan(search=self.to_json()),
            self._rounds,
            members,
        )

    def experiment(self, point: SearchPoint) -> Experiment:
        """The experiment of a point."""
        if point.known:
            return find_experiment(point.name, revision=str(self.options.revision))
        return self.space.experiment(self._point(point.values), point.name.partition("/")[2])

    def to_json(self) -> dict[str, Any]:
        """Content of ``search`` in plan.json."""
        asked = asdict(self.asked) | {"objectives": list(self.asked.objectives or ())}
        points = [asdict(point) for point in self.points]
        told = asked | {"exhausted": self.exhausted, "points": points}
        return told | ({"population": self._rounds} if self.is_population else {})

    def _point(self, values: Mapping[str, Any]) -> Point:
        return self.space.draw(lambda p: values[p.label], revision=str(self.options.revision))

    def _named(self, proposal: Proposal) -> SearchPoint:
        series = self.space.base.partition("/")[0]
        name = proposal.known or f"{series}/search-{len(self.points) + 1:03}"
        values, known = dict(proposal.point.values), proposal.known is not None
        return SearchPoint(name, values, known, dict(proposal.notes))

    def _propose(self, tried: Sequence[Tried]) -> Proposal | None:
        return propose(
            str(self.asked.searcher),
            self.space,
            tried,
            directions=self.directions,
            seed=int(self.asked.seed or 0),
            revision=str(self.options.revision),
        )

    # While it runs.

    def more(self) -> bool:
        """Whether points are left to try."""
        return not self.exhausted and len(self.points) < int(self.asked.trials or 0)

    def grow(self, statuses: Mapping[str, str]) -> list[PlannedTrial]:
        """The next point's trials, one per seed, written into the folder before they are run."""
        if not self.more():
            return []
        proposal = self._propose(self.tried(statuses))
        if proposal is None:
            self.exhausted = True
            self.folder.update_plan(search=self.to_json())
            return []
        point = self._named(proposal)
        plan = self.planned([point]).with_threads({"decoder": 1, "arm": 1} | dict(self.threads))
        arms = [trial for trial in plan.trials if trial.role == "arm"]
        self.points.append(point)
        self.trials |= {t.trial_id: t for t in arms}
        stored = self.folder.read_plan()
        assert stored is not None, "the plan is written before a search grows"
        entries = [*stored["trials"], *(t.entry() for t in arms)]
        self.folder.update_plan(search=self.to_json(), trials=entries)
        for trial in arms:
            self.folder.write_config(trial.trial_id, trial.config_json())
        return arms

    def tried(self, statuses: Mapping[str, str] | None = None) -> list[Tried]:
        """Every point and what became of it; objectives are means over its seeds."""
        return [self._tried(point, statuses or {}) for point in self.points]

    def of(self, point: SearchPoint) -> list[PlannedTrial]:
        """A point's trials."""
        return [trial for trial in self.trials.values() if trial.config.name == point.name]

    def _tried(self, point: SearchPoint, statuses: Mapping[str, str]) -> Tried:
        trials = self.of(point)
        told = [
            statuses.get(t.trial_id) or self.folder.read_status(t.trial_id)["status"]
            for t in trials
        ]
        state: State = "finished"
        if "diverged" in told:
            state = "diverged"
        elif "failed" in told:
            state = "failed"
        elif not set(told) <= FINAL:
            state = "running"
        elif "stopped" in told:
            state = "stopped"
        if state in ("running", "diverged", "failed"):
            return Tried(point.values, state, notes=point.notes)
        found = [self.measured(trial) for trial in trials]
        means = tuple(map(statistics.fmean, zip(*(values for values, _ in found), strict=True)))
        return Tried(point.values, state, means, min(epoch for _, epoch in found), point.notes)

    def measured(self, trial: PlannedTrial) -> tuple[tuple[float, ...], float]:
        """The objectives of a trial that has ended, and its last epoch."""
        if trial.trial_id not in self._measured:
            rows = self.folder.rows(trial.trial_id)
            values = [
                one.value(rows, trial.config) if rows else math.nan for one in self.objectives
            ]
            epoch = float(rows[-1].get("epoch", 0.0)) if rows else 0.0
            self._measured[trial.trial_id] = tuple(values), epoch
        return self._measured[trial.trial_id]


def check_searched(settings: Mapping[str, Any], where: Space) -> None:
    """Raise `ConfigError` where ``--set`` fixes an option that the search varies."""
    for option in settings:
        if any(option == parameter.option for parameter in where.parameters):
            raise ConfigError(
                f"--set {option}: the search over {where.name} varies it: leave one of them out"
            )
