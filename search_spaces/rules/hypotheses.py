"""Margins of the seven hypotheses about low performance (`analysis.hypotheses`); all ours."""

from __future__ import annotations

from search_spaces.rules.kinds import Band

TITLES = {
    "H1": "the decoder is not loaded",
    "H2": "encoder gradients do not flow",
    "H3": "the encoder's output is wrong in shape or range",
    "H4": "training dynamics: rate, batch, warm-up",
    "H5": "the data set: demonstrations, identifiers, augmentation",
    "H6": "the evaluator miscounts",
    "H7": "the encoder is too weak",
}
"""Statement of each hypothesis, in the document's order."""

SIMILAR_RANGE = Band(1 / 3, 3.0)
"""H3: norm and standard deviation of the encoder's output over the puzzle embeddings'."""
WARMUP_SHARE = 0.5
"""H4: the part of a run that its warm-up may take."""
CLIPPED = 0.1
"""H4: mean grad/clip_factor below which clipping shrinks the updates by more than ten."""
BEHIND = 0.05
"""H4: train accuracy this much below the TRM's at equal samples is behind; else on a par."""
FED = 0.02
"""H5: accuracy with the true demonstrations above that with a control by more than this."""
SAME_SCORE = 1e-6
"""H6: a score counted again from its puzzles may differ by this."""
HARDLY_VARIES = 0.05
"""H7: spread between puzzles (root of encoder/cross_sample_var) over the RMS of the output."""
ALIKE = 0.99
"""H7: mean cosine between puzzles above which their contexts are alike."""
