"""Every branch of the decision point after phase 1, on synthetic run folders."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest
from synthetic_runs import BAR, CONTROLS, EVALUATION, FolderWriter, phase1

import analysis
import search_spaces
from analysis import Decision
from analysis.compare import by_bar, treatment
from analysis.decide import next_step
from analysis.margins import CONTROL_MARGIN, GENERALISES, GRID_MARGIN
from analysis.observe import percent
from analysis.steps import command
from search_spaces import rules

Decided = dict[str, Decision]


def decided(path: Path) -> Decided:
    """Decisions of a run folder by name."""
    return {decision.name: decision for decision in analysis.decide(analysis.load(path))}


def after(tmp_path: Path, e1a: float, e2a: float, e2b: float, e2c: float) -> Decided:
    """Decisions of a finished phase 1 with these accuracies."""
    return decided(phase1(tmp_path / "phase1", e1a, e2a, e2b, e2c).path)


def test_every_question_is_asked_once(tmp_path: Path) -> None:
    names = list(after(tmp_path, 0.93, 0.85, 0.7, 0.95))
    assert names == [
        "E1a", "E2a", "E2b", "E2c", "VAE compatible", "VAE not needed",
        "red flag 1", "red flag 3", "scenario A", "scenario B",
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("accuracy", "verdict", "follow"),
    [
        (0.901, "standard encoder validated", "phase2"),
        (0.90, "baseline not validated", None),
        (0.30, "baseline not validated", None),
    ],
)
def test_the_control(tmp_path: Path, accuracy: float, verdict: str, follow: str | None) -> None:
    control = after(tmp_path, accuracy, 0.85, 0.85, 0.85)["E1a"]
    assert control.verdict == verdict
    assert control.label == "observed, n = 1"
    assert [step.target for step in control.next] == ([follow] if follow else [])
    if follow is None:
        assert "the document has no rule" in control.text
    else:
        assert control.next[0].command.startswith(f"python -m etrm_tune.run {follow}")
    assert "> 90 %" in control.rule


@pytest.mark.parametrize("arm", ["E2a", "E2b", "E2c"])
@pytest.mark.parametrize(
    ("accuracy", "verdict"),
    [
        (0.921, "deeper encoders help"),
        (0.92, "no rule between"),
        (0.85, "no rule between"),
        (0.80, "no rule between"),
        (0.799, "fails"),
        (0.05, "fails"),
    ],
)
def test_each_encoder_is_judged_by_itself(
    tmp_path: Path, arm: str, accuracy: float, verdict: str
) -> None:
    values = {"E2a": 0.85, "E2b": 0.85, "E2c": 0.85} | {arm: accuracy}
    decisions = after(tmp_path, 0.91, values["E2a"], values["E2b"], values["E2c"])
    decision = decisions[arm]
    if verdict == "fails":
        expected = "hybrid depth fails" if arm == "E2c" else "variational encoder fails"
        assert decision.verdict == expected and decision.kind == "drop"
        assert ("(ours)" in decision.text) == (arm == "E2c")
    else:
        assert decision.verdict == verdict
    for other in {"E2a", "E2b", "E2c"} - {arm}:
        assert decisions[other].verdict == "no rule between"
    assert f"{arm} {percent(accuracy)}" in decision.text
    assert decision.numbers[f"overfit/{arm}"]["train accuracy"] == pytest.approx(accuracy)


def test_above_92_without_being_better_than_the_control_is_no_improvement(tmp_path: Path) -> None:
    decisions = after(tmp_path, 0.97, 0.93, 0.85, 0.85)
    assert decisions["E2a"].verdict == "not better than E1a"
    assert decisions["scenario A"].verdict == "holds"
    assert decisions["scenario B"].verdict == "does not hold"


def test_a_deeper_encoder_is_weighed_against_its_compute(tmp_path: Path) -> None:
    writer = FolderWriter(tmp_path / "run")
    writer.add("overfit/E1a", 0.91, result={"parameters": 400_000})
    writer.add("overfit/E2a", 0.95, result={"parameters": 1_200_000})
    text = decided(writer.path)["E2a"].text
    assert "parameters 1.2 M against 0.4 M" in text and "training time 2.67 min" in text
    assert "not a test" in text and "significant" not in text


def test_above_92_stays_open_while_the_control_is_open(tmp_path: Path) -> None:
    writer = FolderWriter(tmp_path / "run")
    writer.add("overfit/E1a", 0.9, status="failed", reason="OutOfMemory")
    writer.add("overfit/E2a", 0.95)
    decision = decided(writer.path)["E2a"]
    assert not decision.decided
    assert "95.0 %" in decision.text and "E1a crashed at step 400: OutOfMemory" in decision.text


@pytest.mark.parametrize(
    ("accuracy", "verdict"), [(0.901, "yes"), (0.90, "not shown"), (0.5, "not shown")]
)
def test_vae_compatible(tmp_path: Path, accuracy: float, verdict: str) -> None:
    assert after(tmp_path, 0.91, accuracy, 0.85, 0.85)["VAE compatible"].verdict == verdict


@pytest.mark.parametrize(
    ("e2a", "e2c", "verdict"),
    [(0.85, 0.86, "not needed"), (0.85, 0.85, "not needed"), (0.86, 0.85, "does not apply")],
)
def test_vae_needed(tmp_path: Path, e2a: float, e2c: float, verdict: str) -> None:
    decision = after(tmp_path, 0.91, e2a, 0.85, e2c)["VAE not needed"]
    assert decision.verdict == verdict
    assert decision.label == "observed, n = 1"
    assert "not a test" in decision.text and "significant" not in decision.text
    assert set(decision.numbers) == {"overfit/E2a", "overfit/E2c"}


def test_two_stopped_runs_have_no_order(tmp_path: Path) -> None:
    writer = FolderWriter(tmp_path / "run")
    for name in ("overfit/E2a", "overfit/E2c"):
        writer.add(name, 0.12, status="stopped", reason=BAR, steps=200)
    decision = decided(writer.path)["VAE not needed"]
    assert not decision.decided and "no order" in decision.text


@pytest.mark.parametrize(
    ("values", "verdict"),
    [
        ((0.80, 0.7, 0.7, 0.7), "raised"),
        ((0.801, 0.7, 0.7, 0.7), "not raised"),
        ((0.7, 0.7, 0.7, 0.85), "not raised"),
    ],
)
def test_red_flag_1(
    tmp_path: Path, values: tuple[float, float, float, float], verdict: str
) -> None:
    path = phase1(tmp_path / "run", *values).path
    flag = decided(path)["red flag 1"]
    assert flag.verdict == verdict
    run = analysis.load(path)
    why, follow = next_step(run, analysis.decide(run))
    assert ("red flag 1" in why) == (verdict == "raised")
    assert "phase2" not in (follow or "")
    if follow is not None:
        assert follow.split()[3] in search_spaces.targets()
    if verdict == "raised":
        assert "gradient flow" in flag.text and "data pipeline" in flag.text


@pytest.mark.parametrize(
    ("e2a", "e2b", "verdict"),
    [
        (0.50, 0.60, "raised"),
        (0.55, 0.61, "not raised"),
        (0.55, 0.49, "not raised"),
        (0.95, 0.95, "not raised"),
    ],
)
def test_red_flag_3(tmp_path: Path, e2a: float, e2b: float, verdict: str) -> None:
    flag = after(tmp_path, 0.91, e2a, e2b, 0.85)["red flag 3"]
    assert flag.verdict == verdict
    assert ("no better" in flag.text) == (e2b < 0.5)


def test_a_red_flag_waits_for_missing_runs_unless_one_clears_it(tmp_path: Path) -> None:
    writer = FolderWriter(tmp_path / "run")
    writer.add("overfit/E1a", 0.5)
    writer.add("overfit/E2a", 0.5, status="diverged", reason="loss is not finite")
    decisions = decided(writer.path)
    assert not decisions["red flag 1"].decided
    assert "E2a diverged at step 400: loss is not finite" in decisions["red flag 1"].text
    assert "E2b is not part of this run" in decisions["red flag 1"].text
    cleared = FolderWriter(tmp_path / "cleared")
    cleared.add("overfit/E1a", 0.95)
    assert decided(cleared.path)["red flag 1"].verdict == "not raised"


@pytest.mark.parametrize(
    ("values", "a", "b"),
    [
        ((0.91, 0.85, 0.85, 0.85), "holds", "does not hold"),
        ((0.91, 0.93, 0.85, 0.85), "does not hold", "holds"),
        ((0.85, 0.85, 0.85, 0.85), "does not hold", "does not hold"),
        ((0.89, 0.85, 0.85, 0.93), "does not hold", "holds"),
    ],
)
def test_scenarios(
    tmp_path: Path, values: tuple[float, float, float, float], a: str, b: str
) -> None:
    decisions = after(tmp_path, *values)
    assert decisions["scenario A"].verdict == a
    assert decisions["scenario B"].verdict == b
    assert ("keep the standard encoder" in decisions["scenario A"].text) == (a == "holds")


def test_scenario_a_waits_for_all_encoders_and_b_for_one(tmp_path: Path) -> None:
    writer = FolderWriter(tmp_path / "run")
    writer.add("overfit/E1a", 0.91)
    writer.add("overfit/E2a", 0.85)
    open_ = decided(writer.path)
    assert not open_["scenario A"].decided and not open_["scenario B"].decided
    writer.add("overfit/E2b", 0.95)
    settled = decided(writer.path)
    assert settled["scenario A"].verdict == "does not hold"
    assert settled["scenario B"].verdict == "holds"


def test_a_run_stopped_by_the_bar_is_an_answer(tmp_path: Path) -> None:
    writer = FolderWriter(tmp_path / "run")
    writer.add("overfit/E1a", 0.95)
    for name in ("overfit/E2a", "overfit/E2b", "overfit/E2c"):
        writer.add(name, 0.12, status="stopped", reason=BAR, steps=200)
    decisions = decided(writer.path)
    assert decisions["E2a"].verdict == "variational encoder fails"
    assert decisions["E2c"].verdict == "hybrid depth fails"
    assert decisions["E2b"].label == "observed, n = 1"
    assert "was stopped by the bar at" in decisions["E2b"].text
    assert decisions["VAE compatible"].verdict == "not shown"
    assert decisions["scenario A"].verdict == "holds"


def test_a_stopped_control_is_below_90_and_raises_red_flag_1_with_the_rest(tmp_path: Path) -> None:
    writer = FolderWriter(tmp_path / "run")
    for name in ("E1a", "E2a", "E2b", "E2c"):
        # The window mean at the stop is not what counts: a stopped run is below every threshold.
        writer.add(f"overfit/{name}", 0.99, status="stopped", reason=BAR)
    decisions = decided(writer.path)
    assert decisions["E1a"].verdict == "baseline not validated"
    assert decisions["red flag 1"].verdict == "raised"


@pytest.mark.parametrize(
    ("status", "reason", "says"),
    [
        ("failed", "CUDA out of memory", "E1a crashed at step 400: CUDA out of memory"),
        ("diverged", "", "E1a diverged at step 400"),
        ("running", "", "E1a is unfinished (running at step 400)"),
        ("interrupted", "", "E1a is unfinished (interrupted at step 400)"),
        ("stopped", "halving: 30 % not among the best 1 of 4", "E1a was not stopped by the bar"),
    ],
)
def test_a_run_without_an_answer_is_not_decided(
    tmp_path: Path, status: str, reason: str, says: str
) -> None:
    writer = FolderWriter(tmp_path / "runs" / "phase1")
    folder = writer.add("overfit/E1a", 0.95, status=status, reason=reason)
    if status in ("running", "interrupted"):
        (folder / "attempt-1.jsonl").write_text(
            "\n".join((folder / "attempt-1.jsonl").read_text().splitlines()[:-1]) + "\n"
        )
    run = analysis.load(writer.path)
    decisions = analysis.decide(run)
    control = decisions[0]
    assert control.verdict == control.label == "not decided"
    assert says in control.text
    why, follow = next_step(run, decisions)
    assert says in why
    if status in ("diverged", "stopped"):
        assert follow is None and "not repeated by itself" in why
    else:
        retry = " --retry-failed" if status == "failed" else ""
        assert follow == f"python -m etrm_tune.run phase1 --profile laptop{retry}"


def test_a_pending_and_a_missing_run_are_named(tmp_path: Path) -> None:
    writer = FolderWriter(tmp_path / "run")
    writer.plan_trial("overfit/E1a")
    decisions = decided(writer.path)
    assert decisions["E1a"].text == "E1a has not started"
    assert decisions["E2a"].text == "E2a is not part of this run"


def test_the_reason_of_a_stop_is_the_schedulers(tmp_path: Path) -> None:
    writer = FolderWriter(tmp_path / "run")
    told = "the reporting function said stop"
    folder = writer.add("overfit/E2a", 0.12, status="stopped", reason=told, steps=200)
    assert not decided(writer.path)["E2a"].decided
    line = json.dumps({"stop": True, "reason": BAR, "rung": 500})
    (folder / "scheduler.jsonl").write_text(line + "\n")
    assert decided(writer.path)["E2a"].verdict == "variational encoder fails"


def test_what_waits_for_a_decoder_says_so(tmp_path: Path) -> None:
    writer = FolderWriter(tmp_path / "runs" / "phase1")
    writer.add("decoder/trm", 0.3, role="decoder", status="failed", reason="boom")
    reason = "waits for decoder-trm-s0, which is failed"
    writer.add("overfit/E1a", None, status="pending", reason=reason)
    run = analysis.load(writer.path)
    why, follow = next_step(run, analysis.decide(run))
    assert f"E1a has not started: {reason}" in why
    assert follow is not None and follow.endswith("--retry-failed")


def test_a_finished_run_without_the_metric_is_not_decided(tmp_path: Path) -> None:
    writer = FolderWriter(tmp_path / "run")
    writer.add("overfit/E1a", None)
    assert "no train/accuracy" in decided(writer.path)["E1a"].text


def test_seeds_are_averaged_and_none_is_left_out_silently(tmp_path: Path) -> None:
    writer = FolderWriter(tmp_path / "run")
    writer.add("overfit/E1a", 0.88, seed=0)
    writer.add("overfit/E1a", 0.94, seed=1)
    control = decided(writer.path)["E1a"]
    assert control.label == "observed, n = 2" and "91.0 %" in control.text
    writer.add("overfit/E1a", 0.94, seed=2, status="diverged")
    crashed = decided(writer.path)["E1a"]
    assert not crashed.decided and "E1a (seed 2) diverged" in crashed.text


def test_exactly_at_a_threshold_over_seeds_is_not_above_it(tmp_path: Path) -> None:
    writer = FolderWriter(tmp_path / "run")
    for seed in range(3):
        writer.add("overfit/E1a", 0.9, seed=seed)
    assert decided(writer.path)["E1a"].verdict == "baseline not validated"


def test_a_run_without_phase_1_has_no_decisions(tmp_path: Path) -> None:
    writer = FolderWriter(tmp_path / "run", target="overfit/E1d")
    writer.add("overfit/E1d", 0.95)  # no rule of the plan reads it
    run = analysis.load(writer.path)
    assert analysis.decide(run) == []
    assert "none of phase 1" in next_step(run, [])[0]


def test_two_revisions_are_not_decided_together(tmp_path: Path) -> None:
    first = phase1(tmp_path / "a", 0.95, 0.9, 0.9, 0.9)
    second = FolderWriter(tmp_path / "b", revision="2026-01-09")
    second.add("overfit/E1a", 0.95, options={"revision": "2026-01-09"})
    run = analysis.load([first.path, second.path])
    (decision,) = analysis.decide(run)
    assert not decision.decided and "2026-01-09, 2026-01-21" in decision.text
    why, _ = next_step(run, [decision])
    assert "revision" in why


def test_the_margin_over_the_controls(tmp_path: Path) -> None:
    for number, (tokens, grids, read) in enumerate(
        [
            (0.72 + CONTROL_MARGIN, 0.03 + GRID_MARGIN, False),
            (0.72 + CONTROL_MARGIN + 0.001, 0.0, True),
            (0.5, 0.03 + GRID_MARGIN + 0.001, True),
            (0.6, 0.0, False),
        ]
    ):
        writer = FolderWriter(tmp_path / f"run{number}")
        normal = {"control/normal_accuracy": tokens, "control/normal_exact_accuracy": grids}
        writer.add("overfit/E1a", 0.95, **normal)
        (said,) = decided(writer.path)["E1a"].controls
        refused = "this accuracy does not show that the demonstrations are read"
        assert (refused not in said) == read, said
        assert (refused not in decided(writer.path)["E1a"].text) == read
        assert "72.0 %" in said and "margins 2 and 6 points" in said


def test_without_controls_nothing_is_claimed(tmp_path: Path) -> None:
    writer = FolderWriter(tmp_path / "run")
    writer.add("overfit/E1a", 0.95, **dict.fromkeys(CONTROLS | EVALUATION))
    control = decided(writer.path)["E1a"]
    assert "not known" in control.controls[0] and "not known" in control.held_out[0]


@pytest.mark.parametrize(
    ("score", "says"),
    [(GENERALISES, "does generalise"), (0.031, "does not generalise"), (0, "does not generalise")],
)
def test_held_out_score(tmp_path: Path, score: float, says: str) -> None:
    writer = FolderWriter(tmp_path / "run")
    writer.add("overfit/E1a", 0.95, **{"eval/pass@1": score})
    (said,) = decided(writer.path)["E1a"].held_out
    assert says in said and "of 32 puzzles" in said and "eval_num_aug 8" in said


def test_the_next_command_repeats_the_runs_options(tmp_path: Path) -> None:
    options = {
        "target": "phase1", "profile": "paper", "revision": "2026-01-09", "seeds": 3,
        "decoder": "trm.pt", "data": "kaggle", "settings": {"epochs": 500},
        "decoder_puzzles": None, "scheduler": "bar", "decoder_l_cycles": None,
    }  # fmt: skip
    writer = FolderWriter(tmp_path / "run", options=options)
    again = command(analysis.load(writer.path), "phase1", again=True)
    assert again.endswith(f"--runs {tmp_path} --name run")
    assert command(analysis.load(writer.path), "phase2") == (
        "python -m etrm_tune.run phase2 --profile paper --revision 2026-01-09 --seeds 3 "
        "--decoder trm.pt --data kaggle --set epochs=500"
    )


@pytest.mark.parametrize(
    ("reason", "bar"), [(BAR, True), ("halving: below the bar", False), ("", False), (None, False)]
)
def test_who_stopped_a_run_is_read_from_the_first_word(reason: str | None, bar: bool) -> None:
    assert by_bar(reason) == bar
    assert treatment("stopped", reason) == ("below" if bar else "undecided")
    assert treatment("something new", reason) == "undecided"


@pytest.mark.parametrize(
    ("value", "text"),
    [(0.931, "93.1 %"), (0.9, "90.0 %"), (0.90004, "90.004 %"), (math.nan, "?")],
)
def test_percentages_do_not_round_onto_a_threshold(value: float, text: str) -> None:
    assert percent(value) == text


def test_every_rule_of_phase_1_can_be_reached() -> None:
    """Each arm's bands cover every accuracy exactly once, so that none is without a word."""
    bands = [r for r in rules.PHASE1 if isinstance(r, rules.ThresholdRule)]
    for arm in (rules.E1A, rules.E2A, rules.E2B, rules.E2C):
        mine = [r for r in bands if arm in r.arms and r.name != "VAE compatible"]
        for value in (-math.inf, 0, 0.2, 0.5, 0.799, 0.8, 0.85, 0.9, 0.901, 0.92, 0.921, 1):
            assert sum(r.band.contains(value) for r in mine) == 1, (arm, value)
