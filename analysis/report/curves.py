"""How training went: learning curves and halting; what the other charts over epochs share."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence

import pandas as pd

from analysis.report.material import BACKGROUND, Material, Trial, number, short
from analysis.report.page import Section, charts, figure, folded, note
from analysis.report.svg import Format, Line, bars_chart, legend, lines_chart, percent
from analysis.report.svg import number as show_number
from search_spaces.rules import TRAIN_ACCURACY

HISTOGRAM = re.compile(r"train/steps_hist/(\d+)")
WINDOW = 0.1
"""Share of a trial's last steps that its halting histogram is taken over."""
TOGETHER = 8
"""Curves in one chart, at most: as many as there are colours."""
SMOOTH = 9
"""Rows of the moving mean there."""


def learning(material: Material) -> Section:
    """Token accuracy over epochs: all experiments in one chart, then one chart for each."""
    metric = TRAIN_ACCURACY.metric
    figures = [figure(*_together(material))]
    for at, name in enumerate(material.experiments):
        trials = material.seeds(name)
        others = [
            line(one[0], metric, 0, faint=True)
            for other in material.experiments[: BACKGROUND + 1]
            if other != name and (one := material.seeds(other))
        ]
        mine = [line(t, metric, at, dash=i, name=_seed(t, trials)) for i, t in enumerate(trials)]
        svg = lines_chart(
            [*others, *mine],
            alt=f"training token accuracy of {name} over epochs, {_seeds(trials)}",
            x_name="epochs",
            y_format=percent,
            y_range=(0.0, 1.0),
            rungs=_rungs(material, trials),
        )
        figures.append(figure(svg, short(name), _ended(trials)))
    text = (
        "train/accuracy: tokens of halted rows, mean since the last row; it swings while all rows "
        "of a batch begin together. Dashed vertical: rung of the stopping rule; cross: stopped "
        "there; dot: last row so far; grey: the other experiments (first seed). Seeds differ in "
        f"their dashes. Point at a curve, or touch it, to read values.{material.left_out}"
    )
    loss = per_experiment(material, ("train/loss",), "loss", log=True)
    body = charts(figures, "No arm has reported an accuracy yet.") + note(text)
    if any(loss):
        body += folded("Loss curves (logarithmic)", charts(loss, ""))
    lead = (
        "How training accuracy rose with the epochs: every recorded row of every arm, those that "
        "were stopped or still run included."
    )
    return Section("curves", "Learning curves", body, lead)


def _together(material: Material) -> tuple[str, str, str]:
    """One smoothed curve for each of the best experiments, with a legend: svg, title, text."""
    lines, labels = [], []
    for at, name in enumerate(material.experiments[:TOGETHER]):
        trials = [t for t in material.seeds(name) if t.values(TRAIN_ACCURACY.metric)[0]]
        if not trials:
            continue
        x, y = trials[0].values(TRAIN_ACCURACY.metric)
        smooth = pd.Series(y).rolling(SMOOTH, center=True, min_periods=1).mean().tolist()
        dash = at // 2 % 4
        stop = trials[0].stopped
        lines.append(Line(x, smooth, at, dash=dash, name=short(name), stop=stop))
        labels.append((short(name), at, dash))
    svg = lines_chart(
        lines,
        alt="training token accuracy of the best experiments over epochs, smoothed",
        x_name="epochs",
        y_format=percent,
        y_range=(0.0, 1.0),
    )
    if len(lines) < 2:
        return "", "", ""
    said = f"first seed, moving mean of {SMOOTH} rows"
    return svg + legend(labels), f"The best {len(lines)} together", said


def halting(material: Material) -> Section:
    """At which ACT step rows halt, at the end of training, and the mean over time."""
    figures = []
    for at, name in enumerate(material.experiments):
        shares = histogram(material.seeds(name))
        svg = bars_chart(
            [(str(step), share) for step, share in shares.items()],
            alt=f"share of halted rows of {name} by ACT step at the end of training",
            x_name="ACT step",
            colour=at,
        )
        steps = number(material.matrix["steps"].iloc[at])
        said = "" if math.isnan(steps) else f"mean {steps:.1f} steps"
        figures.append(figure(svg, short(name), said))
    text = (
        "All at the last step: the trial never halts by itself. All at the first: it stops at once."
    )
    body = charts(figures, "No halting histogram was recorded (train/steps_hist).") + note(text)
    limits = [number(v) for v in material.matrix["halt_max_steps"]]
    most = max([v for v in limits if not math.isnan(v)], default=16.0)
    means = per_experiment(material, ("train/steps",), "mean ACT steps", y_range=(0.0, most))
    if any(means):
        body += "<h3>Mean ACT steps over time</h3>" + charts(means, "")
    lead = (
        "At which ACT step rows halt: shares of the halted training rows over the last 10 % of "
        "each arm's steps so far, mean over its seeds."
    )
    return Section("halting", "Halting", body, lead)


def histogram(trials: Sequence[Trial]) -> dict[int, float]:
    """Share of halted rows by ACT step over the last rows, mean over trials that measured it."""
    found: dict[int, list[float]] = {}
    for trial in trials:
        curve = trial.curve
        names = [c for c in curve.columns if HISTOGRAM.fullmatch(str(c))]
        if not names:
            continue
        late = curve[curve["step"] > (1 - WINDOW) * curve["step"].iloc[-1]][names].dropna()
        if late.empty:
            continue
        for name, share in late.mean().items():
            match = HISTOGRAM.fullmatch(str(name))
            assert match
            found.setdefault(int(match[1]), []).append(float(share))
    return {step: sum(v) / len(v) for step, v in sorted(found.items())}


def per_experiment(
    material: Material,
    metrics: Sequence[str],
    what: str,
    *,
    log: bool = False,
    names: Sequence[str] | None = None,
    y_range: tuple[float, float] | None = None,
    y_format: Format = show_number,
) -> list[str]:
    """A chart of `metrics` for each experiment; several differ in their dashes: `dashed` names
    them above the charts."""
    figures = []
    for at, name in enumerate(material.experiments):
        trials = material.seeds(name)
        lines = []
        for seed, trial in enumerate(trials):
            for i, metric in enumerate(metrics):
                label = " ".join(filter(None, [names[i] if names else "", _seed(trial, trials)]))
                dash = 2 * i if names else seed
                lines.append(line(trial, metric, at, dash=dash, name=label))
        svg = lines_chart(
            lines,
            alt=f"{what} of {name} over epochs",
            x_name="epochs",
            y_format=y_format,
            y_range=y_range,
            log=log,
        )
        figures.append(figure(svg, short(name), "" if names else what))
    return figures


def dashed(*names: str) -> str:
    """Legend of charts in which metrics differ in their dashes, in the order of `names`."""
    return legend([(name, 7, 2 * i) for i, name in enumerate(names)])


def line(
    trial: Trial, metric: str, colour: int, *, faint: bool = False, dash: int = 0, name: str = ""
) -> Line:
    """A trial's curve of one metric over epochs."""
    x, y = trial.values(metric)
    return Line(x, y, colour, faint=faint, stop=trial.stopped, dash=dash, name=name)


def _seed(trial: Trial, trials: Sequence[Trial]) -> str:
    """``seed 1``; nothing where there is one seed alone."""
    return f"seed {trial.summary['seed']}" if len(trials) > 1 else ""


def _rungs(material: Material, trials: Sequence[Trial]) -> list[float]:
    """Milestones in epochs that the scheduler judged these trials at."""
    rungs = material.run.rungs
    if rungs.empty or "rung" not in rungs:
        return []
    mine = rungs["trial_id"].isin([trial.id for trial in trials])
    return sorted({float(v) for v in rungs[mine]["rung"].dropna()})


def _ended(trials: Sequence[Trial]) -> str:
    states = [str(trial.summary["status"]) for trial in trials]
    finals = [number(t.summary["accuracy"]) for t in trials]
    known = [f"{100 * v:.1f} %" for v in finals if not math.isnan(v)]
    return f"{', '.join(dict.fromkeys(states))}; {', '.join(known[:5]) or 'no accuracy'}"


def _seeds(trials: Sequence[Trial]) -> str:
    return f"{len(trials)} seed" + "s" * (len(trials) != 1)
