"""The debug tree with its grades, the act tree, and the outcomes of the frozen series."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from synthetic_runs import BAR, FolderWriter, rows, seeds
from test_analysis_paired import CONTROL, above

import analysis
from analysis import Decision, NextStep
from search_spaces import rules


def decided(path: Path) -> dict[str, Decision]:
    return {decision.name: decision for decision in analysis.decide(analysis.load(path))}


def steps_of(path: Path) -> list[NextStep]:
    return analysis.next_steps(analysis.load(path))


# -------------------------------------------------------------------------------------- debug


def debug(path: Path, **accuracies: float) -> FolderWriter:
    """A finished debug run; ids without their series."""
    values: dict[str, list[float] | float] = {f"debug/{i}": v for i, v in accuracies.items()}
    return seeds(path, values, target="debug1")


TUNING = {"E4_lower_lr": 0.5, "E5_grad_clip": 0.5, "E6_combined": 0.5, "E7_attention": 0.5}
START = {"E0v2": 0.93, "E1v2": 0.5, "E_diag1": 0.9}


@pytest.mark.parametrize(
    ("values", "verdict", "targets"),
    [
        ({"E0v2": 0.899, "E1v2": 0.95, "E_diag1": 0.9}, "debug the baseline", []),
        ({"E0v2": 0.93, "E1v2": 0.88, "E_diag1": 0.1}, "success", ["debug/E1v2"]),
        (
            {"E0v2": 0.93, "E1v2": 0.879, "E_diag1": 0.879},
            "fix the interface",
            ["debug/E_interface,debug/E_identity"],
        ),
        (START, "run debug3", ["debug3"]),
        (START | TUNING, "run debug2", ["debug2"]),
        (START | TUNING | {"E5_grad_clip": 0.90}, "success", ["debug/E5_grad_clip"]),
        (START | TUNING | {"E2_lpn": 0.92, "E3_lpn_var": 0.91}, "success", ["debug/E2_lpn",
         "debug/E3_lpn_var"]),
        (START | TUNING | {"E2_lpn": 0.5, "E3_lpn_var": 0.5}, "redesign the encoder", []),
    ],
)  # fmt: skip
def test_debug_tree(
    tmp_path: Path, values: dict[str, float], verdict: str, targets: list[str]
) -> None:
    path = debug(tmp_path / "run", **values).path
    tree = decided(path)["debug tree"]
    assert tree.verdict == verdict
    assert [step.target for step in steps_of(path)] == targets
    if verdict == "success":
        assert {step.kind for step in tree.next} == {"full data"}


def test_a_failing_baseline_is_a_red_flag_with_checks(tmp_path: Path) -> None:
    path = debug(tmp_path / "run", E0v2=0.6, E1v2=0.95, E_diag1=0.9).path
    (flag,) = analysis.red_flags(analysis.load(path))
    assert flag.name == "E0v2" and "stop everything" in flag.text and len(flag.checks) == 3
    assert decided(path)["E1v2"].verdict == "ok"  # each arm is still told


def test_each_arm_says_what_its_answer_means(tmp_path: Path) -> None:
    values = START | TUNING | {"E4_lower_lr": 0.9, "E2_lpn": 0.9, "E3_lpn_var": 0.4}
    decisions = decided(debug(tmp_path / "run", **values).path)
    for name, said in (
        ("E1v2", "the encoder is the bottleneck"),
        ("E_diag1", "training dynamics are the problem"),
        ("E4_lower_lr", "keep the lower one"),
        ("E5_grad_clip", "gradients are well-behaved"),
        ("E7_attention", "if E6 succeeds, it is by rate or clipping"),
        ("E6_combined", "revisit the encoder"),
        ("E2_lpn", "too shallow"),
        ("E3_lpn_var", "too restrictive"),
    ):
        assert said in decisions[name].text, name
        assert "E0v2 93.0 %" in decisions[name].text


def test_a_stopped_run_fails_and_a_crashed_one_leaves_the_tree_open(tmp_path: Path) -> None:
    writer = debug(tmp_path / "a", E0v2=0.93, E_diag1=0.9)
    writer.add("debug/E1v2", 0.99, status="stopped", reason=BAR, steps=200)
    assert decided(writer.path)["debug tree"].verdict == "run debug3"
    writer = debug(tmp_path / "b", E0v2=0.93, E_diag1=0.9)
    writer.add("debug/E1v2", 0.99, status="failed", reason="OutOfMemory")
    tree = decided(writer.path)["debug tree"]
    assert not tree.decided and "E1v2 crashed" in tree.text
    assert [(s.target, s.kind, s.default) for s in tree.next] == [
        ("debug1", "continue", False), ("debug3", "run", True),
    ]  # fmt: skip


def test_without_the_baseline_nothing_is_guessed(tmp_path: Path) -> None:
    path = debug(tmp_path / "run", E1v2=0.95, E_diag1=0.9).path
    assert [step.target for step in steps_of(path)] == ["debug1"]
    decisions = decided(path)
    assert not decisions["E1v2"].decided and not decisions["debug tree"].decided
    assert "E0v2 is not part of this run" in decisions["debug tree"].text


def test_an_open_phase_3_does_not_end_in_redesign(tmp_path: Path) -> None:
    values = START | {"E4_lower_lr": 0.5, "E2_lpn": 0.5, "E3_lpn_var": 0.5}
    writer = debug(tmp_path / "run", **values)
    writer.add("debug/E5_grad_clip", 0.5, status="diverged")
    assert not decided(writer.path)["debug tree"].decided


@pytest.mark.parametrize(
    ("encoder", "holding"),
    [
        (0.95, {"minimal success", "good success", "partial success"}),
        (0.85, {"good success", "partial success"}),
        (0.55, {"partial success"}),
        (0.30, set()),
        (0.12, {"failure"}),
    ],
)
def test_grades(tmp_path: Path, encoder: float, holding: set[str]) -> None:
    decisions = decided(debug(tmp_path / "run", E0v2=0.97, E1v2=encoder, E_diag1=0.97).path)
    found = {
        name.removeprefix("grade: ")
        for name, decision in decisions.items()
        if decision.kind == "grade" and decision.verdict == "holds"
    }
    assert found == holding


def test_a_rising_curve_is_no_plateau(tmp_path: Path) -> None:
    writer = debug(tmp_path / "run", E0v2=0.97, E1v2=0.6, E_diag1=0.97)
    lines = [row | {"train/accuracy": row["step"] / 500} for row in rows(0.6)]
    writer.attempt(writer.folder("debug/E1v2"), 1, lines, end="finished")
    assert decided(writer.path)["grade: partial success"].verdict == "does not hold"


@pytest.mark.parametrize(
    ("encoder", "decoder", "verdict"),
    [(1.0, 2.0, "similar"), (0.01, 2.0, "dissimilar"), (0.0, 2.0, "missing"),
     (None, None, "not decided")],
)  # fmt: skip
def test_gradients_of_encoder_and_decoder(
    tmp_path: Path, encoder: float | None, decoder: float | None, verdict: str
) -> None:
    writer = FolderWriter(tmp_path / "run", target="debug1")
    norms = {"grad/encoder_norm": encoder, "grad/decoder_norm": decoder}
    writer.add("debug/E_diag2", 0.9, **norms)
    assert decided(writer.path)["gradients"].verdict == verdict


# ---------------------------------------------------------------------------------------- act


def act(path: Path, **values: list[float] | float) -> FolderWriter:
    return seeds(path, {f"act/{i}": v for i, v in values.items()}, target="act1")


NOISY = [v + d for v, d in zip(CONTROL, [0.01, -0.01, 0.004, -0.006] * 2, strict=True)]


@pytest.mark.parametrize(
    ("online", "verdict", "target"),
    [
        (above(0.03), "different (better)", "act2_online"),
        (above(-0.03), "different (worse)", "act2_cached"),
        (NOISY, "no difference shown", "act2_cached"),
    ],
)
def test_modes(tmp_path: Path, online: list[float], verdict: str, target: str) -> None:
    path = act(tmp_path / "run", O1=CONTROL, L1=online).path
    found = decided(path)["O1 or L1"]
    assert found.verdict == verdict
    assert "epochs to 80 %" in found.text and "q_halt_accuracy" in found.text
    (step,) = steps_of(path)
    assert (step.target, step.default) == (target, False)


def test_one_seed_keeps_the_controls_mode_and_says_so(tmp_path: Path) -> None:
    path = act(tmp_path / "run", O1=0.8, L1=0.95).path
    decisions = decided(path)
    assert "needs N ≥ 6" in decisions["O1 or L1"].text
    (step,) = steps_of(path)
    assert (step.target, step.default) == ("act2_cached", True)
    assert "original mode is kept, the control's" in step.why


@pytest.mark.parametrize(
    ("values", "target", "default"),
    [
        ({"O1": CONTROL, "L1": above(-0.03), "O2": above(0.03), "O3": NOISY}, "act3@O2", False),
        ({"O1": CONTROL, "L1": above(-0.03), "O2": NOISY, "O3": NOISY}, "act3@O1", False),
        ({"O1": CONTROL, "L1": above(0.03), "L2": above(0.03), "L3": above(0.06)}, "act3@L3",
         False),
        ({"O1": 0.9, "L1": 0.9, "O2": 0.95, "O3": 0.9}, "act3@O1", True),
    ],
)  # fmt: skip
def test_the_winners_best_setting_goes_to_the_encoders(
    tmp_path: Path, values: dict[str, Any], target: str, default: bool
) -> None:
    (step,) = steps_of(act(tmp_path / "run", **values).path)
    assert (step.target, step.default) == (target, default)


def test_encoders_are_compared_with_the_arm_of_their_mode(tmp_path: Path) -> None:
    writer = act(tmp_path / "run", O1=CONTROL, L1=above(-0.03), O2=above(0.03), O3=NOISY)
    for name, gain in (("E1", 0.06), ("E2", 0.03), ("E3", -0.03)):
        for seed, accuracy in enumerate(above(gain)):
            options = {"halt_exploration_prob": 0.3}
            writer.add(f"act/{name}", accuracy, seed=seed, options=options)
    decisions = decided(writer.path)
    assert "E1 significantly better than O2" in decisions["encoder (E1)"].rule
    assert decisions["encoder (E1)"].verdict == "better"
    assert decisions["encoder (E3)"].verdict == "worse"
    assert decisions["act tree"].verdict == "original mode, O2" and not steps_of(writer.path)


@pytest.mark.parametrize(
    ("last", "verdict"),
    [
        ({}, "validated"),
        ({"train/q_halt_accuracy": 0.8}, "not validated"),
        ({"train/steps": 1.0}, "not validated"),
        ({"train/steps": 16.0}, "not validated"),
        ({"train/accuracy": 0.5}, "not validated"),
    ],
)
def test_what_validates_the_original_mode(
    tmp_path: Path, last: dict[str, float], verdict: str
) -> None:
    writer = act(tmp_path / "run", O1=0.90, L1=0.91)
    lines = [row | last for row in rows(0.90)]
    writer.attempt(writer.folder("act/O1"), 1, lines, end="finished")
    found = decided(writer.path)["original mode"]
    assert found.verdict == verdict and found.label == "observed, n = 1"


def test_what_validates_the_online_mode(tmp_path: Path) -> None:
    writer = act(tmp_path / "a", O1=0.9, L1=0.95)
    assert "needs N ≥ 6" in decided(writer.path)["online mode"].text
    better = decided(act(tmp_path / "b", O1=CONTROL, L1=above(0.03)).path)["online mode"]
    assert better.verdict == "validated" and "epochs online" in better.text
    worse = decided(act(tmp_path / "c", O1=CONTROL, L1=NOISY).path)["online mode"]
    assert worse.verdict == "not validated"


def test_a_mode_that_did_not_run_or_crashed_comes_first(tmp_path: Path) -> None:
    (step,) = steps_of(act(tmp_path / "a", O1=0.9).path)
    assert step.target == "act1" and "L1 not run yet" in step.why
    writer = act(tmp_path / "b", O1=0.9)
    writer.add("act/L1", 0.9, status="failed", reason="OutOfMemory")
    steps = steps_of(writer.path)
    assert [(s.target, s.kind, s.default) for s in steps] == [
        ("act1", "continue", False), ("act2_cached", "run", True),
    ]  # fmt: skip
    assert "L1 crashed" in steps[1].why


# ------------------------------------------------------------------------------------- frozen


def frozen(
    writer: FolderWriter,
    name: str = "frozen/frozen_decoder_correct",
    *,
    gradient: float = 1.0,
    loss: tuple[float, float] = (8.5, 0.7),
    spread: tuple[float, float] = (0.1, 0.37),
    score: float = 0.0,
    seed: int = 0,
    **last: Any,
) -> None:
    """A trial with this gradient, loss and spread (first, last) and held-out score."""
    writer.add(name, 0.767, seed=seed)
    lines = rows(0.767, **({"eval/pass@1": score} | last))
    for i, row in enumerate(lines):
        part = i / (len(lines) - 1)
        row["grad/encoder_norm"] = gradient
        row["train/lm_loss"] = loss[0] + part * (loss[1] - loss[0])
        row["encoder/token_std"] = spread[0] + part * (spread[1] - spread[0])
    writer.attempt(writer.folder(name, seed), 1, lines, end="finished")


EQUAL = {"decoder/tensors": 14.0, "decoder/tensors_equal": 14.0, "decoder/max_difference": 0.0}


@pytest.mark.parametrize(
    ("shape", "verdict", "hypothesis"),
    [
        ({}, "trains but useless", "H7"),  # the published run
        ({"score": 0.25}, "learns", "H3"),
        ({"gradient": 0.0}, "stuck", "H2"),
        ({"gradient": 1e-8, "score": 0.5}, "stuck", "H2"),
        ({"loss": (2.0, 1.9)}, "stuck", "H2"),
        ({"score": 0.25, "spread": (0.4, 0.1)}, "no rule", None),
    ],
)
def test_frozen_outcomes(
    tmp_path: Path, shape: dict[str, Any], verdict: str, hypothesis: str | None
) -> None:
    writer = FolderWriter(tmp_path / "run", target="frozen1")
    frozen(writer, **shape, **EQUAL)
    found = decided(writer.path)["frozen_decoder_correct"]
    assert found.verdict == verdict
    assert "14/14 decoder tensors equal" in found.text
    assert [check.split()[1] for check in found.checks][:1] == ([hypothesis] if hypothesis else [])


def test_a_decoder_that_moved_is_no_test_of_the_encoder(tmp_path: Path) -> None:
    writer = FolderWriter(tmp_path / "run", target="frozen1")
    moved = EQUAL | {"decoder/tensors_equal": 2.0, "decoder/max_difference": 0.6}
    frozen(writer, score=0.5, **moved)
    found = decided(writer.path)["frozen_decoder_correct"]
    assert not found.decided and "2/14 decoder tensors equal" in found.text


def test_what_was_not_measured_is_said(tmp_path: Path) -> None:
    writer = FolderWriter(tmp_path / "run", target="frozen1")
    frozen(writer)
    found = decided(writer.path)["frozen_decoder_correct"]
    assert "stayed equal to its checkpoint was not measured" in found.text
    writer = FolderWriter(tmp_path / "b", target="frozen1")
    writer.add("frozen/frozen_decoder", 0.8)
    assert not decided(writer.path)["frozen_decoder"].decided


def test_frozen_tree(tmp_path: Path) -> None:
    writer = FolderWriter(tmp_path / "a", target="frozen1")
    frozen(writer)
    assert [step.target for step in steps_of(writer.path)] == ["frozen1"]
    frozen(writer, "frozen/frozen_decoder")
    assert [step.target for step in steps_of(writer.path)] == ["frozen/prefix1"]
    assert "needs N ≥" in decided(writer.path)["correct settings help"].text
    frozen(writer, "frozen/prefix1")
    assert steps_of(writer.path) == []
    assert any("H7" in check for check in decided(writer.path)["frozen tree"].checks)


def test_correct_settings_that_help_go_to_the_full_data_set(tmp_path: Path) -> None:
    writer = FolderWriter(tmp_path / "run", target="frozen1")
    for seed in range(8):
        frozen(writer, "frozen/frozen_decoder", seed=seed, score=0.0)
        frozen(writer, score=0.25, seed=seed)
    decisions = decided(writer.path)
    assert decisions["correct settings help"].verdict == "better"
    assert "eval/pass@1" in decisions["correct settings help"].rule
    (step,) = decisions["frozen tree"].next
    assert step.kind == "full data" and step.target == rules.frozen.CORRECT
