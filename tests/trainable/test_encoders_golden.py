"""Every encoder against the golden vectors of the references, in `parity`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from tests.conftest import GOLDEN, WHOLE, Golden, load_golden
from trainable.config import ModelConfig
from trainable.models import ENCODERS, build_model
from trainable.models.encoders import DemonstrationEncoder

SINGLE_STEP = 1e-5

COPIED = (
    "d_standard_mean_pre_layerscale",
    "d_standard_attention_post",
    "d_hybrid_variational",
    "d_lpn_variational",
    "d_lpn_var",
)
ELSEWHERE = (
    "d_standard_mean_post",
    "d_standard_mean_pre",
    "d_standard_mean_post_layerscale",
    "d_standard_mean_post_qknorm",
    "d_standard_attention_pre",
    "d_hybrid_standard",
    "d_hybrid_standard_post",
    "d_lpn_standard",
    "d_lpn_standard_layerscale",
    "d_lpn",
)
WEIGHTED = {"d_standard_weighted_post": GOLDEN, "d_standard_weighted_pre": WHOLE}
RECURRENT = ("d_etrmtrm_recurrent_standard", "d_etrmtrm_trm_style")
STATIC = [*((name, GOLDEN) for name in COPIED), *((name, WHOLE) for name in ELSEWHERE)]

static = pytest.mark.parametrize(("name", "folder"), STATIC, ids=[name for name, _ in STATIC])


def encoder_of(golden: Golden, **options: Any) -> DemonstrationEncoder:
    config = {"kind": "etrm", "parity": True} | golden.config | options
    encoder = build_model(ModelConfig(**config)).encoder
    assert encoder is not None
    encoder.load_state_dict(golden.group("weights"))
    return encoder.eval()


def close(actual: Tensor, expected: Tensor, tolerance: float, what: str) -> None:
    difference = float((actual.detach().double() - expected.double()).abs().max())
    assert difference <= tolerance, f"{what}: {difference:.2e} > {tolerance:.2e}"


def bound(golden: Golden, name: str) -> float:
    """Ten times the reference's own noise, never below the bound of a single step or 1e-6 of the
    value (a KL of 58 has a rounding step of 4e-6).
    """
    size = float(golden.tensors[name].abs().max())
    return max(SINGLE_STEP, 10 * golden.scalars["noise_floor"].get(name, 0.0), 1e-6 * size)


@static
@torch.no_grad()
def test_outputs(name: str, folder: Path) -> None:
    golden = load_golden(name, folder)
    encoder, t = encoder_of(golden), golden.tensors
    mask = t["demo_mask"].bool()
    output = encoder(t["demo_inputs"], t["demo_labels"], mask)
    fields = [f for f in ("context", "z_pooled", "kl_loss", "mu", "logvar") if f in t]
    for field in fields:
        close(getattr(output, field), t[field], bound(golden, field), field)
    few = int(mask.sum(1).min())
    part = t["demo_inputs"][:, :few], t["demo_labels"][:, :few], torch.ones(len(mask), few)
    output = encoder(*part)
    for field in fields:
        expected = t[f"nodpad/{field}"]
        close(getattr(output, field), expected, bound(golden, field), f"without padding: {field}")


@static
@torch.no_grad()
def test_samples(name: str, folder: Path) -> None:
    golden = load_golden(name, folder)
    encoder, t = encoder_of(golden), golden.tensors
    assert ("train/eps" in t) == encoder.variational
    if not encoder.variational:
        return
    (seed,) = (n.removeprefix("train_seed=") for n in golden.notes if n.startswith("train_seed="))
    torch.manual_seed(int(seed))
    output = encoder.train()(t["demo_inputs"], t["demo_labels"], t["demo_mask"].bool())
    close(output.context, t["train/context"], SINGLE_STEP, "sampled context")
    close(output.kl_loss, t["train/kl_loss"], bound(golden, "kl_loss"), "sampled KL")


@static
@torch.no_grad()
def test_parity_ignores_qk_norm_and_the_default_does_not(name: str, folder: Path) -> None:
    golden = load_golden(name, folder)
    t = golden.tensors
    demos = t["demo_inputs"][:1, :2], t["demo_labels"][:1, :2], t["demo_mask"][:1, :2].bool()
    contexts = {
        (parity, norm): encoder_of(golden, parity=parity, encoder_qk_norm=norm)(*demos).context
        for parity in (True, False)
        for norm in (True, False)
    }
    assert torch.equal(contexts[True, True], contexts[True, False])
    moved = float((contexts[False, True] - contexts[False, False]).abs().max())
    reads = "encoder_qk_norm" in ENCODERS[golden.config["encoder_type"]].effective
    assert (moved > 1e-3) == reads and (moved == 0.0) != reads


@pytest.mark.parametrize("name", WEIGHTED)
def test_weighted_pooling_is_nan_in_the_reference_only(name: str) -> None:
    golden = load_golden(name, WEIGHTED[name])
    encoder, t = encoder_of(golden), golden.tensors
    output = encoder.train()(t["demo_inputs"], t["demo_labels"], t["demo_mask"].bool())
    expected = t["context"]
    assert bool(expected.isnan().any()) and bool(output.context.isfinite().all())
    clean = ~expected.isnan().flatten(1).any(1)
    close(output.context[clean], expected[clean], SINGLE_STEP, "rows without padded slots")
    output.context.square().sum().backward()
    for parameter_name, parameter in encoder.named_parameters():
        assert parameter.grad is not None and bool(parameter.grad.isfinite().all()), parameter_name


@pytest.mark.parametrize("folder", [GOLDEN, WHOLE], ids=["copied", "whole"])
@pytest.mark.parametrize("name", RECURRENT)
@torch.no_grad()
def test_recurrent_encoders_over_steps(name: str, folder: Path) -> None:
    """Four steps, the last after a reset. The copied files have no decoder and no logits."""
    golden = load_golden(name, folder)
    t, noise = golden.tensors, golden.scalars["noise_floor"]
    model = build_model(ModelConfig(kind="etrmtrm", parity=True, **golden.config)).eval()
    weights = golden.group("weights")
    missing, unexpected = model.load_state_dict(weights, strict="step1/logits" in t)
    assert not unexpected and all(key.startswith("inner.") for key in missing)
    batch = golden.group("batch")
    carry = model.initial_carry(batch)
    for step in (1, 2, 3, 4):
        carry, outputs = model(carry, batch)
        assert carry.encoder_state is not None
        states = [k for k in ("z_e", "z_e_H", "z_e_L") if f"step{step}/{k}" in t]
        for key, state in zip(states, carry.encoder_state, strict=True):
            at = f"step{step}/{key}"
            close(state, t[at], 10 * noise[at], at)
        close(outputs["context"], t[f"step{step}/{states[0]}"], 10 * noise[at], "context")
        for key in ("logits", "q_halt_logits"):
            at = f"step{step}/{key}"
            if at in t:
                close(outputs[key], t[at], bound(golden, at), at)
        assert torch.equal(carry.halted, t[f"step{step}/halted"].bool())
        assert torch.equal(carry.steps, t[f"step{step}/steps"])


def test_every_encoder_file_is_tested() -> None:
    known = {*COPIED, *ELSEWHERE, *WEIGHTED, *RECURRENT}
    for folder in (GOLDEN, WHOLE):
        assert {path.stem for path in folder.glob("d_*.json")} <= known
    copied = {path.stem for path in GOLDEN.glob("d_*.json")}
    assert copied == {*COPIED, *RECURRENT, "d_standard_weighted_post"}
    assert sum(path.stat().st_size for path in GOLDEN.iterdir()) < 20_000_000
