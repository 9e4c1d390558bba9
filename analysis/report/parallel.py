"""Parallel coordinates as SVG: one vertical axis for each parameter, one line for each point."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from html import escape
from typing import Any

STEP, TOP, HEIGHT, SIDE, FLOOR = 116, 40, 210, 54, 26
"""Units between axes, above them, of them, beside them; below them is the place of "not active"."""
LOOK = {
    "best": 'stroke="var(--c1)" stroke-width="2.6"',
    "done": 'stroke="var(--c0)" stroke-width="1.2" opacity=".75"',
    "cut": 'stroke="var(--soft)" stroke-width="1" stroke-dasharray="3 3" opacity=".55"',
}
ORDER = ("cut", "done", "best")
LABELS = 9
"""Different values that are all named on an axis."""


@dataclass(frozen=True)
class Path:
    """One point: what is shown under the pointer, and its look (a key of `LOOK`)."""

    tip: str
    kind: str


@dataclass(frozen=True)
class Axis:
    """One axis and every point's value on it; None: not active there.

    `ends`: a point without a value ends before this axis.
    """

    name: str
    values: Sequence[Any]
    percent: bool = False
    ends: bool = False
    ticks: list[tuple[str, float]] = field(init=False)
    places: list[float | None] = field(init=False)
    """Height of every point, 0 (lowest) to 1; None: no value."""

    def __post_init__(self) -> None:
        known = [v for v in self.values if v is not None]
        numbers = all(isinstance(v, int | float) and not isinstance(v, bool) for v in known)
        if numbers and known:
            low, high = float(min(known)), float(max(known))
            log = low > 0 and high / low >= 30
            distinct = sorted(set(known))
            ticks: list[Any] = distinct if len(distinct) <= LABELS else _ticks(low, high, log)

            def place(value: Any) -> float:
                if high == low:
                    return 0.5
                if log:
                    return math.log(value / low) / math.log(high / low)
                return (float(value) - low) / (high - low)
        else:
            names = sorted(set(map(str, known)))
            ticks = list(names)

            def place(value: Any) -> float:
                return names.index(str(value)) / (len(names) - 1) if len(names) > 1 else 0.5

        object.__setattr__(self, "ticks", [(self._label(v), place(v)) for v in ticks])
        places = [None if v is None else place(v) for v in self.values]
        object.__setattr__(self, "places", places)

    def _label(self, value: Any) -> str:
        if self.percent:
            return f"{100 * value:.3g} %"
        return f"{value:.3g}" if isinstance(value, float) else str(value)


def parallel_chart(axes: Sequence[Axis], paths: Sequence[Path], *, alt: str) -> str:
    """The chart in a box that scrolls sideways where the screen is narrow. Names and values are
    escaped; a line's `tip` is shown under the pointer."""
    width, height = 2 * SIDE + STEP * (len(axes) - 1), TOP + HEIGHT + FLOOR + 14
    parts = []
    ranked = sorted(range(len(paths)), key=lambda at: ORDER.index(paths[at].kind))
    for at in ranked:
        line = _line(axes, at)
        if line.count(" ") < 1:
            continue
        tip = escape(paths[at].tip)
        parts.append(f'<polyline points="{line}" fill="none" {LOOK[paths[at].kind]}/>')
        parts.append(
            f'<polyline points="{line}" fill="none" stroke="transparent" stroke-width="8" '
            f'pointer-events="stroke" data-tip="{tip}"/>'
        )
    for i, axis in enumerate(axes):
        x = SIDE + i * STEP
        parts.append(f'<line class="axis" x1="{x}" x2="{x}" y1="{TOP}" y2="{TOP + HEIGHT}"/>')
        parts += _name(axis.name, x, raised=i % 2 == 1)
        for label, place in _apart(axis.ticks):
            parts.append(_text(label, x + 5, _y(place) + 4, "tick"))
        if not axis.ends and any(place is None for place in axis.places):
            parts.append(_text("∅", x + 5, _y(None) + 4, "tick"))
    inside = "".join(parts)
    look = f"min-width:{min(width, 56 * 16)}px;max-width:{int(1.25 * width)}px"
    return (
        f'<div class="scroll"><svg class="parallel" viewBox="0 0 {width + 40} {height}" role="img" '
        f'style="{look}" aria-label="{escape(alt)}">{inside}</svg></div>'
    )


def _line(axes: Sequence[Axis], at: int) -> str:
    points = []
    for i, axis in enumerate(axes):
        place = axis.places[at]
        if place is None and axis.ends:
            break
        points.append(f"{SIDE + i * STEP},{_y(place):.1f}")
    return " ".join(points)


def _y(place: float | None) -> float:
    return TOP + HEIGHT + FLOOR if place is None else TOP + HEIGHT * (1 - place)


def _ticks(low: float, high: float, log: bool) -> list[float]:
    shares = (0.0, 0.25, 0.5, 0.75, 1.0)
    if log:
        return [low * (high / low) ** share for share in shares]
    return [low + share * (high - low) for share in shares]


def _apart(ticks: Sequence[tuple[str, float]]) -> list[tuple[str, float]]:
    """Labels that do not cover each other."""
    kept: list[tuple[str, float]] = []
    for label, place in sorted(ticks, key=lambda one: one[1]):
        if not kept or (place - kept[-1][1]) * HEIGHT >= 11:
            kept.append((label, place))
    return kept


def _name(name: str, x: float, *, raised: bool) -> list[str]:
    """An axis' name above it; every second one higher, so that long ones have room."""
    return [_text(name, x, TOP - (26 if raised else 12), "label", "middle")]


def _text(text: str, x: float, y: float, kind: str, anchor: str = "start") -> str:
    return f'<text class="{kind}" x="{x}" y="{y:.1f}" text-anchor="{anchor}">{escape(text)}</text>'
