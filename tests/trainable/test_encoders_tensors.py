"""Names, shapes and sizes of every encoder of the ETRM repository at the default width.

D 512, T 16 context tokens, INNER 1536, the inner width of an MLP, V 12.
"""

from __future__ import annotations

import pytest
import torch

from trainable.config import ModelConfig
from trainable.encoder_options import ENCODER_FACTS
from trainable.models import build_model
from trainable.models.encoders import DemonstrationEncoder, build_encoder

Shapes = dict[str, tuple[int, ...]]
D, T, INNER, V = 512, 16, 1536, 12

PARAMETERS = {
    "standard": 10_506_240,
    "hybrid_standard": 10_244_608,
    "lpn_standard": 11_022_848,
    "lpn_variational": 11_548_160,
    "lpn_variational_v2": 11_548_160,
    "hybrid_variational": 14_964_224,
    "variational": 15_234_048,
    "lpn": 1_451_392,
    "lpn_var": 673_152,
    "recurrent_standard": 10_498_048,
    "trm_style": 13_905_920,
}


def under(prefix: str, shapes: Shapes) -> Shapes:
    return {f"{prefix}.{name}": shape for name, shape in shapes.items()}


def repeated(count: int, shapes: Shapes) -> Shapes:
    return {k: v for i in range(count) for k, v in under(f"layers.{i}", shapes).items()}


def linear(name: str, rows: int, columns: int, *, bias: bool = False) -> Shapes:
    return {f"{name}.weight": (rows, columns)} | ({f"{name}.bias": (rows,)} if bias else {})


MLP = {"mlp.gate_up_proj.weight": (2 * INNER, D), "mlp.down_proj.weight": (D, INNER)}
EMBED = {f"{side}_embed.embedding_weight": (V, D) for side in ("input", "output")}
SELF = {"qkv_proj.weight": (3 * D, D), "o_proj.weight": (D, D)}
CROSS = {f"{x}_proj.weight": (D, D) for x in "qkvo"}
BLOCKS = repeated(2, under("self_attn", SELF) | MLP)

POOLED = under("grid_encoder", EMBED | BLOCKS | linear("pool_proj", D, D))
CLS = under("grid_encoder", EMBED | {"cls_token": (1, 1, D)} | repeated(2, SELF | MLP))
SETS = under("set_encoder", {"query_tokens": (T, D)} | repeated(1, CROSS | MLP))
GAUSS = linear("mu_proj", D, D, bias=True) | linear("logvar_proj", D, D, bias=True)
PAPER_BLOCK = {
    "qkv_proj.weight": (384, 128),
    "o_proj.weight": (128, 128),
    "mlp.fc1.weight": (512, 128),
    "mlp.fc2.weight": (128, 512),
}
PAPER = under(
    "grid_encoder",
    {
        "color_embed.weight": (12, 128),
        "pos_row_embed.weight": (30, 128),
        "pos_col_embed.weight": (30, 128),
        "channel_embed.weight": (2, 128),
        "cls_token": (1, 1, 128),
    }
    | repeated(2, PAPER_BLOCK),
)

TENSORS: dict[str, Shapes] = {
    "standard": POOLED | SETS,
    "variational": POOLED | SETS | GAUSS | linear("decode_proj", T * D, D, bias=True),
    "hybrid_standard": CLS | SETS,
    "hybrid_variational": CLS | SETS | GAUSS | linear("decode_proj", T * D, D),
    "lpn_standard": CLS | linear("output_proj", T * D, D),
    "lpn_variational": CLS | GAUSS | linear("output_proj", T * D, D),
    "lpn_variational_v2": CLS | GAUSS | linear("output_proj", T * D, D),
    "lpn": PAPER | linear("output_proj", T * D, 128),
    "lpn_var": PAPER
    | linear("mu_proj", 32, 128)
    | linear("logvar_proj", 32, 128)
    | linear("output_proj", T * D, 32),
    "recurrent_standard": POOLED | {"z_e_init": (T, D)} | under("cross_attn", CROSS) | MLP,
    "trm_style": POOLED | {"z_e_H_init": (T, D), "z_e_L_init": (T, D)} | under("L_level", BLOCKS),
}

ATTENTION_POOL = {"pool_query": (1, D)} | {f"pool_{x}_proj.weight": (D, D) for x in "qkvo"}


def at_default_width(name: str, **options: object) -> DemonstrationEncoder:
    kind = "etrmtrm" if ENCODER_FACTS[name].recurrent else "etrm"
    with torch.device("meta"):
        return build_encoder(ModelConfig(kind=kind, encoder_type=name, **options))  # type: ignore[arg-type]


def shapes_of(encoder: DemonstrationEncoder) -> Shapes:
    return {name: tuple(tensor.shape) for name, tensor in encoder.state_dict().items()}


@pytest.mark.parametrize("name", TENSORS)
def test_names_shapes_and_sizes(name: str) -> None:
    encoder = at_default_width(name)
    assert shapes_of(encoder) == TENSORS[name]
    assert sum(p.numel() for p in encoder.parameters()) == PARAMETERS[name]
    assert {p.dtype for p in encoder.parameters()} == {torch.float32}  # queries and tokens too: B4


@pytest.mark.parametrize(
    ("pooling", "more"),
    [
        ("attention", ATTENTION_POOL),
        ("weighted", {"pool_weight_proj.weight": (1, D)}),
        ("cls", {"cls_token": (1, 1, D)}),
    ],
)
def test_tensors_of_pooling_methods(pooling: str, more: Shapes) -> None:
    encoder = at_default_width("standard", encoder_pooling_method=pooling)
    assert shapes_of(encoder) == TENSORS["standard"] | under("grid_encoder", more)


@pytest.mark.parametrize(
    "name", [n for n, f in ENCODER_FACTS.items() if f.effective > {"encoder_layer_scale_init"}]
)
def test_layer_scale_adds_gammas_to_every_block(name: str) -> None:
    encoder = at_default_width(name, encoder_layer_scale_init=0.1)
    extra = shapes_of(encoder).items() - TENSORS[name].items()
    blocks = ["grid_encoder.layers.0", "grid_encoder.layers.1"]
    if "encoder_set_layers" in ENCODER_FACTS[name].effective:
        blocks.append("set_encoder.layers.0")
    assert dict(extra) == {f"{block}.gamma_{i}": (D,) for block in blocks for i in (1, 2)}


def test_the_latent_size_reaches_the_encoder() -> None:
    for size in (32, 512):  # A8: the references always have 32
        shapes = shapes_of(at_default_width("lpn_var", lpn_latent_dim=size))
        assert shapes["mu_proj.weight"] == (size, 128) and shapes["output_proj.weight"][1] == size


@pytest.mark.parametrize("name", TENSORS)
def test_old_files_in_bfloat16_are_read(name: str) -> None:
    kind = "etrmtrm" if ENCODER_FACTS[name].recurrent else "etrm"
    config = ModelConfig(
        kind=kind,  # type: ignore[arg-type]
        encoder_type=name,
        hidden_size=32,
        num_heads=2,
        puzzle_emb_len=4,
        seq_len=36,
        encoder_pooling_method="attention",
    )
    encoder = build_model(config, seed=0).encoder
    assert encoder is not None
    stored = ("query_tokens", "cls_token", "pool_query")
    state = {k: v.bfloat16() if k.endswith(stored) else v for k, v in encoder.state_dict().items()}
    encoder.load_state_dict(state)
    for key, value in encoder.state_dict().items():
        if key.endswith(stored):
            assert value.dtype == torch.float32 and torch.equal(value, state[key].float()), key


def test_starts() -> None:
    """Initial values other than the truncated normal with a standard deviation of 1/√in."""
    options = {
        "hidden_size": 64,
        "num_heads": 4,
        "seq_len": 36,
        "encoder_pooling_method": "attention",
    }

    def state(name: str) -> dict[str, torch.Tensor]:
        kind = "etrmtrm" if ENCODER_FACTS[name].recurrent else "etrm"
        config = ModelConfig(kind=kind, encoder_type=name, **options)  # type: ignore[arg-type]
        encoder = build_model(config, seed=3).encoder
        assert encoder is not None
        return encoder.state_dict()

    def std(value: torch.Tensor) -> float:
        return float(value.float().std())

    assert not state("hybrid_variational")["logvar_proj.weight"].any()
    assert not state("lpn_var")["logvar_proj.weight"].any()
    for name in ("variational", "lpn_variational", "lpn_variational_v2"):
        assert std(state(name)["logvar_proj.weight"]) == pytest.approx(1 / 8, rel=0.05)
    small = (
        state("standard")["set_encoder.query_tokens"],
        state("lpn_standard")["grid_encoder.cls_token"],
    )
    assert std(small[0]) == pytest.approx(0.02, rel=0.1) and std(small[1]) == pytest.approx(
        0.02, rel=0.3
    )
    assert std(state("standard")["grid_encoder.pool_query"]) == pytest.approx(0.02, rel=0.3)
    paper = state("lpn")
    assert std(paper["grid_encoder.color_embed.weight"]) == pytest.approx(0.02, rel=0.1)
    qkv = paper["grid_encoder.layers.0.qkv_proj.weight"]
    assert float(qkv.abs().max()) <= 128**-0.5 and std(qkv) == pytest.approx(
        (3 * 128) ** -0.5, rel=0.05
    )
    for name, key in (
        ("recurrent_standard", "z_e_init"),
        ("trm_style", "z_e_H_init"),
        ("trm_style", "z_e_L_init"),
    ):
        start = state(name)[key]
        assert start.dtype == torch.bfloat16 and std(start) == pytest.approx(1.0, rel=0.1)
        assert float(start.abs().max()) < 2.3
    both = state("trm_style")
    assert not torch.equal(both["z_e_H_init"], both["z_e_L_init"])
