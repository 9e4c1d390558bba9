"""From an experiment to one validated configuration, with the origin of every value.

Layers, later wins: defaults, reference, revision, series, experiment, command line. Then the
profile, a function of the result. A value given on the command line is meant as typed: the profile
leaves it alone.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from search_spaces.experiment import Experiment, Options, trial_id
from search_spaces.profiles import applicable, apply_profile, get_profile
from search_spaces.reference import (
    DEFAULT_REVISION,
    REFERENCE,
    check_revision,
    revision_overrides,
)
from search_spaces.registry import experiment as find_experiment
from search_spaces.registry import series as find_series
from trainable.config import TrialConfig, option_owner
from trainable.errors import ConfigError

COMMAND_LINE = "command line"
CHECKPOINT = "decoder checkpoint"

AXES = ("name", "seed", "profile", "revision")
"""Options that say which trial it is; they are arguments of `resolve`, not overrides."""

FROM_CHECKPOINT = frozenset(
    {
        "hidden_size",
        "num_heads",
        "expansion",
        "L_layers",
        "H_cycles",
        "puzzle_emb_ndim",
        "puzzle_emb_len",
        "pos_encodings",
        "rope_theta",
        "rms_norm_eps",
        "mlp_t",
        "canvas",
    }
)
"""Model options that a given decoder checkpoint decides. L_cycles is not among them: the plan sets
it, and `search_spaces.alignment` compares it with the checkpoint's."""

SHARED_WITH_DECODER = frozenset(
    {
        "hidden_size",
        "num_heads",
        "expansion",
        "L_layers",
        "H_cycles",
        "puzzle_emb_len",
        "pos_encodings",
        "rope_theta",
        "rms_norm_eps",
        "mlp_t",
        "forward_dtype",
        "float32_matmul_precision",
        "canvas",
        "source",
        "path",
        "train_subsets",
        "eval_subset",
        "max_grid_side",
        "shuffle_groups",
        "num_aug",
        "translate",
        "num_threads",
    }
)
"""Command-line options of an arm that its auto-trained decoder must share to fit."""


@dataclass(frozen=True)
class Resolved:
    """One trial's configuration and where it comes from."""

    config: TrialConfig
    provenance: Mapping[str, str] = field(hash=False)
    """For every option, in words: ``"series overfit: 256, × 1/8 by profile laptop"``."""
    experiment: Experiment
    plan: Options = field(hash=False)
    """The flat configuration before the profile."""
    origin: Mapping[str, str] = field(hash=False)
    """For every option, the layer its plan value comes from (``"reference"``, ``"overfit/E1b"``,
    ``"command line"``, …)."""
    overrides: Options = field(hash=False)
    """What the command line set."""

    @property
    def subject(self) -> frozenset[str]:
        """Options that the experiment is about."""
        return self.experiment.subject

    @property
    def trial_id(self) -> str:
        """``overfit-E1a-s0``."""
        return trial_id(self.experiment.name, self.config.seed)


def resolve(
    experiment: Experiment | str,
    *,
    revision: str = DEFAULT_REVISION,
    profile: str = "laptop",
    seed: int = 0,
    overrides: Mapping[str, Any] | None = None,
    decoder_model: Mapping[str, Any] | None = None,
) -> Resolved:
    """Resolve one experiment to a `TrialConfig`.

    `overrides` are flat options from the command line; they win over everything and are not
    rescaled. `decoder_model` is the model configuration of a given decoder checkpoint; its options
    in `FROM_CHECKPOINT` win over the profile, which then scales data and budget only.

    Raises `ConfigError` for unknown names (with the nearest right one) and values that contradict
    each other.
    """
    known = check_revision(revision)
    size = get_profile(profile)
    if isinstance(experiment, str):
        experiment = find_experiment(experiment, revision=known)
    typed = dict(overrides or {})
    given = decoder_model is not None
    from_checkpoint = {
        option: value
        for option, value in (decoder_model or {}).items()
        if option in FROM_CHECKPOINT and option not in typed
    }
    for option in typed:
        option_owner(option)
        if option in AXES:
            raise ConfigError(f"{option!r} says which trial it is: it cannot be overridden")

    plan = TrialConfig().flat()
    origin = dict.fromkeys(plan, "default")
    for layer, options in (
        ("reference", REFERENCE),
        (f"revision {known}", revision_overrides(known)),
        (f"series {experiment.series}", find_series(experiment.series).common),
        (experiment.name, experiment.overrides),
        (COMMAND_LINE, typed),
    ):
        plan |= options
        origin |= dict.fromkeys(options, layer)
    plan |= {"name": experiment.name, "seed": seed, "profile": size.name, "revision": known}
    origin |= dict.fromkeys(AXES, "target")

    pinned = frozenset(typed)
    flat = apply_profile(plan, size.name, experiment, pinned=pinned, given_decoder=given)
    flat |= from_checkpoint

    provenance = {option: origin[option] for option in plan}
    for factor in applicable(plan, size.name, experiment, pinned=pinned, given_decoder=given):
        was = plan[factor.option]
        if flat[factor.option] != was:
            provenance[factor.option] = (
                f"{origin[factor.option]}: {was}, {factor.rule} by profile {size.name}"
            )
    if experiment.series == "decoder":
        for option in size.decoder:
            if option not in pinned:
                provenance[option] = f"profile {size.name}, decoder recipe"
    scaled = {factor.option for factor in size.factors}
    for option in pinned & scaled:
        provenance[option] = f"{COMMAND_LINE} (not scaled by profile {size.name})"
    provenance |= dict.fromkeys(from_checkpoint, CHECKPOINT)
    width_set = pinned | from_checkpoint.keys()
    if "hidden_size" in width_set and "puzzle_emb_ndim" not in width_set:
        flat["puzzle_emb_ndim"] = flat["hidden_size"]
        provenance["puzzle_emb_ndim"] = "follows hidden_size"

    return Resolved(
        config=TrialConfig().replace(**flat),
        provenance=provenance,
        experiment=experiment,
        plan=plan,
        origin=origin,
        overrides=typed,
    )


def resolve_all(
    experiments: Iterable[Experiment],
    *,
    revision: str = DEFAULT_REVISION,
    profile: str = "laptop",
    seeds: int | Sequence[int] = 1,
    overrides: Mapping[str, Any] | None = None,
    decoder_model: Mapping[str, Any] | None = None,
) -> list[Resolved]:
    """Experiments × seeds, seed by seed, so that the first seed's answers come first.

    `seeds` is a number (0 … n-1) or the seeds themselves.
    """
    axis = range(seeds) if isinstance(seeds, int) else seeds
    if not len(axis):
        raise ConfigError("no seeds: give --seeds 1 or more")
    arms = list(experiments)
    return [
        resolve(
            arm,
            revision=revision,
            profile=profile,
            seed=seed,
            overrides=overrides,
            decoder_model=decoder_model,
        )
        for seed in axis
        for arm in arms
    ]


def resolve_decoder(arm: Resolved, *, overrides: Mapping[str, Any] | None = None) -> Resolved:
    """The decoder recipe for a pretrained arm: same sizes, data and seed, its own budget.

    ``decoder_puzzles = "disjoint"`` (default) leaves out the groups that the arm trains on;
    ``"same"`` trains on exactly those. `overrides` are for the recipe itself (its epochs, say).

    Raises `ConfigError` when the arm trains on every group, so that none is left.
    """
    config = arm.config
    shared = {o: v for o, v in arm.overrides.items() if o in SHARED_WITH_DECODER}
    groups: dict[str, Any]
    if config.decoder_puzzles == "same":
        groups = {
            "skip_train_groups": config.data.skip_train_groups,
            "max_train_groups": config.data.max_train_groups,
        }
    elif config.data.max_train_groups is None:
        raise ConfigError(
            f"{config.name} trains on every group, so no puzzle is left for its decoder: "
            f"give a checkpoint with --decoder PATH, or set decoder_puzzles=same"
        )
    else:
        groups = {"skip_train_groups": config.data.skip_train_groups + config.data.max_train_groups}
    return resolve(
        "decoder/trm",
        revision=config.revision,
        profile=config.profile,
        seed=config.seed,
        overrides=shared
        | groups
        | {"decoder_puzzles": config.decoder_puzzles}
        | dict(overrides or {}),
    )
