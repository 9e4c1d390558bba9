"""The published TRM settings, and the two readings of the plan as overrides of them.

Values: the hyperparameter review's table, completed from the TRM repository. The alignment table
(`search_spaces.alignment`) compares every configuration with them.
"""

from __future__ import annotations

from types import MappingProxyType
from typing import Any, get_args

from search_spaces.experiment import Options, Revision
from trainable.errors import ConfigError, nearest

REFERENCE: Options = MappingProxyType(
    {
        # Budget.
        "epochs": 100_000,
        "eval_interval": 10_000,
        "global_batch_size": 768,
        # Optimization: AdamATan2; sign-SGD for puzzle embeddings.
        "lr": 1e-4,
        "lr_warmup_steps": 2000,
        "lr_min_ratio": 1.0,
        "beta1": 0.9,
        "beta2": 0.95,
        "weight_decay": 0.1,
        "puzzle_emb_lr": 1e-2,
        "puzzle_emb_weight_decay": 0.1,
        "grad_clip_norm": 0.0,
        "ema": True,
        "ema_rate": 0.999,
        # Halting.
        "halt_max_steps": 16,
        "halt_exploration_prob": 0.1,
        "no_ACT_continue": True,
        # The recursion. L_cycles: the published checkpoint's; the repository's file says 6.
        "H_cycles": 3,
        "L_cycles": 4,
        "H_layers": 0,
        "L_layers": 2,
        "hidden_size": 512,
        "num_heads": 8,
        "expansion": 4.0,
        "puzzle_emb_ndim": 512,
        "puzzle_emb_len": 16,
        "pos_encodings": "rope",
        "mlp_t": False,
        "forward_dtype": "bfloat16",
        "canvas": "full",
        # Data: the published builder's.
        "num_aug": 1000,
        "eval_num_aug": 1000,
        "max_grid_side": 30,
        "translate": True,
    }
)

DEFAULT_REVISION: Revision = "2026-01-21"

REVISIONS: dict[Revision, Options] = {
    # As first written: the control explores with 0.5, and the training file says 6 cycles.
    "2026-01-09": MappingProxyType({"halt_exploration_prob": 0.5, "L_cycles": 6}),
    # After the hyperparameter review: both as in the published decoder, from scratch too, so that
    # an arm without the decoder differs from its control in one thing.
    "2026-01-21": MappingProxyType({"halt_exploration_prob": 0.1, "L_cycles": 4}),
}


def check_revision(revision: str) -> Revision:
    """Return `revision` if it exists, else raise `ConfigError` naming the nearest."""
    for known in get_args(Revision):
        if revision == known:
            known_revision: Revision = known
            return known_revision
    raise ConfigError(
        f"unknown revision {revision!r}{nearest(revision, REVISIONS)}: "
        f"choose from {', '.join(REVISIONS)}"
    )


def revision_overrides(revision: str) -> dict[str, Any]:
    """Options that `revision` sets over the reference."""
    return dict(REVISIONS[check_revision(revision)])
