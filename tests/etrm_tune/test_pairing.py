"""Arms of one seed are paired: the same puzzles, augmentations, initial weights and decoder."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from etrm_tune.plan import Options, make_plan
from etrm_tune.preflight import Files
from search_spaces import resolve
from tests.trainable.small_trials import puzzle_folder, tiny
from trainable.data import ArcData
from trainable.models import build_model


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return puzzle_folder(tmp_path_factory.mktemp("puzzles"))


def stream(folder: Path, batch: int, interval: float, count: int, seed: int = 0) -> list[object]:
    """The first rows that an arm is offered, by sample index, and what they look like."""
    config = tiny(folder, global_batch_size=batch, eval_interval=interval, seed=seed, num_aug=3)
    sampler = ArcData.from_config(config).train_sampler(batch, epochs_per_iter=int(interval))
    found: list[object] = []
    while len(found) < count:
        arrays = sampler.next_batch()
        for row in range(batch):
            inputs, demos = arrays["inputs"][row], arrays["demo_inputs"][row]
            found.append((int(arrays["base_puzzle"][row]), inputs.tobytes(), demos.tobytes()))
    return found[:count]


def test_arms_of_different_batch_sizes_see_the_same_rows_by_sample_index(folder: Path) -> None:
    control = stream(folder, 8, 20, 60)
    assert stream(folder, 4, 20, 60) == control
    assert stream(folder, 5, 7, 60) == control
    assert stream(folder, 8, 20, 60, seed=1) != control


def test_same_named_tensors_start_equal_over_arms_of_a_seed() -> None:
    arms = ("overfit/E1a", "overfit/E2d", "overfit/E2a", "overfit/E2c", "overfit/E4a")
    states = {
        (arm, seed): build_model(resolve(arm, seed=seed).config.model, seed=seed).state_dict()
        for arm in arms
        for seed in (0, 1)
    }
    control = states["overfit/E1a", 0]
    for arm in arms[1:]:
        other = states[arm, 0]
        shared = [n for n in control if n in other and control[n].shape == other[n].shape]
        assert any(name.startswith("inner.") for name in shared)
        assert any(name.startswith("encoder.") for name in shared)
        assert all(torch.equal(control[name], other[name]) for name in shared)
    drawn = [name for name, value in control.items() if value.std() > 0]
    again = states["overfit/E1a", 1]
    assert not any(torch.equal(control[name], again[name]) for name in drawn)


def test_every_seed_has_one_decoder_that_its_arms_share() -> None:
    plan = make_plan(Options("phase1", "laptop", "2026-01-21", seeds=3, scheduler="bar"), Files())
    decoders = [trial for trial in plan.trials if trial.role == "decoder"]
    assert [trial.config.seed for trial in decoders] == [0, 1, 2]
    for decoder in decoders:
        arms = [t for t in plan.trials if t.role == "arm" and t.config.seed == decoder.config.seed]
        assert len(arms) == 4
        assert {arm.needs for arm in arms} == {decoder.trial_id}
        assert {arm.config.decoder_ref for arm in arms} == {decoder.identity}
