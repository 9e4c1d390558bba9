"""Is a trial healthy? Signs with a threshold each (`search_spaces.rules.health.THRESHOLDS`).

`signs` reads a trial's recent rows as plain dictionaries and its flat options, so that a live view
can call it on every report; `health` is the same for every trial of a run, as a table. What was not
measured gives no sign.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import pandas as pd

from analysis.load import Run
from search_spaces.rules import health as limits

Row = Mapping[str, Any]


@dataclass(frozen=True)
class Sign:
    """One thing that is wrong with a trial, or may be."""

    sign: str
    level: Literal["warning", "critical"]
    text: str
    value: float
    threshold: float
    origin: str
    """Where the threshold comes from: repo, document or ours."""


COLUMNS = ("trial_id", "experiment", "seed", "sign", "level", "text", "value", "threshold",
           "origin")  # fmt: skip


READ = (
    "step", "epoch", "train/loss", "train/accuracy", "train/steps", "train/q_halt_accuracy",
    "train/q_halt_base_rate", "train/encoder_frozen", "grad/encoder_norm", "grad/total_norm",
    "encoder/cross_sample_var", "encoder/kl_per_dim", "encoder/active_units",
)  # fmt: skip
"""What `signs` reads of a row."""


def health(run: Run) -> pd.DataFrame:
    """One row per sign of every trial (columns: `COLUMNS`), in the order of the plan; empty when
    every trial is well. Decoders that were trained here are looked at as well."""
    found = []
    for trial in run.trials.to_dict("records"):
        curve = run.curve(trial["run"], trial["trial_id"])
        names = [name for name in READ if name in curve]
        columns = (curve[name].to_numpy(np.float64, na_value=np.nan).tolist() for name in names)
        rows = [dict(zip(names, values, strict=True)) for values in zip(*columns, strict=True)]
        options = {
            str(name).removeprefix("config/"): value
            for name, value in trial.items()
            if str(name).startswith("config/")
        }
        total = trial["total_steps"]
        for sign in signs(rows, options, total_steps=total if total == total else None):
            key = {name: trial[name] for name in ("trial_id", "experiment", "seed")}
            found.append(key | vars(sign))
    return pd.DataFrame(found, columns=list(COLUMNS))


def signs(
    rows: Iterable[Row], options: Mapping[str, Any], *, total_steps: float | None = None
) -> list[Sign]:
    """Signs of one trial.

    Args:
        rows: its rows so far, oldest first; metrics absent, None or NaN were not measured. A sign
            that compares with earlier rows (collapse, divergence, plateau) needs them.
        options: flat options of its configuration (`TrialConfig.flat()`).
        total_steps: planned optimizer steps; None: the budget in epochs decides how far it is.
    """
    known = list(rows)
    if not known:
        return []
    done = _share(known[-1], options, total_steps)
    checks = [
        _starvation(known, options),
        _encoder_collapse(known, options, done),
        _posterior_collapse(known, options, done),
        _stuck_halting(known, options, done),
        _q_head(known, options, done),
        _divergence(known),
        _plateau(known, done),
    ]
    return [sign for sign in checks if sign is not None]


def describe(found: Sequence[Sign]) -> str:
    """The signs in one line; empty when there is none."""
    return "; ".join(f"{one.sign}: {one.text}" for one in found)


def _starvation(rows: Sequence[Row], options: Mapping[str, Any]) -> Sign | None:
    if _is_trm(options):
        return None
    recent = [row for row in rows[-limits.RECENT :] if _number(row, "train/encoder_frozen") != 1.0]
    ratios = [
        encoder / total
        for row in recent
        if (encoder := _number(row, "grad/encoder_norm")) is not None
        and (total := _number(row, "grad/total_norm")) is not None
        and total > 0
    ]
    if not ratios:
        return None
    ratio = _mean(ratios)
    text = f"encoder gradient is {100 * ratio:.1f} % of the total"
    if ratio < limits.STARVED:
        return _sign("gradient starvation", "critical", text, ratio)
    return _sign("gradient starvation", "warning", text, ratio) if ratio < limits.STARVING else None


def _encoder_collapse(rows: Sequence[Row], options: Mapping[str, Any], done: float) -> Sign | None:
    values = _series(rows, "encoder/cross_sample_var")
    if options.get("freeze_encoder") or done < limits.SETTLED or len(values) < 2 * limits.RECENT:
        return None
    means = _windows(values)
    share = means[-1] / max(means) if max(means) > 0 else 0.0
    text = f"variance between puzzles {means[-1]:.3g}, {100 * share:.0f} % of its highest"
    if share < limits.COLLAPSED:
        return _sign("encoder collapse", "critical", text, share)
    return _sign("encoder collapse", "warning", text, share) if share < limits.COLLAPSING else None


def _posterior_collapse(
    rows: Sequence[Row], options: Mapping[str, Any], done: float
) -> Sign | None:
    kl = _recent(rows, "encoder/kl_per_dim")
    variational = str(options.get("encoder_type", "")).endswith("variational")
    if kl is None or not variational or done < limits.SETTLED or kl >= limits.POSTERIOR:
        return None
    text = f"KL {kl:.2g} nats per latent dimension: the code says nothing about the puzzle"
    active = _recent(rows, "encoder/active_units")
    if active is not None:
        text += f" ({100 * active:.0f} % of its dimensions active)"
    return _sign("posterior collapse", "critical", text, kl)


def _stuck_halting(rows: Sequence[Row], options: Mapping[str, Any], done: float) -> Sign | None:
    steps, most = _recent(rows, "train/steps"), options.get("halt_max_steps")
    if steps is None or not most or done < limits.SETTLED or _online(options):
        return None
    if steps <= 1 + limits.STUCK_STEPS:
        return _sign("stuck halting", "warning", f"{steps:.2f} steps: stops at once", steps)
    if steps >= float(most) - limits.STUCK_STEPS:
        text = f"{steps:.2f} of {float(most):.0f} steps: never stops by itself"
        return _sign("stuck halting", "warning", text, steps)
    return None


def _q_head(rows: Sequence[Row], options: Mapping[str, Any], done: float) -> Sign | None:
    accuracy = _recent(rows, "train/q_halt_accuracy")
    base = _recent(rows, "train/q_halt_base_rate")
    if accuracy is None or base is None or done < limits.SETTLED:
        return None
    if base >= 1.0:  # every grid right, or every grid wrong: nothing to tell apart
        return None
    gain = accuracy - base
    if gain > limits.Q_HEAD_MARGIN:
        return None
    text = f"right in {100 * accuracy:.1f} %, always guessing in {100 * base:.1f} %"
    return _sign("Q-head", "warning", f"no better than its base rate: {text}", gain)


def _divergence(rows: Sequence[Row]) -> Sign | None:
    last = rows[-1]
    loss = last.get("train/loss")
    if "train/loss" in last and (loss is None or not math.isfinite(float(loss))):
        return _sign("divergence", "critical", "train/loss is not finite", math.nan)
    values = [value for value in _series(rows, "train/loss") if math.isfinite(value)]
    if len(values) < 2 * limits.RECENT:
        return None
    means = _windows(values)
    lowest = min(means)
    if lowest > 0 and means[-1] > max(limits.BLOWN_UP * lowest, limits.AS_BEFORE * means[0]):
        text = f"train/loss {means[-1]:.3g} after {lowest:.3g}"
        return _sign("divergence", "warning", text, means[-1] / lowest)
    return None


def _plateau(rows: Sequence[Row], done: float) -> Sign | None:
    values = _series(rows, "train/accuracy")
    third = len(values) // 3
    if done < limits.PLATEAU_FROM or third < 3:
        return None
    # The end of the last third against its beginning, each a ninth of the rows.
    width = max(1, third // 3)
    late, before = values[-width:], values[-third : -third + width]
    now, gain = _mean(late), _mean(late) - _mean(before)
    if now >= limits.PLATEAU_BELOW or gain >= limits.PLATEAU_GAIN:
        return None
    text = f"accuracy {100 * now:.1f} %, {100 * gain:+.1f} points over the last third of the rows"
    return _sign("plateau", "warning", text, gain)


def _sign(name: str, level: Literal["warning", "critical"], text: str, value: float) -> Sign:
    line = limits.threshold(name, level)
    return Sign(name, level, text, value, line.value, line.origin)


def _share(last: Row, options: Mapping[str, Any], total_steps: float | None) -> float:
    """Part of the budget that is done, 0 to 1."""
    if total_steps:
        return min(1.0, float(last.get("step", 0)) / total_steps)
    epochs, planned = _number(last, "epoch"), options.get("epochs")
    return min(1.0, epochs / float(planned)) if epochs is not None and planned else 0.0


def _online(options: Mapping[str, Any]) -> bool:
    """Whether the number of steps is fixed. A TRM halts by its Q-head in every mode."""
    return options.get("encode_mode") == "online" and not _is_trm(options)


def _is_trm(options: Mapping[str, Any]) -> bool:
    return options.get("kind") == "trm"


def _number(row: Row, metric: str) -> float | None:
    value = row.get(metric)
    if value is None or not math.isfinite(float(value)):
        return None
    return float(value)


def _series(rows: Sequence[Row], metric: str) -> list[float]:
    return [value for row in rows if (value := _number(row, metric)) is not None]


def _recent(rows: Sequence[Row], metric: str) -> float | None:
    values = _series(rows[-limits.RECENT :], metric)
    return _mean(values) if values else None


def _windows(values: Sequence[float]) -> list[float]:
    """Means of successive windows of `RECENT` values, the last one ending at the last value."""
    ends = range(len(values), limits.RECENT - 1, -limits.RECENT)
    return [_mean(values[end - limits.RECENT : end]) for end in ends][::-1]


def _mean(values: Sequence[float]) -> float:
    return round(sum(values) / len(values), 12)  # a mean of equal values is that value
