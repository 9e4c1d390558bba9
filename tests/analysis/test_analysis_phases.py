"""Decisions after phases 2 and 3 of `overfit`, red flag 2, scenarios C and D, what comes next."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
from synthetic_runs import BAR, FolderWriter, rows, seeds
from test_analysis_paired import CONTROL, above

import analysis
import search_spaces
from analysis import Decision, NextStep
from search_spaces import rules
from search_spaces.rules.table import OBSERVED, TESTED, every_rule, table

Values = dict[str, list[float] | float]
E1A, E4A = rules.E1A, rules.E4A
NOISE = [0.01, -0.01, 0.004, -0.006, 0.002, -0.003, 0.008, -0.005]
NOISY: list[float] = [value + noise for value, noise in zip(CONTROL, NOISE, strict=True)]
PHASE2: Values = {
    E1A: CONTROL,
    **{rule.left: NOISY for rule in rules.PHASE2},
}


def decided(path: Path) -> dict[str, Decision]:
    return {decision.name: decision for decision in analysis.decide(analysis.load(path))}


def targets_of(steps: list[NextStep]) -> list[tuple[str, bool]]:
    return [(step.target, step.default) for step in steps]


# ------------------------------------------------------------------------------------ phase 2


def test_exploration_that_helps_is_carried_to_the_full_data_set(tmp_path: Path) -> None:
    writer = seeds(tmp_path / "run", PHASE2 | {"overfit/E1c": above(0.03)})
    decisions = decided(writer.path)
    helps = decisions["exploration helps (E1c)"]
    assert helps.verdict == "better" and helps.label == "paired test, n = 8"
    assert "use this exploration" in helps.text and "p = 0.0078" in helps.text
    assert decisions["exploration helps (E1b)"].verdict == "no difference shown"
    assert "the control E1a is kept" in decisions["exploration helps (E1b)"].text
    assert decisions["scenario C"].verdict == "holds"
    run = analysis.load(writer.path)
    assert targets_of(analysis.next_steps(run)) == [("phase3", False)]
    best = {step.target: step.overrides for step in analysis.followup(run)}
    assert best["overfit/E1c"] == {
        "max_train_groups": None, "max_eval_groups": None, "decoder_puzzles": "same",
    }  # fmt: skip
    assert all(
        options.get("halt_exploration_prob") == 0.0
        for name, options in best.items()
        if name.startswith("overfit/E3")
    )


def test_worse_exploration_keeps_the_control(tmp_path: Path) -> None:
    values: Values = {E1A: CONTROL, "overfit/E1b": above(-0.05), "overfit/E1c": NOISY}
    decisions = decided(seeds(tmp_path / "run", values).path)
    worse = decisions["exploration helps (E1b)"]
    assert worse.verdict == "worse" and "the control E1a is kept" in worse.text
    assert decisions["scenario C"].verdict == "does not hold"


@pytest.mark.parametrize(("gain", "verdict"), [(0.03, "better"), (-0.03, "worse")])
def test_maximal_steps_that_matter(tmp_path: Path, gain: float, verdict: str) -> None:
    values: Values = {E1A: CONTROL, "overfit/E3a": NOISY, "overfit/E3b": above(gain)}
    decisions = decided(seeds(tmp_path / "run", values).path)
    found = decisions["maximal steps matter (E3b)"]
    assert found.verdict == f"different ({verdict})"
    assert "tune the maximal number of steps by puzzle complexity" in found.text
    assert decisions["maximal steps matter (E3a)"].verdict == "no difference shown"


def test_one_seed_decides_no_comparison_and_the_default_keeps_the_control(tmp_path: Path) -> None:
    one: Values = {name: values[0] for name, values in PHASE2.items() if isinstance(values, list)}
    writer = seeds(tmp_path / "runs" / "phase2", one | {"overfit/E1c": 0.99})
    found = decided(writer.path)["exploration helps (E1c)"]
    assert not found.decided
    assert "needs N ≥ 8 paired seeds (n = 1" in found.text
    assert "E1c 99.0 %, E1a 90.0 %" in found.text and "the control E1a is kept" in found.text
    (more,) = found.next
    # Phase 1 holds the control: as many seeds of it are needed.
    assert (more.target, more.kind, more.seeds) == ("overfit/E1a,phase2", "seeds", 8)
    assert more.command == "python -m etrm_tune.run overfit/E1a,phase2 --profile laptop --seeds 8"
    assert not decided(writer.path)["scenario C"].decided
    steps = analysis.next_steps(analysis.load(writer.path))
    assert targets_of(steps[:1]) == [("phase3", True)] and "not decided" in steps[0].why
    assert "halt_exploration_prob" not in {o for step in steps for o in step.overrides}


def test_a_phase_without_its_parent_says_where_the_control_runs(tmp_path: Path) -> None:
    writer = seeds(tmp_path / "run", {"overfit/E1b": NOISY[:2], "overfit/E3a": NOISY[:2]})
    decisions = decided(writer.path)
    assert not any(decision.decided for decision in decisions.values())
    said = decisions["exploration helps (E1b)"].text
    assert "E1a is not part of this run: E1a is the control of phase1, load that run" in said
    assert not decisions["scenario C"].decided


def test_phases_in_two_folders_are_read_together(tmp_path: Path) -> None:
    first = seeds(tmp_path / "a", {E1A: CONTROL, "overfit/E2a": CONTROL}, target="phase1")
    second = seeds(tmp_path / "b", {"overfit/E1b": NOISY})
    run = analysis.load([first.path, second.path])
    names = [decision.name for decision in analysis.decide(run)]
    assert names[0] == "E1a" and "exploration helps (E1b)" in names
    assert analysis.decide(run)[names.index("exploration helps (E1b)")].decided


@pytest.mark.parametrize("column", ["revision", "profile"])
def test_phases_of_another_revision_or_profile_are_not_compared(
    tmp_path: Path, column: str
) -> None:
    other = {"revision": "2026-01-09", "profile": "workstation"}[column]
    first = FolderWriter(tmp_path / "a", target="phase1")
    first.add(E1A, 0.95)
    second = FolderWriter(tmp_path / "b")
    second.add("overfit/E1b", 0.95, options={column: other})
    run = analysis.load([first.path, second.path])
    (decision,) = analysis.decide(run)
    assert not decision.decided and other in decision.text
    assert analysis.next_steps(run) == []


def test_the_old_revision_has_no_e1e(tmp_path: Path) -> None:
    writer = FolderWriter(tmp_path / "run", revision="2026-01-09")
    for name in (E1A, "overfit/E1b"):
        writer.add(name, 0.95, options={"revision": "2026-01-09"})
    names = list(decided(writer.path))
    assert "exploration helps (E1b)" in names and "exploration helps (E1e)" not in names


# ------------------------------------------------------------------------------------ phase 3


def phase3(path: Path, e4a: float, e1a: float | None = 0.95, **last: Any) -> FolderWriter:
    writer = FolderWriter(path, target="phase3")
    if e1a is not None:
        writer.add(E1A, e1a)
    writer.add(E4A, e4a, **last)
    for name in ("overfit/E2d", "overfit/E5a_low", "overfit/E5a_high"):
        writer.add(name, 0.9)
    return writer


@pytest.mark.parametrize(
    ("e4a", "e1a", "verdict", "d", "flag"),
    [
        (0.901, 0.95, "learns from scratch", "holds", "not raised"),
        (0.90, 0.95, "partly learns", "does not hold", "not raised"),
        (0.50, 0.95, "partly learns", "does not hold", "not raised"),
        (0.499, 0.95, "pretrained decoder essential", "does not hold", "raised"),
        (0.70, 0.90, "no rule", "does not hold", "not raised"),
        (0.95, 0.50, "learns from scratch", "holds", "not raised"),
    ],
)
def test_from_scratch(
    tmp_path: Path, e4a: float, e1a: float, verdict: str, d: str, flag: str
) -> None:
    path = phase3(tmp_path / "run", e4a, e1a).path
    decisions = decided(path)
    assert decisions["E4a"].verdict == verdict
    assert decisions["E4a"].label == "observed, n = 1"
    assert decisions["scenario D"].verdict == d
    assert decisions["red flag 2"].verdict == flag
    flags = analysis.red_flags(analysis.load(path))
    assert [one.name for one in flags] == (["red flag 2"] if flag == "raised" else [])
    for one in flags:
        assert len(one.checks) == 2 and "initialization" in one.checks[0]
    if verdict in ("partly learns", "pretrained decoder essential"):
        assert "pretrained decoder is essential" in decisions["E4a"].text


def test_from_scratch_needs_the_control_only_when_it_fails(tmp_path: Path) -> None:
    assert decided(phase3(tmp_path / "a", 0.95, None).path)["E4a"].decided
    failing = decided(phase3(tmp_path / "b", 0.7, None).path)["E4a"]
    assert not failing.decided and "E1a is not part of this run" in failing.text


def test_a_stopped_e4a_is_below_every_threshold(tmp_path: Path) -> None:
    writer = FolderWriter(tmp_path / "run", target="phase3")
    writer.add(E1A, 0.95)
    writer.add(E4A, 0.99, status="stopped", reason=BAR, steps=200)
    decisions = decided(writer.path)
    assert decisions["E4a"].verdict == "pretrained decoder essential"
    assert decisions["red flag 2"].verdict == "raised"


def rising(writer: FolderWriter, name: str, *, epochs: float = 1000.0, high: float = 0.85) -> None:
    """A trial whose accuracy still rises at its end."""
    writer.add(name, high, options={"epochs": epochs})
    lines = rows(high)
    for i, row in enumerate(lines):
        row["train/accuracy"] = high * (i + 1) / len(lines)
    folder = sorted(writer.folder(name).parent.glob("overfit-E4*"))[0]
    writer.attempt(folder, 1, lines, end="finished")


@pytest.mark.parametrize("control", [True, False])
def test_e4a_continues_while_it_rises(tmp_path: Path, control: bool) -> None:
    writer = FolderWriter(tmp_path / "run", target="phase3")
    epochs = 1000.0
    if control:
        writer.add(E1A, 0.95)
    else:  # the profile's own budget
        epochs = search_spaces.resolve(E4A, profile="laptop").config.epochs
    rising(writer, E4A, epochs=epochs, high=0.40)
    decisions = decided(writer.path)
    assert not decisions["E4a"].decided and "still rising" in decisions["E4a"].text
    assert not decisions["red flag 2"].decided and not decisions["scenario D"].decided
    (step,) = analysis.next_steps(analysis.load(writer.path))
    assert (step.target, step.kind) == (E4A, "extend")
    assert step.overrides == {"epochs": int(epochs * 2.5)}
    assert step.command.endswith(f"--set epochs={int(epochs * 2.5)}")


def test_e4a_is_judged_after_its_extension_and_replaces_its_shorter_self(tmp_path: Path) -> None:
    writer = FolderWriter(tmp_path / "a", target="phase3")
    writer.add(E1A, 0.95)
    rising(writer, E4A, high=0.40)
    extended = FolderWriter(tmp_path / "b", target=E4A)
    rising(extended, E4A, epochs=2500.0, high=0.45)
    run = analysis.load([writer.path, extended.path])
    assert decided_in(run)["E4a"].verdict == "pretrained decoder essential"
    assert decided_in(run)["red flag 2"].verdict == "raised"


def test_an_extended_arm_keeps_its_epochs_on_the_full_data_and_gives_them_to_no_other(
    tmp_path: Path,
) -> None:
    writer = FolderWriter(tmp_path / "a", target="phase3")
    writer.add(E1A, 0.93)
    rising(writer, E4A, high=0.40)
    extended = FolderWriter(tmp_path / "b", target=E4A)
    extended.plan["options"] = {"settings": {"epochs": 2500, "lr": 0.002}, "own": ["epochs"]}
    rising(extended, E4A, epochs=2500.0, high=0.99)
    first, second = analysis.followup(analysis.load([extended.path, writer.path]))
    assert (first.target, first.overrides["epochs"]) == (E4A, 2500)
    assert "extended" in first.why and "--set lr=0.002" in first.command
    assert second.target == E1A and "epochs" not in second.overrides
    assert "epochs" not in second.command and "--set lr=0.002" in second.command


def decided_in(run: analysis.Run) -> dict[str, Decision]:
    return {decision.name: decision for decision in analysis.decide(run)}


def test_a_flat_or_good_e4a_is_judged_at_once(tmp_path: Path) -> None:
    writer = FolderWriter(tmp_path / "run", target="phase3")
    writer.add(E1A, 0.95)
    rising(writer, E4A, high=0.99)  # mean of its last tenth: above 90 %
    assert decided(writer.path)["E4a"].verdict == "learns from scratch"


def test_rates_and_depth_of_phase_3_are_tested(tmp_path: Path) -> None:
    values: Values = {
        E1A: CONTROL, E4A: CONTROL, "overfit/E2d": above(0.03), "overfit/E5a_low": NOISY,
        "overfit/E5a_high": above(-0.03),
    }  # fmt: skip
    decisions = decided(seeds(tmp_path / "run", values, target="phase3").path)
    assert decisions["simple scaling helps (E2d)"].verdict == "better"
    assert "(ours)" in decisions["simple scaling helps (E2d)"].rule
    assert decisions["rate helps (E5a_low)"].verdict == "no difference shown"
    assert decisions["rate helps (E5a_high)"].verdict == "worse"


# ---------------------------------------------------------------------------- selection, full data


def test_the_best_three_are_followed_up_on_the_full_data_set(tmp_path: Path) -> None:
    values: Values = {
        E1A: 0.93, "overfit/E2a": 0.99, "overfit/E2b": 0.90, "overfit/E2c": 0.95,
        "overfit/E3c": 0.999, E4A: 0.94,
    }  # fmt: skip
    writer = seeds(tmp_path / "run", values, target="phase1,phase3")
    run = analysis.load(writer.path)
    steps = analysis.followup(run)
    assert [step.target for step in steps] == ["overfit/E2a", "overfit/E2c", E4A]
    assert {step.kind for step in steps} == {"full data"}
    assert steps[0].overrides["decoder_puzzles"] == "same"
    assert "decoder_puzzles" not in steps[2].overrides  # from scratch: it needs none
    assert "--set max_train_groups=null" in steps[0].command
    for said in ("99.0 %", "n = 1", "steps to 90 %", "q_halt_accuracy", "~560 training"):
        assert said in steps[0].why
    selection = decided(writer.path)["selection"]
    assert selection.verdict == "E2a, E2c, E4a" and selection.next == tuple(steps)
    assert analysis.next_steps(run)[: len(steps)] == steps


def test_ties_in_accuracy_go_to_the_faster_then_to_the_better_q_head(tmp_path: Path) -> None:
    writer = FolderWriter(tmp_path / "run")
    writer.add(E1A, 0.95)
    slow = [row | {"train/accuracy": 0.95 if row["step"] > 300 else 0.1} for row in rows(0.95)]
    writer.attempt(writer.folder(E1A), 1, slow, end="finished")
    writer.add("overfit/E2c", 0.95)
    writer.add("overfit/E2b", 0.95)
    sure = [row | {"train/q_halt_accuracy": 0.99} for row in rows(0.95)]
    writer.attempt(writer.folder("overfit/E2b"), 1, sure, end="finished")
    chosen = [step.target for step in analysis.followup(analysis.load(writer.path))]
    assert chosen == ["overfit/E2b", "overfit/E2c", E1A]


def test_a_given_decoder_is_kept_for_the_full_data_set(tmp_path: Path) -> None:
    writer = seeds(tmp_path / "run", {E1A: 0.95}, options={"decoder": "trm.pt"})
    (step,) = analysis.followup(analysis.load(writer.path))
    assert "decoder_puzzles" not in step.overrides and "--decoder trm.pt" in step.command


def test_nothing_above_90_is_followed_up(tmp_path: Path) -> None:
    run = analysis.load(phase3(tmp_path / "run", 0.7, 0.9).path)
    assert analysis.followup(run) == []
    assert decided_in(run)["selection"].verdict == "none"
    assert analysis.next_steps(run) == []


@pytest.mark.parametrize(("score", "verdict"), [(0.05, "success"), (0.049, "below success")])
def test_full_data_runs_answer_their_own_question(
    tmp_path: Path, score: float, verdict: str
) -> None:
    writer = FolderWriter(tmp_path / "run", target="overfit/E2c")
    options = {"max_train_groups": None, "max_eval_groups": None}
    writer.add("overfit/E2c", 0.30, options=options, **{"eval/pass@1": score})
    (decision,) = analysis.decide(analysis.load(writer.path))
    assert decision.name == "E2c on full data" and decision.verdict == verdict
    assert "drop" not in decision.text


# ------------------------------------------------------------------------------------ the table


def test_every_rule_says_which_metric_window_and_summary() -> None:
    lines = table()
    assert len(lines) == len(every_rule())
    for line in lines:
        assert line.metric and line.window and line.summary in ("mean", "last")
    by_rule = {line.rule: line for line in lines}
    assert by_rule["standard encoder validated"].decided_by == OBSERVED
    assert by_rule["exploration helps (E1b)"].decided_by == TESTED
    assert by_rule["VAE not needed"].decided_by == OBSERVED  # E2c >= E2a, an order
    assert by_rule["full data"].metric == "eval/pass@1"


def test_every_experiment_of_a_rule_exists() -> None:
    known = {e.name for r in search_spaces.REVISIONS for e in search_spaces.experiments(r)}
    for line in table():
        assert set(line.arms) <= known, line.rule


def test_every_next_step_can_be_resolved(tmp_path: Path) -> None:
    one: Values = dict.fromkeys(PHASE2, 0.95)
    writer = seeds(tmp_path / "run", one)
    run = analysis.load(writer.path)
    steps = [*analysis.next_steps(run), *analysis.followup(run)]
    for decision in analysis.decide(run):
        steps += decision.next
    for step in steps:
        for experiment in search_spaces.resolve_target(step.target):
            search_spaces.resolve(experiment, overrides=step.overrides)
        assert re.match(rf"python -m etrm_tune.run {step.target}( |$)", step.command)
