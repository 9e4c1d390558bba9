"""Any checkpoint as a model for evaluation, with what is known of it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from trainable.config import ModelConfig, TrialConfig
from trainable.encoder_options import RECURRENT_ENCODERS
from trainable.errors import CheckpointError, UserError
from trainable.foreign.files import Kind, Weights, WeightsFile, open_weights
from trainable.foreign.names import PUZZLE_TABLE
from trainable.models import RecursiveModel, build_model

BLANK = "<blank>"


@dataclass(frozen=True, eq=False)
class LoadedModel:
    """A model on the CPU in evaluation mode.

    `kind`: the format of the file; `weights`: "ema", "raw", or "unknown" for a foreign file that
    does not tell; `exposure`: task ids by role, None = unknown (every foreign file);
    `identifiers`: names by row of the puzzle table, None = unknown; `step`: optimizer steps, None =
    unknown; `trial`: the whole configuration, for checkpoints of our training loop; `notes`: what
    a user should know, one sentence each.
    """

    path: Path
    model: RecursiveModel
    config: ModelConfig
    kind: Kind
    weights: str
    exposure: dict[str, list[str]] | None
    identifiers: list[str] | None
    step: int | None
    trial: TrialConfig | None
    notes: list[str]


def load_model(
    path: str | Path,
    *,
    config: ModelConfig | Mapping[str, Any] | str | Path | None = None,
    weights: Weights | None = None,
    options: Mapping[str, Any] | None = None,
    identifiers: str | Path | None = None,
) -> LoadedModel:
    """Load a checkpoint of ours, of official TRM or of the ETRM reference, for evaluation.

    Args:
        path: the file.
        config: for a foreign file without ``all_config.yaml`` beside it: such a file, its content,
            or a `ModelConfig`. Ours carry their configuration; one given for them is refused.
        weights: "ema" or "raw" where the file has both; None takes averaged weights where there
            are any.
        options: `ModelConfig` options that replace the file's, such as ``forward_dtype`` or
            ``halt_max_steps``.
        identifiers: an ``identifiers.json`` in place of the one beside a foreign file.

    Raises:
        CheckpointError: unreadable, without configuration, or tensors that do not fit it: every
            tensor of the model must be there in its shape, and no other.
        ConfigError: a configuration that names something unknown.

    >>> loaded = load_model("arc_v1_public/step_518071")                        # doctest: +SKIP
    >>> loaded.kind, loaded.config.L_cycles, loaded.weights                    # doctest: +SKIP
    ('trm', 4, 'ema')
    """
    file = open_weights(path, config=config, identifiers=identifiers)
    if file.kind == "etrm-tune" and config is not None:
        raise CheckpointError(f"{file.path} carries its configuration: leave out the given one")
    return model_of(file, weights=weights, options=options)


def model_of(
    file: WeightsFile,
    *,
    weights: Weights | None = None,
    options: Mapping[str, Any] | None = None,
) -> LoadedModel:
    """`load_model` of a file that has been read."""
    label, tensors = file.choose(weights)
    model_config, notes = config_for(file, tensors, options or {})
    return LoadedModel(
        path=file.path,
        model=_build(model_config, tensors, file.path),
        config=model_config,
        kind=file.kind,
        weights=label,
        exposure=file.exposure,
        identifiers=file.identifiers,
        step=file.step,
        trial=file.trial,
        notes=file.notes + notes,
    )


def config_for(
    file: WeightsFile, tensors: Mapping[str, Tensor], options: Mapping[str, Any]
) -> tuple[ModelConfig, list[str]]:
    """The configuration of a file's model, and notes where its tensors correct what it says.

    Sizes that the public code fills in from data are read off the tensors.
    """
    if file.options is None:
        raise CheckpointError(
            f"nothing beside {file.path} tells its cycles and heads: put its all_config.yaml "
            f"there, or pass --config FILE"
        )
    given = dict(file.options)
    encodes = any(name.startswith("encoder.") for name in tensors)
    recurrent = given.get("recurrent_encoder_type") is not None
    recurrent |= given.get("encoder_type") in RECURRENT_ENCODERS
    kind = given.setdefault("kind", ("etrmtrm" if recurrent else "etrm") if encodes else "trm")
    if encodes == (kind == "trm"):
        has = "an encoder" if encodes else "no encoder"
        raise CheckpointError(
            f"{file.path} has {has}, its configuration is of kind {kind!r}: give the one saved "
            f"beside it"
        )
    notes = []
    if file.kind == "etrm" and "parity" not in given:
        given["parity"] = True
        notes.append(
            "encoded as the reference does, PAD and empty demonstration slots attended (parity)"
        )
    for key, value in _sizes(tensors, given).items():
        if key == "lpn_latent_dim" and given.get(key, value) != value:
            notes.append(
                f"lpn_latent_dim is {value} in the tensors, not {given[key]} as configured"
            )
        given[key] = value
    given |= options
    for key in ("puzzle_emb_ndim", "hidden_size"):
        found = _width(tensors, key)
        if found is not None and given.get(key, found) != found:
            raise CheckpointError(
                f"{file.path}: {key} is {found} in the tensors and {given[key]} in the "
                f"configuration: give the configuration saved beside it"
            )
    try:
        return ModelConfig(**given), notes
    except UserError as error:
        where = file.settings.file if file.settings and file.settings.file else file.path
        raise CheckpointError(f"{where}: {error}") from None


def _width(tensors: Mapping[str, Tensor], key: str) -> int | None:
    if key == "hidden_size":
        return int(tensors["inner.H_init"].shape[0])
    table = tensors.get(PUZZLE_TABLE)
    return int(table.shape[1]) if table is not None and table.dim() == 2 else None


def _sizes(tensors: Mapping[str, Tensor], given: Mapping[str, Any]) -> dict[str, int]:
    """Options that the tensors decide."""
    sizes: dict[str, int] = {}
    prefix = given.get("puzzle_emb_len", ModelConfig().puzzle_emb_len)

    def read(option: str, name: str, axis: int, less: int = 0) -> None:
        value = tensors.get(name)
        if value is not None and value.dim() == 2 and value.shape[axis] > less:
            sizes[option] = int(value.shape[axis]) - less

    read("vocab_size", "inner.embed_tokens.embedding_weight", 0)
    read("num_puzzle_identifiers", PUZZLE_TABLE, 0)
    if isinstance(prefix, int) and prefix > 0:
        read("seq_len", "inner.embed_pos.embedding_weight", 0, prefix)
        read("seq_len", "inner.L_level.layers.0.mlp_t.gate_up_proj.weight", 1, prefix)
    if given.get("encoder_type") == "lpn_var":  # the reference never reads its own option (A8)
        read("lpn_latent_dim", "encoder.mu_proj.weight", 0)
    return sizes


def _build(config: ModelConfig, tensors: Mapping[str, Tensor], path: Path) -> RecursiveModel:
    """A model of all these tensors, in its own types, and no other; or `CheckpointError`.

    Tensors are taken over, not copied: a published puzzle table of 876,406 rows fills 1.8 GB once.
    """
    model = build_model(config.model_copy(update={"num_puzzle_identifiers": 1}), seed=0)
    model.config = model.inner.config = config
    table = tensors.get(PUZZLE_TABLE)
    if config.kind == "trm" and config.puzzle_emb_ndim and table is not None and table.dim() == 2:
        model.inner.puzzle_emb.weights = table.float()  # its width has been compared
    own = model.state_dict()
    missing, extra = own.keys() - tensors.keys(), tensors.keys() - own.keys()
    if missing or extra:
        what = f"lacks {min(missing)!r}" if missing else f"has {min(extra)!r} besides"
        raise CheckpointError(
            f"{path} {what} ({len(own) - len(missing)} of {len(own)} tensors match): give the "
            f"configuration saved beside it"
        )
    for name, value in own.items():
        if tensors[name].shape != value.shape:
            raise CheckpointError(
                f"{path}: {name} is {tuple(tensors[name].shape)}, its configuration makes it "
                f"{tuple(value.shape)}: give the configuration saved beside it"
            )
    cast = {name: tensors[name].to(value.dtype) for name, value in own.items()}
    model.load_state_dict(cast, assign=True)
    return model.eval()


# --- identifiers of other data -------------------------------------------------------------------


def fit_identifiers(
    loaded: LoadedModel, wanted: Sequence[str], *, missing: Literal["error", "mean"] = "error"
) -> LoadedModel:
    """The same TRM with its puzzle table in the order of another data set.

    Args:
        loaded: a TRM; its table is matched by identifier name, never by position.
        wanted: name of every identifier of the data; 0 is blank.
        missing: what a name gets that the table does not have: "error", or "mean" for the mean row
            of the stored table, as the public code does for all of them.

    Raises:
        CheckpointError: not a TRM with a table, names unknown, or a name without a row.
    """
    if PUZZLE_TABLE not in loaded.model.state_dict():
        raise CheckpointError(f"{loaded.path} has no puzzle table: only a TRM has identifiers")
    table = loaded.model.inner.puzzle_emb.weights
    names = list(wanted)
    if loaded.identifiers is None and missing == "error":
        raise CheckpointError(
            f"nothing tells which puzzle each of the {len(table)} rows of {loaded.path} stands "
            f"for: put the data's identifiers.json beside it, or accept the mean row for all"
        )
    row_of: dict[str, int] = {}
    for row, name in enumerate(loaded.identifiers or ()):
        row_of.setdefault(name, row)
    rows = torch.tensor([row_of.get(name, -1) for name in names])
    if names and names[0] == BLANK:
        rows[0] = 0
    absent = (rows < 0).nonzero().flatten().tolist()
    if absent and missing == "error":
        raise CheckpointError(
            f"{loaded.path} has not been trained on identifier {names[absent[0]]!r} "
            f"({len(names) - len(absent)} of {len(names)} match): use the puzzles and "
            f"augmentations it was trained on, or accept the mean row for the others"
        )
    fitted = table[rows.clamp_min(0)]
    notes = list(loaded.notes)
    if absent:
        fitted[rows < 0] = table.mean(0)
        notes.append(
            f"{len(absent)} of {len(names)} identifiers have the mean row of the puzzle table"
        )
    config = loaded.config.model_copy(update={"num_puzzle_identifiers": len(names)})
    model = _build(config, {**loaded.model.state_dict(), PUZZLE_TABLE: fitted}, loaded.path)
    return replace(loaded, model=model, config=config, identifiers=names, notes=notes)
