"""Rate of the C kernels' residual branches, forward and backward, as a part of the rate at which
PyTorch does the same matrix products alone; in turn, in one thread.

    OMP_NUM_THREADS=1 python -m benchmarks.branches [64 128 256 512] [--repeats 25] [--medium]
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor

from trainable import kernels
from trainable.models.mlp import swiglu_inner

EPS = 1e-5
EXPANSION = 4.0
ROW = 100
"""Tokens of a row."""


def cpu_s(work: Callable[[], Any]) -> float:
    """CPU seconds of this thread."""
    began = time.thread_time()
    work()
    return time.thread_time() - began


def rates(width: int, tokens: int, repeats: int) -> tuple[float, list[float]]:
    """GFLOP/s of the products alone; parts of it of the MLP's two passes and attention's two."""

    def draw(*shape: int) -> Tensor:
        drawn: Tensor = torch.randn(*shape) * shape[-1] ** -0.5
        return drawn.requires_grad_()

    rows, inner, heads = tokens // ROW, swiglu_inner(width, EXPANSION), max(1, width // 64)
    tokens = rows * ROW
    starts, length = torch.arange(rows) * ROW, torch.full((rows,), ROW)
    layout: Any = SimpleNamespace(table=torch.stack([starts, length, length]))
    x, grad = draw(tokens, width), torch.randn(tokens, width)
    gate_up, down, qkv, out = (
        draw(*s) for s in ((2 * inner, width), (width, inner), (3 * width, width), (width, width))
    )
    joint, act = torch.randn(tokens, 2 * inner), torch.randn(tokens, inner)

    def products() -> None:
        with torch.no_grad():
            _ = x @ gate_up.T, act @ down.T
            _ = grad @ down, joint @ gate_up, grad.T @ act, joint.T @ x

    branch: dict[int, Callable[[], Tensor]] = {
        0: lambda: kernels.mlp_branch(x, gate_up, down, norm="post", eps=EPS),
        1: lambda: kernels.attention_branch(
            x, qkv, out, heads=heads, layout=layout, rope=None, norm="post", eps=EPS
        ),
    }
    of_mlp = 6 * tokens * width * inner
    work = of_mlp, 8 * tokens * width**2 + 4 * tokens * ROW * width
    ceilings: list[float] = []
    parts: list[list[float]] = [[] for _ in range(4)]
    for repeat in range(repeats + 1):
        ceiling = 3 * of_mlp / cpu_s(products)
        measured = []
        for which, operations in enumerate(work):
            made: list[Tensor] = []
            forward = cpu_s(lambda which=which, made=made: made.append(branch[which]()))  # type: ignore[misc]
            backward = cpu_s(lambda made=made: made[0].backward(grad))  # type: ignore[misc]
            measured += [operations / forward / ceiling, 2 * operations / backward / ceiling]
        if repeat:  # the first one allocates
            ceilings.append(ceiling / 1e9)
            for column, value in zip(parts, measured, strict=True):
                column.append(value)
    return statistics.median(ceilings), [statistics.median(column) for column in parts]


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("widths", nargs="*", type=int, default=[64, 128, 256, 512])
    parser.add_argument("--tokens", type=int, default=2048)
    parser.add_argument("--repeats", type=int, default=25)
    parser.add_argument("--medium", action="store_true", help="products of bfloat16 factors")
    args = parser.parse_args()
    torch.set_num_threads(1)
    torch.set_float32_matmul_precision("medium" if args.medium else "highest")
    if kernels.library() is None:
        parser.error(f"no kernels: {kernels.why_not()}")
    print(kernels.description())
    columns = ("MLP", "backward", "attention", "backward")
    print(f"{'width':>5}{'products GFLOP/s':>18}" + "".join(f"{name:>11}" for name in columns))
    for width in args.widths:
        ceiling, parts = rates(width, args.tokens, args.repeats)
        print(f"{width:5}{ceiling:18.0f}" + "".join(f"{part:11.2f}" for part in parts), flush=True)


if __name__ == "__main__":
    main()
