"""Series `act`: the original training mode of TRM against online learning, for an encoder.

Question.       Should an encoder be trained as the TRM is (`cached`: encoded once when a sample
                starts, halting by the Q-head), or online (`online`: a fixed number of ACT steps per
                batch, each with an update)? Which exploration, how many steps, which encoder?
Hypothesis.     Online learning converges faster, having a gradient of the encoder at every step;
                the original mode's Q-head learns when to stop.
Decision rule.  O1 and L1 first: convergence speed, final accuracy, q_halt_accuracy. Then the
                settings of the better side (O2, O3 or L2, L3). Then the encoders E1 to E3 in the
                winner's mode with its best setting.
                Original mode is validated by q_halt_accuracy above 80 %, steps stuck neither at 1
                nor at the maximum, and accuracy comparable or better; online mode by fewer epochs
                to the same accuracy, or a higher final one.
Cost.           20,000 epochs of 32 groups per arm, 2,500 batches at 256 (5,000 at 128) times the
                mean number of queries; an online batch costs 4, 8 or 16 steps.

The exploration of O1 to O3 is their subject and the same in both revisions. E1 to E3 wait for a
decision: their mode is that of O1 until a run has decided (the section says original mode; the
document's tree, which wins, says the winner's), and `act3@L2`, or `act/E1@L2`, gives them the mode
of L2. L2 and L3 have 8 and 16 steps (ours; the document says "more").
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from search_spaces.common import STANDARD, arm, deep_encoder, make_phases
from search_spaces.experiment import Experiment, Options, Phase, Revision, Series
from trainable.errors import ConfigError, nearest

COMMON: dict[str, Any] = {
    **STANDARD,
    "pretrained_decoder": True,
    "epochs": 20_000,
    "eval_interval": 5_000,  # epochs; the document says "steps" with the same number
    "grad_clip_norm": 1.0,
}

MODES: dict[str, Options] = {
    "O1": {"encode_mode": "cached", "halt_exploration_prob": 0.5},
    "O2": {"encode_mode": "cached", "halt_exploration_prob": 0.3},
    "O3": {"encode_mode": "cached", "halt_exploration_prob": 0.7},
    "L1": {"encode_mode": "online", "num_act_steps": 4},
    "L2": {"encode_mode": "online", "num_act_steps": 8},
    "L3": {"encode_mode": "online", "num_act_steps": 16},
}
"""What can win: mode and setting by experiment ID."""
DEFAULT_WINNER = "O1"

CONTROLS: dict[str, str | None] = {
    "O1": None,
    "O2": "act/O1",
    "O3": "act/O1",
    "L1": "act/O1",
    "L2": "act/L1",
    "L3": "act/L1",
}

PHASES = {
    "act1": ("O1", "L1"),
    "act2_cached": ("O2", "O3"),
    "act2_online": ("L2", "L3"),
    "act3": ("E1", "E2", "E3"),
}
PHASE_OF = {identifier: phase for phase, arms in PHASES.items() for identifier in arms}

PHASE_TEXT = {
    "act1": "Original mode against online learning.",
    "act2_cached": "If O1 is better: exploration.",
    "act2_online": "If L1 is better: more ACT steps per batch.",
    "act3": "Encoders in the winner's mode: act3@L2 takes that of L2 (default: O1).",
}


def settings_of(winner: str) -> Options:
    """Mode and setting that an experiment of `MODES` stands for: ``settings_of("L2")``.

    The full name is accepted too. Raises `ConfigError` for another one, naming the nearest.
    """
    identifier = winner.removeprefix("act/")
    if identifier not in MODES:
        raise ConfigError(
            f"{winner!r} cannot decide the mode of act/E1 to act/E3{nearest(identifier, MODES)}: "
            f"choose from {', '.join(MODES)}"
        )
    return MODES[identifier]


def winner_of(options: Mapping[str, Any]) -> str | None:
    """The ID whose mode and setting a flat configuration has; None if it is none of `MODES`.

    >>> winner_of({"encode_mode": "online", "num_act_steps": 8, "halt_exploration_prob": 0.1})
    'L2'
    """
    for identifier, settings in MODES.items():
        if all(options.get(option) == value for option, value in settings.items()):
            return identifier
    return None


def _mode(identifier: str, title: str, why: str) -> Experiment:
    return arm(
        f"act/{identifier}",
        title,
        why,
        phase=PHASE_OF[identifier],
        control=CONTROLS[identifier],
        **MODES[identifier],
    )


def encoders(winner: str = DEFAULT_WINNER) -> tuple[Experiment, ...]:
    """E1 to E3 in the mode of `winner`, which is also their control.

    Raises `ConfigError` for an ID that cannot win.
    """
    mode = settings_of(winner)
    control = f"act/{winner.removeprefix('act/')}"

    def one(identifier: str, title: str, why: str, encoder: dict[str, Any]) -> Experiment:
        return arm(
            f"act/{identifier}",
            title,
            why,
            phase=PHASE_OF[identifier],
            control=control,
            decided=mode.keys(),
            **encoder,
            **mode,
        )

    return (
        one("E1", "Hybrid standard encoder", "Does depth help in this mode?",
            deep_encoder("hybrid_standard", layers=4, set_layers=2)),
        one("E2", "Hybrid variational encoder",
            "Does a smoother representation help halting?",
            deep_encoder("hybrid_variational", layers=4, set_layers=2)),
        # Batch 128 by analogy (ours); depth and set layers as overfit/E2b.
        one("E3", "LPN variational encoder", "Was made for program synthesis.",
            deep_encoder("lpn_variational", layers=6, set_layers=3)),
    )  # fmt: skip


def experiments(revision: Revision) -> tuple[Experiment, ...]:
    """All arms; E1 to E3 in the default winner's mode. The same in both revisions."""
    return (
        _mode("O1", "Original mode, exploration 0.5 (control)",
              "Do the TRM's own dynamics train an encoder?"),
        _mode("O2", "Original mode, exploration 0.3",
              "Less random halting: does the Q-head decide better?"),
        _mode("O3", "Original mode, exploration 0.7",
              "More random halting: more steps seen, more robust?"),
        _mode("L1", "Online, 4 ACT steps",
              "A gradient of the encoder at every step: faster, better?"),
        _mode("L2", "Online, 8 ACT steps", "Do more steps per batch help?"),
        _mode("L3", "Online, 16 ACT steps", "As many steps as in evaluation."),
        *encoders(),
    )  # fmt: skip


def after(revision: Revision, winner: str) -> tuple[Experiment, ...]:
    """E1 to E3 as `winner` settles them. Raises `ConfigError` for an ID that cannot win."""
    return encoders(winner)


def phases(revision: Revision) -> tuple[Phase, ...]:
    """act1, then one of act2_cached and act2_online, then act3."""
    return make_phases(PHASES, PHASE_TEXT, experiments(revision))


SERIES = Series(
    name="act",
    title="Original training mode against online learning",
    question="Which mode trains an encoder better, and which encoder does best in it?",
    hypothesis="Online converges faster; the original mode's Q-head learns when to stop.",
    decision_rule="O1 against L1 by convergence, final accuracy, q_halt_accuracy; then the better "
    "side's settings; then E1 to E3 in the winner's mode.",
    cost="20,000 epochs of 32 groups per arm; an online batch costs 4, 8 or 16 steps.",
    common=COMMON,
    experiments=experiments,
    phases=phases,
    after=after,
)
