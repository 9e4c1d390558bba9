"""CPU seconds per training step without the C kernels, with them, and with products of bfloat16
factors in them (`float32_matmul_precision="medium"`): a trial each, of one seed, so that all train
on the same rows; they step in turn, so that a noisy machine slows all.

    OMP_NUM_THREADS=1 python -m benchmarks.kernels [overfit/E1a ...] [--hidden 512] [--repeats 4]
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any
from unittest import mock

import torch

import search_spaces
from trainable import kernels
from trainable.trial import Trial

DEFAULT = ("overfit/E1a", "overfit/E2a", "overfit/E2b", "decoder/trm")


def trial(name: str, folder: Path, hidden: int | None) -> Trial:
    """A trial of the laptop profile, from scratch, ready to step; `hidden` wide, if given."""
    options: dict[str, Any] = {}
    if not name.startswith("decoder/"):
        options["pretrained_decoder"] = False
    if hidden is not None:
        options |= {"hidden_size": hidden, "puzzle_emb_ndim": hidden}
    return Trial(search_spaces.resolve(name, profile="laptop", overrides=options).config, folder)


HOW = {"PyTorch": "highest", "kernels": "highest", "bfloat16": "medium"}


def step_s(one: Trial, how: str) -> float:
    """CPU seconds of one step of this thread."""
    torch.set_float32_matmul_precision(HOW[how])
    usable = kernels.usable if how != "PyTorch" else lambda *_, **__: False
    with mock.patch.object(kernels, "usable", usable):
        began = time.thread_time()
        one.train_step()
        return time.thread_time() - began


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("experiments", nargs="*", default=DEFAULT)
    parser.add_argument("--hidden", type=int, help="width (default: the profile's)")
    parser.add_argument("--repeats", type=int, default=4)
    args = parser.parse_args()
    torch.set_float32_matmul_precision("medium")
    print(kernels.description())
    print(f"{'':16}" + "".join(f"{f'{how} s':>12}" for how in HOW) + "   ratios")
    for name in args.experiments:
        with tempfile.TemporaryDirectory() as folder:
            trials = {how: trial(name, Path(folder, how), args.hidden) for how in HOW}
            torch.set_num_threads(1)
            steps = []
            for repeat in range(args.repeats + 1):
                step = [step_s(trials[how], how) for how in HOW]
                if repeat:  # the first step allocates
                    steps.append(step)
        medians = [statistics.median(column) for column in zip(*steps, strict=True)]
        ratios = [statistics.median(step[0] / step[i] for step in steps) for i in (1, 2)]
        shown = "".join(f"{seconds:12.3f}" for seconds in medians)
        print(f"{name:16}{shown}" + "".join(f"{ratio:8.2f}" for ratio in ratios), flush=True)


if __name__ == "__main__":
    main()
