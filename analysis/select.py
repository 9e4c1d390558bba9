"""The best configurations and their follow-up on the full data set, as data.

Configurations are ranked by train accuracy (above 90 %), then steps to 90 %, then q_halt_accuracy
(`rules.SELECTION`). What the paired tests of phases 2 and 3 found better than the control is taken
along; where they decided nothing, the control's value stays.
"""

from __future__ import annotations

import math
from typing import Any

import search_spaces
from analysis.decision import Decision, NextStep, decided, undecided
from analysis.load import Run
from analysis.observe import Observation, percent
from analysis.scratch import extended_epochs
from analysis.steps import step
from analysis.tested import PHASE_ARMS, family_of, revision_of
from analysis.view import View, by_data, mixed_plans
from search_spaces import act as act_series
from search_spaces import rules
from search_spaces.rules import act as act_rules
from trainable.errors import ConfigError

SELECTABLE = ("overfit", "debug", "act")
"""Series whose arms train on 32 groups to be chosen from."""

FULL_DATA_OPTIONS: dict[str, Any] = {"max_train_groups": None, "max_eval_groups": None}
"""Every training puzzle (~560 with ConceptARC) and every held-out one (~400)."""

EXPECTED = "~560 training and ~400 held-out puzzles at the published size"


def select(run: Run) -> list[Observation]:
    """The best `rules.SELECTION.most` arms of a run, best first.

    An arm counts when every seed gave an answer, none was stopped by the bar, and its accuracy is
    in the band. Exact repeats of the control and TRM arms are left out.
    """
    view = View(by_data(run)[0])
    arms = view.run.arms
    arms = arms[arms["series"].isin(SELECTABLE)]
    names = [str(name) for name in dict.fromkeys(arms["experiment"])]
    usable = [view[name] for name in names if _usable(view, name)]
    good = [arm for arm in usable if arm.problem is None and arm.stopped == 0]
    good = [arm for arm in good if rules.SELECTION.band.contains(arm.judged)]
    good.sort(key=lambda arm: _order(view, arm.experiment))
    return good[: rules.SELECTION.most]


def followup(run: Run) -> list[NextStep]:
    """Full-data runs of the selected configurations; empty when none is above the threshold, and
    for trials of several revisions or profiles together."""
    if mixed_plans(run):
        return []
    view = View(by_data(run)[0])
    steps = []
    for rank, arm in enumerate(select(run), start=1):
        steps.append(full_data_step(view, arm, f"choice {rank}: {_facts(view, arm)}"))
    return steps


def full_data_step(view: View, arm: Observation, why: str) -> NextStep:
    """One configuration on every puzzle, with what was found better than the control."""
    run = view.run
    carried, reasons = _carried(view, arm.experiment)
    options = FULL_DATA_OPTIONS | carried
    if not dict(run.plan.get("options", {})).get("decoder") and _pretrained(view, arm):
        # Every puzzle trains the arm: none is left for a decoder trained on others.
        options["decoder_puzzles"] = "same"
    epochs = extended_epochs(view, arm.experiment)
    if epochs is not None:
        options["epochs"] = epochs
        reasons.append(f"with the {epochs:g} epochs that it was extended to")
    told = [why, *reasons]
    if arm.reads is False:
        told.append("its accuracy does not show that the demonstrations are read")
    text = f"{'; '.join(told)}. Full data: {EXPECTED}; {rules.FULL_DATA.outcome}"
    return step(run, _target(view, arm), text, overrides=options, kind="full data")


def _target(view: View, arm: Observation) -> str:
    """The experiment's name; encoders of `act` with the mode that they were run in: act/E1@L2."""
    if arm.experiment not in act_rules.ENCODERS:
        return arm.experiment
    trial = view.trials(arm.experiment).iloc[0]
    columns = [name for name in trial.index if str(name).startswith("config/")]
    options = {str(name).removeprefix("config/"): trial[name] for name in columns}
    won = act_series.winner_of(options)
    return f"{arm.experiment}@{won}" if won else arm.experiment


def selection(view: View) -> Decision:
    """The selection as a decision."""
    rule = rules.SELECTION
    quoted = f"the best 2 to {rule.most} configurations {rule.band.text}: {'; '.join(rule.order)}"
    chosen = select(view.run)
    steps = followup(view.run)
    if chosen:
        names = ", ".join(arm.id for arm in chosen)
        text = "; ".join(_facts(view, arm) for arm in chosen)
        if len(chosen) < 2:
            text += "; fewer than the two that the plan asks for"
        return decided(
            "selection", quoted, names, text, chosen, after="selection", kind="success", next=steps
        )
    names_ = view.run.arms["experiment"].unique()
    problems = [view[str(name)].problem for name in names_]
    reasons = [problem for problem in problems if problem is not None]
    if reasons:
        return undecided("selection", quoted, [], reasons, after="selection")
    text = f"no configuration is {rule.band.text}"
    return decided("selection", quoted, "none", text, [], after="selection")


def full_data(view: View) -> list[Decision]:
    """Whether the follow-up succeeded: one decision per arm that trained on every puzzle."""
    rule = rules.FULL_DATA
    quoted = f"held-out pass@1 {rule.band.text}: {rule.outcome}"
    decisions = []
    for name in dict.fromkeys(view.run.arms["experiment"]):
        arm = view[str(name)]
        title = f"{arm.id} on full data"
        score = arm.numbers.get("held-out pass@1", math.nan)
        if arm.problem is not None or math.isnan(score):
            reason = arm.problem or f"{arm.id}: held-out pass@1 was not measured"
            decisions.append(undecided(title, quoted, [arm], [reason], after="full data"))
            continue
        holds = rule.band.contains(score)
        verdict = "success" if holds else "below success"
        text = f"{arm.id}: held-out pass@1 {percent(score)} ({rule.band.text} asked)"
        kind = rule.kind if holds else "note"
        decisions.append(decided(title, quoted, verdict, text, [arm], after="full data", kind=kind))
    return decisions


def _usable(view: View, name: str) -> bool:
    try:
        declared = search_spaces.experiment(name, revision=revision_of(view))
    except ConfigError:  # an experiment of a newer or older plan
        return False
    kinds = view.trials(name).get("config/kind")
    return declared.repeats is None and (kinds is None or not (kinds == "trm").any())


def _order(view: View, name: str) -> tuple[float, float, float]:
    steps = view.mean(name, "steps_to_90")
    if view.trials(name)["steps_to_90"].isna().any():
        steps = math.inf
    q_head = view.mean(name, "q_halt_accuracy")
    return -view[name].judged, steps, -q_head if not math.isnan(q_head) else math.inf


def _facts(view: View, arm: Observation) -> str:
    steps = _order(view, arm.experiment)[1]
    reached = f"{steps:.0f} steps to 90 %" if math.isfinite(steps) else "90 % not held by all"
    q_head = view.mean(arm.experiment, "q_halt_accuracy")
    return f"{arm.told} (n = {arm.n}), {reached}, q_halt_accuracy {percent(q_head)}"


def _carried(view: View, name: str) -> tuple[dict[str, Any], list[str]]:
    """Options that a comparison found better than the control, unless they are this arm's own."""
    options: dict[str, Any] = {}
    reasons: list[str] = []
    if not name.startswith("overfit/"):
        return options, reasons
    own = search_spaces.experiment(name, revision=revision_of(view)).overrides
    best: dict[str, float] = {}
    for phase in ("phase2", "phase3"):
        if not view.has(*PHASE_ARMS[phase]):
            continue
        family = family_of(view, phase)
        found = view.compare(family)
        for rule in family:
            option, made = rule.option, found[rule.name]
            if option is None or option in own or rule.left == name or not made.better:
                continue
            if made.mean > best.get(option, 0.0):
                best[option] = made.mean
                value = view.trials(rule.left)[f"config/{option}"].iloc[0]
                options[option] = value.item() if hasattr(value, "item") else value
                reasons = [r for r in reasons if not r.startswith(f"{option} ")]
                reasons.append(f"{option} as in {rule.left.partition('/')[2]} ({rule.outcome})")
    return options, reasons


def _pretrained(view: View, arm: Observation) -> bool:
    used = view.trials(arm.experiment).get("config/pretrained_decoder")
    return used is not None and bool(used.fillna(False).astype(bool).any())
