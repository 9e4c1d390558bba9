"""Files of the public implementations as models: names, configuration, identifiers, refusals."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from tests.conftest import load_golden
from tests.trainable.checkpoint_files import (
    edit,
    logits,
    one_line,
    own_file,
    published_file,
    small,
    trapped,
)
from trainable import checkpoint, decoder
from trainable.errors import CheckpointError, ConfigError
from trainable.foreign import fit_identifiers, load_model, open_weights, read_settings
from trainable.models import build_model

PREFIXES = ["_orig_mod.model.", "model.", "module._orig_mod.model.", "module.model.", "module."]


@pytest.mark.parametrize("prefix", [*PREFIXES, "_orig_mod.module.model.", ""])
@pytest.mark.parametrize("kind", ["trm", "etrm"])
def test_every_form_of_names_loads(tmp_path: Path, kind: str, prefix: str) -> None:
    model = published_file(tmp_path, small(kind), prefix=prefix)
    loaded = load_model(tmp_path / "step_5")
    assert (loaded.kind, loaded.weights, loaded.step) == (kind, "ema", 5)
    assert loaded.exposure is None and loaded.identifiers is None and loaded.trial is None
    assert not loaded.model.training and loaded.config.kind == kind
    state = loaded.model.state_dict()
    assert state.keys() == model.state_dict().keys()
    assert all(torch.equal(state[name], value) for name, value in model.state_dict().items())


def test_wrappers_are_taken_off_in_front_only(tmp_path: Path) -> None:
    published_file(tmp_path, small("trm"), prefix="model.module.inner.")
    with pytest.raises(CheckpointError, match=r"no tensor .inner\.H_init"):
        load_model(tmp_path / "step_5")
    published_file(tmp_path, small("trm"))
    edit(tmp_path / "step_5", lambda t: t.update({"model.inner.H_init": torch.ones(32)}))
    with pytest.raises(CheckpointError, match=r"two tensors are both called 'inner.H_init'"):
        load_model(tmp_path / "step_5")


def test_a_published_trm_gives_the_references_numbers(tmp_path: Path) -> None:
    golden = load_golden("a1_trm_rope")
    torch.save(
        {f"_orig_mod.{name}": value for name, value in golden.group("weights").items()},
        tmp_path / "step_3",
    )
    filled = ("batch_size", "seq_len", "vocab_size", "num_puzzle_identifiers")
    arch = {key: value for key, value in golden.config.items() if key not in filled}
    (tmp_path / "all_config.yaml").write_text(yaml.safe_dump({"arch": arch, "ema": False}))
    loaded = load_model(tmp_path / "step_3", options={"seq_len": 100})
    assert loaded.config.num_puzzle_identifiers == 10 and loaded.weights == "raw"
    batch = golden.group("batch1")
    with torch.no_grad():
        _, outputs = loaded.model(loaded.model.initial_carry(batch), batch)
    torch.testing.assert_close(
        outputs["logits"], golden.group("step1")["logits"], atol=1e-5, rtol=0
    )


def test_a_published_etrm_computes_as_the_reference(tmp_path: Path) -> None:
    golden = load_golden("e_etrm_train")
    weights = {f"_orig_mod.{name}": value for name, value in golden.group("weights").items()}
    torch.save(weights, tmp_path / "step_3")
    arch = {key: value for key, value in golden.config.items() if key != "optim"}
    loaded = load_model(tmp_path / "step_3", config={"arch": arch})
    assert loaded.kind == "etrm" and loaded.config.parity and "parity" in " ".join(loaded.notes)
    assert not load_model(
        tmp_path / "step_3", config={"arch": arch}, options={"parity": False}
    ).config.parity
    own = {name.removeprefix("model."): v for name, v in golden.group("weights").items()}
    state = loaded.model.state_dict()
    assert state.keys() == own.keys() and all(torch.equal(state[n], own[n]) for n in own)


def test_old_types_are_accepted_and_cast(tmp_path: Path) -> None:
    config = small("etrm", encoder_type="hybrid_standard")
    model = published_file(tmp_path, config)
    names = [
        f"_orig_mod.model.{name}"
        for name in model.state_dict()
        if name.endswith(("_init", "query_tokens", "cls_token"))
    ]
    assert len(names) == 4
    edit(tmp_path / "step_5", lambda t: t.update({n: t[n].bfloat16() for n in names}))
    loaded = load_model(tmp_path / "step_5")
    for name, value in loaded.model.state_dict().items():
        assert value.dtype == torch.float32, name
        assert (
            torch.equal(value, model.state_dict()[name].to(value))
            or f"_orig_mod.model.{name}" in names
        )
    tokens = model.state_dict()["encoder.set_encoder.query_tokens"]
    assert torch.equal(
        loaded.model.state_dict()["encoder.set_encoder.query_tokens"], tokens.bfloat16().float()
    )
    coarse = load_model(tmp_path / "step_5", options={"forward_dtype": "bfloat16"})
    assert coarse.model.inner.H_init.dtype == torch.bfloat16


def test_a_file_with_optimizers_has_raw_and_averaged_weights(tmp_path: Path) -> None:
    config = small("trm")
    published_file(tmp_path, config, ema=None)
    tensors = torch.load(tmp_path / "step_5", weights_only=True)
    shadow = {
        n: v + 1 for n, v in tensors.items() if not n.endswith(("_init", "puzzle_emb.weights"))
    }
    torch.save(
        {"model": tensors, "ema_helper": shadow, "optimizers": [{"state": {}}], "step": 77},
        tmp_path / "step_5",
    )
    raw, ema = (load_model(tmp_path / "step_5", weights=w) for w in ("raw", "ema"))  # type: ignore[arg-type]
    assert raw.step == ema.step == 77 and load_model(tmp_path / "step_5").weights == "ema"
    difference = ema.model.inner.lm_head.weight - raw.model.inner.lm_head.weight
    torch.testing.assert_close(difference, torch.ones_like(difference))
    assert torch.equal(ema.model.inner.puzzle_emb.weights, raw.model.inner.puzzle_emb.weights)


def test_which_weights_a_file_holds(tmp_path: Path) -> None:
    for ema, label in ((True, "ema"), (False, "raw"), (None, "unknown")):
        published_file(tmp_path, small("trm"), ema=ema)
        loaded = load_model(tmp_path / "step_5")
        assert loaded.weights == label
        assert any("averaged or raw" in note for note in loaded.notes) == (ema is None)
    assert load_model(tmp_path / "step_5", weights="raw").weights == "unknown"
    published_file(tmp_path, small("trm"), ema=True)
    with pytest.raises(CheckpointError, match="holds ema weights only"):
        load_model(tmp_path / "step_5", weights="raw")


def test_ours_gives_the_weights_asked_for(tmp_path: Path) -> None:
    raw, averaged = own_file(
        tmp_path / "a.pt", small("trm"), identifiers=json.dumps(list("0abcdef"))
    )
    for weights, model in ((None, averaged), ("ema", averaged), ("raw", raw)):
        loaded = load_model(tmp_path / "a.pt", weights=weights)  # type: ignore[arg-type]
        assert loaded.weights == (weights or "ema") and loaded.kind == "etrm-tune"
        assert torch.equal(logits(loaded.model), logits(model))
    assert loaded.trial is not None and loaded.step == 12
    assert loaded.exposure == {"trained": ["aa", "bb"], "held_out": []}
    assert loaded.identifiers == list("0abcdef") and loaded.config.num_puzzle_identifiers == 7
    own_file(tmp_path / "b.pt", small("trm"), ema=None)
    assert load_model(tmp_path / "b.pt").weights == "raw"
    with pytest.raises(CheckpointError, match="holds raw weights only"):
        load_model(tmp_path / "b.pt", weights="ema")
    with pytest.raises(CheckpointError, match="carries its configuration"):
        load_model(tmp_path / "b.pt", config=small("trm"))


# --- configuration -------------------------------------------------------------------------------


def test_the_configuration_beside_or_given(tmp_path: Path) -> None:
    model = published_file(
        tmp_path, small("trm"), puzzle_emb_ndim="${.hidden_size}", made_up=3, batch_size=48
    )
    path, file = tmp_path / "step_5", tmp_path / "all_config.yaml"
    loaded = load_model(path)
    assert loaded.config.puzzle_emb_ndim == 32 and "made_up" in " ".join(loaded.notes)
    assert not any("causal" in note or "loss" in note for note in loaded.notes)
    settings = read_settings(file)
    assert settings.training["global_batch_size"] == 768 and settings.ema is True
    other = tmp_path / "other.yaml"
    file.rename(other)
    with pytest.raises(CheckpointError, match=r"put its all_config.yaml there, or pass --config"):
        load_model(path)
    for config in (other, str(other), yaml.safe_load(other.read_text()), small("trm")):
        assert torch.equal(logits(load_model(path, config=config).model), logits(model))
    alone = tmp_path / "trm.yaml"  # an architecture file: the section by itself
    alone.write_text(yaml.safe_dump(yaml.safe_load(other.read_text())["arch"]))
    assert load_model(path, config=alone).config.L_cycles == 2


def test_learned_positions_tell_the_length(tmp_path: Path) -> None:
    config = small("trm", pos_encodings="learned", seq_len=100)
    published_file(tmp_path, config, pos_encodings="learned")
    assert load_model(tmp_path / "step_5").config.seq_len == 100
    config = small("trm", pos_encodings="none", mlp_t=True, seq_len=64)
    published_file(tmp_path, config, pos_encodings="none", mlp_t=True)
    assert load_model(tmp_path / "step_5").config.seq_len == 64


def test_the_latent_size_is_read_off_the_tensors(tmp_path: Path) -> None:
    published_file(
        tmp_path, small("etrm", encoder_type="lpn_var", lpn_latent_dim=32), lpn_latent_dim=512
    )
    loaded = load_model(tmp_path / "step_5")
    assert loaded.config.lpn_latent_dim == 32
    assert any("32 in the tensors, not 512" in note for note in loaded.notes)


@pytest.mark.parametrize(
    ("arch", "text"),
    [
        ({"hidden_size": 64}, "hidden_size is 32 in the tensors and 64"),
        ({"puzzle_emb_ndim": 16}, "puzzle_emb_ndim is 32 in the tensors and 16"),
        ({"L_layers": 1}, r"has 'inner.L_level.layers.1.*besides.*give the configuration"),
        ({"L_layers": 3}, r"lacks 'inner.L_level.layers.2.*give the configuration"),
        ({"expansion": 16}, r"gate_up_proj.* is \(512, 32\).*makes it \(1024, 32\)"),
        ({"num_heads": 5}, "not divisible"),
        ({"H_cycles": "many"}, "H_cycles"),
        ({"H_cycles": [3]}, "not a plain value"),
        ({"encoder_type": "standard", "name": "recursive_reasoning.etrm@TRMWithEncoder"}, "no enc"),
    ],
)
def test_a_configuration_that_does_not_fit_is_one_line(
    tmp_path: Path, arch: dict[str, Any], text: str
) -> None:
    published_file(tmp_path, small("trm"), **arch)
    with pytest.raises(CheckpointError, match=text) as caught:
        load_model(tmp_path / "step_5")
    one_line(caught.value)


@pytest.mark.parametrize(
    "text",
    [
        "arch: !!python/object/apply:os.system ['touch TRAP']",
        "arch: !!python/name:os.system",
        "!!python/object/new:pathlib.Path [TRAP]",
        "arch: {H_cycles: !custom 3}",
        "arch: [1, 2",
        "arch: 2026-13-45",
        "[" * 5000,
        "just words",
        "arch: 3",
        "",
        "arch: {unrelated: 3}",
        "\x00\x01",
    ],
)
def test_only_plain_yaml_is_read(tmp_path: Path, text: str) -> None:
    published_file(tmp_path, small("trm"))
    trap = tmp_path / "trap"
    (tmp_path / "all_config.yaml").write_text(text.replace("TRAP", str(trap)))
    with pytest.raises(CheckpointError, match=r"all_config.yaml") as caught:
        load_model(tmp_path / "step_5")
    one_line(caught.value)
    assert not trap.exists()
    assert decoder.decoder_problem(tmp_path / "step_5", small("etrm")) is not None


def test_options_replace_the_files(tmp_path: Path) -> None:
    published_file(tmp_path, small("trm"))
    assert load_model(tmp_path / "step_5", options={"halt_max_steps": 9}).config.halt_max_steps == 9
    with pytest.raises((CheckpointError, ConfigError), match="halt_max_step"):
        load_model(tmp_path / "step_5", options={"halt_max_step": 9})


# --- files that must not be trusted, or are no checkpoints ----------------------------------------


@pytest.mark.parametrize("zipped", [True, False])
def test_pickled_code_does_not_run(tmp_path: Path, zipped: bool) -> None:
    trap = tmp_path / "trap"
    path = trapped(tmp_path / "step_1", trap, zipped=zipped)
    for read in (load_model, open_weights):
        with pytest.raises(CheckpointError, match=r"pickled code.*only files of plain tensors"):
            read(path)
    with pytest.raises(CheckpointError, match="pickled code"):
        load_model(path, config=small("trm"))
    assert not trap.exists()


def test_what_is_no_checkpoint_is_one_clear_line(tmp_path: Path) -> None:
    published_file(tmp_path, small("trm"))
    whole = (tmp_path / "step_5").read_bytes()
    path = tmp_path / "broken"
    contents: list[Any] = [whole[: len(whole) // 2], whole[50:], b"", b"words", b"\x00" * 500]
    for content in contents:
        path.write_bytes(content)
        with pytest.raises(CheckpointError, match="broken") as caught:
            load_model(path, config=small("trm"))
        one_line(caught.value)
    states: list[Any] = [
        {},
        [torch.ones(3)],
        {"a": torch.ones(3)},
        {3: torch.ones(3)},
        {"model": {"a": 1}},
        {"model.inner.H_init": torch.ones(32, dtype=torch.int32)},
        {"model.inner.H_init": torch.ones(32).to_sparse()},
        {"format": "etrm-tune"},
        {"format": "etrm-tune", "schema_version": "1"},
        {"format": "etrm-tune", "schema_version": 1, "model": {"inner.H_init": torch.ones(32)}},
        {"format": "etrm-tune", "schema_version": 1, "config": "{}", "model": {}},
        {"format": "etrm-tune", "schema_version": 99},
    ]
    for state in states:
        torch.save(state, path)
        with pytest.raises(CheckpointError) as caught:
            load_model(path, config=small("trm") if "format" not in state else None)
        one_line(caught.value)
    with pytest.raises(CheckpointError, match="is a folder: give a checkpoint file in it"):
        load_model(tmp_path)
    with pytest.raises(CheckpointError, match="check the path"):
        load_model(tmp_path / "none")


# --- identifiers ---------------------------------------------------------------------------------

NAMES = ["<blank>", "a", "a|||t1|||0132456789", "b", "<blank>", "c", "d"]


def test_a_puzzle_table_is_matched_by_name(tmp_path: Path) -> None:
    model = published_file(tmp_path, small("trm"))
    (tmp_path / "identifiers.json").write_text(json.dumps(NAMES))
    loaded = load_model(tmp_path / "step_5")
    assert loaded.identifiers == NAMES
    table = model.inner.puzzle_emb.weights
    fitted = fit_identifiers(loaded, ["<blank>", "c", "a"])
    assert torch.equal(fitted.model.inner.puzzle_emb.weights, table[[0, 5, 1]])
    assert fitted.config.num_puzzle_identifiers == 3 and fitted.identifiers == ["<blank>", "c", "a"]
    assert torch.equal(loaded.model.inner.puzzle_emb.weights, table), "the original stays"
    assert not fitted.model.training

    with pytest.raises(CheckpointError, match=r"identifier 'new' \(2 of 3 match\)") as caught:
        fit_identifiers(loaded, ["<blank>", "new", "a"])
    one_line(caught.value)
    mean = fit_identifiers(loaded, ["<blank>", "new", "a"], missing="mean")
    torch.testing.assert_close(mean.model.inner.puzzle_emb.weights[1], table.mean(0))
    assert torch.equal(mean.model.inner.puzzle_emb.weights[2], table[1])
    assert "1 of 3 identifiers have the mean row" in mean.notes[-1]


def test_identifiers_that_nobody_named(tmp_path: Path) -> None:
    model = published_file(tmp_path, small("trm"))
    loaded = load_model(tmp_path / "step_5")
    with pytest.raises(CheckpointError, match=r"identifiers\.json beside it"):
        fit_identifiers(loaded, ["<blank>", "a"])
    mean = fit_identifiers(loaded, ["<blank>", "a"], missing="mean")
    table = model.inner.puzzle_emb.weights
    torch.testing.assert_close(mean.model.inner.puzzle_emb.weights[1], table.mean(0))

    names = tmp_path / "names.json"
    names.write_text(json.dumps(NAMES[:3]))
    with pytest.raises(CheckpointError, match=r"names 3 identifiers, the puzzle table .* 7 rows"):
        load_model(tmp_path / "step_5", identifiers=names)
    names.rename(tmp_path / "identifiers.json")
    assert "was ignored" in load_model(tmp_path / "step_5").notes[-1]
    for text in ("{}", "[1]", "no", "[" * 100_000):
        names.write_text(text)
        with pytest.raises(CheckpointError, match=r"names.json"):
            load_model(tmp_path / "step_5", identifiers=names)
    published_file(tmp_path, small("etrm"))
    with pytest.raises(CheckpointError, match="no puzzle table"):
        fit_identifiers(load_model(tmp_path / "step_5"), ["a"])


# --- the published file as a decoder --------------------------------------------------------------


def test_a_file_of_the_published_form_is_a_decoder_with_all_14_tensors(tmp_path: Path) -> None:
    config = small("trm", num_puzzle_identifiers=1)
    published_file(tmp_path, config)
    path, start = tmp_path / "step_518071", "_orig_mod.model.inner."
    (tmp_path / "step_5").rename(path)

    def as_published(tensors: dict[str, torch.Tensor]) -> None:
        for name in ("H_init", "L_init"):
            tensors[start + name] = tensors[start + name].bfloat16()
        rows = torch.full((1, 32), 0.5).expand(876_406, 32)  # one row stored, 876,406 seen
        tensors[start + "puzzle_emb.weights"] = rows

    edit(path, as_published)
    assert path.stat().st_size < 1_000_000
    file = open_weights(path)
    assert file.step == 518_071 and len(file.tensors) == 15
    model = build_model(small("etrm", forward_dtype="bfloat16"), seed=0)
    encoder = {n: v.clone() for n, v in model.state_dict().items() if n.startswith("encoder.")}
    loaded = decoder.load_decoder(model, path)
    assert len(loaded.tensors) == 14
    found = decoder.decoder_metrics(model, loaded)
    assert (found["decoder/tensors_equal"], found["decoder/max_difference"]) == (14, 0.0)
    assert model.inner.H_init.dtype == torch.bfloat16
    assert all(torch.equal(model.state_dict()[n], v) for n, v in encoder.items())
    edit(path, lambda t: t.pop(start + "lm_head.weight"))
    with pytest.raises(CheckpointError, match="13 of 14 tensors match"):
        decoder.load_decoder(model, path)


def test_differences_of_decoders(tmp_path: Path) -> None:
    source = {
        "inner.a": torch.zeros(2, 3),
        "inner.b": torch.full((4,), 1.001),
        "inner.c": torch.ones(2),
    }
    mine = {
        "inner.a": torch.zeros(2, 3),
        "inner.b": source["inner.b"].bfloat16(),
        "inner.c": torch.ones(3),
    }
    mine["inner.a"][1, 1] = 6e-5
    a, b, c = decoder.compare(mine, source)
    assert not a.equal and a.largest == pytest.approx(6e-5) and a.mean == pytest.approx(1e-5)
    assert b.equal and b.largest == 0, "taken over in bfloat16"
    assert not c.equal and c.largest is None
    mine["inner.a"][:] = 9e-6
    assert decoder.compare(mine, source)[0].equal
    mine["inner.a"][0, 0] = float("nan")
    assert not decoder.compare(mine, source)[0].equal


def test_reading_ours_never_writes(tmp_path: Path) -> None:
    own_file(tmp_path / "a.pt", small("etrm"))
    before = (tmp_path / "a.pt").read_bytes()
    load_model(tmp_path / "a.pt")
    assert (tmp_path / "a.pt").read_bytes() == before
    assert [path.name for path in tmp_path.iterdir()] == ["a.pt"]
    assert checkpoint.read_own(tmp_path / "a.pt")["step"] == 12
