"""Checkpoints: ours, the public format as a decoder, and files that must not be trusted."""

from __future__ import annotations

import errno
import math
import os
import pickle
import re
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from torch import Tensor

from tests.trainable.small_trials import puzzle_folder, tiny
from trainable import checkpoint, decoder
from trainable.config import ModelConfig, TrialConfig
from trainable.errors import CheckpointError, ConfigError, UserError, storage_error
from trainable.loop import train
from trainable.models import build_model

TENSORS = 10  # of a one-layer recursion without its puzzle table


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return puzzle_folder(tmp_path_factory.mktemp("puzzles"))


@pytest.fixture
def config(folder: Path) -> TrialConfig:
    return tiny(folder, steps=1, max_eval_groups=0)


def published(folder: Path, model: ModelConfig, *, prefix: str = "model.", **arch: Any) -> Path:
    """A file as the public implementation writes it: plain mapping, settings beside it."""
    source = build_model(
        ModelConfig(**(model.model_dump() | {"kind": "trm", "num_puzzle_identifiers": 5})), seed=9
    )
    tensors = {prefix + name: value.clone() for name, value in source.state_dict().items()}
    for name in ("H_init", "L_init"):
        tensors[f"{prefix}inner.{name}"] = tensors[f"{prefix}inner.{name}"].bfloat16()
    torch.save(tensors, folder / "step_1")
    settings = {"name": "a.b@C", "loss": {"name": "x"}, "H_cycles": 2, "L_cycles": 2}
    settings |= {"hidden_size": 32, "num_heads": 2, "pos_encodings": "rope", "mlp_t": False}
    text = yaml.safe_dump({"arch": settings | arch, "lr": 1e-4, "epochs": 1})
    (folder / "all_config.yaml").write_text(text)
    return folder / "step_1"


def one_line(error: str | BaseException | None) -> str:
    text = str(error)
    assert error is not None and "\n" not in text.strip() and text.strip(), text
    return text


PREFIXES = ["_orig_mod.model.", "model.", "module.model.", "module._orig_mod.model.", "module.", ""]


@pytest.mark.parametrize("prefix", PREFIXES)
def test_published_files_load_with_all_tensors(
    tmp_path: Path, config: TrialConfig, prefix: str
) -> None:
    path = published(tmp_path, config.model, prefix=prefix)
    model = build_model(config.model, seed=0)
    before = {n: p.clone() for n, p in model.named_parameters() if n.startswith("encoder.")}
    assert decoder.decoder_problem(path, config.model) is None
    loaded = decoder.load_decoder(model, path)
    assert not loaded.ours and loaded.exposure is None and len(loaded.tensors) == TENSORS
    equal = {"decoder/tensors": TENSORS, "decoder/tensors_equal": TENSORS}
    equal |= {"decoder/max_difference": 0.0, "decoder/mean_difference": 0.0}
    keys = {"decoder/keys_loaded": TENSORS, "decoder/keys_missing": 0}
    assert loaded.averaged is None, "nothing beside the file tells"
    assert decoder.loading_metrics(model, loaded) == equal | keys
    assert model.inner.H_init.dtype == torch.float32
    for name, value in before.items():
        assert torch.equal(model.get_parameter(name), value), "the encoder is untouched"
    options = decoder.decoder_options(path)
    assert options["hidden_size"] == 32 and options["L_layers"] == 1 and options["L_cycles"] == 2
    with torch.no_grad():
        model.inner.lm_head.weight[0, 0] += 1
    found = decoder.decoder_metrics(model, loaded)
    values = sum(value.numel() for value in loaded.tensors.values())
    assert found["decoder/tensors_equal"] == TENSORS - 1
    assert found["decoder/max_difference"] == pytest.approx(1.0)
    assert found["decoder/mean_difference"] == pytest.approx(1 / values)
    with torch.no_grad():
        model.inner.lm_head.weight[0, 0] = math.nan
    found = decoder.decoder_metrics(model, loaded)
    assert found["decoder/tensors_equal"] == TENSORS - 1
    assert math.isnan(found["decoder/max_difference"])


def change(path: Path, edit: Any) -> None:
    tensors = torch.load(path, weights_only=True)
    edit(tensors)
    torch.save(tensors, path)


NORM = "model.inner.L_level.layers.0.mlp.down_proj.weight"


@pytest.mark.parametrize(
    ("edit", "text"),
    [
        (lambda t: t.pop(NORM), r"lacks 'inner.L_level.*9 of 10"),
        (lambda t: t.update({"model.inner.extra": torch.ones(2)}), r"has 'inner.extra' besides"),
        (lambda t: t.update({NORM: torch.ones(32, 512)}), r"\(32, 512\).*\(32, 256\).*set"),
        (lambda t: t.update({"model.inner.note": "text"}), r"'model.inner.note' is not a tensor"),
        (lambda t: t.pop("model.inner.H_init"), r"no tensor 'inner.H_init'"),
        (lambda t: t.update({"model.inner.H_init": torch.ones(())}), r"not a TRM checkpoint"),
    ],
    ids=["missing", "extra", "shape", "no tensor", "no state", "scalar state"],
)
def test_a_decoder_that_does_not_fit_is_an_error(
    tmp_path: Path, config: TrialConfig, edit: Any, text: str
) -> None:
    path = published(tmp_path, config.model)
    change(path, edit)
    model = build_model(config.model, seed=0)
    before = {n: v.clone() for n, v in model.state_dict().items()}
    with pytest.raises(CheckpointError, match=text) as caught:
        decoder.load_decoder(model, path)
    one_line(caught.value)
    assert all(torch.equal(v, before[n]) for n, v in model.state_dict().items()), "nothing loaded"


def test_what_a_decoder_records_must_match(tmp_path: Path, config: TrialConfig) -> None:
    path, model = published(tmp_path, config.model), config.model

    def problem(l_cycles: int | None = None, **options: Any) -> str:
        changed = ModelConfig(**(model.model_dump() | options))
        return one_line(decoder.decoder_problem(path, changed, l_cycles=l_cycles))

    assert "set hidden_size=32" in problem(hidden_size=64)
    assert "set L_cycles=2" in problem(L_cycles=6)
    assert "set H_cycles=2" in problem(H_cycles=3)
    assert "set num_heads=2" in problem(num_heads=4)
    assert "--decoder-l-cycles says 4" in problem(l_cycles=4)
    (tmp_path / "all_config.yaml").unlink()
    assert "--decoder-l-cycles" in problem()
    assert decoder.decoder_problem(path, model, l_cycles=2) is None
    assert "set L_cycles=6" in problem(l_cycles=6)
    (tmp_path / "all_config.yaml").write_text("arch: [1, 2")
    assert "not valid YAML" in problem()
    (tmp_path / "all_config.yaml").write_text("arch: [1, 2]")
    assert "'arch'" in problem()
    (tmp_path / "all_config.yaml").write_text("arch: !!python/object/apply:os.system ['true']")
    assert "not valid YAML" in problem()


class Malicious:
    """Touches a file when unpickled."""

    def __init__(self, target: Path) -> None:
        self.target = target

    def __reduce__(self) -> Any:
        return Path.touch, (self.target,)


@pytest.mark.parametrize("zipped", [True, False])
def test_pickled_code_does_not_run(tmp_path: Path, config: TrialConfig, zipped: bool) -> None:
    trap, path = tmp_path / "trap", tmp_path / "step_1"
    state = {"model.inner.H_init": torch.ones(32), "x": Malicious(trap)}
    if zipped:
        torch.save(state, path)
    else:
        path.write_bytes(pickle.dumps(state))
    for read in (checkpoint.read, decoder.read_decoder, checkpoint.read_own):
        with pytest.raises(CheckpointError, match=r"pickled code.*only files of plain tensors"):
            read(path)
    one_line(decoder.decoder_problem(path, config.model, l_cycles=2))
    assert not trap.exists()
    if zipped:
        torch.load(path, weights_only=False)
        assert trap.exists(), "the file is dangerous to a trusting reader"


def test_damaged_files_are_one_clear_line(tmp_path: Path, config: TrialConfig) -> None:
    whole = published(tmp_path, config.model).read_bytes()
    path = tmp_path / "broken"
    damaged = [b"", b"\x80", b"hello", b"\x80\x04.", b"PK\x03\x04", os.urandom(4000)]
    damaged += [whole[: len(whole) // 2], whole[:-100], whole[100:], b"{}", pickle.dumps([1])]
    damaged += [pickle.dumps(3), b"\x00" * 5000]
    for content in damaged:
        path.write_bytes(content)
        problem = decoder.decoder_problem(path, config.model, l_cycles=2)
        assert "broken" in one_line(problem)
    for content in (torch.ones(3), [torch.ones(3)], {"a": [1]}, {}):
        torch.save(content, path)
        one_line(decoder.decoder_problem(path, config.model, l_cycles=2))
    assert "check the path" in one_line(
        decoder.decoder_problem(tmp_path / "none", config.model, l_cycles=2)
    )
    one_line(decoder.decoder_problem(tmp_path, config.model, l_cycles=2))
    with pytest.raises(CheckpointError, match="check --decoder"):
        decoder.decoder_reference(tmp_path / "none")


def test_our_trm_checkpoint_as_a_decoder_gives_its_averaged_weights(
    tmp_path: Path, folder: Path
) -> None:
    trm = tiny(folder, steps=2, kind="trm", max_train_groups=3, max_eval_groups=0)
    result = train(trm, out_dir=tmp_path / "trm", progress=False)
    assert result.final_checkpoint is not None
    path = tmp_path / "trm" / result.final_checkpoint
    state = checkpoint.read_own(path)
    etrm = tiny(folder, steps=1, pretrained_decoder=True, decoder=str(path), max_eval_groups=0)
    assert decoder.decoder_problem(path, etrm.model) is None
    model = build_model(etrm.model, seed=3)
    loaded = decoder.load_decoder(model, path)
    assert loaded.ours and loaded.exposure is not None
    assert loaded.exposure["trained"] == ["tr000", "tr001", "tr002"]
    for name, value in state["ema"].items():
        assert torch.equal(model.state_dict()[name], value), name
    raw = state["model"]["inner.lm_head.weight"]
    assert not torch.equal(model.inner.lm_head.weight, raw)

    # the same puzzles are refused unless asked for; others are fine
    with pytest.raises(CheckpointError, match=r"tr000.*--decoder-puzzles same") as caught:
        train(etrm, out_dir=tmp_path / "a", progress=False)
    one_line(caught.value)
    same = etrm.replace(decoder_puzzles="same")
    assert train(same, out_dir=tmp_path / "b", progress=False).status == "finished"
    others = etrm.replace(skip_train_groups=3)
    assert train(others, out_dir=tmp_path / "c", progress=False).status == "finished"
    wider = others.replace(hidden_size=64)
    with pytest.raises(CheckpointError, match="set hidden_size=32"):
        train(wider, out_dir=tmp_path / "d", progress=False)
    with pytest.raises(ConfigError, match="--decoder PATH"):
        train(others.replace(decoder=None), out_dir=tmp_path / "e", progress=False)


def test_a_frozen_decoder_stays_as_published(tmp_path: Path, config: TrialConfig) -> None:
    path = published(tmp_path, config.model)
    options = {"pretrained_decoder": True, "decoder": str(path), "freeze_decoder_steps": 1}
    result = train(config.replace(**options), out_dir=tmp_path / "t", progress=False)
    assert result.final_checkpoint is not None
    after = checkpoint.read_own(tmp_path / "t" / result.final_checkpoint)["model"]
    for name, value in decoder.read_decoder(path).tensors.items():
        assert torch.equal(after[name], value.float()), name
    started = build_model(config.replace(num_puzzle_identifiers=1).model, seed=config.seed)
    moved = [not torch.equal(after[n], p) for n, p in started.named_parameters() if "encoder" in n]
    assert all(moved)


# --- files of ours -------------------------------------------------------------------------------


def state_of(step: int) -> dict[str, Tensor | int]:
    return {"step": step, "x": torch.full((3,), float(step))}


def test_saving_keeps_the_newest_and_falls_back_from_a_damaged_one(tmp_path: Path) -> None:
    for step in (5, 10, 100, 20):
        checkpoint.save(tmp_path, step, state_of(step), keep=2)
    assert [step for step, _ in checkpoint.list_steps(tmp_path)] == [20, 100]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["step-100.pt", "step-20.pt"]
    (tmp_path / "step-7.pt.123.tmp").write_bytes(b"what a killed process left")
    checkpoint.save(tmp_path, 100, state_of(100), keep=2)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["step-100.pt", "step-20.pt"]
    path = tmp_path / "step-100.pt"
    found = checkpoint.newest(tmp_path)
    assert found is not None and found[0] == path
    path.write_bytes(path.read_bytes()[:200])
    found = checkpoint.newest(tmp_path)
    assert found is not None and found[1]["step"] == 20
    (tmp_path / "step-20.pt").write_bytes(b"")
    assert checkpoint.newest(tmp_path) is None
    assert checkpoint.newest(tmp_path / "nowhere") is None


def test_one_flipped_bit_is_found_and_falls_back(tmp_path: Path) -> None:
    """torch reads a flipped weight without a word; the file's own checksums know."""
    for step in (1, 2):
        checkpoint.save(tmp_path, step, state_of(step), keep=2)
    path = tmp_path / "step-2.pt"
    content = bytearray(path.read_bytes())
    at = content.find(torch.full((3,), 2.0).numpy().tobytes())
    assert at > 0
    content[at] ^= 1
    path.write_bytes(content)
    assert not torch.equal(torch.load(path, weights_only=True)["x"], torch.full((3,), 2.0))
    with pytest.raises(CheckpointError, match="is damaged") as caught:
        checkpoint.read_own(path)
    one_line(caught.value)
    found = checkpoint.newest(tmp_path)
    assert found is not None and found[1]["step"] == 1


def test_foreign_and_newer_files_are_refused(tmp_path: Path) -> None:
    torch.save({"x": torch.ones(1)}, tmp_path / "a")
    with pytest.raises(CheckpointError, match="not a training checkpoint"):
        checkpoint.read_own(tmp_path / "a")
    torch.save({"format": "etrm-tune", "schema_version": 99}, tmp_path / "b")
    with pytest.raises(CheckpointError, match="newer"):
        checkpoint.read_own(tmp_path / "b")


def test_a_failed_write_leaves_the_old_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = checkpoint.save(tmp_path, 1, state_of(1), keep=2)
    before = path.read_bytes()

    def full(*_: Any) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(UserError, match=r"disk full.*free space") as caught:
        checkpoint.save(tmp_path, 1, state_of(2), keep=2)
    one_line(caught.value)
    assert path.read_bytes() == before and list(tmp_path.iterdir()) == [path]
    monkeypatch.undo()
    blocked = tmp_path / "file"
    blocked.touch()
    with pytest.raises(UserError, match=re.escape(str(blocked))):
        checkpoint.save(blocked, 1, state_of(1), keep=1)
    read_only = storage_error(path, PermissionError(errno.EACCES, "denied"))
    assert "read-only" in str(read_only)
