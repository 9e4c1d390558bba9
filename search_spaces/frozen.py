"""Series `frozen`: does the encoder learn against a decoder that does not move?

Question.       ETRM stays at 5 to 10 % with a pretrained decoder. With the decoder frozen for good,
                does the encoder get gradients, does it learn, and does what it learns generalise?
Hypothesis.     The first run (`frozen_decoder`) trained with exploration 0.5 and 6 cycles against a
                decoder of 4; with 0.1 and 4 (`frozen_decoder_correct`) held-out accuracy improves.
Decision rule.  Learns (gradient non-zero and stable, loss falls, token spread rises, accuracy above
                random): look at training dynamics and encoder output (H3, H4). Stuck (gradient zero
                or vanishing, loss flat): look for blocked gradients (H2). Trains but useless
                (gradient and loss fine, no held-out accuracy): the encoder is too weak (H7).
                The decoder must stay equal to its checkpoint, 14 of 14 tensors.
Cost.           20,000 epochs of 32 groups: 2,500 steps at batch 256, times the mean number of
                queries per puzzle, without gradients of the decoder's weights. `staged` trains
                10,000 epochs of all groups: about 35,000 steps.

Published for `frozen_decoder`: encoder gradient norm 1.0, lm_loss 8.5 to 0.70, train accuracy
76.7 %, token spread 0.37, pass@1 0.0 %: trains but useless.
"""

from __future__ import annotations

from typing import Any

from search_spaces.common import FOR_EVER, STANDARD, arm, make_phases
from search_spaces.experiment import Experiment, Phase, Revision, Series

COMMON: dict[str, Any] = {
    **STANDARD,
    "encode_mode": "reencode",
    "pretrained_decoder": True,
    # As the decoder was trained, in both revisions: they are the subject of `frozen_decoder`.
    "halt_exploration_prob": 0.1,
    "L_cycles": 4,
    "epochs": 20_000,
    "eval_interval": 10_000,
    "max_eval_groups": 4,
    "lr": 3e-4,
    "lr_warmup_steps": 1_000,
    "grad_clip_norm": 1.0,
    "freeze_decoder_steps": FOR_EVER,
    "encoder_lr_scale": 1.0,
    # What the repository did where the encoder has an optimizer of its own: a tenth.
    "encoder_weight_decay": 0.01,
}

CONTROL = "frozen/frozen_decoder_correct"

PHASES = {
    "frozen1": ("frozen_decoder", "frozen_decoder_correct"),
    "frozen2": ("prefix1", "staged", "recurrent_standard", "trm_style"),
}
PHASE_OF = {identifier: phase for phase, arms in PHASES.items() for identifier in arms}

PHASE_TEXT = {
    "frozen1": "The experiment as it was run, and with the decoder's own settings.",
    "frozen2": "Where next: a confined context, staged training, recurrent encoders.",
}


def _arm(identifier: str, title: str, why: str, **settings: Any) -> Experiment:
    name = f"frozen/{identifier}"
    return arm(
        name,
        title,
        why,
        phase=PHASE_OF[identifier],
        control=None if name == CONTROL else CONTROL,
        **settings,
    )


def experiments(revision: Revision) -> tuple[Experiment, ...]:
    """The documents' pair, then the additions; the same in both revisions."""
    return (
        _arm("frozen_decoder", "As it was run: exploration 0.5, 6 cycles",
             "Repeats the published run: trains, and is useless on held-out puzzles.",
             halt_exploration_prob=0.5, L_cycles=6),
        _arm("frozen_decoder_correct", "Exploration 0.1, 4 cycles (control)",
             "Better on held-out puzzles: exploration or cycles were a cause.",
             subject={"halt_exploration_prob", "L_cycles"}),
        _arm("prefix1", "Context in prefix position 0 only",
             "The decoder has never seen anything but zeros in the other 15.",
             context_positions=1),
        # All puzzles are trained on, so that a decoder of disjoint puzzles cannot be made.
        _arm("staged", "All groups: decoder frozen at first, then joint",
             "Does an encoder that starts alone find better representations?",
             max_train_groups=None, max_eval_groups=32, epochs=10_000, eval_interval=5_000,
             lr=1e-4, lr_warmup_steps=2_000, freeze_decoder_steps=2_500, decoder_puzzles="same"),
        _arm("recurrent_standard", "ETRMTRM, recurrent standard encoder",
             "Does an encoder with a state of its own do better?",
             kind="etrmtrm", recurrent_encoder_type="recurrent_standard"),
        _arm("trm_style", "ETRMTRM, TRM-style encoder",
             "The encoder as a recursion like the decoder's, 3 × 4 cycles.",
             kind="etrmtrm", recurrent_encoder_type="trm_style", encoder_l_cycles=4),
    )  # fmt: skip


def phases(revision: Revision) -> tuple[Phase, ...]:
    """frozen1, the documents' pair; frozen2, the additions."""
    return make_phases(PHASES, PHASE_TEXT, experiments(revision))


SERIES = Series(
    name="frozen",
    title="Does the encoder learn against a frozen decoder?",
    question="With a frozen decoder: do gradients reach the encoder, does it learn, does it help?",
    hypothesis="With the decoder's own exploration and cycles held-out accuracy improves.",
    decision_rule="Learns: H3, H4. Stuck: H2. Trains but useless: H7. The decoder must not drift.",
    cost="20,000 epochs of 32 groups per arm; staged: 10,000 epochs of all groups.",
    common=COMMON,
    experiments=experiments,
    phases=phases,
)
