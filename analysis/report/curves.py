"""How training went: learning curves, halting, the Q-head, gradients, the encoder, the decoder."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence

import pandas as pd

from analysis.frozen import decoder_stayed
from analysis.report.material import BACKGROUND, Material, Trial, number, short
from analysis.report.page import Section, charts, figure, note, paragraph, table
from analysis.report.svg import Line, bars_chart, lines_chart, percent
from analysis.report.svg import number as show_number
from search_spaces.rules import TRAIN_ACCURACY

HISTOGRAM = re.compile(r"train/steps_hist/(\d+)")
WINDOW = 0.1
"""Share of a trial's last steps that its halting histogram is taken over."""


def learning(material: Material) -> Section:
    """Token accuracy over epochs, one chart for each experiment, the others behind it."""
    metric = TRAIN_ACCURACY.metric
    figures = []
    for at, name in enumerate(material.experiments):
        trials = material.seeds(name)
        others = [
            _line(one[0], metric, 0, faint=True)
            for other in material.experiments[: BACKGROUND + 1]
            if other != name and (one := material.seeds(other))
        ]
        mine = [_line(t, metric, at, dash=i) for i, t in enumerate(trials)]
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
        "train/accuracy: tokens of halted rows, mean since the last row. Dashed vertical: rung of "
        "the stopping rule; cross: stopped there; grey: the other experiments (seed 0). Seeds "
        f"differ in their dashes.{material.left_out}"
    )
    loss = _per_experiment(material, ("train/loss",), "loss", log=True)
    body = charts(figures, "No arm has reported an accuracy yet.") + note(text)
    if any(loss):
        folded = charts(loss, "")
        body += f"<details><summary>Loss curves (logarithmic)</summary>{folded}</details>"
    return Section("curves", "Learning curves", body)


def halting(material: Material) -> Section:
    """At which ACT step rows halt, at the end of training, and the mean over time."""
    figures = []
    for at, name in enumerate(material.experiments):
        shares = histogram(material.seeds(name))
        svg = bars_chart(
            [(str(step), share) for step, share in shares.items()],
            alt=f"share of halted rows of {name} by ACT step at the end of training",
            x_name="ACT step at which a row halted",
            colour=at,
        )
        steps = number(material.matrix["steps"].iloc[at])
        said = "" if math.isnan(steps) else f"mean {steps:.1f} steps"
        figures.append(figure(svg, short(name), said))
    text = (
        "Shares of halted rows over the last 10 % of steps, mean over the seeds. All at the last "
        "step: the trial never halts by itself. All at the first: it stops at once."
    )
    body = charts(figures, "No halting histogram was recorded (train/steps_hist).") + note(text)
    limits = [number(v) for v in material.matrix["halt_max_steps"]]
    most = max([v for v in limits if not math.isnan(v)], default=16.0)
    means = _per_experiment(material, ("train/steps",), "mean ACT steps", y_range=(0.0, most))
    if any(means):
        body += "<h3>Mean ACT steps over time</h3>" + charts(means, "")
    return Section("halting", "Halting", body)


def q_head(material: Material) -> Section:
    """Whether the Q-head knows when a grid is right, against always guessing."""
    rows = []
    for name in material.experiments:
        row = material.matrix[material.matrix["experiment"] == name].iloc[0]
        right, base = number(row["q_halt_accuracy"]), number(row["q_halt_base_rate"])
        if not math.isnan(right):
            gain = "–" if math.isnan(base) else f"{100 * (right - base):+.1f} points"
            rows.append(
                {
                    "experiment": name,
                    "n": str(row["n"]),
                    "Q-head right": _share(right),
                    "always guessing": _share(base),
                    "gain": gain,
                    "whole grids right": _share(number(row["exact"])),
                }
            )
    figures = [
        figure(
            lines_chart(
                [
                    line
                    for trial in material.seeds(name)
                    for line in (
                        _line(trial, "train/q_halt_accuracy", at, dash=0),
                        _line(trial, "train/q_halt_base_rate", at, dash=2),
                    )
                ],
                alt=f"Q-head accuracy of {name} over epochs, dotted its base rate",
                x_name="epochs",
                y_format=percent,
                y_range=(0.0, 1.0),
            ),
            short(name),
            "solid: Q-head, dotted: always guessing",
        )
        for at, name in enumerate(material.experiments)
    ]
    text = (
        "The Q-head says at every step whether the grid is right. It is worth something only above "
        "its base rate: where nearly every grid is wrong, saying so is right nearly always. "
        "Probabilities of single rows are not kept, so this is calibration in the large."
    )
    body = table(pd.DataFrame(rows)) if rows else ""
    body += charts(figures, "The Q-head was not measured.")
    return Section("q-head", "Q-head calibration", body + note(text))


def gradients(material: Material) -> Section:
    """Gradient norms of encoder and decoder, and the spread of what the encoder gives."""
    norms = _per_experiment(
        material,
        ("grad/encoder_norm", "grad/decoder_norm"),
        "gradient norms (solid: encoder, dotted: decoder)",
        log=True,
        dashes=(0, 2),
    )
    spread = _per_experiment(
        material,
        ("encoder/cross_sample_var", "encoder/within_group_var"),
        "encoder output variance (solid: between puzzles, dotted: within one)",
        log=True,
        dashes=(0, 2),
    )
    alike = _per_experiment(
        material, ("encoder/similarity",), "similarity of contexts", y_range=(-1.0, 1.0)
    )
    parts = ["<h3>Gradients</h3>", charts(norms, "No gradient norm was recorded.")]
    parts += ["<h3>Encoder</h3>", charts(spread, "No encoder output was recorded.")]
    if any(alike):
        parts.append(charts(alike, ""))
    text = (
        "Norms before clipping. An encoder whose gradient is a vanishing part of the total is "
        "starved; a variance between puzzles that falls towards zero is an encoder that tells no "
        "puzzle from another (thresholds: see health)."
    )
    return Section("gradients", "Gradients and encoder over time", "".join([*parts, note(text)]))


def drift(material: Material) -> Section:
    """How far a pretrained decoder is from its file."""
    rows, figures = [], []
    for at, name in enumerate(material.experiments):
        trials = material.seeds(name)
        measured = [t for t in trials if any(c.startswith("decoder/") for c in t.curve.columns)]
        if not measured:
            continue
        stayed, said = decoder_stayed([t.curve for t in measured])
        frozen = bool(measured[0].summary.get("config/freeze_decoder_steps"))
        rows.append(
            {
                "experiment": name,
                "trained with a frozen decoder": "yes" if frozen else "no",
                "equal to its file": {True: "yes", False: "no", None: "not measured"}[stayed],
                "measured": said,
            }
        )
        svg = lines_chart(
            [
                _line(t, metric, at, dash=dash)
                for t in measured
                for metric, dash in (("decoder/max_difference", 0), ("decoder/mean_difference", 2))
            ],
            alt=f"difference of the decoder of {name} from its file over epochs",
            x_name="epochs",
        )
        figures.append(figure(svg, short(name), "solid: largest difference, dotted: mean"))
    if not rows:
        body = paragraph(
            "No decoder was compared with its file: the run has no pretrained decoder, or its rows "
            "are of a version that did not measure it (etrm-tune checkpoint verify-decoder does)."
        )
    else:
        body = table(pd.DataFrame(rows)) + charts(figures, "")
    return Section("drift", "Decoder drift", body)


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


def _per_experiment(
    material: Material,
    metrics: Sequence[str],
    what: str,
    *,
    log: bool = False,
    dashes: Sequence[int] | None = None,
    y_range: tuple[float, float] | None = None,
) -> list[str]:
    """A chart of `metrics` for each experiment."""
    figures = []
    for at, name in enumerate(material.experiments):
        trials = material.seeds(name)
        svg = lines_chart(
            [
                _line(trial, metric, at, dash=(dashes or (seed,))[i if dashes else 0])
                for seed, trial in enumerate(trials)
                for i, metric in enumerate(metrics)
            ],
            alt=f"{what} of {name} over epochs",
            x_name="epochs",
            y_format=show_number,
            y_range=y_range,
            log=log,
        )
        figures.append(figure(svg, short(name), what))
    return figures


def _line(trial: Trial, metric: str, colour: int, *, faint: bool = False, dash: int = 0) -> Line:
    x, y = trial.values(metric)
    return Line(x, y, colour, faint=faint, stop=trial.stopped, dash=dash)


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


def _share(value: float) -> str:
    return "–" if math.isnan(value) else f"{100 * value:.1f} %"
