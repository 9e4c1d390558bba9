"""What a trial checks of its data and its decoder, and in which rows it says so."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from tests.trainable.small_trials import puzzle_folder, rows_of, tiny
from trainable import checkpoint
from trainable.config import TrialConfig
from trainable.data import ArcData
from trainable.data.checks import data_checks
from trainable.loop import train
from trainable.trial import Trial

DEMOS, IDENTIFIERS, AUGMENTATIONS = (
    f"data/{name}" for name in ("demos_per_row", "identifier_mismatches", "augmentation_mismatches")
)
ONCE = {"keys_loaded", "keys_missing", "ema"}
COMPARED = {"tensors", "tensors_equal", "max_difference", "mean_difference"}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return puzzle_folder(tmp_path_factory.mktemp("puzzles"))


@pytest.fixture(scope="module")
def decoder(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("decoder")
    result = train(tiny(folder, kind="trm", steps=2), out_dir=out, progress=False)
    assert result.final_checkpoint is not None
    return out / result.final_checkpoint


def data_of(folder: Path, **options: Any) -> ArcData:
    return ArcData.from_config(tiny(folder, **options))


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"canvas": "full", "num_aug": 30},
        {"num_aug": 0, "translate": False},
        {"stream": "legacy", "shuffle_groups": True},
        {"max_demos": 1},
        {"kind": "trm"},
    ],
)
def test_our_own_data_has_no_mismatch(folder: Path, options: dict[str, Any]) -> None:
    data = data_of(folder, **options)
    found = data_checks(data)
    assert found.pop(IDENTIFIERS) == found.pop(AUGMENTATIONS) == 0
    if data.kind == "trm":
        assert found == {}
    else:
        fed = [min(len(g.puzzle.demos), data.config.max_demos) for g in data.train_groups]
        assert found == {DEMOS: pytest.approx(sum(fed) / len(fed))}


def test_every_kind_of_mismatch_is_counted(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    data = data_of(folder)
    build, rows = ArcData.build, 12  # two augmentations of six puzzles

    def spoilt(name: str, value: Any) -> dict[str, float]:
        def changed(self: ArcData, *args: Any) -> Any:
            batch = build(self, *args)
            return batch | {name: value(batch[name])}

        with monkeypatch.context() as patch:
            patch.setattr(ArcData, "build", changed)
            return data_checks(data)

    other = spoilt("puzzle_identifiers", lambda ids: np.roll(ids, 2))  # the next puzzle's
    assert other[IDENTIFIERS] == rows
    one = spoilt("puzzle_identifiers", lambda ids: ids - (np.arange(len(ids)) == 5))
    assert (one[IDENTIFIERS], one[AUGMENTATIONS]) == (0, 1), "another augmentation's name"
    assert spoilt("base_puzzle", lambda base: base + 1)[IDENTIFIERS] == rows
    for name in ("inputs", "demo_inputs", "demo_labels"):

        def recoloured(tokens: Any) -> Any:
            tokens = tokens.copy()
            first = tokens[3].reshape(-1)
            first[np.flatnonzero(first >= 2)[0]] ^= 1
            return tokens

        assert spoilt(name, recoloured)[AUGMENTATIONS] == 1, name
    unfed = spoilt("demo_mask", np.zeros_like)
    assert (unfed[DEMOS], unfed[AUGMENTATIONS]) == (0, rows)
    assert data_checks(data, known={"tr000"})[IDENTIFIERS] == rows - 2
    assert data_checks(data, known=data.train_ids)[IDENTIFIERS] == 0


def etrm(folder: Path, decoder: Path, **options: Any) -> TrialConfig:
    given: dict[str, Any] = {"pretrained_decoder": True, "decoder": str(decoder)}
    given |= {"decoder_puzzles": "same"}
    return tiny(folder, **(given | options))


def names(row: dict[str, Any], family: str) -> set[str]:
    return {key.removeprefix(family) for key in row if key.startswith(family)}


@pytest.mark.parametrize(("frozen", "measured"), [(0, [1]), (2, [1, 2]), (99, [1, 2, 4])])
def test_a_decoder_is_compared_at_loading_and_while_it_is_frozen(
    folder: Path, decoder: Path, tmp_path: Path, frozen: int, measured: list[int]
) -> None:
    config = etrm(folder, decoder, steps=4, freeze_decoder_steps=frozen, max_eval_groups=0, lr=0.01)
    config = config.replace(eval_interval=config.epochs / 2)  # rows 2 and 4
    train(config, out_dir=tmp_path, progress=False)
    rows = rows_of(tmp_path)
    assert [row["step"] for row in rows if names(row, "decoder/")] == measured
    assert names(rows[0], "decoder/") == COMPARED | ONCE
    count = sum(
        name.startswith("inner.") and "puzzle_emb" not in name
        for name in checkpoint.read_own(decoder)["model"]
    )
    for row in rows:
        if row["step"] in measured:
            assert row["decoder/tensors"] == row["decoder/tensors_equal"] == count
            assert row["decoder/max_difference"] == row["decoder/mean_difference"] == 0.0
        if row["step"] > 1:
            assert names(row, "decoder/") <= COMPARED
            assert not names(row, "data/")
    drifts = {row["step"]: row["drift/relative"] for row in rows if names(row, "drift/")}
    assert set(drifts) == {2, 4}, "at evaluations, frozen or not"
    assert [drifts[2] > 0, drifts[4] > 0] == [frozen < 2, frozen < 4]
    first = rows[0]
    assert (first["decoder/keys_loaded"], first["decoder/keys_missing"]) == (count, 0)
    assert first["decoder/ema"] == 1.0
    assert (first[IDENTIFIERS], first[AUGMENTATIONS]) == (0, 0) and first[DEMOS] > 1
    low, high = first["encoder/output_min"], first["encoder/output_max"]
    assert low < first["encoder/output_mean"] < high


def test_a_frozen_decoder_that_moved_is_seen(folder: Path, decoder: Path, tmp_path: Path) -> None:
    trial = Trial(etrm(folder, decoder, freeze_decoder_steps=99), tmp_path)
    trial.model.inner.lm_head.weight.data[0, 0] += 0.5
    found = trial.compare()
    assert found["decoder/max_difference"] == pytest.approx(0.5)
    assert found["decoder/tensors"] - found["decoder/tensors_equal"] == 1
    source = torch.cat([value.double().flatten() for value in trial.decoder.tensors.values()])
    assert found["drift/max"] == pytest.approx(0.5)
    assert found["drift/relative"] == pytest.approx(0.5 / float(source.norm()))


def test_rows_without_a_decoder_have_no_comparison(folder: Path, tmp_path: Path) -> None:
    train(tiny(folder, steps=1, kind="trm"), out_dir=tmp_path, progress=False)
    (row,) = rows_of(tmp_path)
    assert not names(row, "decoder/")
    assert names(row, "data/") == {"identifier_mismatches", "augmentation_mismatches"}


def test_the_same_puzzles_are_those_that_the_decoder_names(
    folder: Path, decoder: Path, tmp_path: Path
) -> None:
    """A decoder of other puzzles, although the same were asked for."""
    other = puzzle_folder(tmp_path / "puzzles")
    path = other / "arc-agi_training_challenges.json"
    for file in (path, other / "arc-agi_training_solutions.json"):
        file.write_text(file.read_text().replace('"tr00', '"xx00'))
    trial = Trial(etrm(other, decoder), tmp_path)
    assert trial.beginning[IDENTIFIERS] == 12
    assert Trial(etrm(folder, decoder), tmp_path).beginning[IDENTIFIERS] == 0
