"""The end of a search: best points, Pareto front, rung table, what to run next."""

from __future__ import annotations

import json
import math
import shlex
from collections.abc import Sequence

from rich.console import Console
from rich.table import Table

import analysis
from analysis.text import what_was_run
from etrm_tune.population import copy_lines
from etrm_tune.search import Objective, Search, SearchPoint
from etrm_tune.searchers import Tried
from etrm_tune.terminal import note, say, shown
from search_spaces.reference import DEFAULT_REVISION
from search_spaces.schedulers import RungLine, place, rung_lines, search_rule
from search_spaces.stopping import show
from trainable.errors import UserError
from trainable.ray_adapter import ACCURACY

BEST = 10
"""Points in the table of the best."""

Found = tuple[SearchPoint, Tried]


def dominates(first: Sequence[float], second: Sequence[float], directions: Sequence[str]) -> bool:
    """Whether `first` is at least as good in every objective and better in one."""
    signs = [1 if direction == "maximize" else -1 for direction in directions]
    pairs = [(sign * a, sign * b) for sign, a, b in zip(signs, first, second, strict=True)]
    return all(a >= b for a, b in pairs) and any(a > b for a, b in pairs)


def finished(search: Search) -> list[Found]:
    """Points that ran to their end and have every objective, best in the first objective first."""
    found = [
        (point, tried)
        for point, tried in zip(search.points, search.tried(), strict=True)
        if tried.state == "finished" and all(map(math.isfinite, tried.objectives))
    ]
    sign = -1 if search.directions[0] == "maximize" else 1
    return sorted(found, key=lambda one: sign * one[1].objectives[0])


def pareto(found: Sequence[Found], directions: Sequence[str]) -> list[Found]:
    """The points that no other one dominates, in the order given."""
    return [
        one
        for one in found
        if not any(dominates(other[1].objectives, one[1].objectives, directions) for other in found)
    ]


def rungs(search: Search) -> list[RungLine]:
    """Who reached each rung, from the recorded rows; empty where nothing is stopped."""
    if not search.trials:
        return []
    budgets = {i: t.config.epochs for i, t in search.trials.items()}
    rule = search_rule(str(search.options.scheduler), max(budgets.values()), metric=ACCURACY)
    if rule is None:
        return []
    reports = []
    for trial_id, budget in budgets.items():
        rule.expect(trial_id, budget)
        for row in search.folder.rows(trial_id):
            value = row.get(ACCURACY)
            if ACCURACY in row and value is None:
                value = math.nan
            reports.append((float(row.get("time") or 0), trial_id, float(row["epoch"]), value))
    place(rule, reports)
    return rung_lines(rule.rungs)


def _value(objective: Objective, value: float) -> str:
    if objective.name == "accuracy":
        return show(value, ACCURACY)
    return f"{value:,.0f}" if objective.name == "parameters" else f"{value:.3g}"


def _point(point: SearchPoint) -> str:
    return ", ".join(f"{label} {shown(value)}" for label, value in point.values.items())


def _table(search: Search, found: Sequence[Found]) -> Table:
    table = Table(box=None, pad_edge=False)
    table.add_column("  point", no_wrap=True)
    for one in search.objectives:
        table.add_column(one.unit, justify="right")
    table.add_column("seeds", justify="right")
    table.add_column("values at the published sizes", overflow="fold")
    for point, tried in found:
        numbers = (_value(o, v) for o, v in zip(search.objectives, tried.objectives, strict=True))
        seeds = str(len(search.of(point)))
        table.add_row(f"  {point.name}", *numbers, seeds, _point(point))
    return table


def report(console: Console, search: Search) -> None:
    """Print what a search found so far."""
    states = [tried.state for tried in search.tried()]
    counts = ", ".join(
        f"{states.count(state)} {state}"
        for state in ("finished", "stopped", "diverged", "failed", "running")
        if state in states
    ).replace("running", "not done")
    say(console, f"\nSearch over {search.asked.space}: n = {len(states)} points ({counts})", "bold")
    found = finished(search)
    if found:
        note(console, f"the best of {len(found)} that ran to their end:")
        console.print(_table(search, found[:BEST]))
    else:
        note(console, "no point has run to its end yet")
    if found and len(search.objectives) > 1:
        front = pareto(found, search.directions)
        names = ", ".join(search.asked.objectives or ())
        note(console, f"Pareto front of {names}: {len(front)} of {len(found)}")
        console.print(_table(search, front))
    try:
        lines = what_was_run(analysis.load(search.folder.path))
    except UserError:
        lines = []
    for line in lines[:2]:
        note(console, line)
    if found and search.options.seeds == 1:
        note(console, "one seed: differences between points may be noise")
    if search.population is not None:
        _show_population(console, search, found)
    for line in what_next(search, found):
        say(console, line)


def _show_population(console: Console, search: Search, found: Sequence[Found]) -> None:
    assert search.population is not None
    note(console, "who copied whom, and which rate followed:")
    for line in copy_lines(search.population.rounds):
        note(console, f"  {line}")
    for point, _ in found[:1]:
        for trial in search.of(point):
            told = [
                f"{rate:.3g} from step {since} ({member})"
                for since, member, rate in search.population.schedule(trial.trial_id)
            ]
            note(console, f"rates behind {trial.trial_id}: {', '.join(told)}")


def _schedule(search: Search, trial_id: str) -> list[str]:
    """``--set`` words that train one trial with the rates behind a member."""
    assert search.population is not None
    (_, _, first), *later = search.population.schedule(trial_id)
    words = ["--set", f"lr={first}", "--allow", "lr"]
    if later:
        factors = [[since, rate / first] for since, _, rate in later]
        words += ["--set", f"lr_factors={json.dumps(factors)}", "--allow", "lr_factors"]
    return words


def what_next(search: Search, found: Sequence[Found]) -> list[str]:
    """Commands that follow from a search."""
    again = ["python -m etrm_tune.run search --space", search.asked.space]
    if str(search.folder.path.parent.name) != "runs":
        again += ["--runs", shlex.quote(str(search.folder.path.parent))]
    lines = []
    if found:
        point = found[0][0]
        trial = search.of(point)[0]
        seeds = max(3, 2 * int(search.options.seeds or 1))
        words = [point.name if point.known else search.space.base]
        if not point.known:
            flat = trial.config.flat()
            options = trial.resolved.experiment.overrides if trial.resolved else {}
            if search.population is not None:
                words += _schedule(search, trial.trial_id)
                options = {name: value for name, value in options.items() if name != "lr"}
            for option in options:
                if flat[option] is not None:
                    words += ["--set", f"{option}={flat[option]}", "--allow", option]
        given = search.options
        for option, value in given.settings.items():
            words += ["--set", f"{option}={value}"]
        for option in ("decoder", "decoder_l_cycles", "decoder_puzzles", "data"):
            if (value := getattr(given, option)) is not None:
                words += [f"--{option.replace('_', '-')}", str(value)]
        if given.revision != DEFAULT_REVISION:
            words += ["--revision", str(given.revision)]
        words += ["--profile", trial.config.profile, "--seeds", str(seeds)]
        words += ["--name", f"{search.folder.name}-best"]
        lines.append(
            f"Confirm the best point with more seeds: python -m etrm_tune.run {shlex.join(words)}"
        )
    if search.is_population:
        return lines
    if search.exhausted:
        lines.append(f"Every point of the space was tried: {len(search.points)}.")
    elif not search.more():
        more = 2 * int(search.asked.trials or 1)
        name = ["--name", shlex.quote(search.folder.name)]
        lines.append(f"Search on: {' '.join([*again, *name, '--trials', str(more)])}")
    return lines
