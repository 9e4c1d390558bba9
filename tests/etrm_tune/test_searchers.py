"""Searchers: the contract that each keeps over every space, with an objective in place of runs."""

from __future__ import annotations

import json
import math
import random

import pytest

from etrm_tune.searchers import (
    LEARNING,
    Proposal,
    Question,
    State,
    Tried,
    _frozen,
    all_points,
    check_searcher,
    continuous,
    key,
    propose,
    worst,
)
from search_spaces import SPACES, space
from search_spaces.domains import Choice, Float, Int
from search_spaces.parameters import Parameter, Space
from search_spaces.reference import DEFAULT_REVISION
from trainable.errors import ConfigError

NAMES = ("grid", "random", "quasi-random", "tpe", "gp", "nsga2")
JOINED = "halting,exploration,encoder,lr"
TWO = ("maximize", "minimize")


def outcome(proposal: Proposal, number: int) -> Tried:
    """A stand-in for a run: some points diverge, some are stopped, some are still running."""
    values, notes = proposal.point.values, proposal.notes
    kind = random.Random(key(values)).random()
    lr = values.get("lr", 1e-4)
    score = 0.9 - abs(math.log10(lr) + 4) / 4 - 0.05 * values.get("halt_exploration_prob", 0.5)
    if kind < 0.15:
        return Tried(values, "failed" if kind < 0.07 else "diverged", notes=notes)
    if kind < 0.3:
        return Tried(values, "stopped", (score / 2, 8.0), 50, notes)
    if number % 11 == 10:
        return Tried(values, notes=notes)
    return Tried(values, "finished", (score, float(values.get("halt_max_steps", 16))), 100, notes)


def stored(tried: Tried) -> Tried:
    """As it comes back from a file."""
    told = json.loads(json.dumps([dict(tried.values), dict(tried.notes)]))
    return Tried(told[0], tried.state, tried.objectives, tried.epoch, told[1])


def go(
    name: str, over: Space, tried: list[Tried], until: int, *, objectives: int = 2, seed: int = 5
) -> list[Tried]:
    """Continue a search until it has so many points."""
    tried = list(tried)
    while len(tried) < until:
        proposal = propose(name, over, tried, directions=TWO[:objectives], seed=seed)
        if proposal is None:
            break
        found = outcome(proposal, len(tried))
        tried.append(Tried(found.values, found.state, found.objectives[:objectives], found.epoch,
                           found.notes))  # fmt: skip
    return tried


@pytest.mark.parametrize(
    ("name", "over"),
    [
        pytest.param(name, over, marks=pytest.mark.slow if name == "gp" and over != JOINED else ())
        for name in NAMES
        for over in [*SPACES, JOINED]
    ],
)
def test_every_searcher_over_every_space(name: str, over: str) -> None:
    where = space(over)
    if name == "grid" and continuous(where):
        with pytest.raises(ConfigError, match="quasi-random"):
            check_searcher(name, where)
        return
    until = 20 if over == JOINED or name == "nsga2" else 13
    whole = go(name, where, [], until)
    # The plan's points come first; nothing is tried twice; every point is one of the space.
    known = [key(point.values) for point in where.known_points().values()]
    assert [key(one.values) for one in whole[: len(known)]] == list(dict.fromkeys(known))[:until]
    assert len({key(one.values) for one in whole}) == len(whole)
    for one in whole:
        point = where.draw(lambda p, one=one: one.values[p.label])
        assert point.values == one.values
    if not continuous(where):
        assert len(whole) == min(until, len(list(all_points(where))))
    # Interrupted anywhere and read back from a file, it goes on as if it had not been.
    for cut in (3, len(whole) - 2):
        begun = [stored(one) for one in whole[:cut]]
        assert go(name, where, begun, cut + 2) == whole[: cut + 2]


@pytest.mark.parametrize("name", [n for n in NAMES if n != "grid"])
def test_another_seed_is_another_search(name: str) -> None:
    where = space("halting,lr")
    assert go(name, where, [], 9, seed=1) == go(name, where, [], 9, seed=1)
    assert go(name, where, [], 9, seed=1) != go(name, where, [], 9, seed=2)


def test_a_finite_space_ends() -> None:
    where = space("halting")
    for name in NAMES:
        found = go(name, where, [], 99, objectives=1)
        assert sorted(one.values["halt_max_steps"] for one in found) == [4, 8, 16, 32]


@pytest.mark.parametrize(
    "name",
    [pytest.param(name, marks=pytest.mark.slow if name == "gp" else ()) for name in LEARNING],
)
def test_learning_searchers_beat_chance(name: str) -> None:
    """On a smooth objective of one option most of the later points lie near its best."""
    where = Space("one", "Where?", (Parameter("lr", Float(1e-5, 1e-3, log=True), ""),
                                    Parameter("halt_max_steps", Choice((4, 8, 16)), ""),
                                    Parameter("num_act_steps", Int(1, 9), "")))  # fmt: skip
    tried: list[Tried] = []
    while len(tried) < (70 if name == "nsga2" else 25):
        proposal = propose(name, where, tried, seed=1)
        assert proposal is not None
        values = proposal.point.values
        score = -abs(math.log10(values["lr"]) + 4.5) - 0.1 * (values["halt_max_steps"] != 8)
        tried.append(Tried(values, "finished", (score,), 1, proposal.notes))
    late = [math.log10(one.values["lr"]) for one in tried[-10:]]
    assert sum(abs(lr + 4.5) < 0.5 for lr in late) >= 7, late  # half of the range; chance: 5


@pytest.mark.parametrize("name", LEARNING)
def test_what_became_of_a_point_is_told_as_such(name: str) -> None:
    """A crash says nothing of a point; divergence and a value that is no number are the worst."""
    where = space("halting")
    others = [Tried({"halt_max_steps": n}, "finished", (v,)) for n, v in ((4, 0.4), (16, 0.2))]
    question = Question(where, others, ("maximize",), 0, DEFAULT_REVISION)
    values = {"halt_max_steps": 8}

    def told(state: State, *objectives: float) -> tuple[str, list[float] | None, list[float]]:
        found = _frozen(Tried(values, state, objectives, 50), question, name)
        seen = list(found.intermediate_values.values())
        return found.state.name, found.values, seen

    assert told("failed") == ("FAIL", None, [])
    assert told("running") == ("RUNNING", None, [])
    assert told("finished", 0.7) == ("COMPLETE", [0.7], [])
    if name == "tpe":
        assert told("stopped", 0.3) == ("PRUNED", None, [0.3])
        assert told("diverged") == told("finished", math.nan) == ("PRUNED", None, [])
    else:
        assert told("stopped", 0.3) == ("COMPLETE", [0.3], [])
        assert told("diverged") == told("stopped", math.nan) == ("COMPLETE", [0.2], [])


def test_the_worst_is_what_was_seen() -> None:
    where = space("halting")
    tried = [
        Tried({"halt_max_steps": 4}, "finished", (0.4, 9.0)),
        Tried({"halt_max_steps": 8}, "stopped", (0.1, math.nan)),
        Tried({"halt_max_steps": 16}, "diverged"),
    ]
    question = Question(where, tried, TWO, 0, DEFAULT_REVISION)
    assert worst(question) == [0.1, 9.0]
    assert worst(Question(where, [], TWO, 0, DEFAULT_REVISION)) == [0.0, 0.0]
    for name in LEARNING:  # several objectives: none of the samplers reads pruned points
        assert _frozen(tried[1], question, name).values == [0.1, 9.0]
        assert _frozen(tried[2], question, name).values == [0.1, 9.0]


@pytest.mark.parametrize("name", LEARNING)
def test_searchers_keep_away_from_where_points_diverge(name: str) -> None:
    """The larger a rate the better, up to one above which all points diverge. Told so, a searcher
    stays below; told of crashes instead, it looks for something better above."""
    where = Space("one", "Where?", (Parameter("lr", Float(1e-5, 1e-3, log=True), ""),
                                    Parameter("num_act_steps", Int(1, 9), "")))  # fmt: skip
    generator, asked = random.Random(1), 5 if name == "gp" else 15

    def above(state: State) -> int:
        tried = []
        for _ in range(24):
            values = where.sample(generator).values
            if values["lr"] > 1e-4:
                tried.append(Tried(values, state))
            else:
                score = 0.7 + (math.log10(values["lr"]) + 5) / 10
                tried.append(Tried(values, "finished", (score,), 1))
        found = [propose(name, where, tried, seed=seed) for seed in range(asked)]
        return sum(one is not None and one.point.values["lr"] > 1e-4 for one in found)

    told = above("diverged")
    assert told <= asked / 3, "chance: half"
    if name != "nsga2":  # it breeds from the best points alone, and so from none above
        assert above("failed") > told


@pytest.mark.parametrize(
    ("name", "hint"), [("optna", "did you mean 'optuna'"), ("tree", "choose from grid, random")]
)
def test_unknown_searchers(name: str, hint: str) -> None:
    with pytest.raises(ConfigError, match=hint):
        check_searcher(name, space("halting"))
