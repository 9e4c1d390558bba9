"""Series `debug`: a model with an encoder does not learn. Is it the encoder?

Question.       The TRM memorizes 32 puzzles with learned puzzle embeddings. Can a demonstration
                encoder take the embeddings' place, and if not, what stands in its way: its
                training, its depth, the rate, exploding gradients, pooling, the interface?
Hypothesis.     The interface works (a frozen random encoder suffices, E_diag1), and the standard
                encoder comes within 5 points of the TRM (E0v2, at least 90 %).
Decision rule.  E0v2 fails: stop, debug the baseline. E1v2 ok: success. Else E_diag1 fails: fix the
                interface; E_diag1 ok: phase 3 (rates, clipping, pooling), then phase 2 (other
                encoders), then redesign. A run below 20 % at half of its epochs is stopped. The
                document's text runs phase 2 before phase 3, its tree the other way round: the tree
                is followed.
Cost.           100,000 epochs of 32 groups at batch 256: 12,500 batches of 4 ACT steps, times the
                mean number of queries per puzzle; 2 to 4 h per run on four 80 GB GPUs, about 30 h
                for the document's ten experiments.

`debug_gaps` holds what the document's critical review finds missing; its IDs are ours where the
document has none (it plans the separate encoder rate as E11). Pooling is compared over E1v2 (mean),
E7_attention, E_pool_weighted and E_pool_cls; demonstration counts over E_demos_1, E_demos_2 and
E1v2 (all). The pairs that it recommends are those of encoder and training fix, E2+E4 and E3+E5.

E_interface and E_identity start from a TRM trained on the same puzzles, whose puzzle embeddings are
known. E_identity has an encoder whose context is free (`lpn_standard`) and one context position:
the context of the set encoders has RMS 1 by construction at every prefix position, and a known
prefix is one embedding and 15 positions of zero, so that with `standard` the identity loss stays
near 1 whatever is learned, and says nothing about the interface.
"""

from __future__ import annotations

from typing import Any

from search_spaces.common import FOR_EVER, KL_WEIGHT, STANDARD, TRM, arm, make_phases
from search_spaces.experiment import Experiment, Phase, Revision, Series

COMMON: dict[str, Any] = {
    **STANDARD,
    "encode_mode": "online",
    "num_act_steps": 4,
    "pretrained_decoder": False,
    "epochs": 100_000,
    "eval_interval": 10_000,
    "grad_clip_norm": 0.0,
}

CONTROL = "debug/E1v2"
CONTROLS: dict[str, str | None] = {
    "E0v2": None,
    "E1v2": "debug/E0v2",
    "E_identity": "debug/E_interface",
    "E2E4_lpn_lower_lr": "debug/E2_lpn",
    "E3E5_lpn_var_grad_clip": "debug/E3_lpn_var",
}
"""Comparison partners other than E1v2, from which every other arm differs."""
REPEATS = ("E_diag2",)

LPN: dict[str, Any] = {"encoder_type": "lpn_standard", "encoder_num_layers": 4}
# The document gives no depth here: that of E2_lpn, so that the two differ in the VAE alone.
LPN_VAR: dict[str, Any] = {
    "encoder_type": "lpn_variational",
    "encoder_num_layers": 4,
    "kl_weight": KL_WEIGHT,
}
LOWER_LR = 3e-5
# Puzzle embeddings are right for the decoder that they were trained with, so it stands still.
KNOWN_EMBEDDINGS: dict[str, Any] = {
    "pretrained_decoder": True,
    "decoder_puzzles": "same",
    "freeze_decoder_steps": FOR_EVER,
    "L_cycles": 4,  # as it was trained, in both revisions
}
# What the embeddings are can be reached: neither RMS 1 nor more positions than the embedding has.
FREE_CONTEXT: dict[str, Any] = {**LPN, "context_positions": 1}

PHASES = {
    "debug1": ("E0v2", "E1v2", "E_diag1", "E_diag2"),
    "debug2": ("E2_lpn", "E3_lpn_var"),
    "debug3": ("E4_lower_lr", "E5_grad_clip", "E7_attention", "E6_combined"),
    "debug_gaps": (
        "E_interface",
        "E_identity",
        "E_pool_weighted",
        "E_pool_cls",
        "E_demos_1",
        "E_demos_2",
        "E11_encoder_lr_low",
        "E11_encoder_lr_high",
        "E_long_warmup",
        "E2E4_lpn_lower_lr",
        "E3E5_lpn_var_grad_clip",
    ),
}
PHASE_OF = {identifier: phase for phase, arms in PHASES.items() for identifier in arms}

PHASE_TEXT = {
    "debug1": "Can it overfit at all? The TRM, the standard encoder, a frozen random encoder.",
    "debug2": "Other encoders; runs when nothing of debug3 helps.",
    "debug3": "Rate, clipping, pooling; runs when E1v2 fails and E_diag1 does not.",
    "debug_gaps": "What the document's review finds missing: known embeddings, pooling and "
    "demonstration counts in full, the encoder's own rate, a longer warm-up, pairs.",
}


def _arm(identifier: str, title: str, why: str, **settings: Any) -> Experiment:
    return arm(
        f"debug/{identifier}",
        title,
        why,
        phase=PHASE_OF[identifier],
        control=CONTROLS.get(identifier, CONTROL),
        repeats=CONTROL if identifier in REPEATS else None,
        **settings,
    )


def experiments(revision: Revision) -> tuple[Experiment, ...]:
    """The document's arms, then those that close its gaps; the same in both revisions."""
    arms = [
        # The mode follows from the kind; in both revisions, its own file's exploration.
        _arm("E0v2", "TRM with puzzle embeddings (control)",
             "The ceiling: fails, and everything stops until the baseline works.",
             **TRM, halt_exploration_prob=0.1),
        _arm("E1v2", "Standard encoder", "Can the encoder overfit as the embeddings do?",
             kind="etrm"),
        _arm("E_diag1", "Frozen random encoder",
             "As good as E0v2: the encoder's training is the problem; much worse: the interface.",
             freeze_encoder=True),
        _arm("E_diag2", "Gradient norms of encoder and TRM (repeats E1v2)",
             "Both should be non-zero and of similar size; every trial logs them.", kind="etrm"),
        _arm("E2_lpn", "LPN encoder, 4 layers, CLS", "Was the standard encoder too shallow?",
             **LPN),
        _arm("E3_lpn_var", "LPN variational encoder, 4 layers",
             "Does the VAE help, or is it too restrictive for memorizing?", **LPN_VAR),
        _arm("E4_lower_lr", "Rate 3e-5", "Is the rate too high?", lr=LOWER_LR),
        _arm("E5_grad_clip", "Gradients clipped at norm 1", "Do gradients explode?",
             grad_clip_norm=1.0),
        _arm("E7_attention", "Attention pooling",
             "Is mean pooling the bottleneck? If not, a success of E6 comes from rate or clip.",
             encoder_pooling_method="attention"),
        _arm("E6_combined", "Rate 3e-5, clipping, attention pooling",
             "Do small fixes help together? Ok: the new baseline; fails: redesign.",
             lr=LOWER_LR, grad_clip_norm=1.0, encoder_pooling_method="attention"),
        _arm("E_interface", "Encoder output against puzzle embeddings",
             "Are norms and distributions alike when the decoder knows these puzzles?",
             **KNOWN_EMBEDDINGS),
        _arm("E_identity", "Encoder supervised towards the puzzle embeddings",
             "Can it produce what the decoder expects? Then it must match E0v2.",
             **KNOWN_EMBEDDINGS, **FREE_CONTEXT, identity_weight=1.0),
        _arm("E_pool_weighted", "Weighted pooling", "The third pooling, isolated as E7 is.",
             encoder_pooling_method="weighted"),
        _arm("E_pool_cls", "CLS pooling", "The LPN encoders' pooling without their depth.",
             encoder_pooling_method="cls"),
        _arm("E_demos_1", "One demonstration", "Do more demonstrations help?", max_demos=1),
        _arm("E_demos_2", "Two demonstrations", "Do more demonstrations help?", max_demos=2),
        _arm("E11_encoder_lr_low", "Encoder at 0.3 of the rate",
             "E4's rate for the encoder alone: does it need slower updates than the TRM?",
             encoder_lr_scale=0.3),
        _arm("E11_encoder_lr_high", "Encoder at 3 times the rate",
             "The other direction of a separate encoder rate.", encoder_lr_scale=3.0),
        _arm("E_long_warmup", "Warm-up of 4,000 steps",
             "Twice the default: does the encoder need a longer warm-up?", lr_warmup_steps=4_000),
        _arm("E2E4_lpn_lower_lr", "LPN encoder at rate 3e-5",
             "Does the LPN encoder need the standard one's fix?", **LPN, lr=LOWER_LR),
        _arm("E3E5_lpn_var_grad_clip", "LPN variational encoder, clipped",
             "Does the variational encoder need clipping?", **LPN_VAR, grad_clip_norm=1.0),
    ]  # fmt: skip
    return tuple(arms)


def phases(revision: Revision) -> tuple[Phase, ...]:
    """debug1 … debug3 of the document, and the gaps that its review lists."""
    return make_phases(PHASES, PHASE_TEXT, experiments(revision))


SERIES = Series(
    name="debug",
    title="Can an encoder replace learned puzzle embeddings?",
    question="What keeps a demonstration encoder from doing what puzzle embeddings do?",
    hypothesis="The interface works, and the standard encoder comes within 5 points of the TRM.",
    decision_rule="E0v2 < 90 %: debug the baseline. E1v2 within 5 points: success. E_diag1 fails: "
    "fix the interface. Otherwise debug3, then debug2, then redesign.",
    cost="100,000 epochs of 32 groups per arm, 4 ACT steps per batch: 2 to 4 h on four GPUs.",
    common=COMMON,
    experiments=experiments,
    phases=phases,
)
