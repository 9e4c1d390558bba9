"""``etrm-tune checkpoint``: what it prints, its exit status, and one line for what goes wrong."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from etrm_tune import cli
from tests.trainable.checkpoint_files import edit, own_file, published_file, small, trapped
from trainable import checkpoint
from trainable.decoder import load_decoder
from trainable.models import build_model

Capture = pytest.CaptureFixture[str]


def run(*words: object) -> int:
    return cli.main(["checkpoint", *(str(word) for word in words)])


def told(capsys: Capture, *words: object, status: int = 0) -> str:
    """Standard output; nothing on standard error."""
    capsys.readouterr()
    assert run(*words) == status
    out, err = capsys.readouterr()
    assert err == ""
    return out


def refused(capsys: Capture, *words: object) -> str:
    """The one line on standard error, with status 2."""
    capsys.readouterr()
    assert run(*words) == 2
    out, err = capsys.readouterr()
    assert out == "" and len(err.strip().splitlines()) == 1 and err.startswith("error: ")
    return err


def test_inspecting_a_checkpoint_of_ours(tmp_path: Path, capsys: Capture) -> None:
    path = tmp_path / "step-12.pt"
    raw, _ = own_file(path, small("etrm", canvas="demos"), seed=3)
    text = told(capsys, "inspect", path)
    for word in ("etrm-tune", "ema and raw", "demos", "trained 2, held_out 0"):
        assert word in text, word
    assert max(map(len, text.splitlines())) <= 200 and "\x1b" not in text
    name = "encoder.set_encoder.query_tokens"
    assert sum(line.startswith(name) for line in text.splitlines()) == 2, "both kinds of weights"

    found = json.loads(told(capsys, "inspect", path, "--json"))
    assert found["weights"] == ["ema", "raw"] and found["step"] == 12
    assert found["config"]["canvas"] == "demos" and found["config"]["encoder_type"] == "standard"
    rows = {row["name"]: row for row in found["tensors"]["raw"]}
    value = dict(raw.state_dict())[name]
    row = rows[name]
    assert row["shape"] == [4, 32] and row["dtype"] == "float32"
    assert row["mean"] == pytest.approx(float(value.mean()), abs=1e-6)
    assert row["std"] == pytest.approx(float(value.std(correction=0)), abs=1e-6)
    assert (row["min"], row["max"]) == (float(value.min()), float(value.max()))
    counts = found["parameters"]
    assert counts["encoder"] == sum(p.numel() for p in raw.encoder.parameters())  # type: ignore[union-attr]
    assert counts["decoder"] == sum(p.numel() for p in raw.inner.parameters())
    assert counts["initial states"] == 64 and "puzzle table" not in counts


def test_inspecting_a_published_file(tmp_path: Path, capsys: Capture) -> None:
    published_file(tmp_path, small("trm"), unheard_of=1)
    path = tmp_path / "step_5"

    def break_it(tensors: dict[str, torch.Tensor]) -> None:
        head = tensors["_orig_mod.model.inner.lm_head.weight"]
        head[:] = 2.0
        head[0, :3] = torch.tensor([float("nan"), float("inf"), -float("inf")])
        tensors["_orig_mod.model.inner.q_head.bias"][:] = float("nan")

    edit(path, break_it)
    found = json.loads(told(capsys, "inspect", path, "--json"))
    assert found["format"] == "trm" and found["weights"] == ["ema"] and found["step"] == 5
    assert found["config_file"] == str(tmp_path / "all_config.yaml")
    assert found["parameters"]["puzzle table"] == 7 * 32
    rows = {row["name"]: row for row in found["tensors"]["ema"]}
    head = rows["inner.lm_head.weight"]
    assert (head["nan"], head["inf"], head["mean"], head["std"]) == (1, 2, 2.0, 0.0)
    assert rows["inner.q_head.bias"]["mean"] is None
    text = told(capsys, "inspect", path)
    assert "2 tensors of the ema weights are not finite" in text and "unheard_of" in text
    assert any(line.split() == ["exposure", "unknown"] for line in text.splitlines())

    (tmp_path / "all_config.yaml").rename(tmp_path / "c.yaml")
    text = told(capsys, "inspect", path)
    assert "none beside it" in text and "pass --config" in text, "told, and the rest is shown"
    assert "none beside it" not in told(capsys, "inspect", path, "--config", tmp_path / "c.yaml")


def test_a_decoder_against_its_source(tmp_path: Path, capsys: Capture) -> None:
    published_file(tmp_path, small("trm"))
    source, config = tmp_path / "step_5", small("etrm")
    model = build_model(config, seed=2)
    load_decoder(model, source)
    path = tmp_path / "step-12.pt"
    own_file(path, config, model=model.state_dict(), ema=None)
    words = ("verify-decoder", path, "--decoder", source)
    text = told(capsys, *words)
    assert "frozen: equal: 14 of 14 tensors within 1e-05 (raw weights)" in text
    found = json.loads(told(capsys, *words, "--json"))
    assert found["verdict"] == "frozen: equal" and len(found["tensors"]) == 14

    with torch.no_grad():
        model.inner.lm_head.weight[0, 0] += 2e-5
    own_file(path, config, model=model.state_dict(), ema=None)
    text = told(capsys, *words, status=1)
    assert "drifted: 13 of 14" in text
    assert [line.split()[0] for line in text.splitlines() if " NO " in line] == [
        "inner.lm_head.weight"
    ]
    found = json.loads(told(capsys, *words, "--json", status=1))
    (row,) = [row for row in found["tensors"] if not row["equal"]]
    assert row["largest"] == pytest.approx(2e-5, rel=1e-2)
    assert row["mean"] == pytest.approx(2e-5 / (12 * 32), rel=1e-2)

    edit(source, lambda t: t.pop("_orig_mod.model.inner.lm_head.weight"))
    assert "unexpected: inner.lm_head.weight" in told(capsys, *words, status=1)
    edit(source, lambda t: t.update({"_orig_mod.model.inner.more": torch.ones(1)}))
    assert "missing: inner.more" in told(capsys, *words, status=1)


def test_exporting(tmp_path: Path, capsys: Capture) -> None:
    own_file(tmp_path / "a.pt", small("etrm"))
    words = ("export", tmp_path / "a.pt", "--out", tmp_path / "out")
    text = told(capsys, *words, "--format", "etrm", "--weights", "raw")
    assert f"wrote {tmp_path / 'out' / 'step_12'}" in text and "note: " in text
    assert "exists already" in refused(capsys, *words, "--format", "etrm")
    assert "--format etrm" in refused(capsys, *words, "--format", "trm")
    assert "did you mean 'etrm'" in refused(capsys, *words, "--format", "etrmm")
    assert "choose from ema, raw" in refused(capsys, *words, "--format", "etrm", "--weights", "x")
    out = told(capsys, *words, "--format", "etrm-tune", "--json")
    assert json.loads(out)["files"] == [str(tmp_path / "out" / "step-12.pt")]
    assert checkpoint.read_own(tmp_path / "out" / "step-12.pt")["weights"] == "ema"


def every_word(path: Path, source: Path, out: Path) -> list[tuple[Any, ...]]:
    return [
        ("inspect", path),
        ("verify-decoder", path, "--decoder", source),
        ("verify-decoder", source, "--decoder", path),
        ("export", path, "--format", "trm", "--out", out),
        ("export", path, "--format", "etrm-tune", "--out", out),
    ]


def test_no_word_runs_code_from_a_file(tmp_path: Path, capsys: Capture) -> None:
    published_file(tmp_path, small("trm"))
    source, out, trap = tmp_path / "step_5", tmp_path / "out", tmp_path / "trap"
    (tmp_path / "b").mkdir()
    bad = trapped(tmp_path / "b" / "step_1", trap)
    for words in every_word(bad, source, out):
        assert "pickled code" in refused(capsys, *words)
    config = tmp_path / "tags.yaml"
    config.write_text(f"arch: !!python/object/apply:pathlib.Path.touch [{trap}]")
    for words in (every_word(source, source, out)[0], every_word(source, source, out)[3]):
        assert "tags.yaml is not valid YAML" in refused(capsys, *words, "--config", config)
    assert not trap.exists() and not out.exists()
    torch.load(bad, weights_only=False)
    assert trap.exists(), "the file is dangerous to a trusting reader"


def test_what_is_no_checkpoint_is_one_line(tmp_path: Path, capsys: Capture) -> None:
    published_file(tmp_path, small("trm"))
    source, out = tmp_path / "step_5", tmp_path / "out"
    cut = tmp_path / "cut"
    cut.write_bytes(source.read_bytes()[:2000])
    for path, text in ((cut, "cut"), (tmp_path / "none", "check the path"), (tmp_path, "folder")):
        for words in every_word(path, source, out):
            assert text in refused(capsys, *words)
    assert "required" in refused(capsys)
    assert "--decoder" in refused(capsys, "verify-decoder", source)
    assert "did you mean '--json'" in refused(capsys, "inspect", source, "--jsn")
    assert "identifiers" in refused(capsys, "inspect", source, "--identifiers", tmp_path / "no")
