"""What goes on inside: the Q-head, gradients, the encoder, the decoder."""

from __future__ import annotations

import math
from collections.abc import Sequence

import pandas as pd

from analysis.frozen import decoder_stayed
from analysis.report.curves import dashed, line, per_experiment
from analysis.report.material import ROWS, Material, Trial, number, short
from analysis.report.page import Section, charts, figure, note, paragraph, table
from analysis.report.svg import Point, legend, lines_chart, percent, scatter_chart

PLACES = (("control", "training puzzles", 0), ("eval", "held-out puzzles", 1))
"""Where calibration is measured: family of the metrics, name, colour."""
BINS = 10


def q_head(material: Material) -> Section:
    """Whether the Q-head knows when a grid is right, against always guessing, and how sure."""
    rows = []
    for name in material.experiments:
        row = material.matrix[material.matrix["experiment"] == name].iloc[0]
        right, base = number(row["q_halt_accuracy"]), number(row["q_halt_base_rate"])
        if math.isnan(right):
            continue
        gain = "–" if math.isnan(base) else f"{100 * (right - base):+.1f} points"
        told = {
            "experiment": name,
            "n": str(row["n"]),
            "Q-head right": _share(right),
            "always guessing": _share(base),
            "gain": gain,
            "whole grids right": _share(number(row["exact"])),
        }
        for family, place, _ in PLACES:
            column = f"{family}/q_halt_calibration_error"
            errors = [number(t.summary.get(column)) for t in material.seeds(name)]
            known = [e for e in errors if not math.isnan(e)]
            mean = sum(known) / len(known) if known else math.nan
            if known:
                told[f"error, {place.split()[0]}"] = _share(mean)
        rows.append(told)
    tables = [_reliability(name, material.seeds(name)) for name in material.experiments]
    body = table(pd.DataFrame(rows).fillna("–"), fold=ROWS) if rows else ""
    if any(tables):
        names = [(place, colour, 0) for _, place, colour in PLACES]
        body += "<h3>Is its probability true? (at the end of training)</h3>" + legend(names)
        body += charts(tables, "")
        body += note(
            "Open: training puzzles; filled: held-out ones. A circle holds the rows whose halting "
            "probability after the last ACT step lies in one tenth, its area their number; its "
            "height is the share of these grids that are right. On the "
            "dashed line a probability is true; below it the Q-head is too sure. Error, in the "
            "table: mean distance from the line, by rows. Averaged weights on held-out puzzles, "
            "raw ones on training puzzles."
        )
    elif rows:
        body += paragraph(
            "No probabilities by tenth: no evaluation yet, or rows of a version without them."
        )
    figures = per_experiment(
        material,
        ("train/q_halt_accuracy", "train/q_halt_base_rate"),
        "Q-head right, and always guessing",
        names=("Q-head", "guessing"),
        y_range=(0.0, 1.0),
        y_format=percent,
    )
    body += "<h3>Over time (training rows that halted)</h3>"
    if any(figures):
        body += dashed("Q-head right", "always guessing")
    body += charts(figures, "The Q-head was not measured.")
    lead = (
        "Does the Q-head know when the grid is right? Halted training rows over the last 10 % of "
        "steps of the counted trials. It is worth something only above its base rate: where nearly "
        "every grid is wrong, saying so is right nearly always."
    )
    return Section("q-head", "Q-head calibration", body, lead)


def _reliability(name: str, trials: Sequence[Trial]) -> str:
    """Share of right grids by halting probability, rows of all seeds together."""
    points = []
    for family, place, colour in PLACES:
        for tenth in range(1, BINS + 1):
            rows = [number(t.summary.get(f"{family}/q_rows/{tenth}")) for t in trials]
            right = [number(t.summary.get(f"{family}/q_right/{tenth}")) for t in trials]
            known = [(n, r) for n, r in zip(rows, right, strict=True) if n > 0 and r == r]
            if not known:
                continue
            weight = sum(n for n, _ in known)
            share = sum(n * r for n, r in known) / weight
            weight /= len(trials)
            span = f"{10 * (tenth - 1)}–{10 * tenth} %"
            tip = f"{place}, probability {span}: {100 * weight:.1f} % of the rows, " + (
                f"{100 * share:.1f} % of them right"
            )
            size = 2 + 8 * math.sqrt(min(1.0, weight))
            points.append(
                Point((tenth - 0.5) / BINS, share, "", colour, size=size, fill=colour > 0, tip=tip)
            )
    svg = scatter_chart(
        points,
        alt=f"share of right grids of {name} by halting probability, training and held-out puzzles",
        x_name="halting probability",
        x_format=percent,
        diagonal=True,
        whole=True,
    )
    return figure(svg, short(name), "share of grids that are right")


def gradients(material: Material) -> Section:
    """Gradient norms of encoder and decoder, and the spread of what the encoder gives."""
    norms = per_experiment(
        material,
        ("grad/encoder_norm", "grad/decoder_norm"),
        "gradient norms of encoder and decoder",
        log=True,
        names=("encoder", "decoder"),
    )
    spread = per_experiment(
        material,
        ("encoder/cross_sample_var", "encoder/within_group_var"),
        "variance of the encoder's output between puzzles and within one",
        log=True,
        names=("between puzzles", "within one"),
    )
    alike = per_experiment(material, ("encoder/similarity",), "cosine", y_range=(-1.0, 1.0))
    parts = ["<h3>Gradient norms</h3>"]
    if any(norms):
        parts.append(dashed("encoder", "decoder"))
    parts += [charts(norms, "No gradient norm was recorded.")]
    parts.append("<h3>Variance of the encoder's output</h3>")
    if any(spread):
        parts.append(dashed("between puzzles", "within one puzzle, over its augmentations"))
    parts.append(charts(spread, "No encoder output was recorded."))
    if any(alike):
        parts += ["<h3>Similarity of the contexts of different puzzles</h3>", charts(alike, "")]
    text = (
        "Norms before clipping. An encoder whose gradient is a vanishing part of the total is "
        "starved; a variance between puzzles that falls towards zero is an encoder that tells no "
        "puzzle from another. Signs of trouble with their thresholds: Hypotheses and health."
    )
    lead = (
        "Do gradients reach the encoder, and does it tell puzzles apart? Every recorded row of "
        "every arm, means since the row before."
    )
    body = "".join([*parts, note(text)])
    return Section("gradients", "Gradients and encoder over time", body, lead)


def drift(material: Material) -> Section:
    """How far a pretrained decoder is from its file, frozen or trained on."""
    rows, figures = [], []
    for at, name in enumerate(material.experiments):
        trials = material.seeds(name)
        measured = [
            t for t in trials if any(c.startswith(("decoder/", "drift/")) for c in t.curve.columns)
        ]
        if not measured:
            continue
        stayed, said = decoder_stayed([t.curve for t in measured])
        frozen = number(measured[0].summary.get("config/freeze_decoder_steps"))
        moved = [number(t.summary.get("drift/relative")) for t in measured]
        known = [value for value in moved if not math.isnan(value)]
        rows.append(
            {
                "experiment": name,
                "frozen for": f"{frozen:.0f} steps" if frozen > 0 else "never frozen",
                "moved by the end": _share(sum(known) / len(known)) if known else "not measured",
                "at loading, or while frozen": "not compared" if stayed is None else said,
            }
        )
        svg = lines_chart(
            [
                line(t, "drift/relative", at, dash=i, name=f"seed {t.summary['seed']}")
                for i, t in enumerate(measured)
            ],
            alt=f"relative distance of the decoder of {name} from its file over epochs",
            x_name="epochs",
            y_format=percent,
        )
        figures.append(figure(svg, short(name), "distance from its file"))
    lead = (
        "How far training has moved a pretrained decoder from its file: arms that start from one, "
        "raw weights, at every evaluation."
    )
    if not rows:
        body = paragraph(
            "No decoder was compared with its file: the run has no pretrained decoder, or its rows "
            "are of a version that did not measure it (etrm-tune checkpoint verify-decoder does)."
        )
    else:
        body = table(pd.DataFrame(rows).fillna("–"), fold=ROWS) + charts(
            figures, "No drift was measured over time."
        )
        body += note(
            "Distance: length of the difference of all decoder weights, as a share of the length "
            "of the file's. A decoder that is frozen must stay at 0 %."
        )
    return Section("drift", "Decoder drift", body, lead)


def _share(value: float) -> str:
    return "–" if math.isnan(value) else f"{100 * value:.1f} %"
