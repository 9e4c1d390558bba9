"""Contract of every experiment in every revision and profile: resolves, differs, can be built."""

from __future__ import annotations

from functools import cache

import pytest

import search_spaces
from search_spaces import act
from trainable.config import ModelConfig, TrialConfig
from trainable.models import build_model

REVISIONS = list(search_spaces.REVISIONS)
SIZES = list(search_spaces.PROFILES)
SIZES_TO_BUILD = [
    "laptop",
    pytest.param("workstation", marks=pytest.mark.slow),
    pytest.param("paper", marks=pytest.mark.slow),
]


@cache
def plan(revision: str, profile: str) -> tuple[search_spaces.Resolved, ...]:
    """Every experiment, those that wait for a decision in every mode, and the recipe."""
    arms = [*search_spaces.experiments(revision), search_spaces.experiment("decoder/trm")]
    arms += [arm for winner in act.MODES for arm in act.encoders(winner)]
    return tuple(search_spaces.resolve(a, revision=revision, profile=profile) for a in arms)


@pytest.mark.parametrize("revision", REVISIONS)
@pytest.mark.parametrize("profile", SIZES)
def test_every_experiment_resolves_to_a_valid_configuration(profile: str, revision: str) -> None:
    for trial in plan(revision, profile):
        config = trial.config
        assert TrialConfig.model_validate_json(config.model_dump_json()) == config
        assert (config.profile, config.revision) == (profile, revision)
        assert set(trial.provenance) == set(config.flat())
        if config.pretrained_decoder:
            recipe = search_spaces.resolve_decoder(trial).config
            assert recipe.model.hidden_size == config.model.hidden_size
            same = config.decoder_puzzles == "same"
            assert (recipe.data.skip_train_groups == config.data.skip_train_groups) is same


@pytest.mark.parametrize("revision", REVISIONS)
@pytest.mark.parametrize("profile", SIZES)
def test_arms_have_identities_of_their_own(profile: str, revision: str) -> None:
    """Also without their names, except exact repeats."""
    arms = [t for t in plan(revision, profile) if not t.experiment.decided]
    nameless = {}
    for trial in arms:
        if trial.experiment.repeats is None:
            identity = trial.config.replace(name="x").identity()
            assert identity not in nameless, (trial.trial_id, nameless.get(identity))
            nameless[identity] = trial.trial_id
    assert len({trial.config.identity() for trial in arms}) == len(arms)


@pytest.mark.parametrize("profile", SIZES_TO_BUILD)
def test_every_model_of_the_plan_can_be_built(profile: str) -> None:
    models: dict[str, ModelConfig] = {}
    for revision in REVISIONS:
        for trial in plan(revision, profile):
            models.setdefault(trial.config.model.model_dump_json(), trial.config.model)
    assert len(models) > 20
    shapes = set()
    for config in models.values():
        # What leaves no trace in the tensors is built once.
        shape = config.model_copy(
            update={"halt_exploration_prob": 0.1, "halt_max_steps": 16, "L_cycles": 4}
            | {"encode_mode": "reencode", "num_act_steps": 4}
        )
        if shape.model_dump_json() in shapes:
            continue
        shapes.add(shape.model_dump_json())
        model = build_model(config)
        assert sum(p.numel() for p in model.parameters()) > 0
        assert (getattr(model, "encoder", None) is None) == (config.kind == "trm")
