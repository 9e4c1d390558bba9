"""Checkpoint files made by hand: ours without a training run, and in the public format."""

from __future__ import annotations

import pickle
from pathlib import Path
from typing import Any

import torch
import yaml
from torch import Tensor

from trainable import checkpoint
from trainable.config import ModelConfig, TrialConfig
from trainable.models import RecursiveModel, build_model

SMALL: dict[str, Any] = {
    "hidden_size": 32,
    "num_heads": 2,
    "H_cycles": 1,
    "L_cycles": 2,
    "puzzle_emb_ndim": 32,
    "puzzle_emb_len": 4,
    "halt_max_steps": 2,
    "encoder_num_layers": 1,
    "forward_dtype": "float32",
}
ARCH = {key: value for key, value in SMALL.items() if not key.startswith("encoder")}


def small(kind: str, **options: Any) -> ModelConfig:
    """A small model; a TRM has seven identifiers."""
    return ModelConfig(**({"kind": kind, "num_puzzle_identifiers": 7} | SMALL | options))


def random_model(config: ModelConfig, seed: int) -> RecursiveModel:
    """No tensor constant: heads, biases, layer scales and the puzzle table are random too."""
    model = build_model(config, seed=seed)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for value in model.state_dict().values():
            if value.float().std() == 0 or value.numel() == 1:
                value.copy_(0.3 * torch.randn(value.shape, generator=generator))
    return model.eval()


def own_file(
    path: Path, config: ModelConfig, *, seed: int = 1, **extra: Any
) -> tuple[RecursiveModel, RecursiveModel]:
    """A training checkpoint of ours; returns its raw and its averaged model."""
    raw, averaged = random_model(config, seed), random_model(config, seed + 1)
    for name, value in averaged.named_buffers():  # buffers are not averaged
        value.copy_(dict(raw.named_buffers())[name])
    plain = config.model_copy(update={"num_puzzle_identifiers": 1})
    trial = TrialConfig(model=plain, kl_weight=1e-4)
    state = {
        "config": trial.model_dump_json(),
        "step": 12,
        "model": raw.state_dict(),
        "ema": {name: p.detach() for name, p in averaged.named_parameters()},
        "optimizer": {},
        "exposure": {"trained": ["aa", "bb"], "held_out": []},
    }
    checkpoint.write_atomically(
        path, {"format": "etrm-tune", "schema_version": 1, **state, **extra}
    )
    return raw, averaged


def published_file(
    folder: Path,
    config: ModelConfig,
    *,
    prefix: str = "_orig_mod.model.",
    ema: bool | None = True,
    **arch: Any,
) -> RecursiveModel:
    """``step_5`` and ``all_config.yaml`` as the public code writes them; returns the model."""
    model = random_model(config, 9)
    tensors = {prefix + name: value.clone() for name, value in model.state_dict().items()}
    torch.save(tensors, folder / "step_5")
    keys = set(ARCH) | ({"encoder_type", "encoder_num_layers"} if config.kind != "trm" else set())
    values = {key: getattr(config, key) for key in sorted(keys)}
    values |= {"name": "a.b@C", "loss": {"name": "x"}, "causal": False}
    training: dict[str, Any] = {"lr": 1e-4, "global_batch_size": 768, "data_paths": ["data/arc"]}
    if ema is not None:
        training["ema"] = ema
    (folder / "all_config.yaml").write_text(yaml.safe_dump({"arch": values | arch, **training}))
    return model


def edit(path: Path, change: Any) -> None:
    """Load the tensors of a file, change them in place, write them back."""
    tensors = torch.load(path, weights_only=True)
    change(tensors)
    torch.save(tensors, path)


def batch(config: ModelConfig, rows: int = 2) -> dict[str, Tensor]:
    """Random tokens: 12 x 12 cells in the corner, two demonstrations, one of them empty."""
    generator = torch.Generator().manual_seed(4)
    side = config.grid_side

    def grids(*shape: int) -> Tensor:
        tokens = torch.zeros(*shape, side, side, dtype=torch.int64)
        drawn = torch.randint(2, 12, (*shape, 12, 12), generator=generator)
        tokens[..., : min(12, side), : min(12, side)] = drawn[..., :side, :side]
        return tokens.flatten(-2)

    mask = torch.ones(rows, 2, dtype=torch.bool)
    mask[-1, -1] = False
    return {
        "inputs": grids(rows),
        "labels": grids(rows),
        "puzzle_identifiers": torch.arange(1, rows + 1),
        "demo_inputs": grids(rows, 2),
        "demo_labels": grids(rows, 2),
        "demo_mask": mask,
    }


@torch.no_grad()
def logits(model: RecursiveModel) -> Tensor:
    """Logits (2, S, V) after two ACT steps."""
    rows = batch(model.config)
    carry = model.initial_carry(rows)
    for _ in range(2):
        carry, outputs = model(carry, rows)
    result: Tensor = outputs["logits"]
    return result


class Malicious:
    """Touches a file when unpickled by a trusting reader."""

    def __init__(self, target: Path) -> None:
        self.target = target

    def __reduce__(self) -> Any:
        return Path.touch, (self.target,)


def trapped(path: Path, trap: Path, *, zipped: bool = True) -> Path:
    """A file that would touch `trap` when its pickled code ran."""
    state = {"model.inner.H_init": torch.ones(32), "x": Malicious(trap)}
    if zipped:
        torch.save(state, path)
    else:
        path.write_bytes(pickle.dumps(state))
    return path


def one_line(error: object) -> str:
    """The text of an error, asserted to be one line."""
    text = str(error)
    assert text.strip() and "\n" not in text.strip(), text
    return text
