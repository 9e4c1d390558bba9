"""The plan: which experiments exist, what they differ in, how they are found."""

from __future__ import annotations

import pickle
import subprocess
import sys
from pathlib import Path

import pytest

import search_spaces
from search_spaces import act
from search_spaces.experiment import Experiment
from search_spaces.overfit import COMMON
from trainable.config import option_owner
from trainable.errors import ConfigError

ROOT = Path(__file__).parents[2]

PHASES = {
    "phase1": ["E1a", "E2a", "E2b", "E2c"],
    "phase2": ["E1b", "E1c", "E3a", "E3b", "E1e"],
    "phase3": ["E4a", "E2d", "E5a_low", "E5a_high"],
    "sensitivity": ["E1d", "E3c", "E4b", "E5a_baseline", "E5b_small", "E5b_baseline", "E5b_large",
                    "E2e_prefix1"],
    "debug1": ["E0v2", "E1v2", "E_diag1", "E_diag2"],
    "debug2": ["E2_lpn", "E3_lpn_var"],
    "debug3": ["E4_lower_lr", "E5_grad_clip", "E7_attention", "E6_combined"],
    "debug_gaps": ["E_interface", "E_identity", "E_pool_weighted", "E_pool_cls", "E_demos_1",
                   "E_demos_2", "E11_encoder_lr_low", "E11_encoder_lr_high", "E_long_warmup",
                   "E2E4_lpn_lower_lr", "E3E5_lpn_var_grad_clip"],
    "act1": ["O1", "L1"],
    "act2_cached": ["O2", "O3"],
    "act2_online": ["L2", "L3"],
    "act3": ["E1", "E2", "E3"],
    "frozen1": ["frozen_decoder", "frozen_decoder_correct"],
    "frozen2": ["prefix1", "staged", "recurrent_standard", "trm_style"],
}  # fmt: skip
CONTROLS = {"overfit": "E1a", "debug": "E0v2", "act": "O1", "frozen": "frozen_decoder_correct"}


@pytest.mark.parametrize("revision", list(search_spaces.REVISIONS))
def test_phases_partition_the_series(revision: str) -> None:
    assert [p.name for p in search_spaces.phases(revision)] == list(PHASES)
    for name, members in PHASES.items():
        arms = search_spaces.phase(name, revision=revision).experiments
        expected = [i for i in members if i != "E1e" or revision == "2026-01-21"]
        assert [arm.id for arm in arms] == expected
        assert all(arm.phase == name for arm in arms)
    in_phases = [a.name for p in search_spaces.phases(revision) for a in p.experiments]
    assert sorted(in_phases) == sorted(e.name for e in search_spaces.experiments(revision))


def test_phases_have_paths_within_their_series() -> None:
    paths = {p.name: p.path for p in search_spaces.phases()}
    assert paths["phase1"] == "overfit/phase1"
    assert paths["sensitivity"] == "overfit/sensitivity"
    assert paths["debug1"] == "debug/phase1"
    assert paths["debug_gaps"] == "debug/gaps"
    assert paths["act2_online"] == "act/phase2_online"
    for name, path in paths.items():
        assert search_spaces.phase(path) == search_spaces.phase(name)
        assert search_spaces.resolve_target(path) == search_spaces.resolve_target(name)


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
        if arm.overrides.get("kind") == "trm":
            side |= {"encode_mode"}
        assert set(arm.overrides) <= arm.subject | side, arm.name
        assert arm.subject, arm.name
        assert arm.title and arm.why
        assert arm.control is None or arm.control in names - {arm.name}
        assert (arm.control is None) == (arm.id == CONTROLS[arm.series])


def test_repeats_have_exactly_the_settings_they_repeat() -> None:
    repeats = [e for e in search_spaces.experiments() if e.repeats]
    assert {e.id for e in repeats} == {"E3c", "E5a_baseline", "E5b_baseline", "E_diag2"}
    for arm in repeats:
        partner = search_spaces.resolve(arm.repeats or "").config
        own = search_spaces.resolve(arm).config
        assert own.replace(name=partner.name) == partner


def test_common_settings_keep_held_out_puzzles_out_of_training() -> None:
    assert COMMON["eval_subset"] not in COMMON["train_subsets"]


def test_encoders_of_act_take_the_winners_mode() -> None:
    default = search_spaces.experiment("act/E1")
    assert act.winner_of(search_spaces.resolve(default).config.flat()) == act.DEFAULT_WINNER
    assert default.control == "act/O1"
    for winner, settings in act.MODES.items():
        arms = search_spaces.resolve_target(f"act3@{winner}")
        assert [arm.id for arm in arms] == ["E1", "E2", "E3"]
        for arm in arms:
            assert arm.decided == settings.keys()
            assert arm.control == f"act/{winner}"
            assert arm == search_spaces.experiment(f"{arm.name}@act/{winner}")
            for revision in search_spaces.REVISIONS:
                flat = search_spaces.resolve(arm, revision=revision).config.flat()
                assert act.winner_of(flat) == winner
                partner = search_spaces.resolve(f"act/{winner}", revision=revision).config.flat()
                differing = {o for o in flat if flat[o] != partner[o]} - {"name"}
                assert differing == set(arm.overrides) - settings.keys()
    assert act.winner_of({"encode_mode": "reencode"}) is None


def test_recurrent_and_confined_arms() -> None:
    trm_style = search_spaces.resolve("frozen/trm_style").config.model
    assert (trm_style.kind, trm_style.encoder_name) == ("etrmtrm", "trm_style")
    for name in ("frozen/prefix1", "overfit/E2e_prefix1"):
        assert search_spaces.resolve(name).config.model.context_positions == 1
    identity = search_spaces.resolve("debug/E_identity").config
    assert identity.identity_weight > 0
    assert identity.decoder_puzzles == "same"
    assert (identity.model.encoder_type, identity.model.context_positions) == ("lpn_standard", 1)


def test_a_trm_trains_by_the_carried_loop_as_a_consequence_of_its_kind() -> None:
    experiment = search_spaces.experiment("debug/E0v2")
    assert experiment.consequences == {"encode_mode"} and "kind" in experiment.subject
    for profile in search_spaces.PROFILES:
        model = search_spaces.resolve(experiment, profile=profile).config.model
        assert (model.kind, model.encode_mode) == ("trm", "reencode")
    with pytest.raises(ConfigError, match="encode_mode 'online' does not apply to a TRM"):
        search_spaces.resolve(experiment, overrides={"encode_mode": "online"})


@pytest.mark.parametrize("revision", list(search_spaces.REVISIONS))
def test_the_frozen_pair_differs_in_exploration_and_cycles_alone(revision: str) -> None:
    run, correct = (
        search_spaces.resolve(f"frozen/{name}", revision=revision, profile="paper").config.flat()
        for name in ("frozen_decoder", "frozen_decoder_correct")
    )
    assert {o: (run[o], correct[o]) for o in run if run[o] != correct[o] and o != "name"} == {
        "halt_exploration_prob": (0.5, 0.1),
        "L_cycles": (6, 4),
    }


def test_options_are_checked_when_an_experiment_is_declared() -> None:
    with pytest.raises(ConfigError, match="did you mean 'halt_max_steps'"):
        Experiment("x/A", "t", "w", frozenset(), {"halt_max_step": 3})
    with pytest.raises(ConfigError, match="did you mean 'encoder_type'"):
        Experiment("x/A", "t", "w", frozenset({"encoder_typ"}))


def test_targets() -> None:
    targets = search_spaces.targets()
    assert set(targets) == {*PHASES, "overfit", "debug", "act", "frozen", "all"}
    assert len(targets["all"]) == 21 + 21 + 9 + 6
    assert len(search_spaces.targets("2026-01-09")["all"]) == 20 + 21 + 9 + 6
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
        ("debug/phse1", "did you mean 'debug/phase1'"),
        ("frozn", "did you mean 'frozen'"),
        ("act3@L4", "did you mean 'L"),
        ("act1@L2", "waits for no decision"),
        ("act/E1@L2,act3@O1", "two modes"),
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
