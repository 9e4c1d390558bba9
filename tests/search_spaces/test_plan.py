"""The plan: which experiments exist, what they differ in, how they are found."""

from __future__ import annotations

import pickle
import subprocess
import sys
from pathlib import Path

import pytest

import search_spaces
from search_spaces.experiment import Experiment
from search_spaces.overfit import COMMON
from trainable.config import option_owner
from trainable.errors import ConfigError

ROOT = Path(__file__).parents[2]

DOCUMENT = {
    "E1a", "E1b", "E1c", "E1d", "E2a", "E2b", "E2c", "E2d", "E3a", "E3b", "E3c", "E4a", "E4b",
    "E5a_low", "E5a_baseline", "E5a_high", "E5b_small", "E5b_baseline", "E5b_large",
}  # fmt: skip
PHASES = {
    "phase1": ["E1a", "E2a", "E2b", "E2c"],
    "phase2": ["E1b", "E1c", "E3a", "E3b", "E1e"],
    "phase3": ["E4a", "E2d", "E5a_low", "E5a_high"],
    "sensitivity": ["E1d", "E3c", "E4b", "E5a_baseline", "E5b_small", "E5b_baseline", "E5b_large"],
}


def test_every_experiment_of_the_document_exists() -> None:
    assert {e.id for e in search_spaces.experiments("2026-01-09")} == DOCUMENT
    assert {e.id for e in search_spaces.experiments("2026-01-21")} == DOCUMENT | {"E1e"}


@pytest.mark.parametrize("revision", list(search_spaces.REVISIONS))
def test_phases_partition_the_series(revision: str) -> None:
    for name, members in PHASES.items():
        arms = search_spaces.phase(name, revision=revision).experiments
        expected = [i for i in members if i != "E1e" or revision == "2026-01-21"]
        assert [arm.id for arm in arms] == expected
        assert all(arm.phase == name for arm in arms)
    in_phases = [a.name for p in search_spaces.phases(revision) for a in p.experiments]
    assert sorted(in_phases) == sorted(e.name for e in search_spaces.experiments(revision))


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("E1b", {"halt_exploration_prob": 0.3}),
        ("E1c", {"halt_exploration_prob": 0.0}),
        ("E1d", {"halt_exploration_prob": 0.7}),
        ("E1e", {"halt_exploration_prob": 0.5}),
        ("E2d", {"encoder_num_layers": 4}),
        ("E3a", {"halt_max_steps": 8}),
        ("E3b", {"halt_max_steps": 32}),
        ("E4a", {"pretrained_decoder": False}),
        ("E4b", {"pretrained_decoder": False, "encoder_num_layers": 4}),
        ("E5a_low", {"lr": 5e-5}),
        ("E5a_high", {"lr": 2e-4}),
        ("E5b_small", {"global_batch_size": 128}),
        ("E5b_large", {"global_batch_size": 512}),
    ],
)
def test_arms_differ_from_the_control_as_written(name: str, expected: dict[str, object]) -> None:
    assert search_spaces.experiment(f"overfit/{name}").overrides == expected


@pytest.mark.parametrize(
    ("name", "kind", "layers", "sets", "kl"),
    [
        ("E2a", "hybrid_variational", 4, 2, 1e-4),
        ("E2b", "lpn_variational", 6, 3, 1e-4),
        ("E2c", "hybrid_standard", 4, 2, 0.0),
    ],
)
def test_deep_encoders(name: str, kind: str, layers: int, sets: int, kl: float) -> None:
    config = search_spaces.resolve(f"overfit/{name}", profile="paper").config
    assert config.model.encoder_type == kind
    assert (config.model.encoder_num_layers, config.model.encoder_set_layers) == (layers, sets)
    assert config.model.encoder_norm_style == "pre"
    assert config.global_batch_size == 128
    assert config.batch_size_reason
    assert config.kl_weight == kl


@pytest.mark.parametrize("revision", list(search_spaces.REVISIONS))
def test_declarations_are_sound(revision: str) -> None:
    names = {e.name for e in search_spaces.experiments(revision)}
    assert len(names) == len(search_spaces.experiments(revision))
    for arm in search_spaces.experiments(revision):
        side = {"global_batch_size", "batch_size_reason"}
        assert set(arm.overrides) <= arm.subject | side, arm.name
        assert arm.subject, arm.name
        assert arm.title and arm.why
        assert arm.control is None or arm.control in names - {arm.name}
        assert (arm.control is None) == (arm.id == "E1a")


def test_repeats_have_exactly_the_settings_they_repeat() -> None:
    repeats = [e for e in search_spaces.experiments() if e.repeats]
    assert {e.id for e in repeats} == {"E3c", "E5a_baseline", "E5b_baseline"}
    for arm in repeats:
        partner = search_spaces.resolve(arm.repeats or "").config
        own = search_spaces.resolve(arm).config
        assert own.replace(name=partner.name) == partner


def test_common_settings_keep_held_out_puzzles_out_of_training() -> None:
    assert COMMON["eval_subset"] not in COMMON["train_subsets"]


def test_options_are_checked_when_an_experiment_is_declared() -> None:
    with pytest.raises(ConfigError, match="did you mean 'halt_max_steps'"):
        Experiment("x/A", "t", "w", frozenset(), {"halt_max_step": 3})
    with pytest.raises(ConfigError, match="did you mean 'encoder_type'"):
        Experiment("x/A", "t", "w", frozenset({"encoder_typ"}))


def test_targets() -> None:
    targets = search_spaces.targets()
    assert {"phase1", "phase2", "phase3", "sensitivity", "overfit", "all"} <= set(targets)
    assert len(targets["all"]) == 20
    names = [e.name for e in search_spaces.resolve_target("phase1")]
    assert names == [f"overfit/{i}" for i in PHASES["phase1"]]


def test_several_targets_are_joined_without_repetition() -> None:
    joined = search_spaces.resolve_target(["overfit/E2b", "phase1", "overfit/E3a"])
    assert [e.id for e in joined] == ["E2b", "E1a", "E2a", "E2c", "E3a"]
    assert search_spaces.resolve_target("overfit/E2b, phase1,overfit/E3a") == joined


@pytest.mark.parametrize(
    ("word", "hint"),
    [
        ("phse1", "did you mean 'phase1'"),
        ("E2b", "did you mean 'overfit/E2b'"),
        ("overfit/E2bb", "did you mean 'overfit/E2b'"),
        ("", "no target given"),
    ],
)
def test_unknown_targets_name_the_nearest(word: str, hint: str) -> None:
    with pytest.raises(ConfigError, match=hint):
        search_spaces.resolve_target(word)


def test_unknown_names() -> None:
    with pytest.raises(ConfigError, match="did you mean 'overfit/E2b'"):
        search_spaces.experiment("overfitt/E2b")
    with pytest.raises(ConfigError, match="did you mean 'phase2'"):
        search_spaces.phase("phas2")
    with pytest.raises(ConfigError, match="did you mean 'overfit'"):
        search_spaces.series("overfitt")
    with pytest.raises(ConfigError, match="did you mean '2026-01-21'"):
        search_spaces.experiments("2026-01-22")
    with pytest.raises(ConfigError, match="use --revision 2026-01-21"):
        search_spaces.experiment("overfit/E1e", revision="2026-01-09")


def test_the_decoder_is_found_but_is_not_an_arm() -> None:
    recipe = search_spaces.experiment("decoder/trm")
    assert recipe.series == "decoder"
    assert recipe not in search_spaces.experiments()


def test_trial_ids() -> None:
    assert search_spaces.trial_id("overfit/E1a", 0) == "overfit-E1a-s0"
    assert search_spaces.resolve("decoder/trm", seed=3).trial_id == "decoder-trm-s3"


def test_experiments_are_hashable_and_travel_between_processes() -> None:
    arm = search_spaces.experiment("overfit/E2b")
    assert pickle.loads(pickle.dumps(arm)) == arm
    assert len({arm, search_spaces.experiment("overfit/E2b")}) == 1


def test_reference_options_exist() -> None:
    for option in search_spaces.REFERENCE:
        option_owner(option)


def test_the_room_imports_neither_torch_nor_ray() -> None:
    code = (
        "import sys, search_spaces, search_spaces.stopping, search_spaces.rules, "
        "search_spaces.alignment; sys.exit(bool({'torch', 'ray'} & set(sys.modules)))"
    )
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=False).returncode == 0
