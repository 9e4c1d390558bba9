"""What a replay found, as data and in words."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from search_spaces.rules import TRAIN_ACCURACY
from search_spaces.stopping import Bar, show

METRIC = TRAIN_ACCURACY.metric
LISTED = 8
"""Stops that are told one by one, at most."""
FEW = 5
"""Below this many full curves nothing is recommended (ours)."""
NAMED = 6
"""Trials that a line names, at most."""


@dataclass(frozen=True)
class Stop:
    """One trial that the rule would have stopped."""

    trial_id: str
    epoch: float
    value: float
    final: float
    full: bool
    saved_s: float
    """Seconds that the recorded curve goes on after the stop."""
    reason: str


@dataclass(frozen=True)
class Order:
    """How one order of arrival went."""

    stopped: tuple[str, ...]
    saved: float
    """Share of the recorded training seconds, full curves alone."""
    lost_winner: bool
    regret: float
    """Final value of the best full curve minus that of the best kept; all of it when none was."""


@dataclass(frozen=True)
class RankCorrelation:
    """How well one rung's values tell the final order, over the full curves that reached it."""

    fraction: float
    n: int
    rho: float
    """Spearman; NaN with fewer than three curves, or equal values."""


@dataclass(frozen=True)
class Replay:
    """What `replay` found."""

    rules: tuple[str, ...]
    curves: int
    full: int
    winner: str | None
    """Full curve with the highest final value."""
    stops: tuple[Stop, ...]
    """In the order in which the rows were written."""
    recorded: Order
    orders: tuple[Order, ...]
    """Random orders of arrival."""
    concurrent: int
    correlations: tuple[RankCorrelation, ...]
    recommended_bar: Bar | None
    recommended_rungs: tuple[float, ...]
    """As shares of the budget; empty: no rung tells the final order."""
    caveat: str

    @property
    def saved(self) -> float:
        """Mean share saved over the random orders."""
        return float(np.mean([order.saved for order in self.orders])) if self.orders else math.nan

    @property
    def lost(self) -> int:
        """Random orders in which the winner would have been stopped."""
        return sum(order.lost_winner for order in self.orders)

    @property
    def times_stopped(self) -> dict[str, int]:
        """In how many random orders each trial would have been stopped, most often first; those
        that never are, are absent."""
        counts: dict[str, int] = {}
        for order in self.orders:
            for name in order.stopped:
                counts[name] = counts.get(name, 0) + 1
        return dict(sorted(counts.items(), key=lambda pair: (-pair[1], pair[0])))

    @property
    def saved_range(self) -> tuple[float, float]:
        """Least and most that a random order saves."""
        values = [order.saved for order in self.orders if not math.isnan(order.saved)]
        return (min(values), max(values)) if values else (math.nan, math.nan)

    @property
    def regret(self) -> float:
        """Mean over the random orders of what the best kept curve is below the winner."""
        values = [order.regret for order in self.orders if not math.isnan(order.regret)]
        return float(np.mean(values)) if values else math.nan

    def to_json(self) -> dict[str, Any]:
        """Plain JSON values; NaN as None, the orders as their summary."""
        told = asdict(self)
        del told["orders"]
        told |= {"times_stopped": self.times_stopped, "saved_range": self.saved_range}
        told |= {"n_orders": len(self.orders), "saved": self.saved, "lost": self.lost}
        plain: dict[str, Any] = _finite(told | {"regret": self.regret})
        return plain

    def text(self) -> str:
        """Lines for a terminal."""
        return "\n".join([*self.lines(), *self.advice()])

    def lines(self) -> list[str]:
        """What the rule would have done, and whether the order on the way tells that at the end."""
        told = self.outcome()
        return told if self.winner is None else [*told, *self._order_on_the_way()]

    def outcome(self) -> list[str]:
        """What the rule would have done."""
        what = " and ".join(self.rules) or "no rule"
        lines = [f"{what} over {count(self.curves, 'curve')}, {self.full} full"]
        shown = self.stops if len(self.stops) <= LISTED + 2 else self.stops[:LISTED]
        for stop in shown:
            ended = f"ended at {show(stop.final, METRIC)}" if stop.full else "was cut short anyway"
            lines.append(f"  {stop.trial_id}: {stop.reason}; {ended}")
        if left := len(self.stops) - len(shown):
            lines.append(f"  and {left} more stops (replay --json lists them)")
        if not self.stops:
            lines.append("  in the recorded order it would have stopped nothing")
        if self.winner is None:
            return [*lines, "  no full curve: what a stop would have lost cannot be told"]
        lost = "would have been stopped" if self.recorded.lost_winner else "would have gone on"
        lines.append(
            f"  recorded order: {_percent(self.recorded.saved)} of the training time of full "
            f"curves saved; the winner {self.winner} {lost}"
        )
        if self.orders:
            lines.append(
                f"  {count(len(self.orders), 'random order')}, {self.concurrent} at once: "
                f"{_percent(self.saved)} saved on average{self._between()}, the winner stopped in "
                f"{self.lost} of {len(self.orders)}, best kept {_points(self.regret)} below the "
                f"winner on average"
            )
        if counts := self.times_stopped:
            told = [f"{name} {times}" for name, times in list(counts.items())[:NAMED]]
            more = f" and {len(counts) - NAMED} more" if len(counts) > NAMED else ""
            lines.append(
                f"  stopped in how many of the {len(self.orders)}: {', '.join(told)}{more}"
            )
        return lines

    def _between(self) -> str:
        low, high = self.saved_range
        same = math.isnan(low) or round(100 * low) == round(100 * high)
        return "" if same else f" ({100 * low:.0f} to {100 * high:.0f} %)"

    def _order_on_the_way(self) -> list[str]:
        """How well the order at each rung tells that at the end; one line where nothing does."""
        known = [one for one in self.correlations if not math.isnan(one.rho)]
        if not known:
            return [
                f"  whether the order on the way tells that at the end: not measurable with "
                f"{count(self.full, 'full curve')} (three that differ are needed)"
            ]
        return [
            f"  order at {100 * one.fraction:g} % of the budget against the end: {one.rho:.2f} "
            f"(rank correlation, n = {one.n})"
            for one in known
        ]

    def advice(self) -> list[str]:
        """The bar and the rungs for the next run, with the caveat."""
        lines = []
        if self.recommended_bar is not None:
            bar = self.recommended_bar
            lines.append(
                f"bar for the next search: {show(bar.threshold, METRIC, digits=None)} at "
                f"{100 * bar.at_fraction:g} % of the budget "
                f"(--scheduler bar:{bar.threshold:g}@{bar.at_fraction:g}); phases keep the plan's, "
                f"which their decisions rest on"
            )
        if self.recommended_rungs:
            shares = ", ".join(f"{100 * share:g} %" for share in self.recommended_rungs)
            given = ",".join(f"{share:g}" for share in self.recommended_rungs)
            lines.append(
                f"rungs for halving: {shares} of the budget (search --scheduler asha:{given})"
            )
        elif any(one.n >= FEW and not math.isnan(one.rho) for one in self.correlations):
            lines.append(
                "rungs for halving: none; no order on the way was seen to tell the final one"
            )
        return [*lines, f"caveat: {self.caveat}"]


def count(n: int, what: str) -> str:
    """``1 curve``, ``2 curves``."""
    return f"{n} {what}" if n == 1 else f"{n} {what}s"


def _percent(share: float) -> str:
    return "unknown" if math.isnan(share) else f"{100 * share:.0f} %"


def _points(share: float) -> str:
    return "unknown" if math.isnan(share) else f"{100 * share:.1f} points"


def _finite(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _finite(one) for key, one in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(one) for one in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
