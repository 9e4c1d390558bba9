"""Recorded curves played back to a stopping rule: what it would have stopped, saved and lost.

The rule is a `search_spaces.stopping.StoppingRule` over the same classes that decide live, fed with
the same rows. Only full curves (of finished trials) can say what a stop would have lost: a curve
that was cut short ends where it was cut, so it enters the rungs and nothing else.

>>> run = analysis.load("runs/phase1")                              # doctest: +SKIP
>>> print(analysis.replay(run, Bar()).text())                       # doctest: +SKIP
"""

from __future__ import annotations

import heapq
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd

from analysis.load import Run
from analysis.replayed import FEW, METRIC, Order, RankCorrelation, Replay, Stop, count
from analysis.rows import ResultsError, merge, read_attempts
from search_spaces.schedulers import ETA, rules_of
from search_spaces.stopping import Bar, Decision, Halving, Rule, StoppingRule, show

FRACTIONS = (0.125, 0.25, 0.375, 0.5, 0.75)
"""Shares of the budget at which a rung's order is compared with the final one."""
NEAR = 0.05
"""A rule must keep every full curve that ends within this much of the best (ours)."""
MARGIN = 0.05
"""How far below the curves to keep a recommended bar stays (ours)."""
ORDERED = 0.7
"""Rank correlation from which on a rung tells the final order well enough to halve on (ours)."""


@dataclass(frozen=True)
class Report:
    """One recorded row, as the scheduler saw it."""

    epoch: float
    value: float | None
    """None: the row does not carry the metric; NaN: it was not a number."""
    wall_s: float
    time: float
    row: int


@dataclass(frozen=True)
class Curve:
    """One trial's reports and how it ended."""

    trial_id: str
    budget: float
    """Epochs."""
    reports: tuple[Report, ...]
    full: bool
    final: float
    """`accuracy` of the trials table: mean over the last 10 % of its steps."""

    @property
    def seconds(self) -> float:
        """Training seconds of the whole curve."""
        return self.reports[-1].wall_s


def read_curves(run: Run) -> list[Curve]:
    """Curves of a run's arms with their reports, from the rows themselves: the tables do not tell
    a value that was not measured from one that was not a number."""
    curves = []
    folders = dict(zip(run.plans, run.paths, strict=True))
    for trial in run.arms.to_dict("records"):
        ignored: list[str] = []
        folder = folders[str(trial["run"])] / "trials" / str(trial["trial_id"])
        rows = merge(read_attempts(folder, ignored)) if folder.is_dir() else []
        reports = [
            Report(
                float(row["epoch"]),
                (math.nan if row[METRIC] is None else float(row[METRIC]))
                if METRIC in row
                else None,
                float(row.get("wall_s") or math.nan),
                float(row.get("time") or 0.0),
                at,
            )
            for at, row in enumerate(rows)
            if isinstance(row.get("epoch"), int | float)
        ]
        if not reports:
            continue
        planned = trial.get("config/epochs")
        budget = float(planned) if isinstance(planned, int | float) else reports[-1].epoch
        full = trial["status"] == "finished"
        name = str(trial["trial_id"])
        if len(folders) > 1:
            name = f"{trial['run']}/{name}"
        final = float(trial["accuracy"])
        curves.append(Curve(name, budget, tuple(reports), full, final))
    return curves


def fresh_rule(curves: Sequence[Curve], rules: Iterable[Rule]) -> StoppingRule:
    """A rule with nothing recorded, with these trials' budgets."""
    budgets = {curve.trial_id: curve.budget for curve in curves}
    return StoppingRule(rules, budget=max(budgets.values()), budgets=budgets, metric=METRIC)


def replay(
    run: Run, rule: Rule | Sequence[Rule] | str, *, orders: int = 200, seed: int = 0
) -> Replay:
    """Play the run's recorded curves back to a stopping rule.

    Args:
        run: one run or several; their arms are judged together.
        rule: one or several rules of `search_spaces.stopping`, or a scheduler's name as `search
            --scheduler` takes it (`search_spaces.schedulers`).
        orders: random orders of arrival beside the recorded one. The trials start in a random
            order, as many at once as the run had, each at its recorded speed; a stopped trial
            makes room for the next.
        seed: of the random orders.

    Raises `ResultsError` when no arm has a row yet.
    """
    curves = read_curves(run)
    if not curves:
        raise ResultsError("no arm has reported yet: replay a run whose arms have rows")
    budget = max(curve.budget for curve in curves)
    given = rules_of(rule, budget) if isinstance(rule, str) else rule
    rules: tuple[Rule, ...] = tuple(given) if isinstance(given, Sequence) else (given,)
    full = [curve for curve in curves if curve.full and not math.isnan(curve.final)]
    winner = max(full, key=lambda curve: curve.final) if full else None
    stops = _play(curves, fresh_rule(curves, rules), _as_recorded(curves))
    concurrent = _concurrent(curves)
    rng = np.random.default_rng(seed)
    played = []
    for _ in range(orders):
        first = rng.permutation(len(curves)).tolist()
        found = _simulate(curves, fresh_rule(curves, rules), first, concurrent)
        played.append(_order(found, full, winner))
    milestones = {m / budget for one in rules for m in one.milestones(budget)}
    shares = sorted({*FRACTIONS, *(round(m, 6) for m in milestones if m < 1)})
    correlations = tuple(_correlation(full, share) for share in shares)
    return Replay(
        rules=tuple(_describe(one, budget) for one in rules),
        curves=len(curves),
        full=len(full),
        winner=winner.trial_id if winner else None,
        stops=tuple(stops.values()),
        recorded=_order(stops, full, winner),
        orders=tuple(played),
        concurrent=concurrent,
        correlations=correlations,
        recommended_bar=_recommend_bar(full),
        recommended_rungs=_recommend_rungs(correlations),
        caveat=_caveat(len(full), len(curves)),
    )


def recorded_decisions(
    curves: Sequence[Curve], rules: Iterable[Rule]
) -> dict[str, list[tuple[float, Decision]]]:
    """Every (epoch, decision) on a rung, by trial, with the rows in the order they were written."""
    judge = fresh_rule(curves, rules)
    found: dict[str, list[tuple[float, Decision]]] = {curve.trial_id: [] for curve in curves}
    stopped: set[str] = set()
    for curve, report in _as_recorded(curves):
        if curve.trial_id in stopped:
            continue
        decision = judge.on_report(curve.trial_id, report.epoch, report.value)
        if decision.rung is not None:
            found[curve.trial_id].append((report.epoch, decision))
        if decision.stop:
            stopped.add(curve.trial_id)
    return found


def _as_recorded(curves: Sequence[Curve]) -> list[tuple[Curve, Report]]:
    """All reports by the time at which they were written; a trial's own stay in order."""
    pairs = [(curve, report) for curve in curves for report in curve.reports]
    return sorted(pairs, key=lambda pair: (pair[1].time, pair[1].row))


def _play(
    curves: Sequence[Curve], judge: StoppingRule, reports: Iterable[tuple[Curve, Report]]
) -> dict[str, Stop]:
    stops: dict[str, Stop] = {}
    for curve, report in reports:
        if curve.trial_id in stops:
            continue
        decision = judge.on_report(curve.trial_id, report.epoch, report.value)
        if decision.stop:
            stops[curve.trial_id] = _stop(curve, report, decision)
    return stops


def _stop(curve: Curve, report: Report, decision: Decision) -> Stop:
    value = math.nan if report.value is None else report.value
    saved = max(0.0, curve.seconds - report.wall_s)
    return Stop(
        curve.trial_id, report.epoch, value, curve.final, curve.full, saved, decision.reason
    )


def _simulate(
    curves: Sequence[Curve], judge: StoppingRule, first: Sequence[int], concurrent: int
) -> dict[str, Stop]:
    """Start the trials in the order `first`, `concurrent` at a time, at their recorded speed."""
    waiting = list(first)[::-1]
    rank = {at: position for position, at in enumerate(first)}  # who comes first at equal times
    events: list[tuple[float, int, int, int]] = []  # when, rank, which curve, which report
    began: dict[int, float] = {}
    stops: dict[str, Stop] = {}

    def start(now: float) -> None:
        if waiting:
            at = waiting.pop()
            began[at] = now
            heapq.heappush(events, (now + _seconds(curves[at].reports[0]), rank[at], at, 0))

    for _ in range(concurrent):
        start(0.0)
    while events:
        now, _, at, which = heapq.heappop(events)
        curve = curves[at]
        report = curve.reports[which]
        decision = judge.on_report(curve.trial_id, report.epoch, report.value)
        if decision.stop:
            stops[curve.trial_id] = _stop(curve, report, decision)
        if decision.stop or which + 1 == len(curve.reports):
            start(now)
        else:
            when = began[at] + _seconds(curve.reports[which + 1])
            heapq.heappush(events, (max(now, when), rank[at], at, which + 1))
    return stops


def _seconds(report: Report) -> float:
    """Training seconds at a report; its epoch where they were not written."""
    return report.epoch if math.isnan(report.wall_s) else report.wall_s


def _order(stops: dict[str, Stop], full: Sequence[Curve], winner: Curve | None) -> Order:
    total = sum(curve.seconds for curve in full)
    saved = sum(stop.saved_s for stop in stops.values() if stop.full)
    kept = [curve.final for curve in full if curve.trial_id not in stops]
    best = winner.final if winner else math.nan
    return Order(
        stopped=tuple(stops),
        saved=saved / total if total > 0 else math.nan,
        lost_winner=winner is not None and winner.trial_id in stops,
        regret=best - max(kept) if kept else best,
    )


def _concurrent(curves: Sequence[Curve]) -> int:
    """Most trials whose rows overlap in time."""
    edges = [(curve.reports[0].time, 1) for curve in curves]
    edges += [(curve.reports[-1].time, -1) for curve in curves]
    running, most = 0, 1
    for _, change in sorted(edges, key=lambda edge: (edge[0], -edge[1])):
        running += change
        most = max(most, running)
    return most


def value_at(curve: Curve, fraction: float) -> float:
    """The value that a rung at this share of the budget would judge; NaN when it was not reached.

    Asked of the rule itself, so that rows without the metric are treated alike."""
    rung = Bar(at_fraction=fraction)
    judge = fresh_rule([curve], [rung])
    for report in curve.reports:
        if judge.on_report(curve.trial_id, report.epoch, report.value).rung is not None:
            return judge.rungs[0].entries[curve.trial_id].value
    return math.nan


def spearman(left: Sequence[float], right: Sequence[float]) -> float:
    """Rank correlation with mean ranks for ties; NaN with fewer than three pairs or no spread."""
    if len(left) < 3:
        return math.nan
    a, b = (pd.Series(values).rank().to_numpy(dtype=np.float64) for values in (left, right))
    if a.std() == 0 or b.std() == 0:
        return math.nan
    return float(np.corrcoef(a, b)[0, 1])


def _correlation(full: Sequence[Curve], fraction: float) -> RankCorrelation:
    pairs = [(value_at(curve, fraction), curve.final) for curve in full]
    known = [pair for pair in pairs if not math.isnan(pair[0])]
    rho = spearman([at for at, _ in known], [final for _, final in known])
    return RankCorrelation(fraction, len(known), rho)


def _recommend_rungs(correlations: Sequence[RankCorrelation]) -> tuple[float, ...]:
    """The first share of the budget whose order tells the final one, then every one that does and
    lies at least `ETA` times later, as halving by `ETA` wants it."""
    rungs: list[float] = []
    for one in correlations:
        if one.rho >= ORDERED and one.n >= FEW and (not rungs or one.fraction >= ETA * rungs[-1]):
            rungs.append(one.fraction)
    return tuple(rungs)


def _recommend_bar(full: Sequence[Curve]) -> Bar | None:
    """The bar that saves most among those that keep every curve near the best by `MARGIN`.

    Thresholds are multiples of 5 points. None with few curves, or when none would have saved
    anything: then the plan's own bar stays.
    """
    if len(full) < FEW:
        return None
    best = max(curve.final for curve in full)
    found: tuple[float, Bar] | None = None
    for fraction in FRACTIONS:
        values = {curve.trial_id: value_at(curve, fraction) for curve in full}
        lowest = min(values[curve.trial_id] for curve in full if curve.final >= best - NEAR)
        threshold = math.floor((lowest - MARGIN) * 20 + 1e-9) / 20 if lowest == lowest else 0.0
        if threshold <= 0:
            continue
        stopped = [curve for curve in full if not values[curve.trial_id] >= threshold]
        saved = sum(curve.seconds for curve in stopped) * (1 - fraction)
        if saved > 0 and (found is None or saved > found[0]):
            found = saved, Bar(threshold=threshold, at_fraction=fraction)
    return found[1] if found else None


def _caveat(full: int, curves: int) -> str:
    base = f"{count(full, 'full curve')} of {curves}"
    if full < FEW:
        return (
            f"{base}: too few to recommend another bar or rungs (ours: at least {FEW}); keep the "
            f"plan's bar, and run with --scheduler none for full curves"
        )
    left = "; a stopped trial's end is unknown, so late risers may be missing" * (full < curves)
    return (
        f"{base}{left}. The recommendation was chosen on these same curves: it fits this profile "
        f"and series, and says little about others"
    )


def _describe(rule: Rule, budget: float) -> str:
    if isinstance(rule, Bar):
        threshold = show(rule.threshold, METRIC, digits=None)
        return f"{rule.name} ({threshold} at {100 * rule.at_fraction:g} % of the budget)"
    if isinstance(rule, Halving):
        rungs = ", ".join(f"{m:g}" for m in rule.milestones(budget))
        return f"{rule.name} (top 1/{rule.eta:g} at epochs {rungs})"
    rungs = ", ".join(f"{m:g}" for m in rule.milestones(budget))
    return f"{rule.name} (at epochs {rungs})"
