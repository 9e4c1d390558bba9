"""Draws a board: one table that fits the terminal, with small curves, signs and stop reasons.

The same picture for the run's own terminal and for ``watch``. Columns are left out, least wanted
first, until the rest fits; of many trials those that run are shown, then the best, then a count.
"""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from dataclasses import dataclass

from rich import box
from rich.console import Console, ConsoleOptions, RenderResult
from rich.table import Table
from rich.text import Text

from analysis.health import Sign, describe
from etrm_tune.board import ACCURACY, ENDED, Board, Curve, Line
from etrm_tune.estimate import minutes

STYLES = {
    "running": "cyan",
    "finished": "green",
    "stopped": "yellow",
    "diverged": "magenta",
    "failed": "red",
    "interrupted": "yellow",
}

BLOCKS, ASCII = "▁▂▃▄▅▆▇█", "_.-=+*#@"
REASONS = 5
"""Last stop reasons that are shown."""
MIN_CURVE, CURVE, MAX_CURVE = 8, 16, 32
GAP = 2
WANTED = (
    "trial", "status", "accuracy", "ETA", "epoch", "curve", "exact", "ACT steps", "health", "loss",
    "loss curve", "step",
)  # fmt: skip
"""Columns, most wanted first."""
SHOWN = (
    "trial", "status", "epoch", "accuracy", "curve", "exact", "ACT steps", "step", "loss",
    "loss curve", "health", "ETA",
)  # fmt: skip
"""Columns from left to right."""
LEFT = ("trial", "status", "curve", "loss curve", "health")
HEALTH_WIDTH = 22


def duration(seconds: float | None) -> str:
    """``75 -> "1:15"``, ``None -> ""``."""
    if seconds is None or not math.isfinite(seconds):
        return ""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"


def percent(value: float | None) -> str:
    """An accuracy in percent; empty when it was not measured, ``nan`` when it is not a number."""
    if value is None:
        return ""
    return f"{100 * value:.1f} %" if math.isfinite(value) else "nan"


def sparkline(
    points: Sequence[float | None], low: float, high: float, *, rest: str = " ", ascii_only: bool
) -> str:
    """One character per point, from `low` to `high`; ``x`` is not a number, `rest` is to come."""
    levels = ASCII if ascii_only else BLOCKS
    signs = []
    for value in points:
        if value is None:
            signs.append(rest)
        elif not math.isfinite(value):
            signs.append("x")
        else:
            share = (value - low) / (high - low) if high > low else 0.5
            signs.append(levels[min(len(levels) - 1, max(0, int(share * len(levels))))])
    return "".join(signs)


def middle(text: str, width: int) -> str:
    """A name of at most `width` characters: what is cut is cut out of its middle."""
    if len(text) <= width:
        return text
    tail = max(0, (width - 1) * 3 // 5)
    return text[: width - 1 - tail] + "~" + text[len(text) - tail :]


def measured(line: Line) -> dict[str, str]:
    """A trial's last values as they are shown, by column."""
    row = line.row or {}
    loss, steps = row.get("train/loss"), row.get("train/steps")
    budget = f"/{line.epochs:.0f}" if line.epochs else ""
    accuracy = row.get(ACCURACY, math.nan if ACCURACY in row else None)
    return {
        "epoch": f"{row.get('epoch') or 0:.0f}{budget}" if row else "",
        "accuracy": percent(math.nan if accuracy is None and ACCURACY in row else accuracy),
        "exact": percent(row.get("train/exact_accuracy")),
        "ACT steps": "" if steps is None else f"{steps:.1f}",
        "step": str(row.get("step", "")),
        "loss": "" if loss is None else f"{loss:.3f}",
        "ETA": duration(line.eta_s(time.time())),
    }


def counted(counts: dict[str, int]) -> str:
    """``2 running, 1 finished``."""
    return ", ".join(f"{number} {status}" for status, number in counts.items())


def rank(line: Line) -> tuple[int, float]:
    """Of many trials: what goes on, what went wrong, the best of those that ended, what waits."""
    order = {"running": 0, "failed": 1, "interrupted": 1, "pending": 3}.get(line.status, 2)
    value = (line.row or {}).get(ACCURACY)
    known = value is not None and math.isfinite(value) and line.status != "diverged"
    return order, -float(value) if known and value is not None else 1.0


@dataclass
class View:
    """A board as rich draws it: as wide and as high as the console."""

    board: Board
    whole: bool = False
    """Every trial, however many lines that takes."""

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        lines = list(self.board.lines.values())
        plain = options.ascii_only or console.encoding.lower() in ("ascii", "us-ascii")
        notes = self._notes(options.max_width)
        title = self.title(options.max_width)
        used = _height([title, *notes], options.max_width) + 6
        room = len(lines)
        if console.is_terminal and not self.whole:
            room = max(3, console.size.height - used)
        if room < len(lines):
            order = sorted(lines, key=rank)
            shown, hidden = order[: room - 1], order[room - 1 :]
        else:
            shown, hidden = lines, []
        if hidden:
            notes.insert(0, self._summary(hidden))
        if plain:
            title, *notes = (_ascii(text) for text in (title, *notes))
        yield title
        yield self._table(shown, options.max_width, plain)
        yield from notes

    def title(self, width: int | None = None) -> Text:
        """The run, what it is doing, its trials counted, and the time that is left."""
        board, now = self.board, time.time()
        parts = [board.state] if board.state else []
        if board.began is not None:
            parts.append(duration(now - board.began))
        parts.append(counted(board.counts()))
        if board.more:
            parts.append(f"{board.more} more to come")
        left = board.left_s(now)
        if left is not None:
            parts.append(f"about {minutes(left)} left")
        told = " · ".join(part for part in parts if part)
        fits = width is None or len(board.title) + 2 + len(told) <= width
        text = Text(board.title, style="bold", overflow="fold")
        return text.append(("  " if fits else "\n") + told, style="not bold")

    def _table(self, lines: Sequence[Line], width: int, plain: bool) -> Table:
        cells = {line.trial_id: measured(line) for line in lines}
        names = max((len(line.trial_id) for line in lines), default=5)
        widths = {
            "trial": max(5, min(names, max(12, width // 3))),
            "status": max(6, *(len(line.status) for line in lines)) if lines else 6,
            "curve": CURVE,
            "loss curve": MIN_CURVE,
            "health": min(HEALTH_WIDTH, max((len(line.health) for line in lines), default=6)),
        }
        columns: list[str] = []
        free = width
        for name in WANTED:
            if name in cells.get(next(iter(cells), ""), {}):
                longest = max((len(cell[name]) for cell in cells.values()), default=0)
                widths[name] = max(len(name), longest)
            if name not in ("curve", "loss curve"):
                widths[name] = max(widths[name], len(name))
            if name == "curve" and widths[name] + GAP > free:
                widths[name] = min(MIN_CURVE, widths[name])
            if widths[name] + GAP > free:
                continue
            columns.append(name)
            free -= widths[name] + GAP
        curves = [name for name in ("curve", "loss curve") if name in columns]
        if curves and free > 0:
            for name in curves:
                more = min(MAX_CURVE - widths[name], free // len(curves))
                widths[name] += max(0, more)

        ranges = {
            "curve": _common([line.accuracy for line in lines]),
            "loss curve": _common([line.loss for line in lines]),
        }
        table = Table(box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0), pad_edge=False)
        for name in SHOWN:
            if name in columns:
                justify = "left" if name in LEFT else "right"
                head = _head(name, ranges, widths[name])
                table.add_column(head, justify=justify, no_wrap=True, width=widths[name])  # type: ignore[arg-type]
        for line in lines:
            values: dict[str, str | Text] = dict(cells[line.trial_id])
            values["trial"] = middle(line.trial_id, widths["trial"])
            values["status"] = Text(line.status, style=STYLES.get(line.status, ""))
            values["health"] = Text(line.health, style=health_style(line.signs))
            for name, curve in (("curve", line.accuracy), ("loss curve", line.loss)):
                rest = " " if line.status in ENDED else ("." if plain else "·")
                low, high = ranges[name] or (0.0, 1.0)
                points = curve.points(widths[name])
                values[name] = sparkline(points, low, high, rest=rest, ascii_only=plain)
            table.add_row(*(values[name] for name in SHOWN if name in columns))
        return table

    def _summary(self, hidden: Sequence[Line]) -> Text:
        counts: dict[str, int] = {}
        for line in hidden:
            counts[line.status] = counts.get(line.status, 0) + 1
        return Text(f"… {len(hidden)} more: {counted(counts)}", style="dim")

    def _notes(self, width: int) -> list[Text]:
        notes = []
        lines = list(self.board.lines.values())
        for line in lines:
            if line.signs and line.status == "running":
                told = f"{line.trial_id}: {describe(line.signs)}"
                notes.append(Text(told, style=health_style(line.signs), overflow="fold"))
        now = time.time()
        told_why = [line for line in lines if line.reason]
        told_why.sort(key=lambda line: line.changed or 0.0)
        for line in told_why[-REASONS:]:
            ago = ""
            if line.changed is not None and now - line.changed >= 60:
                ago = f", {_ago(now - line.changed)} ago"
            why = Text(f"{line.trial_id} ", overflow="fold")
            why.append(line.status, style=STYLES.get(line.status, ""))
            notes.append(why.append(f"{ago}: {' '.join(line.reason.split())}"))
        if len(told_why) > REASONS:
            notes.append(Text(f"… and {len(told_why) - REASONS} earlier reasons", style="dim"))
        return notes


def health_style(found: Sequence[Sign]) -> str:
    """Colour of a trial's health."""
    if any(sign.level == "critical" for sign in found):
        return "red"
    return "yellow" if found else "green"


def _ascii(text: Text) -> Text:
    told = text.plain.replace("·", "|").replace("…", "...")
    return Text(told.encode("ascii", "replace").decode(), style=text.style, overflow="fold")


def _ago(seconds: float) -> str:
    if seconds < 5400:
        return f"{seconds / 60:.0f} min"
    return f"{seconds / 3600:.0f} h" if seconds < 172800 else f"{seconds / 86400:.0f} days"


def _common(curves: Sequence[Curve]) -> tuple[float, float] | None:
    """One range for all curves, so that they can be compared. The few lowest and highest points
    are left out of it: a first step at 1 % would make every curve flat."""
    found = sorted(value for curve in curves for value in curve.means())
    if not found:
        return None
    edge = len(found) // 20
    return found[edge], found[-1 - edge]


def _head(name: str, ranges: dict[str, tuple[float, float] | None], width: int) -> str:
    """A column's head; that of a curve says what its lowest and highest point are."""
    if name not in ranges:
        return name
    found = ranges[name]
    short = "accuracy" if name == "curve" else "loss"
    if found is None:
        return short
    low, high = found
    told = f"{100 * low:.0f}-{100 * high:.0f} %" if name == "curve" else f"{low:.2g}-{high:.2g}"
    return f"{short} {told}" if len(short) + 1 + len(told) <= width else told[:width]


def _height(texts: Sequence[Text], width: int) -> int:
    lines = [line for text in texts for line in text.plain.split("\n")]
    return sum(max(1, -(-len(line) // max(1, width))) for line in lines)
