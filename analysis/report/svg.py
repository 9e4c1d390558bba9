"""Small charts as SVG text. Colours are variables of the style sheet, so that they follow it.

A chart is `WIDTH` units wide and drawn about as wide as a phone's screen, so its text stays
readable everywhere; many things to compare become many small charts.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from html import escape

from analysis.report.style import DASHES

WIDTH, HEIGHT = 340, 200
LEFT, RIGHT, TOP, BOTTOM = 40, 8, 8, 34
POINTS = 160
"""Points of a line at most: more are not visible at this size."""
DECADES = 6
"""Of a logarithmic axis, at most: what is lower lies on its floor."""

Format = Callable[[float], str]


@dataclass(frozen=True)
class Line:
    """One curve; NaN breaks it. `colour` numbers the palette; faint ones are background."""

    x: Sequence[float]
    y: Sequence[float]
    colour: int = 0
    faint: bool = False
    stop: bool = False
    """Whether a rule ended it: marked with a cross."""
    dash: int | None = None
    name: str = ""
    """Of the value that is shown under the pointer; lines of one name are one curve."""


@dataclass(frozen=True)
class Point:
    """One labelled point, with its interval if there is one."""

    x: float
    y: float
    label: str
    colour: int = 0
    low: float = math.nan
    high: float = math.nan
    strong: bool = False
    """Filled, and joined with the other strong ones."""
    fill: bool = False
    """Filled without being joined."""
    size: float = 4.0
    tip: str = ""
    """Shown under the pointer; default: label and values."""


@dataclass
class Axis:
    """Linear or logarithmic scale from values to units of the drawing."""

    low: float
    high: float
    start: float
    stop: float
    log: bool = False
    ticks: list[float] = field(default_factory=list)

    def __call__(self, value: float) -> float:
        low, high = self.low, self.high
        if self.log:
            value, low, high = (math.log10(v) for v in (max(value, 1e-300), low, high))
        share = (value - low) / (high - low) if high > low else 0.5
        return self.start + min(1.0, max(0.0, share)) * (self.stop - self.start)


def percent(value: float) -> str:
    """``90 %``."""
    return f"{100 * value:.4g} %"


def number(value: float) -> str:
    """Three digits, thousands as k."""
    if abs(value) >= 1e6:
        return f"{value / 1e6:.3g} M"
    if abs(value) >= 1e3:
        return f"{value / 1e3:.3g} k"
    return f"{value:.3g}"


def lines_chart(
    lines: Sequence[Line],
    *,
    alt: str,
    x_name: str,
    x_format: Format = number,
    y_format: Format = number,
    y_range: tuple[float, float] | None = None,
    log: bool = False,
    rungs: Sequence[float] = (),
) -> str:
    """Curves over a common x; with `rungs` as dashed verticals. Empty text without any value."""
    known = [
        (x, y) for line in lines for x, y in zip(line.x, line.y, strict=True) if _fit(x, y, log)
    ]
    if not known:
        return ""
    xs, ys = [x for x, _ in known], [y for _, y in known]
    across = _axis(0.0, max([*xs, *rungs]), LEFT, WIDTH - RIGHT)
    low, high = y_range or (min(ys), max(ys))
    if log:
        low = max(low, high * 10.0**-DECADES)
    if y_range is None and not log and low > 0 and low < 0.6 * high:
        low = 0.0
    up = _axis(low, high, HEIGHT - BOTTOM, TOP, log=log)
    parts = _frame(across, up, x_name, x_format, y_format)
    for rung in rungs:
        x = across(rung)
        parts.append(f'<line class="rung" x1="{x:.1f}" x2="{x:.1f}" y1="{TOP}" y2="{up.start}"/>')
    for line in sorted(lines, key=lambda one: not one.faint):
        parts += _path(line, across, up, log)
    told = {"x": _scale(across), "y": _scale(up), "xn": x_name}
    told |= {"f": _kind(y_format), "xf": _kind(x_format)}
    return _svg(parts, alt, told)


def scatter_chart(
    points: Sequence[Point],
    *,
    alt: str,
    x_name: str,
    x_format: Format = number,
    y_format: Format = percent,
    diagonal: bool = False,
    whole: bool = False,
    log_x: bool = False,
) -> str:
    """Labelled points with intervals; strong ones are joined in the order of x.

    `whole`: both axes go from 0 to 1. `log_x`: the x axis is logarithmic.
    """
    known = [
        p for p in points if math.isfinite(p.x) and math.isfinite(p.y) and (not log_x or p.x > 0)
    ]
    if not known:
        return ""
    xs = [p.x for p in known]
    ys = [v for p in known for v in (p.y, p.low, p.high) if math.isfinite(v)]
    room = 0.12 * (max(xs) - min(xs)) or 0.1 * abs(max(xs)) or 1.0
    across = _axis(max(0.0, min(xs) - room), max(xs) + room, LEFT, WIDTH - RIGHT)
    if log_x:
        across = _axis(min(xs), max(xs), LEFT, WIDTH - RIGHT, log=True)
    spread = 0.15 * (max(ys) - min(ys)) or 0.05
    up = _axis(max(0.0, min(ys) - spread), min(1.0, max(ys) + spread), HEIGHT - BOTTOM, TOP)
    if whole:
        across = _axis(0.0, 1.0, LEFT, WIDTH - RIGHT)
        up = _axis(0.0, 1.0, HEIGHT - BOTTOM, TOP)
    parts = _frame(across, up, x_name, x_format, y_format)
    if diagonal:
        low, high = max(across.low, up.low), min(across.high, up.high)
        parts.append(
            f'<line class="rung" x1="{across(low):.1f}" y1="{up(low):.1f}" '
            f'x2="{across(high):.1f}" y2="{up(high):.1f}"/>'
        )
    front = sorted((p for p in known if p.strong), key=lambda p: p.x)
    if len(front) > 1:
        path = " ".join(f"{across(p.x):.1f},{up(p.y):.1f}" for p in front)
        parts.append(f'<polyline points="{path}" fill="none" stroke="var(--c7)"/>')
    placed: list[tuple[float, float]] = []
    for p in known:
        x, y = across(p.x), up(p.y)
        if math.isfinite(p.low) and math.isfinite(p.high):
            parts.append(
                f'<line x1="{x:.1f}" x2="{x:.1f}" y1="{up(p.low):.1f}" y2="{up(p.high):.1f}" '
                f'stroke="var(--c{p.colour % 8})"/>'
            )
        fill = f"var(--c{p.colour % 8})" if p.strong or p.fill else "var(--bg)"
        tip = p.tip or f"{p.label}: {y_format(p.y)} at {x_format(p.x)}"
        parts.append(
            f'<circle cx="{x:.1f}" cy="{y:.1f}" r="{p.size:.1f}" fill="{fill}" '
            f'stroke="var(--c{p.colour % 8})" stroke-width="2" data-tip="{escape(tip)}"/>'
        )
        if p.label:
            parts.append(_label(p.label, x, y, placed))
    return _svg(parts, alt)


def bars_chart(
    values: Sequence[tuple[str, float]],
    *,
    alt: str,
    x_name: str,
    y_format: Format = percent,
    colour: int = 0,
) -> str:
    """A bar for each (label, value), from 0."""
    if not any(math.isfinite(value) for _, value in values):
        return ""
    most = max(value for _, value in values if math.isfinite(value))
    up = _axis(0.0, most or 1.0, HEIGHT - BOTTOM, TOP)
    parts = _frame(None, up, x_name, number, y_format)
    step = (WIDTH - LEFT - RIGHT) / len(values)
    every = -(-len(values) // 16)
    for at, (label, value) in enumerate(values):
        x = LEFT + at * step
        if math.isfinite(value):
            y = up(value)
            parts.append(
                f'<rect x="{x + 0.12 * step:.1f}" y="{y:.1f}" width="{0.76 * step:.1f}" '
                f'height="{up.start - y:.1f}" fill="var(--c{colour % 8})" '
                f'data-tip="{escape(f"{x_name} {label}: {_one_digit(value, y_format)}")}"/>'
            )
        if at % every == 0:
            parts.append(_text(label, x + step / 2, up.start + 13, "middle"))
    return _svg(parts, alt)


def _one_digit(value: float, y_format: Format) -> str:
    return f"{100 * value:.1f} %" if y_format is percent else y_format(value)


def swatch(colour: int, dash: int = 0) -> str:
    """A short piece of line for a legend."""
    return (
        f'<svg viewBox="0 0 26 10" aria-hidden="true"><line x1="0" x2="26" y1="5" y2="5" '
        f'stroke="var(--c{colour % 8})" stroke-width="3" stroke-dasharray="{_dash(dash)}"/></svg>'
    )


def legend(labels: Sequence[tuple[str, int, int]]) -> str:
    """Names of curves beside a piece of each: (label, colour, dash)."""
    told = "".join(f"<span>{swatch(c, d)}{escape(label)}</span>" for label, c, d in labels)
    return f'<div class="legend">{told}</div>'


def thin(values: Sequence[float], at_most: int) -> list[int]:
    """Positions of at most `at_most` values, evenly spread, the first and the last among them."""
    count = len(values)
    if count <= at_most:
        return list(range(count))
    return sorted({round(i * (count - 1) / (at_most - 1)) for i in range(at_most)})


def nice_ticks(low: float, high: float, about: int = 4) -> list[float]:
    """Round numbers from `low` to `high`."""
    if not high > low:
        return [low]
    raw = (high - low) / about
    size = 10 ** math.floor(math.log10(raw))
    step = next(m * size for m in (1, 2, 2.5, 5, 10) if m * size >= raw * 0.999)
    first = math.ceil(low / step - 1e-9)
    last = math.floor(high / step + 1e-9)
    return [round(i * step, 12) for i in range(first, last + 1)]


def _axis(low: float, high: float, start: float, stop: float, *, log: bool = False) -> Axis:
    if log:
        low, high = 10 ** math.floor(math.log10(low)), 10 ** math.ceil(math.log10(high))
        if low == high:
            high *= 10
        ends = round(math.log10(low)), round(math.log10(high))
        every = max(1, -(-(ends[1] - ends[0]) // 5))
        return Axis(low, high, start, stop, True, [10.0**e for e in range(*ends, every)] + [high])
    if low == high:
        low, high = low - (abs(low) * 0.1 or 0.5), high + (abs(high) * 0.1 or 0.5)
    return Axis(low, high, start, stop, False, nice_ticks(low, high))


def _frame(
    across: Axis | None, up: Axis, x_name: str, x_format: Format, y_format: Format
) -> list[str]:
    parts = []
    for tick in up.ticks:
        y = up(tick)
        parts.append(
            f'<line class="grid" x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{y:.1f}" y2="{y:.1f}"/>'
        )
        parts.append(_text(y_format(tick), LEFT - 4, y + 4, "end"))
    for tick in across.ticks if across else ():
        at = across(tick) if across else 0.0
        anchor = "end" if at > WIDTH - 24 else "middle"
        parts.append(_text(x_format(tick), at, HEIGHT - BOTTOM + 13, anchor))
    parts.append(_text(x_name, (LEFT + WIDTH - RIGHT) / 2, HEIGHT - 5, "middle"))
    return parts


def _path(line: Line, across: Axis, up: Axis, log: bool) -> list[str]:
    chosen = thin(line.x, POINTS // 2 if line.faint else POINTS)
    pieces: list[list[str]] = [[]]
    last: tuple[float, float] | None = None
    for at in chosen:
        x, y = line.x[at], line.y[at]
        if not _fit(x, y, log):
            continue
        last = across(x), up(y)
        pieces[-1].append(f"{last[0]:.1f},{last[1]:.1f}")
    if last is None:
        return []
    colour = f"var(--c{line.colour % 8})"
    dash = _dash(line.colour // 8 if line.dash is None else line.dash)
    look = (
        'class="faint"'
        if line.faint
        else f'fill="none" stroke="{colour}" stroke-width="1.8" stroke-dasharray="{dash}" '
        f'data-n="{escape(line.name)}"'
    )
    made = [f'<polyline points="{" ".join(p)}" {look}/>' for p in pieces if len(p) > 1]
    x, y = last
    if line.stop and not line.faint:
        made.append(
            f'<path d="M{x - 5:.1f},{y - 5:.1f}l10,10m0,-10l-10,10" stroke="{colour}" '
            f'stroke-width="2.4"/>'
        )
    elif not made or not line.faint:
        made.append(f'<circle cx="{x:.1f}" cy="{y:.1f}" r="2.6" fill="{colour}"/>')
    return made


def _label(label: str, x: float, y: float, placed: list[tuple[float, float]]) -> str:
    """A label beside its point, moved down while it would cover another one."""
    left = x > WIDTH - 60
    at = y + 4
    while any(abs(at - other) < 11 and abs(x - where) < 60 for where, other in placed):
        at += 11
    placed.append((x, at))
    anchor = "end" if left else "start"
    return _text(label, x - 7 if left else x + 7, at, anchor, kind="label")


def _fit(x: float, y: float, log: bool) -> bool:
    return math.isfinite(x) and math.isfinite(y) and (not log or y > 0)


def _dash(which: int) -> str:
    return DASHES[which % len(DASHES)]


def _text(text: str, x: float, y: float, anchor: str, kind: str = "") -> str:
    named = f' class="{kind}"' if kind else ""
    return f'<text{named} x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}">{escape(text)}</text>'


def _kind(form: Format) -> str:
    return "p" if form is percent else "n"


def _scale(axis: Axis) -> str:
    """An axis for the page's script, which reads values back from positions."""
    ends = ",".join(f"{v:.9g}" for v in (axis.low, axis.high, axis.start, axis.stop))
    return f"{ends},{int(axis.log)}"


def _svg(parts: Sequence[str], alt: str, data: Mapping[str, str] | None = None) -> str:
    told = "".join(f' data-{name}="{escape(text)}"' for name, text in (data or {}).items())
    return (
        f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{escape(alt)}"{told}>'
        f"{''.join(parts)}</svg>"
    )
