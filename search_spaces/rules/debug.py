"""Rules of the series `debug`: the tree from "does the baseline learn?" to "redesign", and grades.

The document's text and tree disagree on the order of phases 2 and 3; the tree is followed, so that
rates and pooling (phase 3) come before other encoders (phase 2).
"""

from __future__ import annotations

from search_spaces.rules.kinds import Band, ThresholdRule, below

E0, E1, DIAG1, DIAG2 = "debug/E0v2", "debug/E1v2", "debug/E_diag1", "debug/E_diag2"
IDENTITY, INTERFACE = "debug/E_identity", "debug/E_interface"
E2, E3 = "debug/E2_lpn", "debug/E3_lpn_var"
E4, E5 = "debug/E4_lower_lr", "debug/E5_grad_clip"
E6, E7 = "debug/E6_combined", "debug/E7_attention"

START = (E0, E1, DIAG1)
TUNING = (E4, E5, E6, E7)
"""Phase 3 of the document; comes before phase 2, as in its tree."""
ARCHITECTURE = (E2, E3)
"""Phase 2 of the document."""

NOT_TRAINED = (E0, DIAG1, IDENTITY, INTERFACE)
"""Arms that no grade counts: the TRM itself, a random encoder, and encoders that are taught."""

BASELINE_OK = ThresholdRule(
    "baseline learns", "debug", (E0,), Band(low=0.90),
    "the TRM with puzzle embeddings memorizes the groups: control and ceiling", kind="success",
)  # fmt: skip
BASELINE_FAILS = ThresholdRule(
    "baseline fails", "debug", (E0,), below(0.90),
    "stop everything and debug the original TRM before any encoder", kind="red flag",
    checks=(
        "the data pipeline: labels, identifiers and loss mask of the batches (hypothesis H5)",
        "the original TRM against the reference vectors (numerics), then its rate and warm-up",
        "health of debug/E0v2: divergence, plateau, halting",
    ),
)  # fmt: skip

MARGIN = 0.05
"""An encoder run matches E0v2 when it lies at most this far below it (ours)."""

SUCCEEDS = {
    E1: "the encoder can overfit: go to the full data set, skip phase 3",
    DIAG1: "the TRM can use a random encoder's output: the interface is right, the encoder's "
    "training dynamics are the problem (rates, schedules)",
    IDENTITY: "an encoder that is taught the puzzle embeddings does as well as they do: the "
    "information passes",
    E2: "the standard encoder was too shallow: use the LPN encoder",
    E3: "regularization is the key: add a VAE to other encoders",
    E4: "the learning rate was the issue: keep the lower one",
    E5: "gradients exploded: always clip",
    E7: "mean pooling was the bottleneck",
    E6: "several factors contributed: the new baseline",
}
FAILS = {
    E1: "the encoder is the bottleneck: look at E_diag1",
    DIAG1: "the TRM cannot use the encoder's output: fix the encoder-TRM interface",
    IDENTITY: "even known embeddings do not pass the encoder: the injection is wrong",
    E2: "depth is not the issue",
    E3: "the variational bottleneck may be too restrictive for memorization",
    E4: "the rate is not the bottleneck",
    E5: "gradients are well-behaved, the issue is elsewhere",
    E7: "pooling is not the issue; if E6 succeeds, it is by rate or clipping",
    E6: "more fundamental changes are needed: revisit the encoder",
}

INTERFACE_CHECKS = (
    "norms and moments of the encoder's output against the puzzle embeddings (debug/E_interface, "
    "hypothesis H3)",
    "an encoder taught the puzzle embeddings (debug/E_identity): does the information pass?",
    "where the context enters: the prefix positions of the decoder (overfit/E2e_prefix1)",
)

SIMILAR_GRADIENTS = Band(0.1, 10.0)
"""E_diag2: encoder norm / decoder norm, "similar magnitude" taken as one order (ours)."""

NEAR_RANDOM = Band(high=0.20)
"""Grade failure: all encoder runs near random (~10 %). 20 % is the bar's level (ours)."""
GOOD = Band(low=0.80)
PARTIAL = Band(low=0.50, low_included=False)
