"""What ``search`` does: plan the known points, run them, and grow the plan as slots free up."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

from rich.console import Console

from etrm_tune import preflight, short
from etrm_tune.cluster import Cluster, check, connected
from etrm_tune.command import (
    How,
    Prepared,
    conduct,
    say_how_it_went,
    show,
    summarise,
    version_changes,
    write_plan,
)
from etrm_tune.costs import dry_costs
from etrm_tune.division import Measure, divide, measure_here
from etrm_tune.estimate import Clock, show_costs
from etrm_tune.live import LiveTable
from etrm_tune.mirror import mirrored
from etrm_tune.plan import Options, Plan, PlannedTrial, complete
from etrm_tune.resources import this_machine
from etrm_tune.retry import reopen
from etrm_tune.run_folder import RunFolder, RunFolderError
from etrm_tune.search import Search, SearchOptions, check_searched
from etrm_tune.search_report import report
from etrm_tune.session import Interrupted, Signals
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
    machine = how.cluster.machine if how.cluster else this_machine()
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
    measure = Measure(stored, measure_here)
    allotments = divide(_widest(plan, search), machine, how, stored, measure=measure)
    prepared.sharing = measure.found
    prepared.starts = short.choose(plan, allotments, how.short_trials, stored)
    prepared.allotments = short.apply(allotments, prepared.starts)
    prepared.plan = plan.with_threads(prepared.threads)
    search.threads = prepared.threads
    search.trials = {t.trial_id: t for t in prepared.plan.trials if t.role == "arm"}
    if search.is_population:
        one = next(iter(search.trials.values())).config
        search.populate(preflight.total_steps(one, files.facts(one)))
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
                with (
                    mirrored(folder, how.url, write=False),
                    connected(how.address, signals) as found,
                ):
                    how = replace(how, cluster=found)
                    prepared, search = prepare(typed, asked, folder, how, files)
                show_search(console, prepared, search, files, found)
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
                prepared, search = prepare(typed, asked, folder, how, files)
                show_search(console, prepared, search, files, found)
                if found is not None:
                    workers = max(prepared.workers.values())
                    moved = check(found, prepared.plan, folder, mirror, workers)
                    how = replace(how, moved=moved)
                if changed := version_changes(prepared.stored):
                    say(console, f"warning: the run was begun with other versions: {changed}")
                write_search(folder, prepared, search)
                for trial_id in how.reopen:
                    reopen(folder, trial_id, from_start=how.from_start)
                return execute_search(folder, prepared, search, signals, how)
        except Interrupted as stop:
            console.print("Interrupted before any trial was started.")
            return stop.exit_code


def show_search(
    console: Console,
    prepared: Prepared,
    search: Search,
    files: preflight.Files,
    cluster: Cluster | None = None,
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
    if search.population is not None:
        steps = ", ".join(map(str, search.population.milestones))
        told = f" (the last quarter copies from the first at steps {steps})"
    note(console, f"{goals}; scheduler {search.options.scheduler}{told}")
    show(console, prepared, files, cluster)


def write_search(folder: RunFolder, prepared: Prepared, search: Search) -> None:
    """Write plan.json with the search in it, and every config.json."""
    if prepared.stored is None:
        values = (
            prepared.plan.to_json(prepared.threads)
            | {
                "workers": prepared.workers,
                "accepted": preflight.accepted(prepared.notes),
                "starts": short.to_json(prepared.starts),
                "search": search.to_json(),
            }
            | ({"sharing": prepared.sharing} if prepared.sharing else {})
        )
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

    def conductor(table: LiveTable) -> Conductor:
        return Conductor(
            folder, prepared.plan, prepared.allotments, signals, table, how.retry_failed, how.train,
            stop_rule=rule, clock=SearchClock(folder, prepared.plan, prepared.allotments),
            source=search, moved=how.moved, mirror=how.mirror, population=search.population,
            trackers=how.log_to,
        )  # fmt: skip

    ran, code = conduct(folder, prepared.plan, prepared.machine, signals, how, conductor)
    console = new_console()
    summarise(folder, console)
    report(console, search)
    return say_how_it_went(folder, ran.plan, ran.statuses, how, code, console)
