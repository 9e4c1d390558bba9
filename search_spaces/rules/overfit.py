"""Rules of the series `overfit`: decision points, scenarios, red flags, selection."""

from __future__ import annotations

from search_spaces.rules.kinds import (
    Band,
    ComparisonRule,
    DecisionRule,
    Extension,
    Scenario,
    Selection,
    Target,
    ThresholdRule,
    above,
    at_most,
    below,
    between,
)
from search_spaces.rules.measures import PASS_AT_1, Q_HALT_ACCURACY, TRAIN_ACCURACY, TRAIN_EXACT

E1A, E1B, E1C, E1E = "overfit/E1a", "overfit/E1b", "overfit/E1c", "overfit/E1e"
E2A, E2B, E2C, E2D = "overfit/E2a", "overfit/E2b", "overfit/E2c", "overfit/E2d"
E3A, E3B = "overfit/E3a", "overfit/E3b"
E4A = "overfit/E4a"
E5A_LOW, E5A_HIGH = "overfit/E5a_low", "overfit/E5a_high"

PHASE1: tuple[DecisionRule, ...] = (
    ThresholdRule(
        "standard encoder validated", "phase1", (E1A,), above(0.90),
        "the standard encoder is validated: go on to phase 2, halting and exploration",
        next=("phase2",), kind="success",
    ),
    ThresholdRule(
        "baseline not validated", "phase1", (E1A,), at_most(0.90),
        "the document has no rule for a control of at most 90 %",
        kind="no rule",
    ),
    ThresholdRule(
        "deeper encoders help", "phase1", (E2A, E2B, E2C), above(0.92),
        "significantly better: use this encoder for the full data set, after weighing the gain "
        "against its compute",
        kind="success",
    ),
    ThresholdRule(
        "no rule between", "phase1", (E2A, E2B, E2C), between(0.80, 0.92),
        "the document has no rule for a deeper encoder between 80 % and 92 %",
        kind="no rule",
    ),
    ThresholdRule(
        "variational encoder fails", "phase1", (E2A, E2B), below(0.80),
        "abandon this variational/LPN encoder for now, focus on standard variants",
        kind="drop",
    ),
    ThresholdRule(
        "hybrid depth fails", "phase1", (E2C,), below(0.80),
        "drop hybrid depth",
        kind="drop", ours=True,
    ),
    ThresholdRule(
        "VAE compatible", "phase1", (E2A,), above(0.90),
        "VAE regularization is compatible with ETRM",
        kind="success",
    ),
    ComparisonRule(
        "VAE not needed", "phase1", E2C, E2A, ">=",
        "the VAE is not needed: hybrid_standard does as well (compare the parameters)",
    ),
)  # fmt: skip

PHASE2: tuple[ComparisonRule, ...] = (
    *(
        ComparisonRule(
            f"exploration helps ({arm.partition('/')[2]})", "phase2", arm, E1A, "better",
            "use this exploration for the full data set",
            option="halt_exploration_prob", ours=arm == E1E,
        )
        for arm in (E1B, E1C, E1E)
    ),
    *(
        ComparisonRule(
            f"maximal steps matter ({arm.partition('/')[2]})", "phase2", arm, E1A, "different",
            "tune the maximal number of steps by puzzle complexity",
        )
        for arm in (E3A, E3B)
    ),
)  # fmt: skip

PHASE3: tuple[DecisionRule, ...] = (
    ThresholdRule(
        "learns from scratch", "phase3", (E4A,), above(0.90),
        "ETRM is validated without a pretrained decoder: ready for the full data set",
        kind="success",
    ),
    ThresholdRule(
        "pretrained decoder essential", "phase3", (E4A,), at_most(0.90),
        "the pretrained decoder is essential; a better encoder initialization may be needed",
        given=((E1A, above(0.90)),),
    ),
    ThresholdRule(
        "partly learns", "phase3", (E4A,), Band(0.50, 0.90),
        "the pretrained decoder is essential, ETRM partly learns without it",
        ours=True,
    ),
    ComparisonRule(
        "simple scaling helps (E2d)", "phase3", E2D, E1A, "better",
        "use four layers of the standard encoder for the full data set",
        option="encoder_num_layers", ours=True,
    ),
    *(
        ComparisonRule(
            f"rate helps ({arm.partition('/')[2]})", "phase3", arm, E1A, "better",
            "use this rate for the full data set", option="lr", ours=True,
        )
        for arm in (E5A_LOW, E5A_HIGH)
    ),
)  # fmt: skip

DECISIONS: dict[str, tuple[DecisionRule, ...]] = {
    "phase1": PHASE1,
    "phase2": PHASE2,
    "phase3": PHASE3,
}
"""Decision points of the series `overfit`, by the phase after which they are read."""

RED_FLAGS: tuple[ThresholdRule, ...] = (
    ThresholdRule(
        "red flag 1", "phase1", (E1A, E2A, E2B, E2C), at_most(0.80),
        "no encoder learns the 32 groups: look for bugs, gradient flow and data pipeline first",
        scope="all", kind="red flag",
        checks=(
            "gradient flow: grad/encoder_norm against grad/total_norm of every arm (health)",
            "data pipeline: hypotheses H5 and H1 on these trials, and the demonstration controls",
            "the debug series: does a TRM with puzzle embeddings (debug/E0v2) learn the groups?",
        ),
    ),
    ThresholdRule(
        "red flag 2", "phase3", (E4A,), below(0.50),
        "learns only with a pretrained decoder: better encoder initialization or more training",
        kind="red flag",
        checks=(
            "encoder initialization: hypotheses H2, H3 and H7 on overfit/E4a",
            "more training: whether train/accuracy of overfit/E4a still rises",
        ),
    ),
    ThresholdRule(
        "red flag 3", "phase1", (E2A, E2B), between(0.50, 0.60),
        "still stuck as with cached encoding: the VAE may be incompatible, abandon it",
        scope="all", kind="red flag",
        checks=(
            "posterior collapse: train/kl_loss of overfit/E2a and overfit/E2b (health)",
            "kl_weight: the same encoders with a smaller one",
            "go on with the standard encoders: overfit/E2c has the depth without the VAE",
        ),
    ),
)  # fmt: skip


_CONTROL_OK = PHASE1[0]
_DEEPER = PHASE1[2]

SCENARIOS: tuple[Scenario, ...] = (
    Scenario(
        "A", "the standard encoder is best",
        "keep the standard encoder, work on data and training",
        where=(_CONTROL_OK,), improvements=(_DEEPER,), mode="none_improves",
    ),
    Scenario(
        "B", "deeper encoders help", "scale the encoder up for the full data set",
        improvements=(_DEEPER,),
    ),
    Scenario(
        "C", "exploration matters", "adjust exploration for Q-head learning",
        improvements=PHASE2[:2],
    ),
    Scenario(
        "D", "from scratch works", "ETRM learns by itself, it does not only tune the decoder",
        where=(PHASE3[0],),
    ),
)  # fmt: skip


EXTENSION = Extension(
    ("overfit/E4a", "overfit/E4b"), at_most(0.90), 2.5,
    "from scratch needs more steps: 20,000 epochs become 50,000 while accuracy rises",
)  # fmt: skip


TARGETS: tuple[Target, ...] = (
    Target(TRAIN_ACCURACY, above(0.90), "token accuracy above 90 %"),
    Target(TRAIN_EXACT, above(0.50), "whole grids above 50 %"),
    Target(Q_HALT_ACCURACY, above(0.85), "the Q-head predicts correctness"),
)
"""Beside these: `train/steps` below `halt_max_steps`, and samples that use diverse steps."""


SELECTION = Selection(
    3, above(0.90), ("train accuracy, highest first", "steps to 90 %, fewest first",
                     "q_halt_accuracy, highest first"),
)  # fmt: skip
"""Exact repeats of the control are left out, and what the bar stopped."""

FULL_DATA: ThresholdRule = ThresholdRule(
    "full data", "full data", (), Band(low=0.05),
    "success on the full data set: at least 5 to 10 % of the held-out puzzles solved exactly",
    measure=PASS_AT_1, kind="success",
)  # fmt: skip
"""Read on arms that train on every puzzle (no `max_train_groups`); the arms' own rules, made for 32
groups, are not."""
