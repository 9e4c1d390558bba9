"""Which trials are run without a trainer, because they are short beside its start.

A nested trainer needs `TRIAL_START_S` seconds for every trial. Trials of one worker each that are
estimated to take less than `SHORT_TRIAL_S` are forked processes instead, one after the other under
the same Ray actor (`trainable.ray_adapter.ForkedTrial`): same files, same curves, same stopping.

The estimate is the stage's longest trial, by its operations and the speed of matrix products on
this machine: good to a factor of two, which is enough here. It is made once, stands in plan.json
under ``starts``, and holds for reruns; ``--short-trials on|off`` says otherwise.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from typing import Any

from etrm_tune.costs import EFFICIENCY, TRIAL_START_S, from_rate, plan_work
from etrm_tune.plan import Plan
from etrm_tune.resources import Allotment

SHORT_TRIAL_S = 60.0
"""Trials below are forked. A trainer's start would be more than an eighth of them."""

FORKED, TRAINER = "forked", "trainer"


@dataclass(frozen=True)
class Start:
    """How a stage's trials are started, and why."""

    how: str
    why: str

    def __str__(self) -> str:
        what = "one forked process per trial" if self.how == FORKED else "a trainer per trial"
        return f"{what}: {self.why}"


def choose(
    plan: Plan,
    allotments: Mapping[str, Allotment],
    asked: bool | None,
    stored: Mapping[str, Any] | None,
) -> dict[str, Start]:
    """How each role's trials are started. `asked` is ``--short-trials``, None for "not said"."""
    known = (stored or {}).get("starts", {})
    found: dict[str, Start] = {}
    for stage in plan.stages:
        role = stage[0].role
        allotment = allotments[role]
        if allotment.workers > 1:
            found[role] = Start(TRAINER, f"{allotment.workers} workers each")
        elif asked is not None:
            found[role] = Start(FORKED if asked else TRAINER, "--short-trials")
        elif role in known:
            found[role] = Start(**known[role])
        elif stored is not None:  # begun before there was a choice
            found[role] = Start(TRAINER, "as it was begun")
        elif allotment.use_gpu:
            found[role] = Start(TRAINER, "times on a GPU are not known beforehand")
        else:
            seconds = longest(replace(plan, trials=tuple(stage)))
            sign, how = ("<", FORKED) if seconds < SHORT_TRIAL_S else ("≥", TRAINER)
            about = f"{seconds:.0f}" if seconds >= 1 else f"{seconds:.1g}"
            found[role] = Start(
                how,
                f"the longest is estimated at {about} s {sign} {SHORT_TRIAL_S:.0f} s "
                f"(a trainer's start: {TRIAL_START_S:.0f} s)",
            )
    return found


def longest(plan: Plan) -> float:
    """Seconds of the longest trial on one core, by operations, without its start."""
    from etrm_tune.measure import product_rate

    rate = EFFICIENCY * product_rate(0.1)
    works = plan_work(plan).values()
    return max(work.step_equivalents * from_rate(work, rate, 1).step_s for work in works)


def apply(allotments: Mapping[str, Allotment], starts: Mapping[str, Start]) -> dict[str, Allotment]:
    """Allotments that know how their trials are started."""
    return {
        role: replace(one, forked=role in starts and starts[role].how == FORKED)
        for role, one in allotments.items()
    }


def to_json(starts: Mapping[str, Start]) -> dict[str, Any]:
    """Content of ``starts`` in plan.json."""
    return {role: asdict(start) for role, start in starts.items()}
