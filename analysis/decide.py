"""The plan's decisions, each with its rule, the numbers it rests on, n, and what limits it.

The rules are `search_spaces.rules`: this file evaluates them and adds no threshold of its own.
Threshold rules are decided on the observed value and labelled "observed, n = N". A comparison is an
order of observed values, never called significant here. A run that the bar stopped counts as below
every threshold; a missing, crashed, diverged or unfinished one gives "not decided" with the reason.
"""

from __future__ import annotations

import json
import math
import shlex
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from analysis.load import Run
from analysis.observe import NOT_READ, Observation, observe, percent
from search_spaces import DEFAULT_REVISION, rules, targets
from search_spaces.rules import ComparisonRule, Scenario, ThresholdRule

NOT_DECIDED = "not decided"

PHASE1_ARMS = (rules.E1A, rules.E2A, rules.E2B, rules.E2C)
DEEPER = "deeper encoders help"


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
    """``observed, n = N``, or ``not decided``."""
    kind: str = "note"
    """success, drop, note, no rule, red flag or scenario."""
    n: int = 0
    numbers: dict[str, dict[str, float]] = field(default_factory=dict)
    """Experiment → name → value."""
    held_out: tuple[str, ...] = ()
    """Held-out pass@1 of every experiment involved, with "does / does not generalise"."""
    controls: tuple[str, ...] = ()
    """What the demonstration controls say about every experiment involved."""
    next: str | None = None
    """Command that the verdict asks for."""

    @property
    def decided(self) -> bool:
        """Whether there is an answer."""
        return self.verdict != NOT_DECIDED

    def to_json(self) -> dict[str, Any]:
        """Plain JSON values."""
        return asdict(self) | {"decided": self.decided}


def decide(run: Run) -> list[Decision]:
    """Decisions after phase 1: each encoder by itself, the VAE, red flags 1 and 3, scenarios.

    Empty when the run holds none of phase 1's experiments. Experiments that are missing are named
    in the decisions that need them. Trials of several revisions or profiles together are not
    compared: one decision says so.
    """
    arms = run.arms[run.arms["experiment"].isin(PHASE1_ARMS)]
    if arms.empty:
        return []
    for column in ("revision", "profile"):
        values = sorted(arms[column].dropna().unique())
        if len(values) > 1:
            reason = f"trials of {column}s {', '.join(values)} are loaded together: load one"
            return [_undecided("after phase 1", "one revision and one profile", [], [reason])]
    seen = {name: observe(run, name) for name in PHASE1_ARMS}
    decisions = [_encoder(run, seen[name], seen[rules.E1A]) for name in PHASE1_ARMS]
    for rule in rules.PHASE1:
        if isinstance(rule, ComparisonRule):
            decisions.append(_comparison(rule, seen))
        elif rule.name == "VAE compatible":
            decisions.append(_vae_compatible(rule, seen[rules.E2A]))
    decisions += [_red_flag(r, seen, run) for r in rules.RED_FLAGS if r.after == "phase1"]
    decisions += [_scenario(s, seen) for s in rules.SCENARIOS if s.name in ("A", "B")]
    return decisions


def next_step(run: Run, decisions: Sequence[Decision]) -> tuple[str, str | None]:
    """What to do after phase 1: (why, command). A red flag comes first, then what is undecided."""
    if not decisions:
        return "this run holds none of phase 1's experiments: no decision point applies", None
    by_name = {decision.name: decision for decision in decisions}
    flag, control = by_name.get("red flag 1"), by_name.get("E1a")
    if flag and flag.verdict == "raised":
        return f"red flag 1: {flag.text}", flag.next
    if control and control.kind == "success":
        open_ = [d.name for d in decisions if not d.decided]
        rest = f" (still not decided: {', '.join(open_)})" if open_ else ""
        return f"E1a is validated: go on to phase 2{rest}", control.next
    if control and control.decided:
        why = (
            "E1a is not above 90 % and the document has no rule for that. Ours: ask whether the "
            "encoder is the limit (series debug) before phase 2"
        )
        return why, _debug(run)
    if control is None:
        return decisions[0].text, None
    return _open_control(run, control.text)


def _open_control(run: Run, reason: str) -> tuple[str, str | None]:
    """What to do while E1a has no answer."""
    trials = run.arms[run.arms["experiment"] == rules.E1A]
    status = set(trials["status"])
    target = str(run.plan.get("target"))
    if trials.empty:
        return f"{reason}: the decisions after phase 1 start from it", command(run, "phase1")
    if "failed" in set(run.trials["status"]):
        return f"{reason}. Run again what failed", command(run, target, again=True)
    if status & {"pending", "running", "interrupted"}:
        return f"{reason}. The same command goes on", command(run, target, again=True)
    why = "such a run is not repeated by itself: try another setting or more seeds in a new run"
    return f"{reason}; {why}", None


def command(run: Run, target: str, *, again: bool = False) -> str:
    """``python -m etrm_tune.run <target>`` with the options that this run was made with.

    `again` continues this very run: its folder is named where the target alone would not find it,
    and failed trials are retried.
    """
    options: dict[str, Any] = {"profile": run.plan.get("profile")}
    options |= {"revision": run.plan.get("revision")} | dict(run.plan.get("options", {}))
    words = ["python -m etrm_tune.run", target]
    for name in ("profile", "revision", "seeds", "decoder", "decoder_l_cycles"):
        value = options.get(name)
        if value is not None and (name, value) not in _DEFAULTS:
            words += [f"--{name.replace('_', '-')}", shlex.quote(str(value))]
    for name in ("decoder_puzzles", "data"):
        if options.get(name):
            words += [f"--{name.replace('_', '-')}", shlex.quote(str(options[name]))]
    for name, value in dict(options.get("settings") or {}).items():
        text = value if isinstance(value, str) else json.dumps(value)
        words += ["--set", shlex.quote(f"{name}={text}")]
    folder = run.paths[0]
    if again and folder.parent.name != "runs":
        words += ["--runs", shlex.quote(str(folder.parent))]
    if again and folder.name != target:
        words += ["--name", shlex.quote(folder.name)]
    if again and "failed" in set(run.trials["status"]):
        words.append("--retry-failed")
    return " ".join(words)


def _debug(run: Run) -> str | None:
    """The series that asks whether the encoder is the limit, where the plan has it."""
    return command(run, "debug") if "debug" in targets() else None


_DEFAULTS = (("revision", DEFAULT_REVISION), ("seeds", 1))


def _encoder(run: Run, arm: Observation, control: Observation) -> Decision:
    """The band that one encoder's accuracy lies in."""
    bands = [
        rule
        for rule in rules.PHASE1
        if isinstance(rule, ThresholdRule)
        and arm.experiment in rule.arms
        and rule.name != "VAE compatible"
    ]
    quoted = "; ".join(_quote(rule, (arm.experiment,)) for rule in bands)
    if arm.problem is not None:
        return _undecided(arm.id, quoted, [arm], [arm.problem])
    rule = next(rule for rule in bands if rule.band.contains(arm.judged))
    if rule.name == DEEPER:
        return _deeper(rule, quoted, arm, control)
    follow = command(run, rule.next[0]) if rule.next else None
    text = f"{arm.told} ({rule.band.text}): {_outcome(rule)}"
    return _decided(arm.id, quoted, rule.name, text, [arm], kind=rule.kind, next=follow)


def _deeper(rule: ThresholdRule, quoted: str, arm: Observation, control: Observation) -> Decision:
    """Above 92 %: "significantly better" also asks that it is better than the control."""
    if control.problem is not None:
        reason = (
            f"{arm.told} ({rule.band.text}), but what it has to beat is open: {control.problem}"
        )
        return _undecided(arm.id, quoted, [arm, control], [reason])
    against = f"{arm.told} ({rule.band.text}) against {control.told}"
    if arm.judged <= control.judged:
        text = f"{against}: above the threshold, but not better than the control"
        return _decided(arm.id, quoted, "not better than E1a", text, [arm, control], kind="note")
    cost = _cost(arm, control)
    text = (
        f"{against}: use this encoder for the full data set, after weighing the gain against its "
        f"compute{cost}. An observed difference, not a test"
    )
    return _decided(arm.id, quoted, rule.name, text, [arm, control], kind=rule.kind)


def _vae_compatible(rule: ThresholdRule, arm: Observation) -> Decision:
    quoted = _quote(rule, rule.arms)
    if arm.problem is not None:
        return _undecided(rule.name, quoted, [arm], [arm.problem])
    if rule.band.contains(arm.judged):
        text = f"{arm.told} ({rule.band.text}): {_outcome(rule)}"
        return _decided(rule.name, quoted, "yes", text, [arm], kind=rule.kind)
    text = f"{arm.told} (not {rule.band.text}): compatibility is not shown"
    return _decided(rule.name, quoted, "not shown", text, [arm], kind="no rule")


def _comparison(rule: ComparisonRule, seen: dict[str, Observation]) -> Decision:
    left, right = seen[rule.left], seen[rule.right]
    quoted = f"{left.id} {rule.relation} {right.id}: {rule.outcome}{_source(rule.ours)}"
    problems = [one.problem for one in (left, right) if one.problem is not None]
    if problems:
        return _undecided(rule.name, quoted, [left, right], problems)
    if left.judged == right.judged == -math.inf:
        reason = f"{left.told}, {right.told}: both are below every threshold and have no order"
        return _undecided(rule.name, quoted, [left, right], [reason])
    both = f"{left.told}, {right.told}"
    caution = "an order of observed values, not a test"
    if left.judged >= right.judged:
        parameters = _cost(left, right)
        text = f"{both}: {rule.outcome}{parameters}; {caution}"
        return _decided(rule.name, quoted, "not needed", text, [left, right])
    text = f"{both}: {right.id} is ahead, so the rule does not apply; {caution}"
    return _decided(rule.name, quoted, "does not apply", text, [left, right])


def _red_flag(rule: ThresholdRule, seen: dict[str, Observation], run: Run) -> Decision:
    """Raised when the band holds for all arms; one arm outside it is enough to clear it."""
    arms = [seen[name] for name in rule.arms]
    quoted = _quote(rule, rule.arms)
    known = [arm for arm in arms if arm.problem is None]
    outside = [arm for arm in known if not rule.band.contains(arm.judged)]
    problems = [arm.problem for arm in arms if arm.problem is not None]
    if outside:
        clear = ", ".join(arm.id for arm in outside)
        text = f"{', '.join(arm.told for arm in known)}: {clear} not in the range {rule.band.text}"
        under = [arm for arm in outside if rule.band.low and arm.judged < rule.band.low]
        if under:
            text += (
                f"; {', '.join(arm.id for arm in under)} below the rule's range is no better: "
                f"the rule for each encoder applies"
            )
        return _decided(rule.name, quoted, "not raised", text, known)
    if problems:
        return _undecided(rule.name, quoted, arms, problems)
    text = f"{', '.join(arm.told for arm in arms)}: {_outcome(rule)}"
    follow = _debug(run) if rule.name == "red flag 1" else None
    return _decided(rule.name, quoted, "raised", text, arms, kind=rule.kind, next=follow)


def _scenario(scenario: Scenario, seen: dict[str, Observation]) -> Decision:
    control = seen[rules.E1A]
    arms = [seen[name] for name in (rules.E2A, rules.E2B, rules.E2C)]
    bands = [r.band for r in scenario.improvements if isinstance(r, ThresholdRule)]
    where = [r for r in scenario.where if isinstance(r, ThresholdRule)]
    improving = [a for a in arms if any(b.contains(a.judged) for b in bands)]
    improving = [a for a in improving if not a.judged <= control.judged]
    conditions = [f"E1a {r.band.text}" for r in where]
    wanted = "at least one of" if scenario.mode == "any_improves" else "none of"
    conditions.append(f"{wanted} E2a, E2b, E2c {bands[0].text} and better than E1a")
    quoted = f"scenario {scenario.name}, {scenario.text}: {' and '.join(conditions)}"
    name = f"scenario {scenario.name}"
    told = ", ".join(one.told for one in (control, *arms))
    involved = [control, *arms]

    def answer(holds: bool) -> Decision:
        verdict = "holds" if holds else "does not hold"
        text = f"{told}: {scenario.implication}" if holds else told
        return _decided(name, quoted, verdict, text, involved, kind="scenario")

    if control.problem is not None:
        return _undecided(name, quoted, involved, [control.problem])
    if not all(r.band.contains(control.judged) for r in where):
        return answer(False)
    if improving:
        return answer(scenario.mode == "any_improves")
    open_ = [arm.problem for arm in arms if arm.problem is not None]
    if open_:
        return _undecided(name, quoted, involved, open_)
    return answer(scenario.mode == "none_improves")


def _cost(arm: Observation, partner: Observation) -> str:
    """``; parameters 1.2 M against 0.4 M, …`` as far as both were recorded."""
    parts = []
    for name, scale, unit in (("parameters", 1e6, "M"), ("training seconds", 60.0, "min")):
        if name in arm.numbers and name in partner.numbers:
            mine, other = arm.numbers[name] / scale, partner.numbers[name] / scale
            what = "parameters" if name == "parameters" else "training time"
            parts.append(f"{what} {mine:.3g} {unit} against {other:.3g} {unit}")
    return f"; {', '.join(parts)}" if parts else "; parameters were not recorded"


def _quote(rule: ThresholdRule, arms: Iterable[str]) -> str:
    names = [name.partition("/")[2] for name in arms]
    joined = {"each": ", ", "any": " or ", "all": " and "}[rule.scope].join(names)
    return f"{joined} {rule.band.text}: {rule.outcome}{_source(rule.ours)}"


def _outcome(rule: ThresholdRule) -> str:
    return rule.outcome.removeprefix("significantly better: ") + _source(rule.ours)


def _source(ours: bool) -> str:
    return " (ours)" if ours else ""


def _decided(
    name: str,
    rule: str,
    verdict: str,
    text: str,
    arms: Sequence[Observation],
    *,
    kind: str = "note",
    next: str | None = None,
) -> Decision:
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
        label=f"observed, n = {seeds}",
        kind=kind,
        n=n,
        numbers={arm.experiment: arm.numbers for arm in known},
        held_out=tuple(arm.held_out for arm in known),
        controls=tuple(arm.controls for arm in known),
        next=next,
    )


def _undecided(
    name: str, rule: str, arms: Sequence[Observation], reasons: Sequence[str]
) -> Decision:
    shown = [arm for arm in arms if arm.problem is None]
    return Decision(
        name=name,
        rule=rule,
        verdict=NOT_DECIDED,
        text="; ".join(reasons),
        label=NOT_DECIDED,
        numbers={arm.experiment: arm.numbers for arm in shown},
        held_out=tuple(arm.held_out for arm in shown),
        controls=tuple(arm.controls for arm in shown),
    )


__all__ = ["Decision", "command", "decide", "next_step", "percent"]
