"""What is known of a run while it goes on: trials with their last rows, curves, health, time left.

`live.LiveTable` fills a board from reports, `watching.Watched` from the run folder; `view` draws
it. No torch, no ray.
"""

from __future__ import annotations

import math
import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any

from analysis.health import READ, Sign, signs

BINS = 64
"""Points of a curve that are kept, spread over the trial's budget."""

LOOKS = 200
"""Rows are looked through anew for signs after each 1/200 more of them, so that a report costs the
same however many came before it."""

STATUSES = ("running", "finished", "stopped", "diverged", "failed", "interrupted", "pending")
ENDED = frozenset({"finished", "stopped", "diverged"})
ACCURACY, LOSS = "train/accuracy", "train/loss"


class Curve:
    """A metric over the budget, as the mean of each of `BINS` equal parts."""

    def __init__(self) -> None:
        self._sums = [0.0] * BINS
        self._counts = [0] * BINS

    def add(self, share: float, value: float) -> None:
        """A value at a part of the budget (0 to 1)."""
        place = min(int(share * BINS), BINS - 1)
        self._sums[place] += value
        self._counts[place] += 1

    def points(self, width: int) -> list[float | None]:
        """Means of `width` equal parts. None: after the last value. A part without a value has that
        of the part before it; one with a value that is not a number is NaN."""
        edges = [round(i * BINS / width) for i in range(width + 1)]
        found: list[float | None] = []
        for a, b in pairwise(edges):
            count = sum(self._counts[a:b])
            found.append(sum(self._sums[a:b]) / count if count else None)
        last = max((i for i, value in enumerate(found) if value is not None), default=-1)
        before: float | None = next((value for value in found if value is not None), None)
        for i in range(last + 1):
            before = found[i] = before if found[i] is None else found[i]
        return found

    def means(self) -> list[float]:
        """The finite ones of its points."""
        means = [s / n for s, n in zip(self._sums, self._counts, strict=True) if n]
        return [value for value in means if math.isfinite(value)]


@dataclass
class Line:
    """One trial."""

    trial_id: str
    epochs: float | None
    """Its budget; None while that is not known."""
    options: Mapping[str, Any]
    role: str = "arm"
    status: str = "pending"
    reason: str = ""
    changed: float | None = None
    """When the status became what it is, where that is known."""
    row: Mapping[str, Any] | None = None
    """Every metric's last value."""
    began: tuple[float, float] | None = None
    """Time and epoch of the first row of this attempt, from which the rate follows."""
    rows: list[Mapping[str, Any]] = field(default_factory=list)
    """What health needs of the reports, oldest first; of a trial that has ended only the last."""
    told: float = -1.0
    """Share of the budget at the last plain line."""

    def __post_init__(self) -> None:
        self.accuracy, self.loss = Curve(), Curve()
        self._signs: list[Sign] = []
        self._looked = 0  # at so many rows

    @property
    def signs(self) -> list[Sign]:
        """What is wrong with the trial, or may be."""
        if len(self.rows) - self._looked > len(self.rows) // LOOKS:
            self._look()
        return self._signs

    def _look(self) -> None:
        self._signs, self._looked = signs(self.rows, self.options), len(self.rows)

    def _drop_rows(self) -> None:
        """Signs are those of all rows, of which the last stays."""
        if len(self.rows) != self._looked:
            self._look()
        self.rows = self.rows[-1:]
        self._looked = len(self.rows)

    def set(self, status: str, reason: str, at: float | None) -> None:
        """A new status."""
        self.status, self.reason, self.changed = status, reason, at
        if status != "running":
            self.began = None
        if status in ENDED:
            self._drop_rows()

    def load(self, rows: Iterable[Mapping[str, Any]]) -> None:
        """Replace what was known by these rows."""
        self.rows, self.row = [], None
        self.accuracy, self.loss = Curve(), Curve()
        for row in rows:
            self._see(row)
        self._look()
        if self.status in ENDED:
            self._drop_rows()

    def add(self, row: Mapping[str, Any], *, running: bool = True) -> None:
        """One more report. A step that was there already is undone with all that came after it."""
        step = row.get("step", 0)
        if self.rows and self.rows[-1].get("step", 0) >= step:
            known = self.row or {}
            self.load([r for r in self.rows if r.get("step", 0) < step])
            self.row = {**known, **(self.row or {})}
        self._see(row)
        if self.status in ENDED:  # a late report; what all of them said stays
            self._looked = len(self.rows)
        if running and self.began is None:
            self.began = (moment(row), float(row.get("epoch", 0.0)))

    def _see(self, row: Mapping[str, Any]) -> None:
        self.rows.append({name: row[name] for name in READ if name in row})
        self.row = {**(self.row or {}), **row}
        share = self._share_of(row)
        for curve, metric in ((self.accuracy, ACCURACY), (self.loss, LOSS)):
            if metric in row and share is not None:
                value = row[metric]
                curve.add(share, math.nan if value is None else float(value))

    def _share_of(self, row: Mapping[str, Any]) -> float | None:
        if not self.epochs:
            return None
        return min(1.0, max(0.0, float(row.get("epoch") or 0.0) / self.epochs))

    @property
    def health(self) -> str:
        """Names of the signs, ``ok`` without one; empty before the first row."""
        return ", ".join(sign.sign for sign in self.signs) or ("ok" if self.rows else "")

    @property
    def share(self) -> float:
        """Part of the budget that is done, 0 to 1."""
        return self._share_of(self.row or {}) or 0.0

    def eta_s(self, now: float) -> float | None:
        """Seconds until the end at the rate since the first row; None while it is unknown."""
        if self.status != "running" or not self.row or not self.began or not self.epochs:
            return None
        began, epoch = self.began
        at = float(self.row.get("epoch", 0.0))
        seen = moment(self.row, now)
        if at <= epoch or seen <= began:
            return None
        left = (self.epochs - at) / (at - epoch) * (seen - began)
        return max(0.0, left - max(0.0, now - seen))

    def total_s(self, now: float) -> float | None:
        """Seconds of training of the whole trial, as far as its rows tell."""
        seconds = (self.row or {}).get("wall_s")
        if self.status in ENDED:
            return float(seconds) if seconds else None
        return float(seconds) / self.share if seconds and self.share > 0 else None


def moment(row: Mapping[str, Any], default: float | None = None) -> float:
    """When a row was written."""
    told = row.get("time")
    return float(told) if told else (time.time() if default is None else default)


@dataclass
class Board:
    """The trials of a run, in the order of its plan."""

    title: str
    lines: dict[str, Line] = field(default_factory=dict)
    state: str = ""
    """What the run is doing, in words."""
    began: float | None = None
    """When this session began."""
    estimates: Mapping[str, float] = field(default_factory=dict)
    """Seconds of a trial, as estimated by the run itself."""
    more: int = 0
    """Trials that a search has not planned yet."""

    def counts(self) -> dict[str, int]:
        """Trials by status, what is going on first."""
        found = {status: 0 for status in STATUSES}
        for line in self.lines.values():
            found[line.status] = found.get(line.status, 0) + 1
        return {status: count for status, count in found.items() if count}

    def left_s(self, now: float) -> float | None:
        """Seconds until the run ends, at the trials' own rates; None while that is unknown.

        A trial that waits takes what the run estimated, corrected by how long the others took
        against their estimates, or as long as they did on average. As many run at once as now.
        """
        running = [line for line in self.lines.values() if line.status == "running"]
        waiting = [
            line for line in self.lines.values() if line.status in ("pending", "interrupted")
        ]
        if not running:
            return None
        etas = [line.eta_s(now) for line in running]
        known = {i: s for i, line in self.lines.items() if (s := line.total_s(now)) is not None}
        if any(eta is None for eta in etas) or not known:
            return None
        full = {i: s for i, s in known.items() if self.lines[i].status in ("finished", "running")}
        both = [i for i in full if self.estimates.get(i)]
        ratio = sum(full[i] for i in both) / sum(self.estimates[i] for i in both) if both else 1.0
        mean = sum(known.values()) / len(known)
        pending = self.more * mean
        for line in waiting:
            estimate = self.estimates.get(line.trial_id)
            pending += (estimate * ratio if estimate else mean) * (1 - line.share)
        left = [eta for eta in etas if eta is not None]
        return max(max(left), (sum(left) + pending) / len(running))
