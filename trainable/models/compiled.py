"""`torch.compile` where shapes are stable enough to pay.

On the `full` canvas every training batch has the same shape: the decoder's whole block stack is
compiled (evaluation has batches of its own, whose number of rows becomes symbolic). On the `demos`
canvas, and in every encoder, the number of packed tokens changes from batch to batch: there the
MLPs are compiled, with a symbolic number of tokens. Parameters keep their names (defect E2: the
prefix in a public checkpoint depends on compilation).
"""

from __future__ import annotations

from trainable.models.act import RecursiveModel
from trainable.models.layers import SwiGLU


def compile_(model: RecursiveModel, *, backend: str = "inductor") -> list[str]:
    """Compile parts of a model in place, lazily: the first call of each pays for it.

    Compiled code computes what eager code does up to rounding, and need not repeat itself bit for
    bit through a resume: which kernel serves a shape depends on the shapes seen before. It replaces
    the hand-written functions of the CPU, whose steps are already fused: it is meant for CUDA.

    Returns:
        Names of the compiled modules.
    """
    whole = model.inner.L_level if model.config.canvas == "full" else None
    inside = set(whole.modules()) if whole is not None else set()
    names = []
    for name, module in model.named_modules():
        if whole is not None and module is whole:
            module.compile(backend=backend)
        elif isinstance(module, SwiGLU) and module not in inside:
            module.compile(backend=backend, dynamic=True)
        else:
            continue
        names.append(name)
    return names
