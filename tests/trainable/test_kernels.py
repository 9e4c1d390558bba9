"""The C kernels against plain formulas in float64, and against the PyTorch path."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from tests.trainable.small_trials import batches, puzzle_folder, tiny
from trainable import kernels
from trainable.kernels import branches, build
from trainable.losses import act_loss
from trainable.models import build_model
from trainable.models.attention import rope_table
from trainable.models.layout import TokenLayout, full_layout, ragged_layout
from trainable.random import RowGenerator
from trainable.trial import Trial

CPU = torch.device("cpu")
EPS = 1e-5
needs_kernels = pytest.mark.skipif(
    bool(kernels.why_not()), reason=f"no CPU kernels: {kernels.why_not()}"
)


ROUNDS = kernels.library().etrm_bfloat16() if kernels.library() else 0


def layout(lengths: list[int], buckets: int) -> TokenLayout:
    positions = np.concatenate([np.arange(n) for n in lengths])
    return ragged_layout(np.array(lengths), positions, width=256, device=CPU, max_buckets=buckets)


def rms(x: Tensor) -> Tensor:
    return x * (x.square().mean(-1, keepdim=True) + EPS).rsqrt()


def residual(x: Tensor, branch: Tensor, norm: str) -> Tensor:
    y = branch if norm == "alone" else x + branch
    return rms(y) if norm == "post" else y


def attention(
    x: Tensor,
    qkv: Tensor,
    out: Tensor,
    *,
    heads: int,
    layout: TokenLayout,
    rope: tuple[Tensor, Tensor] | None,
    norm: str,
) -> Tensor:
    tokens, width = x.shape
    q, k, v = ((rms(x) if norm == "pre" else x) @ qkv.T).view(tokens, 3, heads, -1).unbind(1)
    if rope is not None:
        cos, sin = (part.view(tokens, 1, -1).to(x.dtype) for part in rope)
        q, k = (
            torch.cat([a * cos - b * sin, b * cos + a * sin], -1)
            for a, b in (t.chunk(2, -1) for t in (q, k))
        )
    pieces = []
    for start, length, exist in zip(*layout.table.tolist(), strict=True):
        one = slice(start, start + exist)
        qr, kr, vr = (t[one].transpose(0, 1) for t in (q, k, v))
        share = torch.softmax(qr @ kr.transpose(1, 2) / qr.shape[-1] ** 0.5, -1)
        row = (share @ vr).transpose(0, 1).reshape(exist, width)
        pieces.append(F.pad(row, (0, 0, 0, length - exist)))
    return residual(x, torch.cat(pieces) @ out.T, norm)


def mlp(x: Tensor, gate_up: Tensor, down: Tensor, *, norm: str) -> Tensor:
    gate, up = ((rms(x) if norm == "pre" else x) @ gate_up.T).chunk(2, -1)
    return residual(x, (F.silu(gate) * up) @ down.T, norm)


RAGGED = [1, 5, 17, 48, 49, 105, 12, 200, 16, 1, 33]
SHAPES = [  # width, width of a head, lengths, buckets, threads
    (64, 32, RAGGED, 8, 1),
    (64, 32, RAGGED, 1, 2),  # padding
    (32, 16, [1], 1, 3),
    (48, 16, RAGGED, 3, 2),
    (128, 64, [7, 300], 2, 1),
    (64, 64, [31, 96, 97], 1, 1),
    (320, 64, [40, 211], 1, 1),  # products in pieces
    (256, 64, [200, 150, 90, 33], 2, 1),  # sums of many tokens at once
    (512, 64, [70, 33], 1, 2),
    (1024, 128, [9, 20], 1, 1),
]


@pytest.fixture
def precision(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Of products; "pairs" are instructions on vectors where those on tiles are quicker."""
    if request.param == "pairs" and ROUNDS < 2:
        pytest.skip("this processor has no tiles: medium is what pairs would be")
    if request.param == "pairs":
        monkeypatch.setattr(branches, "rounding", lambda: 1)
    else:
        torch.set_float32_matmul_precision(request.param)
    return str(request.param)


@needs_kernels
@pytest.mark.parametrize("precision", ["highest", "medium", "pairs"], indirect=True)
@pytest.mark.parametrize("norm", ["none", "pre", "post", "alone"])
@pytest.mark.parametrize("width, head, lengths, buckets, threads", SHAPES)
def test_branches_and_gradients(
    width: int, head: int, lengths: list[int], buckets: int, threads: int, norm: kernels.Norm,
    precision: str,
) -> None:  # fmt: skip
    torch.set_num_threads(threads)
    rounds = precision != "highest" and ROUNDS
    gen = torch.Generator().manual_seed(width + len(lengths))
    rows, heads, inner = layout(lengths, buckets), width // head, 2 * width
    cos, sin = rope_table(300, head, 1e4)
    rope = None if norm == "alone" else (cos[rows.position], sin[rows.position])
    x = torch.randn(rows.tokens, width, generator=gen)
    shapes = (3 * width, width), (width, width), (2 * inner, width), (width, inner)
    weights = [torch.randn(s, generator=gen) * s[1] ** -0.5 for s in shapes]
    exist = torch.ones(rows.tokens, 1) if rows.valid is None else rows.valid[:, None].float()
    grad = torch.randn(x.shape, generator=gen) * exist  # nothing reads padding
    results = []
    for dtype in (torch.float32, torch.float64):
        leaves = [t.to(dtype, copy=True).requires_grad_() for t in (x, *weights)]
        h, qkv, out, gate_up, down = leaves
        options = {"heads": heads, "layout": rows, "rope": rope, "norm": norm}
        if dtype == torch.float32:
            y = kernels.attention_branch(h, qkv, out, eps=EPS, **options)
            z = kernels.mlp_branch(y, gate_up, down, norm=norm, eps=EPS)
            with torch.no_grad():  # nothing kept: the same bits
                assert torch.equal(kernels.attention_branch(h, qkv, out, eps=EPS, **options), y)
                assert torch.equal(kernels.mlp_branch(y, gate_up, down, norm=norm, eps=EPS), z)
        else:
            z = mlp(attention(h, qkv, out, **options), gate_up, down, norm=norm)
        z.backward(grad.to(dtype))
        leaves[0].grad *= exist.to(dtype)
        results.append([(z * exist.to(dtype)).detach(), *(leaf.grad for leaf in leaves)])
    for name, found, expected in zip(["y", "x", *"qogd"], *results, strict=True):
        error = (found.double() - expected).norm() / expected.norm()
        assert error < (0.02 if rounds else 3e-6), (name, float(error))
        assert not rounds or error > 1e-4, "bfloat16 has 8 bits"


@needs_kernels
@pytest.mark.skipif(ROUNDS < 2, reason="this processor has no tiles")
@pytest.mark.parametrize("width, head, lengths, buckets, threads", SHAPES)
def test_tiles_sum_what_pairs_sum(
    width: int, head: int, lengths: list[int], buckets: int, threads: int,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    torch.set_num_threads(threads)
    gen = torch.Generator().manual_seed(1)
    rows = layout(lengths, buckets)
    shapes = (rows.tokens, width), (3 * width, width), (width, width), (width, 2 * width)
    leaves = [torch.randn(s, generator=gen) / s[1] ** 0.5 for s in shapes]
    exist = torch.ones(rows.tokens, 1) if rows.valid is None else rows.valid[:, None].float()
    results = []
    for how in (1, 2):
        monkeypatch.setattr(branches, "rounding", lambda how=how: how)
        x, qkv, out, down = (leaf.clone().requires_grad_() for leaf in leaves)
        y = kernels.attention_branch(
            x, qkv, out, heads=width // head, layout=rows, rope=None, norm="pre", eps=EPS
        )
        z = kernels.mlp_branch(y, torch.cat([qkv, qkv[:width]]), down, norm="pre", eps=EPS)
        (z * exist).square().sum().backward()
        results.append([z * exist, x.grad * exist, qkv.grad, out.grad, down.grad])
    for pairs, tiles in zip(*results, strict=True):  # a sum's order may turn the next rounding
        assert (tiles - pairs).norm() < 3e-3 * pairs.norm()


@needs_kernels
@pytest.mark.parametrize("norm", ["none", "pre", "post", "alone"])
@pytest.mark.parametrize("buckets, threads", [(8, 1), (1, 2)])
def test_first_tokens_alone(buckets: int, threads: int, norm: kernels.Norm) -> None:
    torch.set_num_threads(threads)
    rows, gen = layout(RAGGED, buckets), torch.Generator().manual_seed(3)
    x = torch.randn(rows.tokens, 64, generator=gen)
    weights = [torch.randn(n, 64, generator=gen) / 8 for n in (192, 64)]
    cos, sin = rope_table(300, 32, 1e4)
    grad = torch.randn(rows.rows, 64, generator=gen)
    found = []
    for first_only in (True, False):
        leaves = [t.clone().requires_grad_() for t in (x, *weights)]
        y = kernels.attention_branch(
            *leaves,
            heads=2,
            layout=rows,
            rope=(cos[rows.position], sin[rows.position]),
            norm=norm,
            eps=EPS,
            first_only=first_only,
        )
        y = y[torch.argsort(rows.order)] if first_only else y[rows.first]
        found.append((y, *torch.autograd.grad(y, leaves, grad)))
    for a, b in zip(*found, strict=True):
        assert (a - b).norm() / b.norm() < 2e-6


@needs_kernels
def test_repeats_itself_bit_for_bit_and_frozen_weights_get_no_gradient() -> None:
    torch.set_num_threads(2)
    rows = layout(RAGGED, 4)
    x = torch.randn(rows.tokens, 64, requires_grad=True)
    qkv, out = torch.randn(192, 64, requires_grad=True), torch.randn(64, 64)
    found = []
    for _ in range(3):
        y = kernels.attention_branch(x, qkv, out, heads=2, layout=rows, rope=None, norm="none")
        found.append((y.detach(), *torch.autograd.grad(y.square().sum(), (x, qkv))))
    for again in found[1:]:
        assert all(torch.equal(a, b) for a, b in zip(found[0], again, strict=True))
    assert out.grad is None and not out.requires_grad


@needs_kernels
@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_what_is_not_a_number_stays_so(bad: float) -> None:
    rows = full_layout(2, 20, CPU)
    x = torch.randn(40, 32)
    x[3, 5] = bad
    weights = torch.randn(96, 32), torch.randn(32, 32)
    y = kernels.attention_branch(x, *weights, heads=2, layout=rows, rope=None, norm="none")
    assert y[:20].isnan().all() and y[20:].isfinite().all(), "its row, no other"
    z = kernels.mlp_branch(x, torch.randn(64, 32), torch.randn(32, 32), norm="post")
    assert z[3].isnan().all() and z[:3].isfinite().all()


@needs_kernels
def test_large_scores_do_not_overflow() -> None:
    rows = full_layout(1, 30, CPU)
    x = 30 * torch.randn(30, 32, dtype=torch.float64)
    qkv, out = torch.randn(96, 32, dtype=torch.float64), torch.eye(32, dtype=torch.float64)
    options = {"heads": 1, "layout": rows, "rope": None, "norm": "alone"}
    expected = attention(x, qkv, out, **options)
    found = kernels.attention_branch(x.float(), qkv.float(), out.float(), **options)
    assert (found - expected).norm() / expected.norm() < 1e-2  # scores of thousands, in float32
    assert (
        kernels.mlp_branch(x.float(), qkv.float()[:64], out.float(), norm="none").isfinite().all()
    )


@needs_kernels
@pytest.mark.parametrize("options", [{}, {"encoder_type": "lpn_standard"}, {"canvas": "full"}])
def test_a_model_by_both_paths(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, options: dict[str, str]
) -> None:
    options = options | {"encoder_layer_scale_init": 0.5}
    config = tiny(puzzle_folder(tmp_path / "puzzles"), **options)
    (batch,) = batches(config, 1)
    model = build_model(config.model, seed=0).train()
    found = []
    for usable in (kernels.usable, lambda *_, **__: False):
        monkeypatch.setattr(kernels, "usable", usable)
        noise = RowGenerator.wrap(torch.Generator().manual_seed(0))
        carry, outputs = model(model.initial_carry(batch), batch, generator=noise)
        loss, _ = act_loss(outputs, carry.current_data["labels"], carry=carry)
        model.zero_grad()
        loss.backward()
        named = {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}
        found.append(named | {"logits": outputs["logits"].detach(), "loss": loss.detach()})
    assert found[0].keys() == found[1].keys()
    for name, expected in found[1].items():
        error = (found[0][name] - expected).norm() / expected.norm().clamp_min(1e-6)
        assert error < 2e-4, (name, float(error))


def test_a_trial_sets_the_precision_of_its_process_and_says_what_computes(tmp_path: Path) -> None:
    folder = puzzle_folder(tmp_path / "puzzles")
    Trial(tiny(folder, float32_matmul_precision="medium"), tmp_path)
    assert torch.get_float32_matmul_precision() == "medium"
    assert ("bfloat16 products" in kernels.description()) == bool(ROUNDS)
    assert ("in tiles" in kernels.description()) == (ROUNDS == 2)
    Trial(tiny(folder), tmp_path)
    assert torch.get_float32_matmul_precision() == "highest"
    assert "bfloat16" not in kernels.description()


# --- compiling -----------------------------------------------------------------------------------


def run(code: str, **environment: str) -> str:
    """What a fresh Python prints."""
    done = subprocess.run(
        [sys.executable, "-c", code],
        env=os.environ | environment,
        capture_output=True,
        text=True,
        check=True,
    )
    return done.stdout.strip()


@pytest.mark.parametrize(
    ("lanes", "how", "widest"),
    [(16, 0, 512), (8, 0, 256), (4, 0, 256), (16, 1, 1024), (16, 2, 512)],
)
def test_wide_models_are_left_to_pytorch(
    monkeypatch: pytest.MonkeyPatch, lanes: int, how: int, widest: int
) -> None:
    """Where its library is as quick: sooner with short vectors, later with bfloat16 factors."""
    found = SimpleNamespace(etrm_lanes=lambda: lanes)
    monkeypatch.setattr(branches, "library", lambda: found)
    monkeypatch.setattr(branches, "rounding", lambda: how)
    assert branches.usable(torch.zeros(2, widest))
    assert not branches.usable(torch.zeros(2, widest + 16))


SAY = "from trainable import kernels; print(kernels.description())"


def test_a_variable_turns_them_off() -> None:
    assert run(SAY, ETRM_KERNELS="0") == "PyTorch (ETRM_KERNELS=0)"


def test_without_a_compiler_pytorch_computes(tmp_path: Path) -> None:
    found = run(SAY, PATH=str(tmp_path), CC="", XDG_CACHE_HOME=str(tmp_path))
    assert found == "PyTorch (no C compiler: install gcc or clang)"


@needs_kernels
def test_compiles_once_and_leaves_nothing_else(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr(build, "FLAGS", ("-O0", *build.FLAGS[1:]))  # quick
    assert build._load().etrm_lanes() >= 4
    (made,) = (tmp_path / "etrm-tune" / "kernels").iterdir()
    changed = made.stat().st_mtime_ns
    build._load()
    assert made.stat().st_mtime_ns == changed


@needs_kernels
def test_a_source_that_does_not_compile_says_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "wrong.c").write_text("int wrong(")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(build, "SOURCES", tmp_path)
    with pytest.raises(build.NoKernels, match=r"failed: .*wrong\.c"):
        build._load()
