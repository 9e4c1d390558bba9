"""What a command does once its options are understood: run a plan, and say how it went."""

from __future__ import annotations

import shlex
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console

import analysis
from etrm_tune import preflight, short
from etrm_tune.cluster import Cluster, check, connected
from etrm_tune.costs import dry_costs
from etrm_tune.division import Measure, divide, measure_here
from etrm_tune.estimate import Clock, estimate_line, show_costs
from etrm_tune.follow import names, plan_with_parent, take_results
from etrm_tune.live import LiveTable
from etrm_tune.mirror import Mirror, mirrored
from etrm_tune.onlookers import Onlookers
from etrm_tune.plan import Options, Plan, complete, packages
from etrm_tune.resources import Allotment, Machine, this_machine
from etrm_tune.retry import reopen
from etrm_tune.run_folder import FINAL, RunFolder, RunFolderError
from etrm_tune.rungs import show_rungs
from etrm_tune.session import Interrupted, Signals, login_line, quiet, ray_session
from etrm_tune.terminal import console as new_console
from etrm_tune.terminal import note, say
from trainable.errors import UserError

if TYPE_CHECKING:
    from etrm_tune.conductor import Conductor

TRAIN_FUNCTION = "trainable.loop:train"


@dataclass(frozen=True)
class How:
    """How a plan is run: nothing of this changes what is measured."""

    workers: int | None = None
    concurrent: int | None = None
    gpus_per_trial: float | None = None
    retry_failed: bool = False
    short_trials: bool | None = None
    """Fork trials instead of starting a trainer for each; None: by `etrm_tune.short`."""
    url: str | None = None
    """Where run folders are mirrored to (``--runs URL``)."""
    mirror: Mirror | None = None
    """The same, of this run."""
    address: str | None = None
    """An existing Ray cluster."""
    cluster: Cluster | None = None
    """The same, connected."""
    moved: Mapping[str, str] = field(default_factory=dict)
    """Paths of decoder and puzzles that the cluster's nodes use instead."""
    log_to: tuple[str, ...] = ()
    """Experiment trackers (`etrm_tune.trackers`)."""
    allow: tuple[str, ...] = ()
    again: tuple[str, ...] = ()
    """Words that start this command again."""
    train: str = TRAIN_FUNCTION
    reopen: tuple[str, ...] = ()
    """Ended trials that are tried again (`etrm_tune.retry`)."""
    from_start: bool = False
    """Those of `reopen` begin anew."""


@dataclass
class Prepared:
    """A plan and its share of the machine, before anything is written."""

    plan: Plan
    machine: Machine
    allotments: dict[str, Allotment]
    stored: dict[str, Any] | None = None
    notes: list[preflight.Note] = field(default_factory=list)
    sharing: dict[str, Any] = field(default_factory=dict)
    """Content of ``sharing`` in plan.json: what was measured, by role."""
    taken: dict[str, RunFolder] = field(default_factory=dict)
    """Trials whose results the run takes from its parent."""
    starts: dict[str, short.Start] = field(default_factory=dict)
    """How trials are started, by role."""

    def done(self, folder: RunFolder) -> list[str]:
        """Trials that need no training."""
        final = [
            t.trial_id
            for t in self.plan.trials
            if folder.read_status(t.trial_id)["status"] in FINAL
        ]
        return list(dict.fromkeys([*self.taken, *final]))

    @property
    def threads(self) -> dict[str, int]:
        """Threads of a worker, by role."""
        return {role: allotment.threads for role, allotment in self.allotments.items()}

    @property
    def workers(self) -> dict[str, int]:
        """Workers of a trial, by role."""
        return {role: allotment.workers for role, allotment in self.allotments.items()}


def prepare(options: Options, folder: RunFolder, how: How, files: preflight.Files) -> Prepared:
    """Make the plan, or continue the one in ``folder``, and check it. Writes nothing."""
    stored = folder.read_plan()
    machine = how.cluster.machine if how.cluster else this_machine()
    options = options.merged(stored) if stored else complete(options, gpus=machine.gpus)
    begun = {trial["trial_id"] for trial in stored["trials"]} if stored else None
    plan, taken = plan_with_parent(options, files, folder, begun)
    if stored is not None:
        check_same(plan, stored, folder)
    measure = Measure(stored, measure_here)
    allotments = divide(plan, machine, how, stored, measure=measure)
    starts = short.choose(plan, allotments, how.short_trials, stored)
    allotments = short.apply(allotments, starts)
    prepared = Prepared(
        plan, machine, allotments, stored, sharing=measure.found, taken=taken, starts=starts
    )
    prepared.plan = plan.with_threads(prepared.threads)
    allow = [*how.allow, *allowed_before(folder, options, stored)]
    prepared.notes = preflight.check_alignment(prepared.plan, files, allow)
    prepared.notes += preflight.check_decoder(prepared.plan, files, allow)
    preflight.check_disk(prepared.plan, files, folder.path)
    return prepared


def allowed_before(
    folder: RunFolder, options: Options, stored: Mapping[str, Any] | None
) -> list[str]:
    """Fields whose critical difference was accepted when the run was begun, or its parent, whose
    options it has."""
    plan = stored
    if plan is None and options.parent is not None:
        plan = RunFolder((folder.path / options.parent).resolve()).read_plan()
    return [str(one["field"]) for one in (plan or {}).get("accepted", [])]


def check_same(plan: Plan, stored: Mapping[str, Any], folder: RunFolder) -> None:
    """Raise `RunFolderError` when the trials would be others than those that were begun."""
    begun = {trial["trial_id"]: trial["identity"] for trial in stored["trials"]}
    planned = {trial.trial_id: trial.identity for trial in plan.trials}
    for trial_id in {**planned, **begun}:
        if begun.get(trial_id) != planned.get(trial_id):
            raise RunFolderError(
                f"{folder.path} was begun with another configuration, data, decoder or version of "
                f"{trial_id}: start a new run with --name NAME"
            )


def write_plan(folder: RunFolder, prepared: Prepared) -> None:
    """Write plan.json and every config.json, where they are not there yet."""
    if prepared.stored is None:
        values = prepared.plan.to_json(prepared.threads) | {"workers": prepared.workers}
        values |= {"sharing": prepared.sharing} if prepared.sharing else {}
        values |= {"starts": short.to_json(prepared.starts)}
        folder.write_plan(values | {"accepted": preflight.accepted(prepared.notes)})
    else:
        new = {"sharing": prepared.sharing, "starts": short.to_json(prepared.starts)}
        changed = {k: v for k, v in new.items() if v and v != prepared.stored.get(k, {})}
        if changed:
            folder.update_plan(**changed)
    for trial in prepared.plan.trials:
        known = folder.read_config(trial.trial_id)
        if known is None or known.get("identity") != trial.identity:
            folder.write_config(trial.trial_id, trial.config_json())


def version_changes(stored: Mapping[str, Any] | None) -> str:
    """Packages that differ from those the run was begun with, in words; empty for none."""
    before = (stored or {}).get("packages", {})
    now = packages()
    changed = [f"{n} {v} → {now.get(n)}" for n, v in before.items() if now.get(n) != v]
    return ", ".join(changed)


def run(options: Options, folder: RunFolder, how: How, *, dry_run: bool = False) -> int:
    """The whole command; returns the exit status. Raises `UserError` for what a user can fix."""
    console = new_console()
    files = preflight.Files()
    with Signals() as signals:
        try:
            if dry_run:
                with (
                    mirrored(folder, how.url, write=False),
                    connected(how.address, signals) as found,
                ):
                    prepared = prepare(options, folder, replace(how, cluster=found), files)
                show(console, prepared, files, found)
                say_taken(console, prepared)
                done = prepared.done(folder)
                costs = dry_costs(prepared.plan, prepared.allotments, done=done)
                show_costs(console, prepared.plan, costs, prepared.allotments)
                console.print("Dry run: nothing was started.")
                return 0
            with (
                folder.locked(),
                mirrored(folder, how.url) as mirror,
                connected(how.address, signals) as found,
            ):
                how = replace(how, cluster=found, mirror=mirror)
                prepared = prepare(options, folder, how, files)
                show(console, prepared, files, found)
                if found is not None:
                    workers = max(prepared.workers.values())
                    moved = check(found, prepared.plan, folder, mirror, workers)
                    how = replace(how, moved=moved)
                changed = version_changes(prepared.stored)
                if changed:
                    say(console, f"warning: the run was begun with other versions: {changed}")
                say_taken(console, prepared)
                take_results(folder, prepared.taken)
                write_plan(folder, prepared)
                for trial_id in how.reopen:
                    reopen(folder, trial_id, from_start=how.from_start)
                clock = Clock(folder, prepared.plan, prepared.allotments)
                return execute(folder, prepared.plan, prepared.allotments, signals, how, clock)
        except Interrupted as stop:
            console.print("Interrupted before any trial was started.")
            return stop.exit_code


def show(
    console: Console, prepared: Prepared, files: preflight.Files, cluster: Cluster | None = None
) -> None:
    """Print the trials, how they share the machine and start, and what deserves attention."""
    if cluster is not None:
        note(console, str(cluster))
    preflight.show(console, prepared.plan, files, prepared.allotments, prepared.notes)
    for role, start in prepared.starts.items():
        note(console, f"{role}s: {start}")


def say_taken(console: Console, prepared: Prepared) -> None:
    """Say which results come from the parent, and warn where versions differ or a control is
    missing."""
    present = {trial.config.name for trial in prepared.plan.trials}
    controls = {t.resolved.experiment.control for t in prepared.plan.trials if t.resolved}
    if missing := sorted(name for name in controls if name is not None and name not in present):
        note(
            console,
            f"warning: the control {', '.join(missing)} is not part of this run: comparisons "
            f"with it stay undecided (next RUN starts a phase with the results of the one before)",
            "yellow",
        )
    homes = {str(home.path): home for home in prepared.taken.values()}
    for path, home in homes.items():
        mine = [trial_id for trial_id, one in prepared.taken.items() if str(one.path) == path]
        note(console, f"taken from {_short(home.path)}, not trained again: {names(mine)}")
        if changed := version_changes(home.read_plan()):
            note(console, f"warning: they were trained with other versions: {changed}")


def execute(
    folder: RunFolder,
    plan: Plan,
    allotments: Mapping[str, Allotment],
    signals: Signals,
    how: How,
    clock: Clock | None = None,
) -> int:
    """Run what is not done of a plan in a locked folder, write the tables, report."""
    from etrm_tune.conductor import Conductor

    def conductor(table: LiveTable) -> Conductor:
        return Conductor(
            folder, plan, allotments, signals, table, how.retry_failed, how.train, clock=clock,
            moved=how.moved, mirror=how.mirror, trackers=how.log_to,
        )  # fmt: skip

    machine = next(iter(allotments.values())).machine
    ran, code = conduct(folder, plan, machine, signals, how, conductor)
    console = new_console()
    summarise(folder, console)
    return say_how_it_went(folder, plan, ran.statuses, how, code, console)


def conduct(
    folder: RunFolder,
    plan: Plan,
    machine: Machine,
    signals: Signals,
    how: How,
    conductor: Callable[[LiveTable], Conductor],
) -> tuple[Conductor, int]:
    """Have a conductor run what is left, in a Ray of its own or a cluster, under the live table.

    Returns the conductor and the exit code of an interruption (0 without one).
    """
    code = 0
    with quiet(folder.log) as terminal:
        console = new_console(terminal, wide=True)
        table = Onlookers(console, plan.trials, folder)
        made = conductor(table)
        try:
            if made.prepare():
                with ray_session(machine, signals, how.cluster) as url:
                    say(console, login_line(url))
                    with table:
                        try:
                            made.run()
                        except Interrupted:
                            made.interrupt()
                            raise
        except Interrupted as stop:
            code = stop.exit_code
        finally:
            signals.ignore()
    return made, code


def summarise(folder: RunFolder, console: Console) -> None:
    """Write the derived files and print the comparison and the decision.

    A failure here loses nothing that was measured, and is told in one line.
    """
    try:
        results = analysis.write_derived(folder.path)
        say(console, analysis.summary_text(results))
        show_rungs(console, results)
    except UserError as error:
        say(console, f"the tables could not be made: {error}")


def say_how_it_went(
    folder: RunFolder,
    plan: Plan,
    statuses: Mapping[str, str],
    how: How,
    code: int,
    console: Console,
) -> int:
    """One line on what is left to do, and the exit status."""
    again = shlex.join(how.again)
    failed = [t.trial_id for t in plan.trials if statuses.get(t.trial_id) == "failed"]
    left = [
        t.trial_id
        for t in plan.trials
        if statuses.get(t.trial_id) in ("pending", "interrupted", "running")
    ]
    for trial_id in failed:
        reason = folder.read_status(trial_id).get("reason", "")
        log = _short(folder.trial(trial_id) / "log")
        say(console, f"failed: {trial_id}: {reason} (log: {log})")
    for trial_id in left if not code else ():
        told = folder.read_status(trial_id)
        if told["status"] == "interrupted" and told.get("reason"):
            say(console, f"interrupted: {trial_id}: {told['reason']}")
    if code:
        text = f"Interrupted; everything measured is kept. Continue with: {again}"
    elif failed:
        retry = again if "--retry-failed" in how.again else f"{again} --retry-failed"
        text = f"{len(failed)} of {len(plan.trials)} trials failed. Retry with: {retry}"
    elif left:
        text = f"{len(left)} of {len(plan.trials)} trials are not done. Continue with: {again}"
    else:
        say(console, f"See it: etrm-tune report {shlex.quote(_short(folder.path))}")
        number = len(plan.trials)
        are = "The trial is" if number == 1 else f"All {number} trials are"
        text = f"{are} done: {_short(folder.path)}"
        if timed := estimate_line(folder.read_plan()):
            text += f" ({timed})"
    say(console, text)
    return code or (1 if failed or left else 0)


def _short(path: Path) -> str:
    try:
        return str(path.relative_to(Path.cwd()))
    except ValueError:
        return str(path)
