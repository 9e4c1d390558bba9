"""When a trial is stopped: pure classes, the same for the live scheduler and for a replay.

A rung is reached at a trial's first report at or after its milestone (epochs), and that report is
placed there. Two rules:

- `Bar`: below 20 % at half of the budget. The debug document's "stop if accuracy < 20 % at 50k
  epochs" of 100,000; the half of other budgets is ours. Concerns one trial alone.
- `Halving`: at each rung only the top 1/eta of the trials that reached it so far go on: the
  stopping form of ASHA (Li et al., 2020, https://arxiv.org/abs/1810.05934). Phases run without it,
  since an ablation must not lose an arm for being second best.

Values are larger-is-better. A value that is not a number passes no comparison: it fails the bar
and never survives halving. A report that does not carry the metric (no row halted in its interval,
say) is judged by the trial's last measured value, if that is at most a tenth of the budget old;
otherwise it counts as not a number. A trial that compares with others waits for its first measured
value, until half of its budget: no row of a trial of 32 ACT steps can have halted at step 15, and
that says nothing about it.

>>> rule = StoppingRule([Bar()], budget=1000)
>>> rule.on_report("overfit-E2a-s0", 502, 0.123).reason
'bar: train/accuracy 12.3 % < 20 % at epoch 500 of 1000 (rung 500, first report at epoch 502)'
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

from trainable.errors import ConfigError

MAX_AGE = 0.1
"""How old, as a share of the budget, a value may be that stands in for a missing one."""

PATIENCE = 0.5
"""Share of the budget until which a rule that compares trials waits for a first measured value."""

STATE_VERSION = 1


@dataclass
class Rung:
    """Who reached one milestone of one rule, when, and with which value."""

    rule: str
    milestone: float
    """Epochs."""
    entries: dict[str, Entry] = field(default_factory=dict)
    """By trial, in order of arrival."""


@dataclass(frozen=True)
class Entry:
    """One trial's report on a rung and what was decided then."""

    epoch: float
    value: float
    """NaN for a value that was missing or not a number."""
    stop: bool
    reason: str


@dataclass(frozen=True)
class Decision:
    """Answer to one report. `reason` and `rung` are empty when the report reached no rung."""

    stop: bool
    reason: str = ""
    rung: float | None = None
    """Milestone in epochs."""
    rule: str = ""
    all_reasons: tuple[str, ...] = ()
    """One per rung that this report was placed on."""
    placed: tuple[tuple[str, float, Entry], ...] = ()
    """Rule, milestone and entry of each of them."""


CONTINUE = Decision(stop=False)


class Rule(Protocol):
    """A named rule: where its rungs are, and whether a report on one of them survives."""

    @property
    def name(self) -> str:
        """First word of every reason."""

    @property
    def waits(self) -> bool:
        """Whether a trial that has not measured anything yet is judged later (`PATIENCE`)."""

    def milestones(self, budget: float) -> tuple[float, ...]:
        """Epochs of the rungs for a trial with this budget, ascending."""

    def judge(self, value: float, others: Sequence[float], metric: str) -> tuple[bool, str]:
        """(survives, numbers in words) for `value`, after `others` on the same rung."""


@dataclass(frozen=True)
class Bar:
    """Stop a trial whose value is below `threshold` at `at_fraction` of its budget."""

    threshold: float = 0.20
    at_fraction: float = 0.5
    name: str = "bar"
    waits: bool = False

    def __post_init__(self) -> None:
        if not 0 < self.at_fraction <= 1:
            raise ConfigError(f"bar at_fraction {self.at_fraction}: choose from above 0 to 1")

    def milestones(self, budget: float) -> tuple[float, ...]:
        """One rung: `at_fraction` of the budget."""
        return (self.at_fraction * budget,)

    def judge(self, value: float, others: Sequence[float], metric: str) -> tuple[bool, str]:
        """Survives if and only if ``value >= threshold``; NaN does not."""
        survives = value >= self.threshold
        limit = show(self.threshold, metric, digits=None)
        shown = show(value, metric)
        if value < self.threshold and shown == show(self.threshold, metric):
            shown = show(value, metric, digits=None)  # 19.96 %, not "20.0 % < 20 %"
        return survives, f"{shown} {_sign(value, survives)} {limit}"


@dataclass(frozen=True)
class Halving:
    """Keep, at each rung, the top 1/`eta` of the trials that reached it so far.

    Of n values (NaN ranks last) the best k = max(1, floor(n / eta)) survive; equal values share
    their fate, so that exact repeats are not told apart by who came first. The first to arrive
    goes on unless its value is NaN.
    """

    eta: float
    rungs: tuple[float, ...]
    """Milestones in epochs."""
    name: str = "halving"
    waits: bool = True

    def __post_init__(self) -> None:
        if self.eta <= 1:
            raise ConfigError(f"halving eta {self.eta}: choose a number above 1")
        if not self.rungs or min(self.rungs) <= 0:
            raise ConfigError("halving needs at least one rung, in epochs above 0")

    @classmethod
    def geometric(cls, eta: float, *, budget: float, first: float) -> Halving:
        """Rungs at `first`, `first` × eta, … below the budget, as in ASHA."""
        if eta <= 1 or first <= 0:
            raise ConfigError("halving needs eta above 1 and a first rung above 0 epochs")
        rungs: list[float] = []
        milestone = first
        while milestone < budget:
            rungs.append(milestone)
            milestone *= eta
        return cls(eta, tuple(rungs))

    def milestones(self, budget: float) -> tuple[float, ...]:
        """The rungs below the budget: a finished trial needs no stopping."""
        return tuple(sorted(r for r in set(self.rungs) if r < budget))

    def judge(self, value: float, others: Sequence[float], metric: str) -> tuple[bool, str]:
        """Survives if and only if it is among the top 1/eta, ties included; NaN does not."""
        ranked = sorted((-math.inf if math.isnan(v) else v for v in (*others, value)), reverse=True)
        keep = max(1, math.floor(len(ranked) / self.eta))
        cutoff = ranked[keep - 1]
        survives = value >= cutoff
        top = f"best {keep} of {len(ranked)} (1/{self.eta:g})"
        began = (
            f"begin at {show(cutoff, metric)}" if cutoff > -math.inf else "are no numbers either"
        )
        return survives, (
            f"{show(value, metric)} {'among the' if survives else 'not among the'} {top}, which "
            f"{began}"
        )


class StoppingRule:
    """Named rules over all trials of a run; deterministic, idempotent, serialisable.

    A trial that repeats an epoch (after a resume) gets the answer that it got before, and nothing
    is recorded twice. A trial that was stopped is told so again at every later epoch.
    """

    def __init__(
        self,
        rules: Iterable[Rule],
        *,
        budget: float,
        budgets: Mapping[str, float] | None = None,
        metric: str = "train/accuracy",
    ) -> None:
        """`budget` is in epochs; `budgets` holds those of trials that differ."""
        self.rules: dict[str, Rule] = {}
        for rule in rules:
            if rule.name in self.rules:
                raise ConfigError(f"two stopping rules are called {rule.name!r}: name them apart")
            self.rules[rule.name] = rule
        self.metric = metric
        self._budget = budget
        self._budgets = dict(budgets or {})
        for number in (budget, *self._budgets.values()):
            if not 0 < number < math.inf:
                raise ConfigError(f"a budget of {number} epochs: it must be above 0 and finite")
        self._rungs: dict[tuple[str, float], Rung] = {}
        self._measured: dict[str, tuple[float, float]] = {}

    def budget(self, trial_id: str) -> float:
        """Epochs of one trial."""
        return self._budgets.get(trial_id, self._budget)

    def expect(self, trial_id: str, budget: float) -> None:
        """Tell the epochs of a trial that was not known from the start, before its first report."""
        if not 0 < budget < math.inf:
            raise ConfigError(f"a budget of {budget} epochs: it must be above 0 and finite")
        self._budgets[trial_id] = budget

    @property
    def rungs(self) -> tuple[Rung, ...]:
        """Rungs that at least one trial has reached, by rule and milestone."""
        return tuple(self._rungs[key] for key in sorted(self._rungs))

    def on_report(self, trial_id: str, epoch: float, value: float | None) -> Decision:
        """Place one report and decide; `value` is None if the report does not carry the metric."""
        new: list[tuple[Entry, Rung]] = []
        stopped: tuple[Entry, Rung] | None = None
        judged = self._judged_value(trial_id, epoch, value)
        early = trial_id not in self._measured and epoch < PATIENCE * self.budget(trial_id)
        for rule in self.rules.values():
            if early and rule.waits:
                continue
            for milestone in rule.milestones(self.budget(trial_id)):
                if epoch < milestone:
                    break
                rung = self._rungs.setdefault((rule.name, milestone), Rung(rule.name, milestone))
                entry = rung.entries.get(trial_id)
                if entry is None:
                    entry = self._place(rung, rule, trial_id, epoch, judged)
                    new.append((entry, rung))
                elif epoch == entry.epoch:
                    new.append((entry, rung))
                if entry.stop and epoch >= entry.epoch and stopped is None:
                    stopped = (entry, rung)
        telling = stopped or (new[-1] if new else None)
        if telling is None:
            return CONTINUE
        entry, rung = telling
        return Decision(
            stop=entry.stop,
            reason=entry.reason,
            rung=rung.milestone,
            rule=rung.rule,
            all_reasons=tuple(e.reason for e, _ in new),
            placed=tuple((at.rule, at.milestone, e) for e, at in new),
        )

    def _judged_value(self, trial_id: str, epoch: float, value: float | None) -> float:
        if value is not None:
            finite = float(value) if math.isfinite(value) else math.nan
            self._measured[trial_id] = (epoch, finite)
            return finite
        at, last = self._measured.get(trial_id, (-math.inf, math.nan))
        fresh = 0 <= epoch - at <= MAX_AGE * self.budget(trial_id)
        return last if fresh else math.nan

    def _place(self, rung: Rung, rule: Rule, trial_id: str, epoch: float, value: float) -> Entry:
        others = [entry.value for entry in rung.entries.values()]
        survives, numbers = rule.judge(value, others, self.metric)
        reason = (
            f"{rule.name}: {self.metric} {numbers} at epoch {rung.milestone:g} of "
            f"{self.budget(trial_id):g} (rung {rung.milestone:g}, first report at epoch {epoch:g})"
        )
        entry = Entry(epoch, value, not survives, reason)
        rung.entries[trial_id] = entry
        return entry

    def state(self) -> dict[str, Any]:
        """All that was recorded, as plain JSON values (NaN as None)."""
        return {
            "version": STATE_VERSION,
            "metric": self.metric,
            "measured": {t: [at, _plain(v)] for t, (at, v) in self._measured.items()},
            "rungs": [
                {
                    "rule": rung.rule,
                    "milestone": rung.milestone,
                    "entries": [
                        [trial, e.epoch, _plain(e.value), e.stop, e.reason]
                        for trial, e in rung.entries.items()
                    ],
                }
                for rung in self.rungs
            ],
        }

    def restore(self, state: Mapping[str, Any]) -> None:
        """Replace what was recorded by an earlier `state`.

        Raises `ConfigError` when the state is of another version or metric.
        """
        if state.get("version") != STATE_VERSION or state.get("metric") != self.metric:
            raise ConfigError(
                f"stopping state is of version {state.get('version')} and metric "
                f"{state.get('metric')!r}, not {STATE_VERSION} and {self.metric!r}: "
                f"start the run in a new folder"
            )
        self._measured = {t: (at, _number(v)) for t, (at, v) in state["measured"].items()}
        self._rungs = {}
        for saved in state["rungs"]:
            rung = Rung(saved["rule"], saved["milestone"])
            for trial, epoch, value, stop, reason in saved["entries"]:
                rung.entries[trial] = Entry(epoch, _number(value), stop, reason)
            self._rungs[rung.rule, rung.milestone] = rung


def phase_rule(
    budget: float, budgets: Mapping[str, float] | None = None, *, metric: str = "train/accuracy"
) -> StoppingRule:
    """What phases run with: the bar alone."""
    return StoppingRule([Bar()], budget=budget, budgets=budgets, metric=metric)


def show(value: float, metric: str, *, digits: int | None = 1) -> str:
    """A value in words: percent for accuracies, plain otherwise, "not a number" for NaN."""
    if math.isnan(value):
        return "not a number"
    if "accuracy" not in metric:
        return f"{value:g}"
    return f"{100 * value:g} %" if digits is None else f"{100 * value:.{digits}f} %"


def _sign(value: float, survives: bool) -> str:
    if math.isnan(value):
        return "is not ≥"
    return "≥" if survives else "<"


def _plain(value: float) -> float | None:
    return None if math.isnan(value) else value


def _number(value: float | None) -> float:
    return math.nan if value is None else float(value)
