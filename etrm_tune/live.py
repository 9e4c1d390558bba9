"""What the terminal shows while trials run: one table that is redrawn, or plain lines in a pipe."""

from __future__ import annotations

import math
import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from types import TracebackType
from typing import Any

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.table import Table
from rich.text import Text

from analysis.health import Sign, describe, signs
from etrm_tune.plan import PlannedTrial

STYLES = {
    "running": "cyan",
    "finished": "green",
    "stopped": "yellow",
    "diverged": "magenta",
    "failed": "red",
    "interrupted": "yellow",
}

REDRAW_S = 0.5
PLAIN_SHARE = 0.1
"""In a pipe a running trial gets a line for every tenth of its budget."""


@dataclass
class _Line:
    """One trial's line."""

    trial: PlannedTrial
    status: str = "pending"
    reason: str = ""
    row: Mapping[str, Any] | None = None
    began: tuple[float, float] | None = None
    """Time and epoch of the first row seen, from which the rate follows."""
    told: float = -1.0
    rows: list[Mapping[str, Any]] = field(default_factory=list)
    signs: list[Sign] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.options = self.trial.config.flat()

    def look(self) -> None:
        """Read the trial's health off its rows."""
        self.signs = signs(self.rows, self.options)

    @property
    def health(self) -> str:
        """Names of the signs, ``ok`` without one; empty before the first row."""
        return ", ".join(sign.sign for sign in self.signs) or ("ok" if self.rows else "")

    @property
    def share(self) -> float:
        """Part of the budget that is done, 0 to 1."""
        return min(1.0, float((self.row or {}).get("epoch", 0.0)) / self.trial.config.epochs)

    def eta_s(self, now: float) -> float | None:
        """Seconds until the end at the rate since the first row; None while it is unknown."""
        if self.status != "running" or self.row is None or self.began is None:
            return None
        began, epoch = self.began
        done = float(self.row.get("epoch", 0.0)) - epoch
        if done <= 0 or now <= began:
            return None
        return (self.trial.config.epochs - epoch - done) / done * (now - began)


def duration(seconds: float | None) -> str:
    """``75 -> "1:15"``, ``None -> ""``."""
    if seconds is None or not math.isfinite(seconds):
        return ""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"


def percent(value: Any) -> str:
    """An accuracy in percent; empty when it was not measured, ``nan`` when it is not a number."""
    if value is None:
        return ""
    return f"{100 * value:.1f} %" if math.isfinite(value) else "nan"


class LiveTable:
    """Trials of a plan, their last rows and statuses. Use as a context manager."""

    def __init__(self, console: Console, trials: Iterable[PlannedTrial], title: str) -> None:
        self.console = console
        self.title = title
        self._lines = {trial.trial_id: _Line(trial) for trial in trials}
        self._live: Live | None = None
        self._drawn = 0.0

    def __enter__(self) -> LiveTable:
        if self.console.is_terminal:
            self._live = Live(
                self.render(), console=self.console, auto_refresh=False, transient=False
            )
            self._live.__enter__()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._live is not None:
            self._live.update(self.render(), refresh=True)
            self._live.__exit__(kind, error, trace)
            self._live = None

    def set_status(self, trial_id: str, status: str, reason: str = "") -> None:
        """Show a new status."""
        line = self._lines[trial_id]
        changed = status != line.status
        line.status, line.reason = status, reason
        if self._live is None and changed and status != "pending":
            self.console.print(Text(self._plain(line)), soft_wrap=True)
        self.refresh(force=changed)

    def add(self, trial: PlannedTrial) -> None:
        """Show one more trial."""
        self._lines.setdefault(trial.trial_id, _Line(trial))

    def load(self, trial_id: str, rows: Iterable[Mapping[str, Any]]) -> None:
        """Rows of earlier sessions."""
        line = self._lines[trial_id]
        line.rows = list(rows)
        for row in line.rows:
            line.row = {**(line.row or {}), **row}
        line.look()

    def update(self, trial_id: str, row: Mapping[str, Any], *, running: bool = True) -> None:
        """Show a report."""
        line = self._lines[trial_id]
        known = {key: value for key, value in (line.row or {}).items() if key not in row}
        line.row = known | dict(row)
        if line.rows and line.rows[-1].get("step", 0) >= row.get("step", 0):
            line.rows = [r for r in line.rows if r.get("step", 0) < row.get("step", 0)]
        line.rows.append(dict(row))
        line.look()
        if running and line.began is None:
            line.began = (time.time(), float(row.get("epoch", 0.0)))
        if self._live is None and running and line.share >= line.told + PLAIN_SHARE:
            line.told = line.share
            self.console.print(Text(self._plain(line)), soft_wrap=True)
        self.refresh()

    def refresh(self, *, force: bool = False) -> None:
        """Redraw, at most twice a second unless ``force``."""
        now = time.monotonic()
        if self._live is not None and (force or now - self._drawn >= REDRAW_S):
            self._drawn = now
            self._live.update(self.render(), refresh=True)

    def _cells(self, line: _Line) -> tuple[str, ...]:
        row = line.row or {}
        epochs = f"{row.get('epoch', 0):.0f}/{line.trial.config.epochs:.0f}" if row else ""
        loss, steps = row.get("train/loss"), row.get("train/steps")
        return (
            epochs,
            percent(row.get("train/accuracy")),
            percent(row.get("train/exact_accuracy")),
            "" if steps is None else f"{steps:.1f}",
            str(row.get("step", "")),
            "" if loss is None else f"{loss:.3f}",
            duration(line.eta_s(time.time())),
        )

    def _plain(self, line: _Line) -> str:
        epochs, accuracy, exact, steps, step, loss, eta = self._cells(line)
        parts = [f"{line.trial.trial_id} {line.status}"]
        for name, value in (
            ("epoch", epochs),
            ("accuracy", accuracy),
            ("exact", exact),
            ("ACT steps", steps),
            ("step", step),
            ("loss", loss),
            ("health", line.health if line.signs else ""),
            ("ETA", eta),
        ):
            if value:
                parts.append(f"{name} {value}")
        return "  ".join(parts) + (f"  ({line.reason})" if line.reason else "")

    def render(self) -> RenderableType:
        """The table as it stands."""
        table = Table(title=self.title, title_justify="left")
        table.add_column("trial", no_wrap=True)
        for name in ("epoch", "accuracy", "exact", "ACT steps", "step", "loss"):
            table.add_column(name, justify="right", no_wrap=True)
        table.add_column("health")
        table.add_column("status", no_wrap=True)
        table.add_column("ETA", justify="right", no_wrap=True)
        notes = []
        for line in self._lines.values():
            *measured, eta = self._cells(line)
            status = Text(line.status, style=STYLES.get(line.status, ""))
            health = Text(line.health, style=_health_style(line.signs))
            table.add_row(line.trial.trial_id, *measured, health, status, eta)
            if line.reason:
                notes.append(Text(f"{line.trial.trial_id}: {line.reason}", overflow="fold"))
            if line.signs and line.status == "running":
                told = f"{line.trial.trial_id}: {describe(line.signs)}"
                notes.append(Text(told, style=_health_style(line.signs), overflow="fold"))
        return Group(table, *notes)


def _health_style(found: list[Sign]) -> str:
    if any(sign.level == "critical" for sign in found):
        return "red"
    return "yellow" if found else "green"
