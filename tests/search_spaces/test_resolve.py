"""Merging layers: later wins, every origin is known, unknown options are refused."""

from __future__ import annotations

import pytest

import search_spaces
from trainable.errors import ConfigError


def test_layers_in_order() -> None:
    resolved = search_spaces.resolve("overfit/E1b", profile="paper", overrides={"lr": 3e-4})
    origin = resolved.origin
    assert origin["weight_decay"] == "reference"
    assert origin["L_cycles"] == "revision 2026-01-21"
    assert origin["epochs"] == "series overfit"
    assert origin["halt_exploration_prob"] == "overfit/E1b"
    assert origin["lr"] == "command line"
    assert origin["max_demos"] == "default"
    assert resolved.config.lr == 3e-4
    assert resolved.config.model.halt_exploration_prob == 0.3


def test_every_option_has_an_origin() -> None:
    for profile in search_spaces.PROFILES:
        resolved = search_spaces.resolve("overfit/E2b", profile=profile)
        assert set(resolved.provenance) == set(resolved.config.flat())
        assert all(resolved.provenance.values())


def test_provenance_names_the_profile() -> None:
    told = search_spaces.resolve("overfit/E2b").provenance
    assert told["global_batch_size"] == "overfit/E2b: 128, × 1/8 by profile laptop"
    assert told["ema_rate"] == "reference: 0.999, horizon × 1/10 by profile laptop"


@pytest.mark.parametrize(
    ("revision", "exploration", "cycles"), [("2026-01-09", 0.5, 6), ("2026-01-21", 0.1, 4)]
)
def test_revisions(revision: str, exploration: float, cycles: int) -> None:
    for name in ("E1a", "E2b", "E4a"):
        config = search_spaces.resolve(f"overfit/{name}", revision=revision).config
        assert config.model.halt_exploration_prob == exploration
        assert config.model.L_cycles == cycles
        assert config.revision == revision


def test_a_typed_value_is_meant_as_typed() -> None:
    resolved = search_spaces.resolve("overfit/E1a", overrides={"lr": 1e-4, "epochs": 5})
    assert (resolved.config.lr, resolved.config.epochs) == (1e-4, 5)
    assert resolved.provenance["lr"] == "command line (not scaled by profile laptop)"
    assert resolved.config.global_batch_size == 32


def test_a_typed_width_takes_the_puzzle_embedding_along() -> None:
    model = search_spaces.resolve("overfit/E1a", overrides={"hidden_size": 32}).config.model
    assert model.puzzle_emb_ndim == 32


def test_bad_overrides() -> None:
    with pytest.raises(ConfigError, match="did you mean 'halt_exploration_prob'"):
        search_spaces.resolve("overfit/E1a", overrides={"halt_exploration_pro": 0.1})
    with pytest.raises(ConfigError, match="cannot be overridden"):
        search_spaces.resolve("overfit/E1a", overrides={"seed": 1})
    with pytest.raises(ConfigError, match="kl_weight"):
        search_spaces.resolve("overfit/E1a", overrides={"encoder_type": "lpn_variational"})
    with pytest.raises(ConfigError, match="lr"):
        search_spaces.resolve("overfit/E1a", overrides={"lr": "fast"})


def test_seeds_are_an_axis() -> None:
    trials = search_spaces.resolve_all(search_spaces.phase("phase1").experiments, seeds=2)
    assert [t.trial_id for t in trials[:2]] == ["overfit-E1a-s0", "overfit-E2a-s0"]
    assert [t.trial_id for t in trials[4:6]] == ["overfit-E1a-s1", "overfit-E2a-s1"]
    assert len({t.config.identity() for t in trials}) == 8
    chosen = search_spaces.resolve_all([search_spaces.experiment("overfit/E1a")], seeds=[5, 7])
    assert [t.config.seed for t in chosen] == [5, 7]
    with pytest.raises(ConfigError, match="seeds"):
        search_spaces.resolve_all([], seeds=0)


def test_resolving_is_deterministic() -> None:
    a, b = (search_spaces.resolve("overfit/E2a").config.identity() for _ in range(2))
    assert a == b
