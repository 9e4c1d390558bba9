"""What to do next, from the decisions: a sentence and steps, the recommended one first.

A red flag comes first, then what is unfinished, then the next phase. Where nothing was decided a
step with ``default=True`` says what an unattended run does: it keeps the control and goes on.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from analysis import act, debug, frozen
from analysis.decision import Decision, NextStep
from analysis.load import Run
from analysis.select import followup
from analysis.steps import OPEN, debug_steps, step, unfinished
from analysis.tested import family_of, holds
from analysis.view import View, by_data, mixed_plans
from search_spaces import rules

TREES = (debug.TREE, act.TREE, frozen.TREE)
"""Decisions that say where a series' tree stands."""


@dataclass(frozen=True)
class Recommendation:
    """Why, and the steps in order of preference; `checks` where a red flag asks for them."""

    why: str
    steps: tuple[NextStep, ...] = ()
    checks: tuple[str, ...] = ()

    @property
    def command(self) -> str | None:
        """The recommended command line; a default branch is not recommended to a person."""
        return next((one.command for one in self.steps if not one.default), None)


def recommend(run: Run, decisions: Sequence[Decision]) -> Recommendation:
    """The recommendation for a run."""
    if not decisions:
        return Recommendation(
            "no decision point applies: this run holds none of the experiments that the plan's "
            "rules read (none of phase 1's either)"
        )
    if mixed_plans(run):
        return Recommendation(decisions[0].text)
    flags = [decision for decision in decisions if decision.raised]
    if flags:
        steps = tuple(one for flag in flags for one in flag.next)
        checks = tuple(check for flag in flags for check in flag.checks)
        return Recommendation("; ".join(f"{f.name}: {f.text}" for f in flags), steps, checks)
    view = View(by_data(run)[0])
    by_name = {decision.name: decision for decision in decisions}
    found = []
    if holds(view, "phase3"):
        found.append(_after_phase3(run, by_name))
    elif holds(view, "phase2"):
        found.append(_after_phase2(run, view, decisions))
    elif "E1a" in by_name:
        found.append(_after_phase1(run, by_name, decisions))
    for tree in (decision for decision in decisions if decision.name in TREES):
        found.append(Recommendation(f"{tree.name}: {tree.text}", tree.next, tree.checks))
    if not found:
        return Recommendation(decisions[0].text)
    steps = tuple(one for recommendation in found for one in recommendation.steps)
    checks = tuple(one for recommendation in found for one in recommendation.checks)
    return Recommendation("; ".join(one.why for one in found), steps, checks)


def _after_phase1(
    run: Run, by_name: dict[str, Decision], decisions: Sequence[Decision]
) -> Recommendation:
    control = by_name["E1a"]
    if control.kind == "success":
        return Recommendation(
            f"E1a is validated: go on to phase 2{_still_open(decisions)}", control.next
        )
    if control.decided:
        why = (
            "E1a is not above 90 % and the document has no rule for that. Ours: ask whether the "
            "encoder is the limit (series debug) before phase 2"
        )
        default = step(run, "phase2", f"{why}; unattended: the control is kept", default=True)
        return Recommendation(why, (*debug_steps(run, why), default))
    why, steps = _open_control(run, control.text)
    default = step(
        run, "phase2", f"E1a is not decided ({control.text}): the control is kept", default=True
    )
    return Recommendation(why, (*steps, default))


def _after_phase2(run: Run, view: View, decisions: Sequence[Decision]) -> Recommendation:
    arms = [rule.left for rule in family_of(view, "phase2")]
    if absent := [name.partition("/")[2] for name in arms if not view.has(name)]:
        why = f"go on to phase 2: {', '.join(absent)} not run yet"
        return Recommendation(why, (step(run, "phase2", why),))
    open_ = [d.name for d in decisions if d.after == "phase2" and not d.decided]
    again = unfinished(run)
    if again is not None:
        default = step(run, "phase3", f"{again.why}: the control is kept", default=True)
        return Recommendation(again.why, (again, default))
    if open_:
        why = f"go on to phase 3 with the control's settings; not decided: {', '.join(open_)}"
        more = [one for d in decisions if d.after == "phase2" for one in d.next]
        return Recommendation(why, (step(run, "phase3", why, default=True), *more[:1]))
    return Recommendation("phase 2 is decided: go on to phase 3", (step(run, "phase3", "next"),))


def _after_phase3(run: Run, by_name: dict[str, Decision]) -> Recommendation:
    scratch = by_name.get("E4a")
    if scratch is not None and not scratch.decided and scratch.next:
        return Recommendation(scratch.text, scratch.next)
    again = unfinished(run)
    steps = followup(run)
    if again is not None:
        return Recommendation(again.why, (again, *steps))
    if steps:
        names = ", ".join(one.target for one in steps)
        return Recommendation(f"follow up on the full data set: {names}", tuple(steps))
    return Recommendation(
        f"no configuration is {rules.SELECTION.band.text}: nothing to follow up on full data"
    )


def _still_open(decisions: Sequence[Decision]) -> str:
    open_ = [d.name for d in decisions if not d.decided]
    return f" (still not decided: {', '.join(open_)})" if open_ else ""


def _open_control(run: Run, reason: str) -> tuple[str, list[NextStep]]:
    """What to do while E1a has no answer."""
    trials = run.arm(rules.E1A)
    status = set(trials["status"])
    target = str(run.plan.get("target"))
    if trials.empty:
        why = f"{reason}: the decisions after phase 1 start from it"
        return why, [step(run, "phase1", why)]
    if "failed" in set(run.trials["status"]):
        why = f"{reason}. Run again what failed"
        return why, [step(run, target, why, kind="continue")]
    if status & set(OPEN):
        why = f"{reason}. The same command goes on"
        return why, [step(run, target, why, kind="continue")]
    why = "such a run is not repeated by itself: try another setting or more seeds in a new run"
    return f"{reason}; {why}", []
