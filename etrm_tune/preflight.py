"""Everything that can be known before compute is spent is checked here."""

from __future__ import annotations

import functools
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from etrm_tune.plan import Plan, PlannedTrial
from etrm_tune.resources import Allotment
from etrm_tune.run_folder import check_writable
from etrm_tune.terminal import note
from search_spaces.alignment import Finding, align, critical
from trainable.config import TrialConfig
from trainable.errors import CheckpointError, ConfigError

Note = tuple[str, Finding]
"""A trial's id, and what deserves attention in its configuration."""

SPARE_BYTES = 100_000_000
"""Room for rows, events, tables and logs of a run."""


ALIGNED_WITH_DECODER = ("L_cycles", "canvas")
"""What `search_spaces.alignment` compares with the decoder's already."""


@dataclass(frozen=True)
class DataFacts:
    """What the plan needs to know of a configuration's puzzles."""

    data_hash: str
    train_groups: int
    eval_groups: int
    mean_queries: float


class Files:
    """`etrm_tune.plan.Sources` over the real files; each is read once."""

    def facts(self, config: TrialConfig) -> DataFacts:
        """Read the puzzles. Raises `DataError` for a missing or malformed file."""
        # Augmentations do not change which puzzles are used, and take time to draw.
        data = config.data.model_copy(update={"num_aug": 0, "eval_num_aug": 0})
        return self._facts(data.model_dump_json(), config.model.kind)

    @functools.cache  # noqa: B019 - one per command, as is the object
    def _facts(self, data: str, kind: str) -> DataFacts:
        from trainable.data import ArcData

        plain = TrialConfig.model_validate({"data": json.loads(data), "model": {"kind": "etrm"}})
        found = ArcData(plain.data, kind=kind)  # type: ignore[arg-type]
        return DataFacts(
            found.data_hash, len(found.train_groups), len(found.eval_groups), found.mean_queries
        )

    def data_hash(self, config: TrialConfig) -> str:
        """Hash of the puzzles that a configuration uses, and of their roles."""
        return self.facts(config).data_hash

    def decoder_options(self, path: Path) -> Mapping[str, Any]:
        """Model options that a checkpoint decides."""
        from trainable.decoder import decoder_options

        return decoder_options(path)

    def decoder_reference(self, path: Path) -> str:
        """Content hash of a checkpoint file."""
        from trainable.decoder import decoder_reference

        return decoder_reference(path)


def total_steps(config: TrialConfig, facts: DataFacts) -> int:
    """Optimizer steps of a trial, as `trainable.loop.total_steps` counts them."""
    rows = config.epochs * facts.train_groups * facts.mean_queries
    return max(1, int(rows / config.global_batch_size))


def checkpoint_bytes(config: TrialConfig, facts: DataFacts) -> int:
    """Estimated size of one checkpoint: weights, EMA and two moments in float32."""
    model = config.model
    layers = model.L_layers
    if model.kind != "trm":
        layers += model.encoder_num_layers + 2 * model.encoder_set_layers
    width = model.hidden_size
    weights = layers * (4 + 3 * model.expansion) * width**2 + 4 * model.vocab_size * width
    if model.kind == "trm":
        groups = facts.train_groups + facts.eval_groups
        weights += groups * (config.data.num_aug + 1) * model.puzzle_emb_ndim / 4
    return int(16 * weights)


def check_alignment(plan: Plan, files: Files, allow: Sequence[str]) -> list[Note]:
    """Compare every trial with the reference; returns warnings (and what was allowed).

    Raises `ConfigError` for a critical difference that is not allowed.
    """
    given = plan.options.decoder
    known = dict(files.decoder_options(Path(given))) if given else {}
    known.setdefault("L_cycles", plan.options.decoder_l_cycles)
    recipes = {t.trial_id: t.config.model for t in plan.trials if t.role == "decoder"}
    notes = []
    for trial in plan.trials:
        if trial.resolved is None:
            continue
        cycles: int | None
        canvas: str | None
        if trial.needs is not None:
            cycles, canvas = recipes[trial.needs].L_cycles, str(recipes[trial.needs].canvas)
        else:
            cycles, canvas = known["L_cycles"], known.get("canvas")
        steps = total_steps(trial.config, files.facts(trial.config))
        findings = align(
            trial.resolved, decoder_l_cycles=cycles, decoder_canvas=canvas, total_steps=steps
        )
        for finding in critical(findings, allowed=allow):
            raise ConfigError(
                f"{trial.trial_id}: {finding.option} is {finding.value}: {finding.why} "
                f"(or accept it with --allow {finding.option})"
            )
        notes += [(trial.trial_id, f) for f in findings if f.level in ("warning", "critical")]
    return notes


def check_decoder(plan: Plan, files: Files, allow: Sequence[str]) -> list[Note]:
    """Raise `CheckpointError` when a given decoder does not fit a trial; returns what was allowed
    beside what `align` compares."""
    from trainable.decoder import decoder_problem

    notes = []
    for trial in plan.trials:
        path = trial.config.decoder
        if path is None:
            continue
        theirs = files.decoder_options(Path(path))
        ignored = {option: theirs[option] for option in allow if option in theirs}
        model = trial.config.model.model_copy(update=ignored)
        problem = decoder_problem(path, model, l_cycles=plan.options.decoder_l_cycles)
        if problem is not None:
            raise CheckpointError(problem)
        for option, given in ignored.items():
            mine = trial.config.get(option)
            if mine != given and option not in ALIGNED_WITH_DECODER:
                why = f"the decoder was trained with {given}"
                notes.append((trial.trial_id, Finding(option, given, mine, "critical", why)))
    return notes


def accepted(notes: Sequence[Note]) -> list[dict[str, Any]]:
    """Critical differences that were accepted by name, for plan.json: field, value, reference, why,
    and the trials that have them."""
    found: dict[str, dict[str, Any]] = {}
    for trial_id, one in notes:
        if one.level == "critical":
            values = {
                "field": one.option, "value": one.value, "reference": one.reference, "why": one.why
            }  # fmt: skip
            found.setdefault(repr(values), values | {"trials": []})["trials"].append(trial_id)
    return list(found.values())


def check_disk(plan: Plan, files: Files, folder: Path) -> None:
    """Raise `RunFolderError` when the checkpoints would not fit, or nothing can be written."""
    needed = SPARE_BYTES
    for trial in plan.trials:
        kept = trial.config.keep_checkpoints + 1
        needed += kept * checkpoint_bytes(trial.config, files.facts(trial.config))
    check_writable(folder, needed)


def show(
    console: Console,
    plan: Plan,
    files: Files,
    allotments: Mapping[str, Allotment],
    notes: Sequence[Note],
) -> None:
    """Print the trials, how they share the machine, and what deserves attention."""
    options = plan.options
    console.print(
        f"{options.target}: profile {options.profile}, revision {options.revision}, "
        f"{options.seeds} seed{'s' if (options.seeds or 1) > 1 else ''}, "
        f"stopping rule {options.scheduler}"
    )
    for role, allotment in allotments.items():
        note(console, f"{role}s: {allotment}")
    table = Table(box=None, pad_edge=False)
    table.add_column("  trial", no_wrap=True)
    for name in ("puzzles", "epochs", "steps", "batch"):
        table.add_column(name, justify="right", no_wrap=True)
    table.add_column("what")
    for trial in plan.trials:
        facts = files.facts(trial.config)
        table.add_row(
            f"  {trial.trial_id}",
            str(facts.train_groups),
            f"{trial.config.epochs:g}",
            str(total_steps(trial.config, facts)),
            str(trial.config.global_batch_size),
            _title(trial),
        )
    console.print(table)
    if options.profile != "paper":
        note(
            console,
            f"scaled by profile {options.profile}: numbers are not those of the published sizes",
        )
    for (option, level, why), ids in _grouped(notes).items():
        arms = "all trials" if len(ids) == len(plan.trials) else ", ".join(ids)
        word = "allowed in spite of a critical difference" if level == "critical" else level
        note(console, f"{word}: {option}: {why} ({arms})", "yellow")


def _title(trial: PlannedTrial) -> str:
    return trial.resolved.experiment.title if trial.resolved is not None else trial.config.name


def _grouped(notes: Sequence[Note]) -> dict[tuple[str, str, str], list[str]]:
    groups: dict[tuple[str, str, str], list[str]] = {}
    for trial_id, finding in notes:
        groups.setdefault((finding.option, finding.level, finding.why), []).append(trial_id)
    return groups
