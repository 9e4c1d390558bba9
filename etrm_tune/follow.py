"""Runs that follow another: what they carry over, and which of its results they take.

A run with a parent lies in a folder of its own and names the parent in plan.json. Trials of the
parent that are done and have the same identity are results of the child as well: their folders are
linked file by file, so that nothing is trained twice and the child's tables hold what its
decisions compare with.
"""

from __future__ import annotations

import json
import os
import shutil
import time
from collections.abc import Iterable, Mapping, Set
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from etrm_tune.plan import Options, Plan, PlannedTrial, Sources, make_plan
from etrm_tune.run_folder import FINAL, RunFolder, RunFolderError, disk_error, write_atomic
from search_spaces import resolve_target
from trainable.errors import ConfigError

CARRIED = ("profile", "revision", "seeds", "decoder", "decoder_l_cycles", "decoder_puzzles",
           "data", "scheduler")  # fmt: skip
"""Options that a run takes over from its parent unless they are said otherwise."""

FIXED = ("profile", "revision")
"""Carried options that cannot be said otherwise: decisions do not carry over to another."""


@dataclass(frozen=True)
class Parent:
    """A finished run that another one follows."""

    folder: RunFolder
    plan: Mapping[str, Any]

    @property
    def options(self) -> Options:
        """Its options."""
        return Options.stored(self.plan)

    @property
    def inherited(self) -> tuple[str, ...]:
        """Targets whose trials a child takes where it can: the parent's own and those before."""
        return (*self.options.inherited, self.options.target)


def open_parent(path: Path | str) -> Parent:
    """A run that decisions may be read from.

    Raises `RunFolderError` when it is no run, in use, or not done.
    """
    folder = RunFolder(path)
    plan = folder.read_plan() if (folder.path / "plan.json").is_file() else None
    if plan is None:
        raise RunFolderError(f"{path} holds no run: give a folder such as runs/phase1")
    if folder.in_use():
        raise RunFolderError(
            f"{path} is in use by process {folder.holder() or 'unknown'}: its decisions stand when "
            f"it has ended"
        )
    for trial in plan["trials"]:
        status = folder.read_status(trial["trial_id"])["status"]
        if status not in (*FINAL, "failed"):
            shown = "interrupted" if status == "running" else status
            raise RunFolderError(
                f"{path} is not finished ({trial['trial_id']} is {shown}): continue it with: "
                f"{continue_command(folder, plan)}"
            )
    return Parent(folder, plan)


def continue_command(folder: RunFolder, plan: Mapping[str, Any]) -> str:
    """The command line that goes on with a run."""
    words = ["python -m etrm_tune.run", str(plan.get("target"))]
    parent = folder.path.parent
    where = os.path.relpath(parent)
    if where != "runs":
        words += ["--runs", where]
    return " ".join([*words, "--name", folder.name])


def chain(folder: RunFolder) -> list[Path]:
    """A run and those that it follows, itself first. Raises `RunFolderError` for one that is gone.

    A child holds its parent's results where identities agree; those of other settings (more
    epochs, the full data) are compared over the folders.
    """
    found = [folder.path]
    while True:
        plan = RunFolder(found[-1]).read_plan() or {}
        parent = plan.get("parent")
        if not parent:
            return found
        path = (found[-1] / str(parent)).resolve()
        if not (path / "plan.json").is_file():
            raise RunFolderError(
                f"{found[-1]} follows {path}, which is gone: restore it, its results are needed"
            )
        if path in found:
            return found
        found.append(path)


def follow_options(
    parent: Parent,
    target: str,
    overrides: Mapping[str, Any],
    typed: Options,
    folder: RunFolder,
    *,
    own: Iterable[str] = (),
) -> Options:
    """Options of a child: the parent's, then what its decision sets, then what was typed.

    `own` names settings of the decision that hold for the child alone.

    Raises `RunFolderError` when another profile or revision was typed.
    """
    theirs = parent.options
    for name in FIXED:
        said, stored = getattr(typed, name), getattr(theirs, name)
        if said is not None and said != stored:
            raise RunFolderError(
                f"{parent.folder.path} has {name} {stored}, not {said}: its decisions do not carry "
                f"over; leave --{name} out, or start {target} by itself with --name NAME"
            )
    carried = {
        name: getattr(theirs, name) if getattr(typed, name) is None else getattr(typed, name)
        for name in CARRIED
    }
    settings = {k: value for k, value in theirs.settings.items() if k not in theirs.own}
    settings |= dict(overrides) | typed.settings
    if "decoder_puzzles" in settings:
        carried["decoder_puzzles"] = settings.pop("decoder_puzzles")
    return Options(
        target,
        settings=settings,
        parent=os.path.relpath(parent.folder.path, folder.path),
        own=tuple(sorted(set(own) & set(settings) - set(typed.settings))),
        inherited=parent.inherited,
        **carried,
    )


def plan_with_parent(
    options: Options, sources: Sources, folder: RunFolder, begun: Set[str] | None = None
) -> tuple[Plan, dict[str, RunFolder]]:
    """The plan, with the parent's finished trials of equal identity in front.

    Returns the plan and which trials are taken, with the folder that holds them. `begun` are the
    trials of a run that is continued: they decide, and what they take is already there.
    """
    if options.parent is None:
        return make_plan(options, sources), {}
    wide = make_plan(replace(options, target=_together(options)), sources)
    taken: dict[str, RunFolder] = {}
    chosen = begun
    if chosen is None:
        home = RunFolder((folder.path / options.parent).resolve())
        taken = {trial_id: home for trial_id in _takable(wide, home, options)}
        asked = {e.name for e in resolve_target(options.target, revision=str(options.revision))}
        arms = [t for t in wide.trials if t.config.name in asked or t.trial_id in taken]
        needed = {t.needs for t in arms if t.trial_id not in taken}
        chosen = {t.trial_id for t in arms} | {d for d in needed if d is not None}
    before = {i for i in chosen if i in taken or "taken_from" in folder.read_status(i)}
    trials = tuple(
        replace(t, resolved=None) if t.trial_id in before else t  # was checked where it ran
        for t in wide.trials
        if t.trial_id in chosen
    )
    return replace(wide, options=options, trials=trials), taken


def _takable(wide: Plan, home: RunFolder, options: Options) -> list[str]:
    """Trials whose results in `home` may stand for the planned ones."""
    theirs = home.read_plan()
    if theirs is None:
        raise RunFolderError(f"{home.path} is gone: restore it, its results are needed")
    identities = {trial["trial_id"]: trial["identity"] for trial in theirs["trials"]}
    same_rule = Options.stored(theirs).scheduler == options.scheduler
    return [
        trial.trial_id
        for trial in wide.trials
        if identities.get(trial.trial_id) == trial.identity
        and sound(home, trial, same_rule=same_rule)
    ]


def _together(options: Options) -> str:
    """The inherited targets and the own one; without those that contradict it."""
    words = [options.target]
    for word in reversed(options.inherited):
        try:
            resolve_target(",".join([word, *words]), revision=str(options.revision))
        except ConfigError:
            continue
        words.insert(0, word)
    return ",".join(words)


def sound(home: RunFolder, trial: PlannedTrial, *, same_rule: bool) -> bool:
    """Whether a trial's result in another folder may stand for the one that is planned.

    A trial that ended by itself may; one that a stopping rule ended only under the same rule; a
    decoder only with its checkpoint.
    """
    status = home.read_status(trial.trial_id)["status"]
    if status not in FINAL or (status == "stopped" and not same_rule):
        return False
    if trial.role != "decoder":
        return True
    told = Path(str((home.read_result(trial.trial_id) or {}).get("final_checkpoint", "")))
    return (
        status == "finished" and (home.trial(trial.trial_id) / "checkpoints" / told.name).is_file()
    )


def take_results(folder: RunFolder, taken: Mapping[str, RunFolder]) -> list[str]:
    """Link the folders of taken trials into a locked run folder; returns those that were new."""
    new = []
    for trial_id, home in taken.items():
        target = folder.trial(trial_id)
        if target.exists():
            mine, theirs = folder.read_config(trial_id), home.read_config(trial_id)
            if mine is not None and theirs is not None and mine["identity"] == theirs["identity"]:
                continue
            shutil.rmtree(target)  # of a command that was killed before its plan stood
        temporary = target.with_name(f".{trial_id}.taking")
        try:
            shutil.rmtree(temporary, ignore_errors=True)
            shutil.copytree(home.trial(trial_id), temporary, copy_function=_link)
            told = home.read_status(trial_id)
            origin = told.get("taken_from") or os.path.relpath(home.path, folder.path)
            # Before it takes its place: a trial there is known to be taken, whenever a kill comes.
            write_atomic(
                temporary / "status.json",
                json.dumps(told | {"taken_from": origin, "time": time.time()}, indent=1) + "\n",
            )
            temporary.replace(target)
        except OSError as error:
            raise disk_error(target, error) from None
        new.append(trial_id)
    return new


def _link(source: str, target: str) -> str:
    """A hard link where the file system allows it, else a copy: the files do not change again."""
    try:
        os.link(source, target)
    except OSError:
        shutil.copy2(source, target)
    return target


def child_name(parent: Parent, target_name: str, kind: str, seeds: int | None) -> str:
    """Folder of the run that a step asks for: ``phase2`` after ``phase1``, with the parent's prefix
    (``big-phase1`` → ``big-phase2``)."""
    name, own = parent.folder.name, parent.options.target.strip().replace("/", "-")
    prefix = name.removesuffix(own) if name.endswith(own) else ""
    suffix = {"seeds": f"-seeds{seeds}", "extend": "-extended", "full data": "-full"}.get(kind, "")
    return f"{prefix}{target_name}{suffix}"


def names(trials: Iterable[str]) -> str:
    """``a, b, c``; the number where there are many."""
    listed = list(trials)
    return ", ".join(listed) if len(listed) <= 6 else f"{len(listed)} trials"
