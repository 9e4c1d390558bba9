"""The interface between encoder and decoder: what the encoder writes, what the decoder knows.

A pretrained decoder has seen puzzle embeddings and nothing else: one row of a table in prefix
position 0 (and further ones if the row is wider), zeros behind it. `E_identity` pulls the context
of a row towards the embedding of its own puzzle identifier; `E_interface` compares the
distributions.

Shape legend: B rows, P prefix tokens, D width, N compared embeddings, E width of an embedding.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from trainable.config import ModelConfig
from trainable.data import ArcData
from trainable.data.controls import control_batches
from trainable.errors import CheckpointError
from trainable.evaluate import evaluation_mode, to_tensors
from trainable.foreign import open_weights
from trainable.foreign.names import PUZZLE_TABLE
from trainable.models import RecursiveModel
from trainable.random import RowGenerator

COMPARED = 4096
"""Embeddings that are compared at most, evenly spaced over the trained ones."""
ENCODED = 256
"""Puzzles that are encoded for the comparison at most."""


@dataclass(frozen=True, eq=False)
class Interface:
    """What a decoder was fed in its own training.

    `known` (N, E) embeddings that were trained; `targets` (identifiers of this trial, E) by this
    trial's identifiers, where `identity_weight` asks for them.
    """

    known: Tensor
    targets: Tensor | None
    prefix: tuple[int, int]

    def prefixes(self, rows: Tensor) -> Tensor:
        """Embeddings (…, E) as the decoder's prefix (…, P, D), unscaled: padded with zeros."""
        missing = self.prefix[0] * self.prefix[1] - rows.shape[-1]
        return F.pad(rows, (0, missing)).view(*rows.shape[:-1], *self.prefix)

    def distance(self, context: Tensor, identifiers: Tensor) -> Tensor:
        """Mean squared error (B) float32 between context (B, P, D) and the rows' own embeddings."""
        assert self.targets is not None
        target = self.prefixes(self.targets[identifiers.long()])
        return (context.float() - target).square().flatten(1).mean(1)


def read_interface(
    path: str | Path, model: ModelConfig, data: ArcData, *, identity: bool, device: torch.device
) -> Interface | None:
    """The puzzle embeddings of a decoder's file; None where none was trained (an ETRM's file).

    With `identity` every identifier that this trial trains on gets its own embedding, matched by
    name.

    Raises:
        CheckpointError: `identity`, and the file lacks embeddings, names, or some of the names.
    """
    file = open_weights(path)
    table = file.tensors.get(PUZZLE_TABLE)
    need = "identity_weight needs a TRM trained on the same puzzles, seed and num_aug"
    if table is None or not bool(table.any()):
        if identity:
            raise CheckpointError(f"decoder {path} has no puzzle embeddings: {need}")
        return None
    if table.shape[1] > model.prefix_len * model.hidden_size:
        raise CheckpointError(
            f"decoder {path} has puzzle embeddings of {table.shape[1]} values, the prefix holds "
            f"{model.prefix_len} x {model.hidden_size}: set puzzle_emb_len to the decoder's"
        )
    trained = table.abs().sum(1).nonzero()[:, 0]
    some = trained[:: max(1, -(-len(trained) // COMPARED))]
    targets = None
    if identity:
        if file.identifiers is None:
            raise CheckpointError(f"decoder {path} records no identifier names: {need}")
        targets = _by_name(path, table, file.identifiers, data, need).to(device)
    known = table[some].float().to(device)
    return Interface(known, targets, (model.prefix_len, model.hidden_size))


def _by_name(path: str | Path, table: Tensor, names: list[str], data: ArcData, need: str) -> Tensor:
    at = {name: row for row, name in enumerate(names)}
    targets = torch.zeros(data.num_puzzle_identifiers, table.shape[1])
    wanted = [
        group.first_identifier + i
        for group in data.train_groups
        for i in range(len(group.augmentations))
    ]
    missing = [name for i in wanted if (name := data.identifier_names[i]) not in at]
    if missing:
        raise CheckpointError(
            f"decoder {path} has no embedding of {len(missing)} of {len(wanted)} identifiers "
            f"({missing[0]} …): {need} (--decoder-puzzles same)"
        )
    rows = torch.tensor([at[data.identifier_names[i]] for i in wanted])
    targets[torch.tensor(wanted)] = table[rows].float()
    return targets


# --- comparison ----------------------------------------------------------------------------------


def interface_metrics(
    model: RecursiveModel,
    data: ArcData,
    interface: Interface,
    batch_size: int,
    *,
    device: torch.device,
) -> dict[str, float]:
    """Contexts of the training puzzles against the embeddings that the decoder knows.

    Original puzzles, untranslated, each once. ``interface/encoder_…`` and ``interface/puzzle_…``
    are norm (mean Euclidean norm of a token), mean, std, skew and kurtosis (excess) of the values
    at prefix position 0; ``interface/frechet`` is the Fréchet distance of the two sets of vectors
    there, taken as Gaussians with diagonal covariance: ‖μ₁ − μ₂‖² + Σ (σ₁ − σ₂)² (Dowson and Landau
    1982). The same with ``_all`` over all P positions, a prefix being one vector of P · D values.
    Every rank computes the same. Empty where no puzzle is trained on in full.
    """
    context = encode_puzzles(model, data, batch_size, device=device)
    if context is None:
        return {}
    puzzle = interface.prefixes(interface.known)
    metrics = {}
    for suffix, positions in (("", slice(0, 1)), ("_all", slice(None))):
        a, b = context[:, positions], puzzle[:, positions]
        for who, values in (("encoder", a), ("puzzle", b)):
            for name, value in moments(values).items():
                metrics[f"interface/{who}_{name}{suffix}"] = value
        metrics[f"interface/frechet{suffix}"] = frechet_diagonal(a.flatten(1), b.flatten(1))
    return metrics


def encode_puzzles(
    model: RecursiveModel, data: ArcData, batch_size: int, *, device: torch.device
) -> Tensor | None:
    """Contexts (n, P, D) float32 of the training puzzles, `ENCODED` at most, in evaluation mode.

    A recurrent encoder runs `halt_max_steps` times, as it does before the last ACT step.
    """
    assert model.encoder is not None
    contexts: list[Tensor] = []
    seen: set[int] = set()
    with evaluation_mode(model):
        for arrays in control_batches(data, batch_size):
            base, first = np.unique(arrays["base_puzzle"], return_index=True)
            new = [
                int(at)
                for puzzle, at in zip(base.tolist(), first, strict=True)
                if puzzle >= 0 and puzzle not in seen
            ][: ENCODED - len(seen)]
            if not new:
                continue
            seen.update(arrays["base_puzzle"][new].tolist())
            batch = to_tensors({name: array[new] for name, array in arrays.items()}, device)
            encoded = model.encode(batch, RowGenerator.wrap(None))
            if model.encoder.recurrent:
                for _ in range(model.config.halt_max_steps - 1):
                    encoded = model.encode(batch, RowGenerator.wrap(None), encoded.state)
            contexts.append(encoded.context.float())
    return torch.cat(contexts) if contexts else None


def moments(values: Tensor) -> dict[str, float]:
    """norm of a token, mean, std, skew and excess kurtosis of the values of (n, P, D), float64."""
    x = values.double()
    centred = x - x.mean()
    variance = centred.square().mean()
    std = variance.sqrt()
    found = {
        "norm": torch.linalg.vector_norm(x, dim=-1).mean(),
        "mean": x.mean(),
        "std": std,
        "skew": (centred**3).mean() / std**3,
        "kurtosis": (centred**4).mean() / variance**2 - 3,
    }
    return {name: float(value) for name, value in found.items()}


def frechet_diagonal(a: Tensor, b: Tensor) -> float:
    """Squared Fréchet distance of Gaussians with diagonal covariance fitted to (n, F), (m, F)."""
    a, b = a.double(), b.double()
    means = (a.mean(0) - b.mean(0)).square().sum()
    deviations = (a.std(0, correction=0) - b.std(0, correction=0)).square().sum()
    return float(means + deviations)
