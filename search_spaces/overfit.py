"""Series `overfit`: can ETRM learn 32 puzzles by heart, and what does that take?

Question.       With re-encoding at every ACT step (the cure of the gradient starvation that cached
                encoding suffered), which encoders reach 90 % train accuracy on 32 groups? What do
                exploration, halting, the pretrained decoder, rate and batch size contribute?
Hypothesis.     The standard encoder does (86 % at step 240, rising); the deeper and variational
                encoders, stuck at 50.6 % and 51.5 % with cached encoding, now learn too.
Decision rule.  E1a above 90 % validates the baseline; a deeper encoder above 92 % is worth scaling;
                a variational one below 80 % is dropped. `search_spaces.rules` holds every rule.
Cost.           20,000 epochs of 32 groups: 2,500 steps at batch 256, 5,000 at 128, times the mean
                number of queries per puzzle. Four arms in phase 1.
"""

from __future__ import annotations

from typing import Any

from search_spaces.common import STANDARD, arm, deep_encoder, make_phases
from search_spaces.experiment import Experiment, Phase, Revision, Series

COMMON: dict[str, Any] = {
    **STANDARD,
    "encode_mode": "reencode",
    "pretrained_decoder": True,
    "epochs": 20_000,
    "eval_interval": 1_000,  # epochs; the document says "steps" with the same number
    "grad_clip_norm": 1.0,
}

CONTROL = "overfit/E1a"
CONTROLS: dict[str, str | None] = {"E1a": None, "E4b": "overfit/E4a"}
"""Comparison partners other than E1a."""
REPEATS = ("E3c", "E5a_baseline", "E5b_baseline")

PHASES = {
    "phase1": ("E1a", "E2a", "E2b", "E2c"),
    "phase2": ("E1b", "E1c", "E3a", "E3b", "E1e"),
    "phase3": ("E4a", "E2d", "E5a_low", "E5a_high"),
    "sensitivity": (
        "E1d",
        "E3c",
        "E4b",
        "E5a_baseline",
        "E5b_small",
        "E5b_baseline",
        "E5b_large",
        "E2e_prefix1",
    ),
}
PHASE_OF = {identifier: phase for phase, arms in PHASES.items() for identifier in arms}

PHASE_TEXT = {
    "phase1": "Validate the baseline and retest the encoders that failed with cached encoding.",
    "phase2": "Understand halting: exploration and the maximal number of ACT steps.",
    "phase3": "Check robustness: no pretrained decoder, a deeper standard encoder, other rates.",
    "sensitivity": "Arms that the document lists in no phase: exploration 0.7, exact repeats of "
    "the control, from scratch with more layers, batch sizes, a context of one position.",
}


def _arm(identifier: str, title: str, why: str, **settings: Any) -> Experiment:
    return arm(
        f"overfit/{identifier}",
        title,
        why,
        phase=PHASE_OF[identifier],
        control=CONTROLS.get(identifier, CONTROL),
        repeats=CONTROL if identifier in REPEATS else None,
        **settings,
    )


def experiments(revision: Revision) -> tuple[Experiment, ...]:
    """All arms of the series in the document's order. E1e exists in revision 2026-01-21 only."""
    arms = [
        _arm("E1a", "Standard encoder (control)", "Validate the baseline.",
             subject={"halt_exploration_prob"}),
        _arm("E1b", "Exploration 0.3", "Does the Q-head learn better with this exploration?",
             halt_exploration_prob=0.3),
        _arm("E1c", "No exploration", "Pure Q-head learning; may be harder at first.",
             halt_exploration_prob=0.0),
        _arm("E1d", "Exploration 0.7", "A more diverse training signal.",
             halt_exploration_prob=0.7),
    ]  # fmt: skip
    if revision == "2026-01-21":
        arms.append(
            _arm("E1e", "Exploration 0.5 (the control as first written)",
                 "Keeps the first reading's control measured beside the new one.",
                 halt_exploration_prob=0.5)
        )  # fmt: skip
    arms += [
        _arm("E2a", "Hybrid variational encoder",
             "Is VAE regularization compatible? Was 50.6 % with cached encoding.",
             **deep_encoder("hybrid_variational", layers=4, set_layers=2)),
        _arm("E2b", "LPN variational encoder",
             "Does a deep LPN encoder learn? Was 51.5 % with cached encoding.",
             **deep_encoder("lpn_variational", layers=6, set_layers=3)),
        _arm("E2c", "Hybrid standard encoder",
             "Depth without a VAE: matches or beats E2a if the VAE is not needed.",
             **deep_encoder("hybrid_standard", layers=4, set_layers=2)),
        _arm("E2d", "Standard encoder, 4 layers", "Does simple scaling help?",
             encoder_num_layers=4),
        _arm("E2e_prefix1", "Context in prefix position 0 only",
             "A TRM's decoder has never seen anything but zeros in the other 15.",
             context_positions=1),
        _arm("E3a", "At most 8 ACT steps", "Fewer steps force efficiency.", halt_max_steps=8),
        _arm("E3b", "At most 32 ACT steps", "More steps allow complexity.", halt_max_steps=32),
        _arm("E3c", "At most 16 ACT steps (repeats E1a)", "The partner of E3a and E3b.",
             halt_max_steps=16),
        _arm("E4a", "From scratch", "Is the pretrained decoder doing all the work?",
             pretrained_decoder=False),
        _arm("E4b", "From scratch, 4 layers", "Does capacity help when learning from scratch?",
             pretrained_decoder=False, encoder_num_layers=4),
        _arm("E5a_low", "Rate 5e-5", "Half of the rate.", lr=5e-5),
        _arm("E5a_baseline", "Rate 1e-4 (repeats E1a)", "The partner of the rates.", lr=1e-4),
        _arm("E5a_high", "Rate 2e-4", "Twice the rate.", lr=2e-4),
        _arm("E5b_small", "Batch 128", "Smaller, more frequent updates.", global_batch_size=128),
        _arm("E5b_baseline", "Batch 256 (repeats E1a)", "The partner of the batch sizes.",
             global_batch_size=256),
        _arm("E5b_large", "Batch 512", "Larger batches, more stable gradients.",
             global_batch_size=512),
    ]  # fmt: skip
    return tuple(arms)


def phases(revision: Revision) -> tuple[Phase, ...]:
    """phase1 … phase3 of the document, and `sensitivity` with the arms that are in none of them."""
    return make_phases(PHASES, PHASE_TEXT, experiments(revision))


SERIES = Series(
    name="overfit",
    title="More than 90 % train accuracy on 32 groups",
    question="Which encoders, halting settings and rates let ETRM learn 32 puzzles by heart?",
    hypothesis="With re-encoding the standard encoder reaches 90 %, and the deeper ones learn too.",
    decision_rule="E1a > 90 % validates the baseline; E2* > 92 % is scaled; E2a, E2b < 80 % are "
    "dropped; E4a > 90 % shows that the decoder is not doing all the work.",
    cost="20,000 epochs of 32 groups per arm: about 2,500 steps at batch 256, 5,000 at 128.",
    common=COMMON,
    experiments=experiments,
    phases=phases,
)
