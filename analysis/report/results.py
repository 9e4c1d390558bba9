"""What was run, what was decided, how the experiments compare, what they cost."""

from __future__ import annotations

import math
from collections.abc import Iterable
from html import escape

import pandas as pd

from analysis.compare import INCLUSION
from analysis.decide import next_step
from analysis.decision import Decision
from analysis.hypotheses import hypotheses
from analysis.report.material import ROWS, Material, Trial, number, short
from analysis.report.page import (
    Section,
    charts,
    facts,
    figure,
    folded,
    items,
    note,
    paragraph,
    table,
)
from analysis.report.searched import searched, show_value
from analysis.report.svg import Point, scatter_chart
from analysis.report.svg import number as show_number
from analysis.text import TITLES, evidence, show_controls, show_matrix, what_was_run

COSTS = {"wall_s": "training time", "parameters": "parameters", "steps": "ACT steps"}
"""Columns of the matrix that accuracy is compared with."""
NAMED = 12
"""Points of a chart that are all named, at most."""
WIDE = 8
"""Trials that have a column each, at most."""
NEGATIVE = ("not raised", "does not hold")
"""Verdicts of red flags and scenarios that are not the case: folded away."""


def what_run(material: Material) -> Section:
    """Revision, profile, machine, versions, data, seeds, exposure."""
    run, trials = material.run, material.trials
    plan = run.plan
    starts = [trial.start for trial in trials if trial.start]
    versions = {
        name: version
        for source in (plan.get("packages") or {}, *(s.get("versions") or {} for s in starts))
        for name, version in source.items()
    }
    told = {
        "target": ", ".join(str(p.get("target", "?")) for p in run.plans.values()),
        "run folder": ", ".join(run.plans),
        "revision": _distinct(t.summary.get("revision") for t in trials),
        "profile": _distinct(t.summary.get("profile") for t in trials),
        "seeds": _distinct(t.summary["seed"] for t in material.arms),
        "trials": f"{len(material.arms)} arms, {len(trials) - len(material.arms)} decoders: "
        + ", ".join(f"{n} {s}" for s, n in run.trials["status"].value_counts().items()),
        "machine": _machine(plan, starts),
        "versions": ", ".join(f"{name} {version}" for name, version in versions.items()),
        "data hash": _data_hashes(trials),
        "exposure": _exposure(trials),
    }
    settings = (plan.get("options") or {}).get("settings") or {}
    if settings:
        told["settings"] = ", ".join(f"{name}={value}" for name, value in settings.items())
    body = facts({name: value or "not recorded" for name, value in told.items()})
    lead = "Everything that the numbers below depend on; every trial of the run, decoders included."
    return Section("run", "What was run", body + items(what_was_run(run)[:-1]), lead)


def decision(material: Material) -> Section:
    """Best point of a search, next step and decisions, red flags that are raised first of all."""
    parts = [_best_point(material)]
    why, command = next_step(material.run, material.decisions)
    step = f"<p><b>Next.</b> {escape(why)}.</p>"
    if command:
        step += f"<pre><code>{escape(command)}</code></pre>"
    if not parts[0]:
        parts.append(f'<div class="next">{step}</div>')
    raised = [one for one in material.decisions if one.raised]
    if raised:
        parts += ["<h3>Red flags raised</h3>", _cards(raised)]
    points = list(dict.fromkeys(one.after for one in material.decisions))
    for point in points:
        here = [d for d in material.decisions if d.after == point and not d.raised]
        told = [one for one in here if one.decided and one.verdict not in NEGATIVE]
        rest = [one for one in here if one not in told]
        parts.append(f"<h3>{escape(TITLES.get(point, 'Decisions'))}</h3>")
        if told:
            parts.append(_cards(told))
        if rest:
            lines = [f"{d.name}: {d.verdict}. {d.text}" for d in rest]
            many = f"{len(rest)} not decided, not raised, or not the case"
            parts.append(f"<details><summary>{many}</summary>{items(lines)}</details>")
    if not material.decisions:
        parts.append(paragraph("No rule speaks about these experiments."))
    lead = (
        "What the plan's own rules say, over counted trials: finished ones, and those that a rule "
        "stopped. Each cites the numbers that it rests on; n counts seeds."
    )
    return Section("decision", "Decision", "".join(parts), lead)


def _best_point(material: Material) -> str:
    """What a search found, in a box; empty without a search."""
    points = searched(material)
    if not points:
        return ""
    done = [p for p in points if math.isfinite(p.accuracy)]
    if not done:
        said = f"No point of the search has finished yet ({len(points)} proposed)."
    else:
        best = max(done, key=lambda p: p.accuracy)
        row = material.matrix[material.matrix["experiment"] == best.name].iloc[0]
        values = ", ".join(f"{name} {show_value(value)}" for name, value in best.values.items())
        seeds = f"{row['n']} seed" + ("s" if row["n"] != 1 else "")
        said = (
            f"Best point of {len(done)} that finished ({len(points)} proposed): {best.name}, "
            f"accuracy {100 * best.accuracy:.1f} % ({seeds}), with {values}."
        )
        if row["n"] == 1:
            said += (
                " One seed: the best of many is best by luck too; the search's last lines hold the "
                "command that repeats it with more seeds."
            )
    return f'<div class="next">{paragraph(said)}</div>'


def comparison(material: Material) -> Section:
    """The matrix with intervals."""
    if material.matrix.empty:
        return Section("matrix", "Comparison", paragraph("No experiment has a folder yet."))
    shown = show_matrix(material.matrix)
    if "interval" not in shown:
        at = list(shown.columns).index("accuracy") + 1
        shown.insert(at, "interval", "–")
    shown["wall time"] = material.matrix["wall_s"].map(minutes)
    pairs = zip(material.matrix["experiment"], material.matrix["notes"], strict=True)
    notes = items((f"{name}: {said}" for name, said in pairs if said), fold=6)
    text = (
        "accuracy, held-out, trivial: tokens; exact: whole grids; steps: mean ACT steps; to 90 %: "
        "optimizer steps. Training values are means over the last 10 % of steps. Interval: of the "
        "mean over n seeds, 95 %, bootstrap, in percent (– with one seed)."
    )
    lead = f"Every experiment, best first. Counted: {INCLUSION}; n is the number of seeds counted."
    body = table(shown, fold=ROWS) + note(text) + notes
    return Section("matrix", "Comparison", body, lead)


def controls(material: Material) -> Section:
    """Trivial baselines and demonstration controls."""
    if material.matrix.empty:
        return Section("controls", "Baselines and controls", paragraph("Nothing was measured."))
    body = table(show_controls(material.matrix), fold=ROWS) + note(
        "Normal: the true demonstrations; zeroed: a zero context; shuffled: outputs permuted among "
        "the demonstrations; other: another puzzle's. A model that reads its demonstrations loses "
        "by each of these. Trivial: the better of copying the input and answering all background."
    )
    body += items(evidence(material.run, material.matrix), fold=6)
    lead = (
        "Does the model read its demonstrations, and is it better than trivial answers? Tokens / "
        "whole grids on the original training puzzles, full ACT, at the end of each counted trial."
    )
    return Section("controls", "Baselines and controls", body, lead)


def pareto(material: Material) -> Section:
    """Accuracy against training time, parameters and ACT steps."""
    figures = [
        figure(
            scatter_chart(
                _points(material, column),
                alt=f"accuracy against {name}; the Pareto front is filled and joined",
                x_name=f"{name} (min)" if column == "wall_s" else name,
            ),
            f"Accuracy against {name}",
        )
        for column, name in COSTS.items()
    ]
    text = (
        "Filled and joined: the Pareto front (nothing is both better and cheaper). Bars: 95 % "
        "intervals over seeds, where there are several. Times compare only trials of one machine "
        "under the same load; ACT steps are the mean in training, at the end."
    )
    body = charts(figures, "No experiment has finished with an accuracy and a cost.") + note(text)
    lead = (
        "What accuracy costs: one point for each experiment all of whose counted trials finished "
        "(a stopped one is cheap because it was cut)."
    )
    return Section("pareto", "Accuracy against cost", body, lead)


def estimate(material: Material) -> Section:
    """Estimated against measured time, of the run and of every trial."""
    parts = []
    rows = []
    for name, plan in material.run.plans.items():
        made = plan.get("estimate") or {}
        sessions = plan.get("sessions") or []
        took = sum(end - began for began, end in sessions)
        if made and took:
            ratio = took / made["wall_s"] if made.get("wall_s") else math.nan
            parts.append(
                paragraph(
                    f"{name}: estimated {minutes(number(made.get('wall_s')))} from the "
                    f"{made.get('basis', '?')}, took {minutes(took)} in {len(sessions)} "
                    f"session{'s' * (len(sessions) > 1)} (× {ratio:.2f})."
                )
            )
        for trial in material.trials:
            expected = (made.get("trials") or {}).get(trial.id) or {}
            seconds, wall = number(expected.get("seconds")), number(trial.summary["wall_s"])
            if trial.summary["run"] != name or math.isnan(seconds):
                continue
            done = trial.summary["step"] / number(trial.summary["total_steps"])
            rows.append(
                {
                    "trial": trial.id,
                    "status": trial.summary["status"],
                    "estimated": minutes(seconds),
                    "took": minutes(wall),
                    "of its steps": "–" if math.isnan(done) else f"{100 * done:.0f} %",
                    "ratio at the same steps": "–"
                    if not done > 0 or not seconds
                    else f"× {wall / (seconds * done):.2f}",
                }
            )
    if rows:
        parts.append(table(pd.DataFrame(rows), fold=ROWS))
    if not parts:
        parts.append(paragraph("This run recorded no estimate, or no session that ended."))
    lead = (
        "How long the run was expected to take and took; trials that have an estimate, with their "
        "training time so far. The last column compares equal numbers of steps: above 1, slower "
        "than estimated."
    )
    return Section("estimate", "Estimate against truth", "".join(parts), lead)


def findings(material: Material) -> Section:
    """Hypotheses and signs of ill health."""
    signs = material.signs
    parts = ["<h3>Health</h3>"]
    if signs.empty:
        measured = not material.run.curves.empty
        parts.append(
            paragraph("No sign of trouble in any trial." if measured else "No row was written.")
        )
    else:
        columns = ["trial_id", "level", "sign", "text", "threshold", "origin"]
        shown = signs.sort_values("level", kind="stable")[columns]
        shown = shown.rename(columns={"trial_id": "trial"})
        parts.append(table(shown.assign(threshold=shown["threshold"].map(_limit)), fold=ROWS))
    found = hypotheses(material.run)
    parts.append("<h3>Hypotheses about low performance</h3>")
    if not found:
        parts.append(paragraph("No trial with an encoder to check them on."))
    else:
        parts.append(table(_verdicts(found), fold=ROWS))
        rows = [
            {
                "trial": one.trial_id,
                "hypothesis": f"{one.hypothesis} {one.title}",
                "verdict": one.verdict,
                "evidence": "; ".join(one.evidence),
            }
            for one in found
        ]
        parts.append(folded("Evidence for each", table(pd.DataFrame(rows))))
    lead = (
        "Signs of trouble by their thresholds, in every trial that wrote rows, decoders included; "
        "and the plan's hypotheses about low performance, for every trial with an encoder."
    )
    return Section("findings", "Hypotheses and health", "".join(parts), lead)


def front(matrix: pd.DataFrame, cost: str) -> set[str]:
    """Experiments with a counted trial that none beats in `accuracy` at no more `cost`; those that
    were stopped or have not ended neither stand there nor beat another."""
    rows = matrix[_complete(matrix)][["experiment", "accuracy", cost]].dropna()
    kept: set[str] = set()
    for name, accuracy, price in rows.itertuples(index=False):
        beaten = (
            (rows["accuracy"] >= accuracy)
            & (rows[cost] <= price)
            & ((rows["accuracy"] > accuracy) | (rows[cost] < price))
        )
        if not beaten.any():
            kept.add(str(name))
    return kept


def _complete(matrix: pd.DataFrame) -> pd.Series[bool]:
    """Experiments with a counted trial, none of them stopped or under way."""
    unfinished = matrix["status"].str.contains("stopped|running|interrupted|pending")
    return (matrix["n"] > 0) & ~unfinished


def minutes(seconds: float) -> str:
    """``40 s``, ``12 min``, ``3.4 h``; a dash for NaN."""
    if not math.isfinite(seconds):
        return "–"
    if seconds < 90:
        return f"{seconds:.3g} s"
    return f"{seconds / 60:.3g} min" if seconds < 7200 else f"{seconds / 3600:.3g} h"


def _points(material: Material, cost: str) -> list[Point]:
    """Finished experiments; with more than a chart can name, only those on the front are named."""
    best = front(material.matrix, cost)
    rows = material.matrix[_complete(material.matrix)]
    points = []
    for at, row in enumerate(rows.to_dict("records")):
        name = str(row["experiment"])
        x, y = number(row[cost]) / (60 if cost == "wall_s" else 1), number(row["accuracy"])
        points.append(
            Point(
                x,
                y,
                short(name) if len(rows) <= NAMED or name in best else "",
                at if len(rows) <= NAMED else 0,
                number(row["accuracy_low"]),
                number(row["accuracy_high"]),
                strong=name in best,
                tip=f"{short(name)}: {100 * y:.1f} % at {show_number(x)}",
            )
        )
    return points


def _verdicts(found: Iterable[object]) -> pd.DataFrame:
    """Hypotheses as rows, trials as columns; with many trials, how many say what."""
    cells = pd.DataFrame([vars(one) for one in found])
    cells["hypothesis"] = cells["hypothesis"] + " " + cells["title"]
    if cells["trial_id"].nunique() > WIDE:
        counts = cells.groupby(["hypothesis", "verdict"], sort=False).size().unstack(fill_value=0)
        counts = counts.rename(columns=lambda verdict: f"{verdict} (trials)")
        return counts.reset_index().astype(str)
    wide = cells.pivot_table(
        index="hypothesis", columns="trial_id", values="verdict", aggfunc="first", sort=False
    )
    return wide.reset_index().fillna("–")


def _cards(decisions: Iterable[Decision]) -> str:
    made = []
    for one in decisions:
        kind = "no" if one.raised or one.kind == "drop" else "yes" if one.kind == "success" else ""
        checks = "".join(f"<p>Check: {escape(check)}</p>" for check in one.checks)
        made.append(
            f'<div class="card {kind}"><h3>{escape(one.name)}: '
            f'<span class="v">{escape(one.verdict)}</span></h3><p>{escape(one.text)}.</p>{checks}'
            f'<p class="soft">{escape(one.label)}. Rule: {escape(one.rule)}</p></div>'
        )
    return f'<div class="cards">{"".join(made)}</div>'


def _limit(value: float) -> str:
    return f"{value:g}" if math.isfinite(value) else "–"


def _machine(plan: dict[str, object], starts: list[dict[str, object]]) -> str:
    """What was recorded of it; the machine that writes the report may be another one."""
    known = plan.get("machine") or next((s["machine"] for s in starts if s.get("machine")), None)
    if isinstance(known, dict):
        said = ", ".join(f"{name} {value}" for name, value in known.items())
    else:
        said = str(known) if known else "name not recorded"
    workers = _distinct(s.get("workers") for s in starts)
    threads = _distinct(s.get("threads") for s in starts)
    return f"{said}; workers per trial {workers or '?'}, threads per worker {threads or '?'}"


def _data_hashes(trials: list[Trial]) -> str:
    """Hash of the puzzles that trials of each role train on and are evaluated on."""
    told = []
    for role in dict.fromkeys(str(t.summary["role"]) for t in reversed(trials)):
        mine = [t.start for t in trials if t.summary["role"] == role]
        if found := _distinct(start.get("data_hash") for start in mine):
            told.append(f"{found} ({role}s)")
    return ", ".join(told)


def _exposure(trials: list[Trial]) -> str:
    """How many puzzles were trained on and evaluated, by role."""
    said: dict[str, list[str]] = {}
    for trial in trials:
        exposure = trial.result.get("exposure")
        if not isinstance(exposure, dict):
            continue
        roles = [f"{len(v)} {k.replace('_', ' ')}" for k, v in exposure.items() if len(v or ())]
        said.setdefault(", ".join(roles) or "none", []).append(trial.id)
    return "; ".join(
        f"{roles} ({ids[0] if len(ids) == 1 else f'{len(ids)} trials'})"
        for roles, ids in said.items()
    )


def _distinct(values: Iterable[object]) -> str:
    known = [str(v) for v in values if v is not None and v == v]
    return ", ".join(dict.fromkeys(known))
