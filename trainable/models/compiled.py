"""`torch.compile` where shapes are stable enough to pay.

On the `full` canvas every training batch has the same shape: the decoder's whole block stack is
compiled (evaluation has batches of its own, whose number of rows becomes symbolic). On the `demos`
canvas, and in every encoder, the number of packed tokens changes from batch to batch: there the
parts of a block before and behind its attention are compiled, with a symbolic number of tokens; on
the CPU, whose attention is a function of its own, the MLPs. Parameters keep their names (defect E2:
the prefix in a public checkpoint depends on compilation).
"""

from __future__ import annotations

import shutil
import warnings
from importlib.util import find_spec

import torch

from trainable.config import ModelConfig
from trainable.models.act import RecursiveModel
from trainable.models.blocks import PostNormBlock
from trainable.models.encoders.blocks import CLSBlock, GridBlock
from trainable.models.mlp import SwiGLU


def pays(config: ModelConfig, device: torch.device) -> bool:
    """Whether compiling is on where the configuration leaves it open, and can work.

    Measured on one H200: 1.6 to 1.8 times as fast at 512 wide; slower at 256 and 64, where a step
    is bound by launches. The compiler needs Triton and a C compiler.
    """
    if device.type != "cuda" or config.canvas != "demos" or config.hidden_size < 512:
        return False
    return find_spec("triton") is not None and any(map(shutil.which, ("cc", "gcc", "clang")))


def compile_(
    model: RecursiveModel, *, backend: str = "inductor", checked: bool = False
) -> list[str]:
    """Compile parts of a model in place, lazily: the first call of each pays for it.

    With `checked` the halves of blocks are compiled at once and compared with eager code on random
    tokens, values and gradients; where they differ, or nothing can be compiled, the model stays
    eager, with a warning.

    Compiled code computes what eager code does up to rounding, and need not repeat itself bit for
    bit through a resume: which kernel serves a shape depends on the shapes seen before. It replaces
    the hand-written functions of the CPU, whose steps are already fused: it is meant for CUDA.

    Returns:
        Names of the compiled modules.
    """
    whole = model.inner.L_level if model.config.canvas == "full" else None
    inside = set(whole.modules()) if whole is not None else set()
    names = []
    if checked and (problem := _disagreement(model, backend)):
        warnings.warn(f"compiling is left out: {problem}", stacklevel=2)
        return []
    for name, module in model.named_modules():
        if whole is not None and module is whole:
            module.compile(backend=backend)
        elif isinstance(module, PostNormBlock | GridBlock | CLSBlock) and module not in inside:
            for part in ("before", "after"):
                compiled = torch.compile(getattr(module, part), backend=backend, dynamic=True)
                setattr(module, part, compiled)
            continue
        elif isinstance(module, SwiGLU) and module not in inside:
            module.compile(backend=backend, dynamic=True)
        else:
            continue
        names.append(name)
    return names


Block = PostNormBlock | GridBlock | CLSBlock
CHECKED_TOKENS = 192


def _disagreement(model: RecursiveModel, backend: str) -> str | None:
    """Why compiled halves of the model's blocks cannot be trusted, in one line, or None."""
    seen: set[object] = set()
    for name, block in model.named_modules():
        if not isinstance(block, Block):
            continue
        kind = type(block), *(tuple(p.shape) for p in block.parameters())
        if kind in seen:
            continue
        seen.add(kind)
        try:
            worst = _difference(block, model.inner.dtype, backend)
        except Exception as error:  # whatever a compiler raises
            return f"{name}: {type(error).__name__}: {str(error).splitlines()[0][:200]}"
        if not worst <= (1e-3 if model.inner.dtype == torch.float32 else 5e-2):
            return f"{name} differs from eager code by {worst:.1e}"
    return None


def _difference(block: Block, dtype: torch.dtype, backend: str) -> float:
    """Largest ‖compiled − eager‖ / ‖eager‖ over outputs and gradients of a block's two halves."""
    parameters = [p for p in block.parameters() if p.requires_grad]
    device, width = next(block.parameters()).device, _width(block)
    draw = torch.Generator().manual_seed(0)
    heads = block.heads if not isinstance(block, PostNormBlock) else block.self_attn.heads
    turn = torch.randn(CHECKED_TOKENS, 1, 1, width // heads // 2, generator=draw).to(device)
    rope = turn.cos(), turn.sin()
    tokens = [torch.randn(CHECKED_TOKENS, width, generator=draw) for _ in range(2)]
    worst = 0.0
    for half, given in (("before", 1), ("after", 2)):
        eager = getattr(block, half)
        results = []
        for function in (eager, torch.compile(eager, backend=backend, dynamic=True)):
            inputs = [x.to(device, dtype).requires_grad_() for x in tokens[:given]]
            arguments = (*inputs, rope) if half == "before" else tuple(inputs)
            out = function(*arguments)
            wanted = [*inputs, *parameters]
            slope = torch.randn(out.shape, generator=torch.Generator().manual_seed(1))
            grads = torch.autograd.grad(out, wanted, slope.to(out), allow_unused=True)
            with torch.no_grad():
                again = function(*arguments)
            results.append([out.detach(), again, *(g for g in grads if g is not None)])
        for theirs, ours in zip(*results, strict=True):
            scale = theirs.float().norm().clamp_min(1e-12)
            worst = max(worst, float((ours.float() - theirs.float()).norm() / scale))
    return worst


def _width(block: Block) -> int:
    """Width of a block's tokens."""
    own = block.self_attn.o_proj if isinstance(block, PostNormBlock) else block.projections()[1]
    return int(own.weight.shape[0])
