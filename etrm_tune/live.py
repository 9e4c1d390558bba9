"""What the terminal shows while trials run: one table that is redrawn, or plain lines in a pipe."""

from __future__ import annotations

import time
from collections.abc import Iterable, Mapping
from types import TracebackType
from typing import Any

from rich.console import Console, RenderableType
from rich.live import Live
from rich.text import Text

from etrm_tune.board import Board, Line
from etrm_tune.plan import PlannedTrial
from etrm_tune.view import View, duration, measured, percent

__all__ = ["LiveTable", "Screen", "duration", "percent"]

REDRAW_S = 0.5
PLAIN_SHARE = 0.1
"""In a pipe a running trial gets a line for every tenth of its budget."""


class Screen:
    """A board on a console: redrawn in place on a terminal, told in lines in a pipe."""

    def __init__(self, console: Console, board: Board) -> None:
        self.console = console
        self.board = board
        self._live: Live | None = None
        self._drawn = 0.0

    def __enter__(self) -> Screen:
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

    def set_status(
        self, trial_id: str, status: str, reason: str = "", at: float | None = None
    ) -> None:
        """Show a new status, and since when."""
        line = self.board.lines[trial_id]
        changed = status != line.status
        line.set(status, reason, at if at is not None or not changed else time.time())
        if self._live is None and changed and status != "pending":
            self.console.print(Text(plain_line(line)), soft_wrap=True)
        self.refresh(force=changed)

    def load(self, trial_id: str, rows: Iterable[Mapping[str, Any]]) -> None:
        """Rows of earlier sessions."""
        self.board.lines[trial_id].load(rows)

    def update(self, trial_id: str, row: Mapping[str, Any], *, running: bool = True) -> None:
        """Show a report."""
        line = self.board.lines[trial_id]
        line.add(row, running=running)
        if self._live is None and running and line.share > line.told + PLAIN_SHARE - 1e-9:
            line.told = line.share
            self.console.print(Text(plain_line(line)), soft_wrap=True)
        self.refresh()

    def refresh(self, *, force: bool = False) -> None:
        """Redraw, at most twice a second unless ``force``."""
        now = time.monotonic()
        if self._live is not None and (force or now - self._drawn >= REDRAW_S):
            self._drawn = now
            self._live.update(self.render(), refresh=True)

    def render(self) -> RenderableType:
        """The board as it stands."""
        return View(self.board)


class LiveTable(Screen):
    """Trials of a plan, their last rows and statuses. Use as a context manager."""

    def __init__(self, console: Console, trials: Iterable[PlannedTrial], title: str) -> None:
        board = Board(title, {trial.trial_id: _line(trial) for trial in trials})
        super().__init__(console, board)

    def __enter__(self) -> LiveTable:
        self.board.began = time.time()
        super().__enter__()
        return self

    def add(self, trial: PlannedTrial) -> None:
        """Show one more trial."""
        self.board.lines.setdefault(trial.trial_id, _line(trial))


def _line(trial: PlannedTrial) -> Line:
    return Line(trial.trial_id, trial.config.epochs, trial.config.flat(), trial.role)


def plain_line(line: Line) -> str:
    """A trial in one line of text."""
    cells = measured(line)
    parts = [f"{line.trial_id} {line.status}"]
    for name in ("epoch", "accuracy", "exact", "ACT steps", "step", "loss", "health", "ETA"):
        value = (line.health if line.signs else "") if name == "health" else cells[name]
        if value:
            parts.append(f"{name} {value}")
    return "  ".join(parts) + (f"  ({' '.join(line.reason.split())})" if line.reason else "")
