"""Write a checkpoint in the format of official TRM, of the ETRM reference, or as weights of ours.

Public formats: ``step_<n>`` with tensors under ``_orig_mod.model.…`` (averaged parameters, raw
buffers), ``all_config.yaml`` that the public code can run with, and ``identifiers.json`` where the
names of the puzzle table's rows are known. As in the reference, initial states and query tokens are
stored in the forward type.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, Literal

import torch
import yaml
from torch import Tensor

from trainable import checkpoint
from trainable.config import SEMANTICS_VERSION, ModelConfig, TrialConfig
from trainable.errors import CheckpointError
from trainable.foreign.files import IDENTIFIERS_FILE, Weights, WeightsFile
from trainable.foreign.load import LoadedModel, model_of
from trainable.foreign.names import WRITTEN_PREFIX
from trainable.foreign.settings import CLASSES, CONFIG_FILE, OURS

Format = Literal["trm", "etrm", "etrm-tune"]
FORMATS: tuple[Format, ...] = ("trm", "etrm", "etrm-tune")

PUBLIC_ENCODERS = frozenset(
    {
        "standard",
        "hybrid_standard",
        "hybrid_variational",
        "lpn_standard",
        "lpn_variational",
        "lpn",
        "lpn_var",
    }
)
"""Encoder types that the public code can select."""

_FORWARD_TYPE = ("H_init", "L_init", "z_e_init", "query_tokens", "cls_token", "pool_query")
_FLOAT32_ENCODERS = ("lpn", "lpn_var")
_DECODER_KEYS = (
    "H_cycles",
    "L_cycles",
    "H_layers",
    "L_layers",
    "hidden_size",
    "num_heads",
    "expansion",
    "pos_encodings",
    "rope_theta",
    "rms_norm_eps",
    "forward_dtype",
    "mlp_t",
    "halt_max_steps",
    "halt_exploration_prob",
    "no_ACT_continue",
)
_ENCODER_KEYS = (
    "encoder_type",
    "encoder_num_layers",
    "encoder_set_layers",
    "encoder_pooling_method",
    "encoder_norm_style",
    "encoder_layer_scale_init",
    "encoder_qk_norm",
    "lpn_latent_dim",
)
_RECURRENT_KEYS = (
    "recurrent_encoder_type",
    "encoder_h_cycles",
    "encoder_l_cycles",
    "encoder_l_layers",
)
_TRAINING_KEYS = (
    "global_batch_size",
    "lr",
    "lr_min_ratio",
    "lr_warmup_steps",
    "weight_decay",
    "beta1",
    "beta2",
    "puzzle_emb_lr",
    "puzzle_emb_weight_decay",
    "seed",
    "ema_rate",
)
_ETRM_TRAINING_KEYS = (
    "grad_clip_norm",
    "encoder_lr_scale",
    "freeze_decoder_steps",
    "encoder_freeze_steps",
)


def export(
    file: WeightsFile, *, format: Format, out: str | Path, weights: Weights | None = None
) -> tuple[list[Path], list[str]]:
    """Write `file` in another format. Nothing that exists is overwritten; the weights come last.

    Args:
        file: from `open_weights`.
        format: "trm" or "etrm" (public), or "etrm-tune": weights of ours without training state.
        out: folder; made if needed.
        weights: "ema" or "raw"; None takes averaged weights where there are any.

    Returns:
        The written files, weights last, and notes: where the public code would compute otherwise.

    Raises:
        CheckpointError: a format for another kind of model, or files that are there already.
        StorageError: the folder cannot be written.
    """
    loaded = model_of(file, weights=weights)
    out, step = Path(out), loaded.step or 0
    if format == "etrm-tune":
        path = out / f"step-{step}.pt"
        _refuse_existing(path)
        checkpoint.write_atomically(path, _own_weights(loaded))
        return [path], loaded.notes
    fitting = "trm" if loaded.config.kind == "trm" else "etrm"
    if format != fitting:
        raise CheckpointError(
            f"{file.path} holds a model of kind {loaded.config.kind!r}: export it with "
            f"--format {fitting}"
        )
    config = public_config(loaded, file)
    texts = {out / CONFIG_FILE: yaml.safe_dump(config, sort_keys=False)}
    if loaded.identifiers is not None:
        texts[out / IDENTIFIERS_FILE] = json.dumps(loaded.identifiers)
    path = out / f"step_{step}"
    _refuse_existing(path)
    for beside, text in texts.items():
        if beside.exists() and (not beside.is_file() or beside.read_text() != text):
            _refuse_existing(beside)
    for beside, text in texts.items():
        checkpoint.write_text_atomically(beside, text)
    checkpoint.write_atomically(path, public_tensors(loaded))
    return [*texts, path], loaded.notes + differences(loaded.config)


def _refuse_existing(path: Path) -> None:
    if path.exists():
        raise CheckpointError(f"{path} exists already: choose another folder with --out")


def _own_weights(loaded: LoadedModel) -> dict[str, Any]:
    config = json.dumps({"model": loaded.config.model_dump(mode="json")})
    names = loaded.identifiers
    return {
        "format": checkpoint.FORMAT,
        "schema_version": checkpoint.SCHEMA_VERSION,
        "semantics_version": SEMANTICS_VERSION,
        "config": config if loaded.trial is None else loaded.trial.model_dump_json(),
        "step": loaded.step,
        "weights": loaded.weights,
        "model": {name: _whole(value) for name, value in loaded.model.state_dict().items()},
        "ema": None,
        "exposure": loaded.exposure,
        "identifiers": None if names is None else json.dumps(names),
    }


def _whole(value: Tensor) -> Tensor:
    """Without the rest of the storage that a view would drag into the file."""
    return value if value.untyped_storage().nbytes() == value.nbytes else value.clone()


def public_tensors(loaded: LoadedModel) -> dict[str, Tensor]:
    """Tensors under public names, initial states and query tokens in the forward type."""
    forward: torch.dtype = loaded.model.inner.dtype
    keep = loaded.config.encoder_type in _FLOAT32_ENCODERS
    result = {}
    for name, value in loaded.model.state_dict().items():
        stays = keep and name.startswith("encoder.")
        cast = not stays and _stem(name) in _FORWARD_TYPE
        result[WRITTEN_PREFIX + name] = _whole(value.to(forward) if cast else value)
    return result


def _stem(name: str) -> str:
    """``encoder.z_e_H_init`` → ``z_e_init``, ``inner.H_init`` → ``H_init``."""
    last = name.rsplit(".", 1)[-1]
    return "z_e_init" if last in ("z_e_H_init", "z_e_L_init") else last


def public_config(loaded: LoadedModel, file: WeightsFile) -> dict[str, Any]:
    """Content of ``all_config.yaml``: what the public training script reads, and a section of ours.

    ``data_paths`` is left empty: only the user knows where the built data lie.
    """
    model = loaded.config
    values = model.model_dump(mode="json")
    arch: dict[str, Any] = {"name": CLASSES[model.kind]}
    arch["loss"] = {"name": "losses@ACTLossHead", "loss_type": "stablemax_cross_entropy"}
    keys = list(_DECODER_KEYS)
    if model.kind == "trm":
        arch |= {key: values[key] for key in ("puzzle_emb_ndim", "puzzle_emb_len")}
    else:
        arch |= {"puzzle_emb_ndim": 0, "puzzle_emb_len": model.prefix_len}
        keys += _ENCODER_KEYS
    if model.kind == "etrmtrm":
        keys += _RECURRENT_KEYS
    if loaded.trial is not None and model.kind != "trm":
        arch["loss"]["kl_weight"] = loaded.trial.kl_weight
    elif file.settings is not None:
        arch["loss"] |= file.settings.loss
    arch |= {key: values[key] for key in keys}
    if model.kind == "etrmtrm":
        arch["recurrent_encoder_type"] = model.encoder_name
    filled = {*arch, "batch_size", "vocab_size", "num_puzzle_identifiers"}
    rest = {k: v for k, v in values.items() if k not in filled and v is not None}
    training: dict[str, Any] = {"data_paths": [], "data_paths_test": [], "evaluators": []}
    if loaded.trial is not None:
        training |= _training(loaded.trial)
    elif file.settings is not None:
        training |= {k: v for k, v in file.settings.training.items() if k != OURS}
    if loaded.weights != "unknown":
        training["ema"] = loaded.weights == "ema"
    return {"arch": arch, **training, OURS: {"step": loaded.step, "model": rest}}


def _training(trial: TrialConfig) -> dict[str, Any]:
    """Hyper-parameters under public names; budgets in whole epochs, as the public code has them."""
    keys = _TRAINING_KEYS if trial.model.kind == "trm" else _TRAINING_KEYS + _ETRM_TRAINING_KEYS
    return {
        "run_name": trial.name,
        "epochs": max(1, round(trial.epochs)),
        "eval_interval": max(1, round(trial.eval_interval)),
        **{key: getattr(trial, key) for key in keys},
    }


def differences(config: ModelConfig) -> list[str]:
    """Where the public code would compute otherwise than the model was trained, one line each."""
    notes = []
    if config.canvas != "full":
        notes.append(
            f"trained on canvas {config.canvas!r}: the public code always runs the full 30 x 30 "
            f"grid, so its outputs differ"
        )
    if config.kind == "etrm" and config.encoder_type not in PUBLIC_ENCODERS:
        notes.append(f"the public code has no encoder type {config.encoder_type!r} to select")
    if config.kind != "trm" and not config.parity:
        notes.append(
            "trained with PAD masked in the encoder and empty demonstration slots left out: the "
            "public code attends to both, so its outputs differ"
        )
    if config.kind == "etrm" and config.encoder_type == "lpn_var" and config.lpn_latent_dim != 32:
        notes.append(f"lpn_latent_dim is {config.lpn_latent_dim}: the public code always builds 32")
    if config.kind == "etrmtrm" and config.recurrent_blend != 0.1:
        notes.append(f"recurrent_blend is {config.recurrent_blend}: the public code always has 0.1")
    if config.context_positions is not None and config.kind != "trm":
        notes.append(
            f"the context fills {config.context_positions} prefix tokens only: the public code "
            f"fills all of them, so its outputs differ"
        )
    return notes
