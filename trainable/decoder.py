"""Pretrained decoders: the recursion of a TRM, taken into an ETRM. All tensors or an error.

A decoder is read from a checkpoint of ours or from a published one (`trainable.foreign`), the
averaged weights first.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from trainable.config import ModelConfig
from trainable.data.augment import SEPARATOR
from trainable.errors import CheckpointError
from trainable.foreign.files import open_weights
from trainable.foreign.names import part_of

TOLERANCE = 1e-5
"""Largest absolute difference between two equal decoder tensors."""


@dataclass(frozen=True)
class Decoder:
    """A decoder's tensors (names start with ``inner.``), and what is known of its training.

    `settings` are the model options found beside or inside the file; `exposure` is None for a
    foreign file; `ours` tells the format. `averaged`: EMA weights, None where nothing tells.
    `puzzles`: ids that its puzzle table names, None where no names are recorded.
    """

    path: Path
    tensors: dict[str, Tensor]
    settings: dict[str, Any]
    exposure: dict[str, list[str]] | None
    ours: bool
    averaged: bool | None = None
    puzzles: frozenset[str] | None = None

    @property
    def hidden_size(self) -> int:
        """Width, from the tensors."""
        return int(self.tensors["inner.H_init"].shape[0])


def read_decoder(path: str | Path) -> Decoder:
    """Read a TRM (or ETRM) checkpoint of either format as a decoder, EMA weights first.

    Raises:
        CheckpointError: unreadable, or without the recursion's tensors.
    """
    file = open_weights(path)
    label, weights = file.choose()
    names = file.identifiers
    return Decoder(
        file.path,
        {name: value for name, value in weights.items() if part_of(name) == "decoder"},
        file.options or {},
        file.exposure,
        ours=file.kind == "etrm-tune",
        averaged=None if label == "unknown" else label == "ema",
        puzzles=None if names is None else frozenset(n.partition(SEPARATOR)[0] for n in names),
    )


def decoder_reference(path: str | Path) -> str:
    """Content hash of a given decoder file (16 hex digits)."""
    digest = hashlib.sha256()
    try:
        with Path(path).open("rb") as file:
            while block := file.read(1 << 20):
                digest.update(block)
    except OSError as error:
        raise CheckpointError(f"cannot read {path}: {error.strerror}: check --decoder") from None
    return digest.hexdigest()[:16]


def decoder_options(path: str | Path) -> dict[str, Any]:
    """Options that a model must share with a decoder: sizes from its tensors, cycles if known."""
    decoder = read_decoder(path)
    known = (
        "num_heads",
        "expansion",
        "H_cycles",
        "L_cycles",
        "pos_encodings",
        "mlp_t",
        "canvas",
        "rope_theta",
    )
    options = {key: decoder.settings[key] for key in known if key in decoder.settings}
    layers = {name.split(".")[3] for name in decoder.tensors if name.startswith("inner.L_level")}
    return {"hidden_size": decoder.hidden_size, "L_layers": len(layers), **options}


def decoder_problem(
    path: str | Path, model: ModelConfig, *, l_cycles: int | None = None
) -> str | None:
    """Why a decoder cannot be used in `model`, in one line, or None.

    `l_cycles` states the decoder's cycles where no configuration lies beside the file.
    """
    try:
        decoder = read_decoder(path)
    except CheckpointError as error:
        return str(error)
    if decoder.hidden_size != model.hidden_size:
        return (
            f"decoder {path} is {decoder.hidden_size} wide, the model {model.hidden_size}: "
            f"set hidden_size={decoder.hidden_size}"
        )
    recorded = decoder.settings.get("L_cycles", l_cycles)
    if recorded is None:
        return (
            f"nothing beside {path} tells the decoder's L_cycles: put its all_config.yaml there, "
            f"or pass --decoder-l-cycles"
        )
    if l_cycles is not None and "L_cycles" in decoder.settings and recorded != l_cycles:
        return f"decoder {path} records L_cycles {recorded}, --decoder-l-cycles says {l_cycles}"
    if recorded != model.L_cycles:
        return (
            f"decoder {path} was trained with L_cycles {recorded}, the model has {model.L_cycles}: "
            f"set L_cycles={recorded}"
        )
    for option in ("H_cycles", "num_heads", "expansion", "pos_encodings", "mlp_t", "canvas"):
        theirs = decoder.settings.get(option)
        if theirs is not None and theirs != getattr(model, option):
            return (
                f"decoder {path} was trained with {option} {theirs}, the model has "
                f"{getattr(model, option)}: set {option}={theirs}"
            )
    return None


def load_decoder(module: torch.nn.Module, path: str | Path) -> Decoder:
    """Load every tensor of the recursion into ``module.inner``; all of them or an error."""
    decoder = read_decoder(path)
    own = _recursion(module)
    missing, extra = own.keys() - decoder.tensors.keys(), decoder.tensors.keys() - own.keys()
    if missing or extra:
        what = f"lacks {sorted(missing)[0]!r}" if missing else f"has {sorted(extra)[0]!r} besides"
        raise CheckpointError(
            f"decoder {path} {what} ({len(own) - len(missing)} of {len(own)} tensors match): "
            f"it belongs to another architecture"
        )
    for name, value in own.items():
        given = decoder.tensors[name]
        if given.shape != value.shape:
            raise CheckpointError(
                f"decoder {path}: {name} is {tuple(given.shape)}, the model needs "
                f"{tuple(value.shape)}: set the model's sizes to the decoder's"
            )
    module.load_state_dict(
        {name: decoder.tensors[name].to(value.dtype) for name, value in own.items()}, strict=False
    )
    return decoder


def _recursion(module: torch.nn.Module) -> dict[str, Tensor]:
    """The module's tensors that a decoder's file must hold."""
    return {
        name: value
        for name, value in module.state_dict().items()
        if name.startswith("inner.") and "puzzle_emb" not in name
    }


@dataclass(frozen=True)
class Difference:
    """One decoder tensor against its source: largest and mean absolute difference (NaN where a
    value is not a number), None where the shapes differ."""

    name: str
    largest: float | None
    mean: float | None

    @property
    def equal(self) -> bool:
        """Within `TOLERANCE`."""
        return self.largest is not None and self.largest <= TOLERANCE


def compare(tensors: Mapping[str, Tensor], source: Mapping[str, Tensor]) -> list[Difference]:
    """Differences of every tensor that both have, in the source's order.

    A source in higher precision is first rounded to the type it was taken over in: initial states
    are stored in the forward type.
    """
    result = []
    for name, theirs in source.items():
        if name not in tensors:
            continue
        mine = tensors[name]
        if mine.shape != theirs.shape:
            result.append(Difference(name, None, None))
            continue
        distance = (mine.double() - theirs.to(mine.device, mine.dtype).double()).abs()
        result.append(Difference(name, float(distance.max()), float(distance.mean())))
    return result


def decoder_metrics(module: torch.nn.Module, decoder: Decoder) -> dict[str, float]:
    """How far the recursion of `module` is from its source now.

    ``decoder/tensors`` compared, ``decoder/tensors_equal`` of them within `TOLERANCE`, and the
    absolute difference of their values, ``decoder/max_difference`` and ``decoder/mean_difference``
    (NaN where a value is not a number).
    """
    found = compare(_recursion(module), decoder.tensors)
    values = [decoder.tensors[one.name].numel() for one in found]
    largest, means, sizes = (
        torch.tensor([math.nan if x is None else x for x in column], dtype=torch.float64)
        for column in ([one.largest for one in found], [one.mean for one in found], values)
    )
    return {
        "decoder/tensors": float(len(found)),
        "decoder/tensors_equal": float(sum(one.equal for one in found)),
        "decoder/max_difference": float(largest.max()),
        "decoder/mean_difference": float((means * sizes).sum() / sizes.sum()),
    }


def drift_metrics(module: torch.nn.Module, decoder: Decoder) -> dict[str, float]:
    """How far training has moved the recursion of `module` from its source, trained or frozen.

    ``drift/relative``: length of the difference of all shared tensors divided by the length of the
    source; ``drift/max``: largest absolute difference of one value. NaN where a value is.
    """
    apart = length = largest = torch.zeros((), dtype=torch.float64)
    for name, mine in _recursion(module).items():
        theirs = decoder.tensors.get(name)
        if theirs is None or theirs.shape != mine.shape:
            continue
        theirs = theirs.to(mine.device, mine.dtype).double()
        distance = mine.double() - theirs
        apart = apart.to(mine.device) + distance.square().sum()
        length = length.to(mine.device) + theirs.square().sum()
        largest = torch.maximum(largest.to(mine.device), distance.abs().max())
    ratio = (apart / length).sqrt() if float(length) else apart * math.nan
    return {"drift/relative": float(ratio), "drift/max": float(largest)}


def loading_metrics(module: torch.nn.Module, decoder: Decoder) -> dict[str, float]:
    """`decoder_metrics` right after `load_decoder`, and what was loaded.

    ``decoder/keys_loaded`` and ``decoder/keys_missing`` of the recursion's tensors, and
    ``decoder/ema``: 1 for averaged weights, 0 for raw ones, absent where the file does not tell.
    """
    own = _recursion(module).keys()
    metrics = decoder_metrics(module, decoder)
    metrics["decoder/keys_loaded"] = float(len(own & decoder.tensors.keys()))
    metrics["decoder/keys_missing"] = float(len(own - decoder.tensors.keys()))
    if decoder.averaged is not None:
        metrics["decoder/ema"] = float(decoder.averaged)
    return metrics
