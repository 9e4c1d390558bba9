"""Search spaces: every point is valid, has effect in all it varies, and is scaled like an arm."""

from __future__ import annotations

import itertools
import random

import pytest

import search_spaces
from search_spaces import SPACES
from search_spaces.alignment import align, critical
from search_spaces.domains import Choice, Float, Int
from search_spaces.parameters import Parameter, Point, Space, holds
from trainable.config import ineffective_options
from trainable.errors import ConfigError

EVERYTHING = ",".join(name for name in SPACES)
NAMES = [*SPACES, "halting,exploration,encoder,lr", "exploration,mode", EVERYTHING]


def resolved(space: Space, point: Point, **keywords: str) -> search_spaces.Resolved:
    return search_spaces.resolve(space.experiment(point, "search-1"), **keywords)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("profile", list(search_spaces.PROFILES))
def test_every_point_is_valid_and_nothing_in_it_is_without_effect(name: str, profile: str) -> None:
    space = search_spaces.space(name)
    for seed in range(8):
        point = space.sample(random.Random(seed))
        trial = resolved(space, point, profile=profile)
        assert not ineffective_options(trial.config).keys() & point.options.keys()
        assert not critical(align(trial))
        if trial.config.model.encode_mode == "online":
            assert not {"halt_exploration_prob", "halt_max_steps"} & point.options.keys()
        else:
            assert "num_act_steps" not in point.options


@pytest.mark.parametrize("name", [*SPACES, "halting,exploration,encoder,lr"])
@pytest.mark.parametrize("revision", list(search_spaces.REVISIONS))
def test_known_points_are_the_plans_experiments(name: str, revision: str) -> None:
    space = search_spaces.space(name)
    known = space.known_points(revision)
    missing = set(space.known) - set(known)
    assert missing == ({"overfit/E1e"} & set(space.known) if revision == "2026-01-09" else set())
    for experiment, point in known.items():
        plan = search_spaces.resolve(experiment, revision=revision).config
        own = resolved(space, point, revision=revision).config
        without_effect = {"name", "batch_size_reason", *ineffective_options(plan)}
        # lpn_variational is pre-norm in any case.
        without_effect |= {"encoder_norm_style"} if experiment == "overfit/E2b" else set()
        differing = {o for o, v in own.flat().items() if v != plan.flat()[o]}
        assert differing <= without_effect, experiment


@pytest.mark.parametrize("name", [name for name in SPACES if name != "encoder"])
def test_grids_hold_each_point_once(name: str) -> None:
    space = search_spaces.space(name)
    points = list(space.grid(3))
    assert len(points) > 1
    assert len({tuple(p.values.items()) for p in points}) == len(points)


def test_parameters_of_one_option_are_never_active_together() -> None:
    for space in SPACES.values():
        labels = [p.label for p in space.parameters]
        assert len(set(labels)) == len(labels)
        for a, b in itertools.combinations(space.parameters, 2):
            if a.option == b.option:
                shared = set(a.when["encoder_type"]) & set(b.when["encoder_type"])
                assert not shared, (a.label, b.label)


def test_encoder_depth_depends_on_the_family() -> None:
    space = search_spaces.space("encoder")
    depth = {p.tag: p.domain for p in space.parameters if p.option == "encoder_num_layers"}
    seen: dict[str, set[int]] = {}
    for seed in range(200):
        point = space.sample(random.Random(seed))
        found = [v for label, v in point.values.items() if label.startswith("encoder_num_layers")]
        if point.options["encoder_type"] in ("lpn", "lpn_var"):
            assert not found  # a fixed size
        else:
            (label,) = (one for one in point.values if one.startswith("encoder_num_layers"))
            seen.setdefault(label.split("[")[1][:-1], set()).update(found)
    assert {tag: (min(v), max(v)) for tag, v in seen.items()} == {
        tag: (d.low, d.high) for tag, d in depth.items() if isinstance(d, Int)
    }


def test_deep_encoders_come_with_their_batch_unless_it_is_searched() -> None:
    def suggest(parameter: Parameter) -> object:
        chosen = {"encoder_type": "hybrid_standard", "global_batch_size": 512}
        return chosen.get(parameter.option, parameter.domain.grid(2)[0])

    assert search_spaces.space("encoder").draw(suggest).options["global_batch_size"] == 128
    joined = search_spaces.space("encoder,batch").draw(suggest)
    assert joined.options["global_batch_size"] == 512


def test_points_are_scaled_like_arms() -> None:
    space = search_spaces.space("lr")
    point = space.known_points()["overfit/E5a_high"]
    trial = resolved(space, point, profile="laptop")
    assert trial.config.lr == search_spaces.resolve("overfit/E5a_high").config.lr
    assert trial.experiment.control == space.base


def test_conditions_come_after_what_they_read() -> None:
    space = search_spaces.space("exploration,halting,mode")
    assert next(p.option for p in space.parameters) == "encode_mode"
    assert holds({}, {}) and not holds({"a": (1,)}, {"a": 2})


def test_values_outside_a_domain_are_refused() -> None:
    with pytest.raises(ConfigError, match="halt_max_steps cannot be 5"):
        search_spaces.space("halting").draw(lambda p: 5)


@pytest.mark.parametrize(
    ("name", "told"),
    [
        ("haltin", "did you mean 'halting'"),
        ("", "no space given"),
        ("halting,lrr", "did you mean 'lr'"),
    ],
)
def test_unknown_spaces(name: str, told: str) -> None:
    with pytest.raises(ConfigError, match=told):
        search_spaces.space(name)


def test_two_spaces_over_one_option() -> None:
    from search_spaces.spaces import join

    lr = search_spaces.space("lr")
    again = Space("other", "?", (Parameter("lr", Float(0.1, 1.0), "twice"),))
    with pytest.raises(ConfigError, match="both vary lr"):
        join([lr, again])


@pytest.mark.parametrize(
    ("domain", "inside", "outside"),
    [
        (Float(1e-5, 1e-3, log=True), [1e-5, 1e-4, 1e-3], [1e-6, 1, "x", True, float("nan")]),
        (Float(0.0, 0.9), [0, 0.0, 0.5], [-0.1, 1.0]),
        (Int(1, 4), [1, 4], [0, 5, 2.0, True]),
        (Choice((False, True)), [False, True], [0, 1, None]),
    ],
)
def test_domains(domain: Float | Int | Choice, inside: list[object], outside: list[object]) -> None:
    assert all(domain.contains(value) for value in inside)
    assert not any(domain.contains(value) for value in outside)
    generator = random.Random(0)
    assert all(domain.contains(domain.sample(generator)) for _ in range(100))
    assert all(domain.contains(value) for value in domain.grid(5))


def test_log_ranges_are_even_over_magnitudes() -> None:
    low, middle, high = Float(1e-5, 1e-3, log=True).grid(3)
    assert (low, high) == (1e-5, 1e-3)
    assert middle == pytest.approx(1e-4)
    assert Int(2, 8).grid(3) == (2, 5, 8)
    assert Int(1, 2).grid(5) == (1, 2)


@pytest.mark.parametrize("wrong", [
    lambda: Float(1.0, 1.0), lambda: Float(0.0, 1.0, log=True), lambda: Int(3, 2),
    lambda: Choice((1,)), lambda: Choice((1, 1)),
])  # fmt: skip
def test_domains_that_contradict_themselves(wrong: object) -> None:
    with pytest.raises(ConfigError):
        wrong()  # type: ignore[operator]


def test_options_of_parameters_exist() -> None:
    with pytest.raises(ConfigError, match="did you mean 'lr'"):
        Parameter("lrr", Float(0.1, 1.0), "why")
