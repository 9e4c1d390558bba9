"""What a decision and a next step are, and how each is built from observations."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

from analysis.observe import NOT_READ, Observation
from search_spaces.rules import ThresholdRule

NOT_DECIDED = "not decided"

StepKind = Literal["run", "continue", "seeds", "extend", "full data", "check"]
"""``run`` a target of the plan; ``continue`` this very run (unfinished or failed trials); ``seeds``
repeats a target with more seeds; ``extend`` gives an arm more epochs; ``full data`` trains a chosen
configuration on every puzzle; ``check`` runs what a red flag asks for."""


@dataclass(frozen=True)
class NextStep:
    """One thing to run next, as data."""

    target: str
    """What ``etrm_tune.run`` takes: ``phase2``, ``overfit/E4a``, ``act/O2,act/O3``."""
    why: str
    overrides: Mapping[str, Any] = field(default_factory=dict, hash=False)
    """Flat options on top of the experiment's, meant as typed (no profile rescales them)."""
    default: bool = False
    """True: taken because nothing was decided; the control is kept."""
    kind: StepKind = "run"
    seeds: int | None = None
    """Seeds that the step asks for; None: as many as the run had."""
    command: str = ""
    """The same as a command line, with the options that the run was made with."""


@dataclass(frozen=True)
class Decision:
    """One answer of a decision point."""

    name: str
    """What was asked: an experiment (``E2a``), a comparison, a scenario or a red flag."""
    rule: str
    """The rule, in words, with its source."""
    verdict: str
    """Short answer; ``not decided`` when there is none."""
    text: str
    """The answer in a sentence, with the numbers it rests on."""
    label: str
    """``observed, n = N``, ``paired test, n = N``, or ``not decided``."""
    kind: str = "note"
    """success, drop, note, no rule, red flag, scenario or grade."""
    n: int = 0
    numbers: dict[str, dict[str, float]] = field(default_factory=dict)
    """Experiment → name → value."""
    held_out: tuple[str, ...] = ()
    """Held-out pass@1 of every experiment involved, with "does / does not generalise"."""
    controls: tuple[str, ...] = ()
    """What the demonstration controls say about every experiment involved."""
    next: tuple[NextStep, ...] = ()
    """What the verdict asks for, most urgent first."""
    after: str = ""
    """Decision point: ``phase1``, ``debug``, ``act``, ``frozen``, ``full data`` …"""
    checks: tuple[str, ...] = ()
    """What to look at first: the checks that a red flag recommends."""

    @property
    def decided(self) -> bool:
        """Whether there is an answer."""
        return self.verdict != NOT_DECIDED

    @property
    def raised(self) -> bool:
        """Whether this is a red flag that is raised."""
        return self.kind == "red flag" and self.decided

    def to_json(self) -> dict[str, Any]:
        """Plain JSON values."""
        return asdict(self) | {"decided": self.decided}


def decided(
    name: str,
    rule: str,
    verdict: str,
    text: str,
    arms: Sequence[Observation],
    *,
    after: str,
    kind: str = "note",
    next: Sequence[NextStep] = (),
    checks: tuple[str, ...] = (),
    tested: bool = False,
) -> Decision:
    """An answer over the arms that were observed; `tested` marks one that a paired test gave."""
    known = [arm for arm in arms if arm.problem is None]
    counts = sorted({arm.n for arm in known})
    n = counts[0] if counts else 0
    if kind == "success" and known and known[0].reads is False:
        text += f". But {NOT_READ}"
    seeds = f"{counts[0]} to {counts[-1]}" if len(counts) > 1 else str(n)
    return Decision(
        name=name,
        rule=rule,
        verdict=verdict,
        text=text,
        label=f"{'paired test' if tested else 'observed'}, n = {seeds}",
        kind=kind,
        n=n,
        next=tuple(next),
        after=after,
        checks=checks,
        **_evidence(known),
    )


def undecided(
    name: str,
    rule: str,
    arms: Sequence[Observation],
    reasons: Sequence[str],
    *,
    after: str,
    next: Sequence[NextStep] = (),
) -> Decision:
    """No answer, and why."""
    return Decision(
        name=name,
        rule=rule,
        verdict=NOT_DECIDED,
        text="; ".join(dict.fromkeys(reasons)),
        label=NOT_DECIDED,
        next=tuple(next),
        after=after,
        **_evidence([arm for arm in arms if arm.problem is None]),
    )


def _evidence(known: Sequence[Observation]) -> dict[str, Any]:
    return {
        "numbers": {arm.experiment: arm.numbers for arm in known},
        "held_out": tuple(arm.held_out for arm in known),
        "controls": tuple(arm.controls for arm in known),
    }


def quote(rule: ThresholdRule, arms: Iterable[str]) -> str:
    """A threshold rule in words: ``E1a > 90 %: the standard encoder is validated``."""
    names = [name.partition("/")[2] for name in arms]
    joined = {"each": ", ", "any": " or ", "all": " and "}[rule.scope].join(names)
    return f"{joined} {rule.band.text}: {rule.outcome}{source(ours=rule.ours)}"


def outcome(rule: ThresholdRule) -> str:
    """What a threshold rule concludes."""
    return rule.outcome.removeprefix("significantly better: ") + source(ours=rule.ours)


def source(*, ours: bool) -> str:
    """Marks what no document says."""
    return " (ours)" if ours else ""
