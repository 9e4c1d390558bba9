"""``next`` and ``followup``: the decisions of a finished run become runs of their own."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from rich.console import Console

import analysis
from analysis import NextStep
from analysis.recommend import Recommendation, recommend
from etrm_tune.follow import Parent, chain, child_name, follow_options, open_parent
from etrm_tune.plan import Options
from etrm_tune.run_folder import RunFolder, RunFolderError
from etrm_tune.terminal import console as new_console
from etrm_tune.terminal import say

if TYPE_CHECKING:
    from etrm_tune.command import How

Run = Callable[..., int]
"""`etrm_tune.command.run`."""


@dataclass(frozen=True)
class Asked:
    """What was typed beside the command word."""

    typed: Options
    """Options; the target is not used."""
    how: How
    runs: Path
    """Where run folders lie, for those that are not children of another folder's run."""
    name: str | None = None
    dry_run: bool = False


def read(folder: RunFolder) -> analysis.Run:
    """A run together with those that it follows, itself first."""
    return analysis.load(chain(folder))


def wanted(parent: Parent, found: Recommendation) -> tuple[NextStep, list[NextStep]]:
    """The step that a person's ``next`` takes, and the other ones. A default branch is not taken.

    Raises `RunFolderError` when the decisions ask for nothing, for this very run, or for nothing
    but a default branch.
    """
    steps, why, path = found.steps, found.why, parent.folder.path
    chosen = next((step for step in steps if not step.default), None)
    if chosen is None and steps:
        raise RunFolderError(
            f"{path}: {why}; nothing is decided, so nothing is started. The default branch "
            f"(keep the control) is: {steps[0].command}"
        )
    if chosen is None:
        raise RunFolderError(f"{path}: {why}; nothing to start")
    if chosen.kind == "continue":
        raise RunFolderError(f"{path}: {chosen.why}: {chosen.command}")
    return chosen, [step for step in steps if step is not chosen]


def child_of(parent: Parent, step: NextStep, asked: Asked, name: str | None = None) -> RunFolder:
    """The folder of the run that a step asks for, beside its parent.

    Raises `RunFolderError` when a run of another parent lies there.
    """
    from etrm_tune.cli import folder_name

    called = name or child_name(parent, folder_name(step.target), step.kind, step.seeds)
    folder = RunFolder(parent.folder.path.parent / called)
    if folder.path == parent.folder.path:
        raise RunFolderError(f"--name {called} is the run that is followed: give another name")
    plan = folder.read_plan() if folder.path.exists() else None
    if plan is None:
        return folder
    theirs = plan.get("parent")
    if theirs is None or (folder.path / str(theirs)).resolve() != parent.folder.path:
        follows = f"follows {theirs}" if theirs else "follows no other run"
        raise RunFolderError(
            f"{folder.path} exists and {follows}: give the new run another folder with --name NAME"
        )
    return folder


def start(
    console: Console, parent: Parent, step: NextStep, asked: Asked, run: Run, folder: RunFolder
) -> int:
    """Start a step as a run of its own, or continue it; returns the exit status."""
    say(console, f"{parent.folder.name} → {folder.name}: {step.target}: {step.why}")
    typed = asked.typed
    if step.seeds is not None and typed.seeds is None:
        typed = replace(typed, seeds=step.seeds)
    own = step.overrides if step.kind == "extend" else ()
    options = follow_options(parent, step.target, step.overrides, typed, folder, own=own)
    if folder.path.exists() and folder.read_plan() is not None:
        options = replace(asked.typed, target=step.target)  # its plan knows the rest
    return run(options, folder, asked.how, dry_run=asked.dry_run)


def next_run(path: str, asked: Asked, run: Run) -> int:
    """``next RUN``."""
    console = new_console()
    parent = open_parent(path)
    refuse_other(parent, asked.typed)
    results = read(parent.folder)
    decisions = analysis.decide(results)
    for flag in [decision for decision in decisions if decision.raised]:
        say_flag(console, flag)
    step, others = wanted(parent, recommend(results, decisions))
    if step.kind == "full data":
        return followup_run(path, asked, run)
    for other in others:
        say(console, f"  also possible: {other.command} ({other.why})")
    return start(console, parent, step, asked, run, child_of(parent, step, asked, asked.name))


def followup_run(path: str, asked: Asked, run: Run) -> int:
    """``followup RUN``: the selected configurations on the full data set, one run each."""
    console = new_console()
    parent = open_parent(path)
    refuse_other(parent, asked.typed)
    steps = analysis.followup(read(parent.folder))
    if not steps:
        raise RunFolderError(
            f"{parent.folder.path}: no arm above the threshold of the selection (> 90 % train "
            f"accuracy, every seed): nothing to follow up on the full data"
        )
    if asked.name is not None and len(steps) > 1:
        raise RunFolderError(
            f"--name {asked.name}: {len(steps)} configurations are followed up, each in a folder "
            f"of its own: leave --name out"
        )
    code = 0
    for step in steps:
        folder = child_of(parent, step, asked, asked.name)
        code = start(console, parent, step, asked, run, folder) or code
        if code >= 128:  # interrupted
            break
    return code


def refuse_other(parent: Parent, typed: Options) -> None:
    """Raise `RunFolderError` for another profile or revision than the run's."""
    follow_options(parent, "the step", {}, typed, parent.folder)


def say_flag(console: Console, flag: analysis.Decision) -> None:
    """A raised red flag and what to check."""
    say(console, f"{flag.name}: {flag.text}", "red")
    for check in flag.checks:
        say(console, f"  check: {check}")


def reasons(decisions: Sequence[analysis.Decision]) -> list[str]:
    """Decided answers in short: ``E1a: standard encoder validated``."""
    return [f"{d.name}: {d.verdict}" for d in decisions if d.decided and d.kind != "scenario"]
