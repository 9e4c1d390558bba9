"""What ``search`` does: plan the known points, run them, and grow the plan as slots free up."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

from rich.console import Console

from etrm_tune import preflight
from etrm_tune.command import (
    How,
    Prepared,
    divide,
    say_how_it_went,
    summarise,
    version_changes,
    write_plan,
)
from etrm_tune.costs import dry_costs
from etrm_tune.estimate import Clock, show_costs
from etrm_tune.live import LiveTable
from etrm_tune.plan import Options, Plan, PlannedTrial, complete
from etrm_tune.resources import this_machine
from etrm_tune.run_folder import RunFolder, RunFolderError
from etrm_tune.search import Search, SearchOptions, check_searched
from etrm_tune.search_report import report
from etrm_tune.session import Interrupted, Signals, login_line, quiet, ray_session
from etrm_tune.terminal import console as new_console
from etrm_tune.terminal import note, say
from search_spaces.schedulers import search_rule
from search_spaces.stopping import StoppingRule
from trainable.ray_adapter import ACCURACY

DEFAULT_SCHEDULER = "asha"


class SearchClock(Clock):
    """Keeps the sessions; how long a search takes is not known from its first points."""

    def see(self, trial_id: str, row: Mapping[str, object]) -> None:
        """Nothing is estimated."""


def prepare(
    typed: Options, asked: SearchOptions, folder: RunFolder, how: How, files: preflight.Files
) -> tuple[Prepared, Search]:
    """Make a search, or continue the one in ``folder``, and check it. Writes nothing."""
    stored = folder.read_plan()
    if stored is not None and "search" not in stored:
        raise RunFolderError(f"{folder.path} holds another run: start the search with --name NAME")
    machine = this_machine()
    told = None if stored is None else stored["search"]
    asked = asked.merged(told)
    typed = replace(typed, target=f"search {asked.space}")
    if stored is not None:
        options = typed.merged(stored)
    else:
        typed = replace(typed, scheduler=typed.scheduler or DEFAULT_SCHEDULER)
        options = complete(typed, gpus=machine.gpus)
    search = Search(folder, options, asked, files)
    check_searched(options.settings, search.space)
    search.load(told)
    plan = search.plan()
    if stored is not None:
        _check_same(plan, stored, folder)
    prepared = Prepared(plan, machine, {}, stored)
    prepared.allotments = divide(_widest(plan, search), machine, how, stored)
    prepared.plan = plan.with_threads(prepared.threads)
    search.threads = prepared.threads
    search.trials = {t.trial_id: t for t in prepared.plan.trials if t.role == "arm"}
    allow = [*how.allow, *(str(one["field"]) for one in (stored or {}).get("accepted", []))]
    prepared.notes = preflight.check_alignment(prepared.plan, files, allow)
    prepared.notes += preflight.check_decoder(prepared.plan, files, allow)
    preflight.check_disk(_widest(prepared.plan, search), files, folder.path)
    return prepared, search


def _widest(plan: Plan, search: Search) -> Plan:
    """The plan with as many arms as the search may have: what resources are divided among."""
    arms = [trial for trial in plan.trials if trial.role == "arm"]
    count = max(len(arms), int(search.asked.trials or 1) * int(search.options.seeds or 1))
    others = [trial for trial in plan.trials if trial.role != "arm"]
    return replace(plan, trials=(*others, *(arms[i % len(arms)] for i in range(count))))


def _check_same(plan: Plan, stored: Mapping[str, object], folder: RunFolder) -> None:
    from etrm_tune.command import check_same

    check_same(plan, stored, folder)


def run_search(
    typed: Options, asked: SearchOptions, folder: RunFolder, how: How, *, dry_run: bool = False
) -> int:
    """The whole command; returns the exit status. Raises `UserError` for what a user can fix."""
    console = new_console()
    files = preflight.Files()
    with Signals() as signals:
        try:
            if dry_run:
                prepared, search = prepare(typed, asked, folder, how, files)
                show_search(console, prepared, search, files)
                done = prepared.done(folder)
                costs = dry_costs(prepared.plan, prepared.allotments, done=done)
                show_costs(console, prepared.plan, costs, prepared.allotments)
                console.print("Dry run: nothing was started.")
                return 0
            with folder.locked():
                prepared, search = prepare(typed, asked, folder, how, files)
                show_search(console, prepared, search, files)
                if changed := version_changes(prepared.stored):
                    say(console, f"warning: the run was begun with other versions: {changed}")
                write_search(folder, prepared, search)
                return execute_search(folder, prepared, search, signals, how)
        except Interrupted as stop:
            console.print("Interrupted before any trial was started.")
            return stop.exit_code


def show_search(
    console: Console, prepared: Prepared, search: Search, files: preflight.Files
) -> None:
    """What is searched, how, and the trials that are planned already."""
    asked, seeds = search.asked, int(search.options.seeds or 1)
    say(console, f"search over {asked.space}: {search.space.question}", "bold")
    known = sum(point.known for point in search.points)
    each = f" × {seeds} seeds" if seeds > 1 else ""
    note(
        console,
        f"{asked.trials} points{each}, {known} of them the plan's own; "
        f"{len(search.points)} are planned so far; searcher {asked.searcher}, seed {asked.seed}",
    )
    goals = ", ".join(f"{one.direction} {one.unit}" for one in search.objectives)
    budget = max(t.config.epochs for t in search.trials.values())
    rule = search_rule(str(search.options.scheduler), budget)
    at = [
        f"{name} at {', '.join(f'{m:g}' for m in one.milestones(budget))}"
        for name, one in (rule.rules.items() if rule else ())
    ]
    told = f" ({'; '.join(at)} of {budget:g} epochs)" if at else ""
    note(console, f"{goals}; scheduler {search.options.scheduler}{told}")
    preflight.show(console, prepared.plan, files, prepared.allotments, prepared.notes)


def write_search(folder: RunFolder, prepared: Prepared, search: Search) -> None:
    """Write plan.json with the search in it, and every config.json."""
    if prepared.stored is None:
        values = prepared.plan.to_json(prepared.threads) | {
            "workers": prepared.workers,
            "accepted": preflight.accepted(prepared.notes),
            "search": search.to_json(),
        }
        folder.write_plan(values)
        prepared.stored = values
    else:
        folder.update_plan(search=search.to_json())
    write_plan(folder, prepared)


def execute_search(
    folder: RunFolder, prepared: Prepared, search: Search, signals: Signals, how: How
) -> int:
    """Run what is left of a search in a locked folder, write the tables, report."""
    from etrm_tune.conductor import Conductor

    def rule(stage: Sequence[PlannedTrial]) -> StoppingRule | None:
        if stage[0].role == "decoder":
            return None  # arms of a stopped decoder could not run at all
        budgets = {t.trial_id: t.config.epochs for t in stage}
        scheduler = str(search.options.scheduler)
        made = search_rule(scheduler, max(budgets.values()), metric=ACCURACY)
        for trial_id, budget in budgets.items() if made else ():
            made.expect(trial_id, budget)  # type: ignore[union-attr]
        return made

    code = 0
    with quiet(folder.log) as terminal:
        console = new_console(terminal, wide=True)
        table = LiveTable(console, prepared.plan.trials, title=str(folder.path))
        conductor = Conductor(
            folder, prepared.plan, prepared.allotments, signals, table, how.retry_failed, how.train,
            stop_rule=rule, clock=SearchClock(folder, prepared.plan, prepared.allotments),
            source=search,
        )  # fmt: skip
        try:
            if conductor.prepare():
                with ray_session(prepared.machine, signals) as url:
                    say(console, login_line(url))
                    with table:
                        try:
                            conductor.run()
                        except Interrupted:
                            conductor.interrupt()
                            raise
        except Interrupted as stop:
            code = stop.exit_code
        finally:
            signals.ignore()
    console = new_console()
    summarise(folder, console)
    report(console, search)
    return say_how_it_went(folder, conductor.plan, conductor.statuses, how, code, console)
