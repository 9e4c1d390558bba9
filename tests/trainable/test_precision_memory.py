"""No default needs more memory than `parity`, which does the work of the public code."""

from __future__ import annotations

from pathlib import Path

import pytest

from benchmarks.encoders import NAMES, options_of, saved_bytes
from tests.trainable.small_models import demonstrations, encoder_of
from tests.trainable.small_trials import puzzle_folder, tiny
from trainable.encoder_options import ENCODER_TYPES
from trainable.trial import Trial


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return puzzle_folder(tmp_path_factory.mktemp("puzzles"), training=2, evaluation=1)


@pytest.mark.parametrize("name", NAMES)
def test_a_training_step_keeps_no_more_than_parity(folder: Path, tmp_path: Path, name: str) -> None:
    """Bytes kept for backward by a whole step, on either canvas."""
    sizes = {"global_batch_size": 1, "max_demos": 2, "hidden_size": 16, "puzzle_emb_ndim": 16}

    def kept(**options: object) -> int:
        trial = Trial(tiny(folder, **(sizes | options_of(name) | options)), tmp_path)
        return saved_bytes(trial.model.parameters(), trial.train_step)

    parity = kept(canvas="full", parity=True)
    full, demos = kept(canvas="full"), kept(canvas="demos")
    assert 0 < demos < full <= parity


@pytest.mark.parametrize("name", ENCODER_TYPES)
def test_where_nothing_can_be_left_out_nothing_is_added(name: str) -> None:
    """Every cell filled and every slot taken: the same tokens are encoded, up to index tensors."""

    def kept(parity: bool) -> int:
        encoder = encoder_of(encoder_type=name, parity=parity).train()
        return saved_bytes(encoder.parameters(), lambda: encoder(*demonstrations(pad=False)))

    assert kept(parity=False) <= 1.02 * kept(parity=True)
