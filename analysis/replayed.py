"""What a replay found, as data and in words."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from search_spaces.rules import TRAIN_ACCURACY
from search_spaces.stopping import Bar, show

METRIC = TRAIN_ACCURACY.metric


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
    def regret(self) -> float:
        """Mean over the random orders of what the best kept curve is below the winner."""
        values = [order.regret for order in self.orders if not math.isnan(order.regret)]
        return float(np.mean(values)) if values else math.nan

    def to_json(self) -> dict[str, Any]:
        """Plain JSON values; NaN as None, the orders as their summary."""
        told = asdict(self)
        del told["orders"]
        told |= {"n_orders": len(self.orders), "saved": self.saved, "lost": self.lost}
        plain: dict[str, Any] = _finite(told | {"regret": self.regret})
        return plain

    def text(self) -> str:
        """Lines for a terminal."""
        return "\n".join([*self.lines(), *self.advice()])

    def lines(self) -> list[str]:
        """What the rule would have done."""
        what = f"{' and '.join(self.rules)} over {count(self.curves, 'curve')}, {self.full} full"
        lines = [what]
        for stop in self.stops:
            ended = f"ended at {show(stop.final, METRIC)}" if stop.full else "was cut short anyway"
            lines.append(f"  {stop.trial_id}: {stop.reason}; {ended}")
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
                f"{_percent(self.saved)} saved on average, the winner stopped in {self.lost} of "
                f"{len(self.orders)}, best kept {_points(self.regret)} below the winner on average"
            )
        for one in self.correlations:
            rho = "not measurable" if math.isnan(one.rho) else f"{one.rho:.2f}"
            lines.append(
                f"  order at {100 * one.fraction:g} % of the budget against the end: {rho} "
                f"(rank correlation, n = {one.n})"
            )
        return lines

    def advice(self) -> list[str]:
        """The bar and the rungs for the next run, with the caveat."""
        lines = []
        if self.recommended_bar is not None:
            bar = self.recommended_bar
            lines.append(
                f"bar for the next run: {show(bar.threshold, METRIC, digits=None)} at "
                f"{100 * bar.at_fraction:g} % of the budget"
            )
        if self.recommended_rungs:
            shares = ", ".join(f"{100 * share:g} %" for share in self.recommended_rungs)
            lines.append(f"rungs for halving: {shares} of the budget")
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
