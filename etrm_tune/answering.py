"""What ``evaluate`` and ``predict`` share: a checkpoint as a model on the machine's device."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from trainable.errors import CheckpointError, ConfigError

if TYPE_CHECKING:
    import torch

    from trainable.data.held_out import HeldOutData
    from trainable.data.sources import Puzzle
    from trainable.foreign import LoadedModel

NUM_AUG = 8
"""Augmentations voted over where neither the command nor the checkpoint says."""
BATCH = 64


def add_model_options(parser: argparse.ArgumentParser, *, weights: Sequence[str]) -> None:
    """Options of every command that lets a checkpoint answer."""
    parser.add_argument("checkpoint", help="a checkpoint of ours, of official TRM or of ETRM")
    parser.add_argument(
        "--weights", choices=weights, help="default: averaged where the file has them"
    )
    parser.add_argument("--config", metavar="FILE", help="a foreign file's all_config.yaml")
    parser.add_argument("--identifiers", metavar="FILE", help="a foreign TRM's identifiers.json")
    parser.add_argument(
        "--num-aug",
        type=int,
        metavar="N",
        help=f"augmentations voted over (default: as trained for, else {NUM_AUG})",
    )
    parser.add_argument("--json", action="store_true", help="print JSON")


def load(args: argparse.Namespace, weights: str | None) -> tuple[LoadedModel, torch.device]:
    """The checkpoint's model on the GPU if there is one.

    On a CPU bfloat16 weights compute in float32, which is faster there and at least as exact.
    """
    import torch

    from trainable.foreign import load_model

    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    options: dict[str, Any] = {} if device.type == "cuda" else {"forward_dtype": "float32"}
    loaded = load_model(
        args.checkpoint,
        config=args.config,
        weights=None if weights is None else weights,  # type: ignore[arg-type]
        options=options,
        identifiers=args.identifiers,
    )
    if loaded.config.seq_len != 900:
        raise CheckpointError(
            f"{args.checkpoint} reads grids of {loaded.config.seq_len} cells: only models of "
            f"30 x 30 cells can answer ARC puzzles"
        )
    loaded.model.to(device)
    return loaded, device


def ask(args: argparse.Namespace, loaded: LoadedModel, puzzles: Sequence[Puzzle]) -> HeldOutData:
    """The puzzles as data for the model, with the augmentations asked for."""
    from trainable.data.held_out import HeldOutData

    trial = loaded.trial
    num_aug = args.num_aug
    if num_aug is None:
        num_aug = NUM_AUG if trial is None else trial.data.eval_num_aug
    if num_aug < 0:
        raise ConfigError(f"--num-aug {num_aug}: give 0 or more")
    more: dict[str, Any] = {}
    if trial is not None:
        more = {"max_demos": trial.data.max_demos, "seed": trial.seed}
    return HeldOutData(
        puzzles,
        kind=loaded.config.kind,
        canvas=loaded.config.canvas,
        num_aug=num_aug,
        identifiers=loaded.identifiers,
        **more,
    )


def describe(loaded: LoadedModel) -> str:
    """``runs/…/step-400.pt: etrm, standard encoder, ema weights, step 400``."""
    config = loaded.config
    parts: list[str] = [config.kind]
    if config.kind == "etrm":
        parts.append(f"{config.encoder_type} encoder")
    elif config.kind == "etrmtrm":
        parts.append(f"{config.recurrent_encoder_type} encoder")
    parts.append(f"{loaded.weights} weights")
    if loaded.step is not None:
        parts.append(f"step {loaded.step}")
    return f"{loaded.path}: {', '.join(parts)}"
