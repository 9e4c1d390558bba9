"""Rules of the series `frozen`: does the encoder learn against a frozen decoder?"""

from __future__ import annotations

from search_spaces.rules.kinds import ComparisonRule
from search_spaces.rules.measures import PASS_AT_1

AS_RUN, CORRECT = "frozen/frozen_decoder", "frozen/frozen_decoder_correct"
PREFIX1, STAGED = "frozen/prefix1", "frozen/staged"

LEARNS, STUCK, USELESS = "learns", "stuck", "trains but useless"

OUTCOMES = {
    LEARNS: "gradient non-zero and stable, loss falls, token_std rises, held-out puzzles solved: "
    "go on to H3 and H4",
    STUCK: "gradient zero or vanishing, or the loss flat: look into H2, gradient flow",
    USELESS: "gradient and loss fine, no held-out accuracy: look into H7, the encoder's capacity",
}
NEXT_HYPOTHESES = {LEARNS: ("H3", "H4"), STUCK: ("H2",), USELESS: ("H7",)}

VANISHING = 1e-6
"""Encoder gradient norm below which it counts as vanishing (ours; the published run had 1.0)."""
STABLE = 1.0
"""Largest standard deviation of the encoder's gradient norm over its mean, last tenth (ours)."""
LOSS_FALLS = 0.10
"""Share by which train/lm_loss must have fallen from the first tenth to the last (ours)."""
DECODER_TOLERANCE = 1e-5
"""A frozen decoder's tensor is equal to the checkpoint's within this."""

COMPARISONS: tuple[ComparisonRule, ...] = (
    ComparisonRule(
        "correct settings help", "frozen", CORRECT, AS_RUN, "better",
        "exploration or L_cycles was a cause: full-data ETRM with the correct settings",
        measure=PASS_AT_1,
    ),
    ComparisonRule(
        "one prefix position helps", "frozen", PREFIX1, CORRECT, "better",
        "confine the context to the position that the decoder knows", measure=PASS_AT_1, ours=True,
    ),
)  # fmt: skip
