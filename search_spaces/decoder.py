"""Series `decoder`: the TRM that pretrained arms start from when no checkpoint is given.

Question.       None of its own: the plan takes a pretrained decoder for granted, and a machine
                without the published checkpoint has to make one.
Hypothesis.     A TRM trained with its puzzle embeddings on other puzzles gives the arms a decoder
                that already computes on grids.
Decision rule.  None. Its train accuracy stands beside the results, since a poor decoder is a reason
                for poor arms.
Cost.           One run per seed, shared by all arms of that seed; the published recipe is 100,000
                epochs of all groups at batch 768. Profiles give it a budget of its own.

It runs the ordinary carried ACT loop (`encode_mode` does not apply to a TRM) with the published
exploration 0.1 and L_cycles 4 in both revisions, on puzzles that its arms neither train nor
evaluate on (`search_spaces.resolve.resolve_decoder` leaves theirs out).
"""

from __future__ import annotations

from typing import Any

from search_spaces.experiment import Experiment, Phase, Revision, Series

COMMON: dict[str, Any] = {
    "kind": "trm",
    "pretrained_decoder": False,
    "halt_exploration_prob": 0.1,
    "L_cycles": 4,
    "grad_clip_norm": 0.0,
    "train_subsets": ("training", "concept"),
    "eval_subset": "evaluation",
    "skip_train_groups": 32,
    "max_train_groups": None,
    "max_eval_groups": 0,
}

TRM = Experiment(
    name="decoder/trm",
    title="TRM decoder recipe",
    why="The decoder of the pretrained arms, trained on puzzles disjoint from theirs.",
    subject=frozenset({"kind"}),
)


def experiments(revision: Revision) -> tuple[Experiment, ...]:
    """The recipe, the same in every revision."""
    return (TRM,)


def phases(revision: Revision) -> tuple[Phase, ...]:
    """None: the decoder is a stage of the plans that need it."""
    return ()


SERIES = Series(
    name="decoder",
    title="The decoder that pretrained arms start from",
    question="none: the plan takes a pretrained decoder for granted",
    hypothesis="A TRM trained on other puzzles gives a decoder that already computes on grids.",
    decision_rule="none; its accuracy is reported beside the arms",
    cost="one run per seed, shared by the arms of that seed",
    common=COMMON,
    experiments=experiments,
    phases=phases,
    role="decoder",
)
