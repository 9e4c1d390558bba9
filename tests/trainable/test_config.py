"""Configuration: flat names, refusals that name the fix, an identity that is stable."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pydantic
import pytest

from trainable.config import DataConfig, ModelConfig, TrialConfig, option_names, option_owner
from trainable.errors import ConfigError, UserError

ROOT = Path(__file__).parents[2]
GOLDEN = ROOT / "tests" / "golden"
MODEL_FILES = sorted(
    path
    for path in GOLDEN.glob("*.json")
    if "hidden_size" in json.loads(path.read_text())["config"]
)


def test_option_names_are_unique() -> None:
    names = option_names()
    assert len(names) == len(set(names))
    assert set(TrialConfig().flat()) == set(names)


def test_options_belong_to_one_part() -> None:
    assert option_owner("lr") is None
    assert option_owner("halt_exploration_prob") == "model"
    assert option_owner("num_aug") == "data"
    for part in ("model", "data"):
        with pytest.raises(ConfigError):
            option_owner(part)


def test_golden_files_are_there() -> None:
    assert len(MODEL_FILES) >= 10


@pytest.mark.parametrize("path", MODEL_FILES, ids=lambda path: path.stem)
def test_model_configurations_of_the_references_are_accepted(path: Path) -> None:
    values = json.loads(path.read_text())["config"]
    values.pop("optim", None)
    config = ModelConfig(**values)
    for key, value in values.items():
        assert getattr(config, key) == value


@pytest.mark.parametrize(
    ("kind", "key", "right"),
    [
        (ModelConfig, "halt_exploration_probability", "halt_exploration_prob"),
        (DataConfig, "num_augs", "num_aug"),
        (TrialConfig, "learning_rate_warmup_steps", "lr_warmup_steps"),
    ],
)
def test_unknown_keys_name_the_nearest(kind: type, key: str, right: str) -> None:
    with pytest.raises(UserError, match=f"did you mean '{right}'") as caught:
        kind(**{key: 1})
    assert "\n" not in str(caught.value)


def test_unknown_keys_are_refused_everywhere() -> None:
    with pytest.raises(ConfigError, match="did you mean 'hidden_size'"):
        TrialConfig(model={"hiden_size": 64})
    with pytest.raises(ConfigError, match="did you mean 'global_batch_size'"):
        TrialConfig().replace(globl_batch_size=3)
    with pytest.raises(ConfigError, match="did you mean 'encoder_type'"):
        TrialConfig().get("encoder_typ")


def test_bad_values_are_one_line_that_names_the_option() -> None:
    for bad in ({"lr": -1.0}, {"epochs": 0}, {"halt_exploration_prob": 1.5}, {"num_aug": "many"}):
        with pytest.raises(ConfigError) as caught:
            TrialConfig().replace(**bad)
        assert next(iter(bad)) in str(caught.value)
        assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("options", "fix"),
    [
        ({"hidden_size": 66}, "multiple"),
        ({"hidden_size": 56}, "num_heads"),  # heads of 7: rope needs pairs
        ({"canvas": "demos", "mlp_t": True}, "canvas 'full'"),
        ({"canvas": "demos", "seq_len": 100}, "seq_len must be 900"),
        ({"source": "kaggle"}, "--data FOLDER"),
        ({"encoder_type": "lpn_variational"}, "kl_weight > 0"),
        ({"encoder_type": "standart"}, "did you mean 'standard'"),
        ({"kind": "trm", "pretrained_decoder": True}, "kind 'etrm'"),
    ],
)
def test_contradictions(options: dict[str, object], fix: str) -> None:
    with pytest.raises(ConfigError, match=fix):
        TrialConfig().replace(**options)


def test_configurations_are_frozen() -> None:
    config = TrialConfig()
    with pytest.raises(pydantic.ValidationError):
        config.lr = 1.0  # type: ignore[misc]


def test_replace_and_get_are_flat() -> None:
    config = TrialConfig().replace(lr=3e-4, hidden_size=64, num_heads=4, num_aug=7)
    assert (config.lr, config.model.hidden_size, config.data.num_aug) == (3e-4, 64, 7)
    assert [config.get(o) for o in ("lr", "hidden_size", "num_aug")] == [3e-4, 64, 7]
    assert TrialConfig().lr == 1e-4


def test_json_round_trip() -> None:
    config = TrialConfig().replace(lr=3e-4, train_subsets=("training",), max_train_groups=32)
    again = TrialConfig.model_validate_json(config.model_dump_json())
    assert again == config
    assert again.identity() == config.identity()


def test_identity_is_the_same_in_another_process() -> None:
    code = "from trainable.config import TrialConfig as T; print(T().replace(lr=3e-4).identity())"
    run = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert run.stdout.strip() == TrialConfig().replace(lr=3e-4).identity()
    assert len(run.stdout.strip()) == 16


@pytest.mark.parametrize(
    "change",
    [
        {"lr": 2e-4},
        {"seed": 1},
        {"name": "overfit/E1b"},
        {"epochs": 99_999},
        {"hidden_size": 256},
        {"halt_exploration_prob": 0.5},
        {"encode_mode": "cached"},
        {"canvas": "demos"},
        {"num_aug": 999},
        {"max_grid_side": 10},
        {"decoder_ref": "0123456789abcdef"},
        {"decoder_puzzles": "same"},
        {"profile": "laptop"},
        {"float32_matmul_precision": "medium"},
    ],
    ids=lambda change: next(iter(change)),
)
def test_identity_changes_with_everything_that_decides_the_numbers(
    change: dict[str, object],
) -> None:
    assert TrialConfig().replace(**change).identity() != TrialConfig().identity()


@pytest.mark.parametrize(
    "change",
    [
        {"num_threads": 2},
        {"decoder": "/elsewhere/decoder.pt"},
        {"batch_size_reason": "memory"},
        {"keep_checkpoints": 5},
    ],
    ids=lambda change: next(iter(change)),
)
def test_identity_ignores_how_it_runs(change: dict[str, object]) -> None:
    assert TrialConfig().replace(**change).identity() == TrialConfig().identity()


def test_identity_ignores_where_the_data_lies_but_not_what_it_is() -> None:
    here, there = (
        TrialConfig().replace(source="kaggle", path=path) for path in ("/here", "/there")
    )
    assert here.identity() == there.identity()
    assert here.identity(data_hash="a") != here.identity(data_hash="b")


def test_identity_does_not_depend_on_how_a_number_is_written() -> None:
    assert TrialConfig(epochs=1000).identity() == TrialConfig(epochs=1000.0).identity()


def test_no_torch() -> None:
    code = "import sys, trainable.config; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=False).returncode == 0
