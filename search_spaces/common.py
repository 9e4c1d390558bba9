"""What the documents' series share: the standard ETRM on 32 groups, and the deeper encoders."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import Any

from search_spaces.experiment import Experiment, Phase

MEMORY = "reduced from 768 due to encoder memory overhead"
DEEP_ENCODER = "reduced from 256: the deeper encoder needs the memory"
KL_WEIGHT = 1e-4
"""Weight of the KL term per sample: the default of the ETRM repository's loss head."""

FOR_EVER = 1_000_000
"""Steps of a freeze that never ends: beyond any run. The documents write 999999; a round number
keeps its ratio to other freezes in every profile."""

SMALLER_BATCH = frozenset({"global_batch_size", "batch_size_reason"})
"""What follows from a deeper encoder."""

TRM: dict[str, Any] = {"kind": "trm", "encode_mode": "reencode"}
"""A TRM has nothing to encode: it trains by the carried ACT loop, with halting."""

STANDARD: dict[str, Any] = {
    "kind": "etrm",
    "global_batch_size": 256,
    "batch_size_reason": MEMORY,
    "lr": 1e-4,
    "halt_max_steps": 16,
    "encoder_type": "standard",
    "encoder_num_layers": 2,
    "encoder_norm_style": "post",
    "encoder_set_layers": 1,
    "encoder_pooling_method": "mean",
    "max_train_groups": 32,
    "max_eval_groups": 32,
    # Held-out puzzles are those of the evaluation set: an encoder never trains on them.
    "train_subsets": ("training", "concept"),
    "eval_subset": "evaluation",
}
"""ETRM with the standard encoder on 32 groups at batch 256."""


def deep_encoder(encoder_type: str, *, layers: int, set_layers: int) -> dict[str, Any]:
    """Overrides of a deeper, pre-norm encoder at batch 128, with a KL weight if variational."""
    variational = {"kl_weight": KL_WEIGHT} if "variational" in encoder_type else {}
    return {
        "encoder_type": encoder_type,
        "encoder_num_layers": layers,
        "encoder_norm_style": "pre",
        "encoder_set_layers": set_layers,
        "global_batch_size": 128,
        "batch_size_reason": DEEP_ENCODER,
        **variational,
    }


def arm(
    name: str,
    title: str,
    why: str,
    *,
    phase: str,
    control: str | None,
    repeats: str | None = None,
    subject: Collection[str] = (),
    decided: Collection[str] = (),
    **overrides: Any,
) -> Experiment:
    """Declare one experiment. Its subject is what it sets, and `subject` for a control.

    Where it sets the encoder's type and a batch size, the batch is a consequence, not a subject; so
    is the encode mode of a TRM.
    """
    consequences = SMALLER_BATCH if "encoder_type" in overrides else frozenset()
    if overrides.get("kind") == "trm":
        consequences |= {"encode_mode"}
    consequences &= frozenset(overrides)
    return Experiment(
        name=name,
        title=title,
        why=why,
        subject=(frozenset(overrides) | frozenset(subject)) - consequences,
        overrides=overrides,
        consequences=consequences,
        phase=phase,
        control=control,
        repeats=repeats,
        decided=frozenset(decided),
    )


def make_phases(
    members: Mapping[str, Sequence[str]], texts: Mapping[str, str], arms: Sequence[Experiment]
) -> tuple[Phase, ...]:
    """Phases from the IDs of their members; an ID that this revision lacks is left out."""
    by_id = {arm.id: arm for arm in arms}
    return tuple(
        Phase(name, texts[name], tuple(by_id[i] for i in ids if i in by_id))
        for name, ids in members.items()
    )
