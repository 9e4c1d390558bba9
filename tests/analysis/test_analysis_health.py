"""Signs of a sick trial, live and in a run, and the seven hypotheses."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
from synthetic_runs import FolderWriter, rows, seeds

import analysis
from analysis.health import COLUMNS, READ, Sign, describe, signs
from search_spaces.rules import health as limits
from search_spaces.rules.hypotheses import TITLES
from trainable.errors import UserError

OPTIONS = {"kind": "etrm", "encoder_type": "hybrid_variational", "encode_mode": "reencode",
           "halt_max_steps": 16, "epochs": 1000.0}  # fmt: skip
WELL = {
    "grad/encoder_norm": 0.5,
    "grad/total_norm": 1.0,
    "encoder/cross_sample_var": 0.2,
    "encoder/kl_per_dim": 0.5,
    "train/q_halt_accuracy": 0.9,
    "train/q_halt_base_rate": 0.8,
    "train/steps": 5.0,
}


def curve(accuracy: float = 0.95, **changes: Any) -> list[dict[str, Any]]:
    """Forty rows of a healthy trial with `changes` in its second half."""
    lines = [row | WELL for row in rows(accuracy)]
    for row in lines[len(lines) // 2 :]:
        row |= changes
    return lines


def found(lines: list[dict[str, Any]], **options: Any) -> dict[str, Sign]:
    return {sign.sign: sign for sign in signs(lines, OPTIONS | options)}


def test_a_healthy_trial_has_no_sign() -> None:
    assert found(curve()) == {}
    assert signs([], OPTIONS) == []
    assert found([{"step": 5, "epoch": 1.0}]) == {}


@pytest.mark.parametrize(
    ("changes", "sign", "level"),
    [
        ({"grad/encoder_norm": 0.09}, "gradient starvation", "critical"),
        ({"grad/encoder_norm": 0.15}, "gradient starvation", "warning"),
        ({"encoder/cross_sample_var": 0.01}, "encoder collapse", "critical"),
        ({"encoder/cross_sample_var": 0.05}, "encoder collapse", "warning"),
        ({"encoder/kl_per_dim": 0.001}, "posterior collapse", "critical"),
        ({"train/steps": 1.0}, "stuck halting", "warning"),
        ({"train/steps": 16.0}, "stuck halting", "warning"),
        ({"train/q_halt_accuracy": 0.8}, "Q-head", "warning"),
        ({"train/loss": math.nan}, "divergence", "critical"),
        ({"train/loss": None}, "divergence", "critical"),
        ({"train/loss": 9.0}, "divergence", "warning"),
        ({"train/accuracy": 0.5}, "plateau", "warning"),
    ],
)
def test_every_sign(changes: dict[str, Any], sign: str, level: str) -> None:
    seen = found(curve(**changes))
    assert list(seen) == [sign]
    assert seen[sign].level == level
    assert seen[sign].origin == limits.threshold(sign, seen[sign].level).origin
    assert describe(list(seen.values())).startswith(f"{sign}: ")


@pytest.mark.parametrize(
    ("changes", "options"),
    [
        ({"grad/encoder_norm": 0.2}, {}),  # the threshold itself is well
        ({"grad/encoder_norm": 0.0}, {"kind": "trm"}),
        ({"grad/encoder_norm": 0.0, "train/encoder_frozen": 1.0}, {}),
        ({"encoder/cross_sample_var": 0.0}, {"freeze_encoder": True}),
        ({"encoder/kl_per_dim": 0.0}, {"encoder_type": "standard"}),
        ({"train/steps": 4.0}, {"encode_mode": "online", "halt_max_steps": 4}),
        ({"train/q_halt_accuracy": 1.0, "train/q_halt_base_rate": 1.0}, {}),
        ({"train/accuracy": 0.95}, {}),
        ({"train/steps": 1.0, "train/q_halt_accuracy": 0.1}, {"epochs": 1e6}),  # too early
    ],
)
def test_what_is_no_sign(changes: dict[str, Any], options: dict[str, Any]) -> None:
    assert found(curve(**changes), **options) == {}


def test_a_run_keeps_what_signs_read() -> None:
    class Watched(dict[str, Any]):
        def get(self, key: str, default: Any = None) -> Any:
            asked.add(key)
            return super().get(key, default)

    asked: set[str] = set()
    for total in (None, 40.0):
        signs([Watched(line) for line in curve()], OPTIONS, total_steps=total)
    assert asked == set(READ) - {"encoder/active_units"}  # read of a collapsed posterior alone


@pytest.mark.parametrize(("last", "sign"), [(0.3, False), (0.49, False), (0.6, True)])
def test_a_loss_near_zero_may_rise(last: float, sign: bool) -> None:
    lines = curve()
    for i, row in enumerate(lines):
        row["train/loss"] = 1.0 if i < 10 else 0.05 if i < 30 else last
    assert ("divergence" in found(lines)) == sign


def test_a_rising_trial_is_no_plateau() -> None:
    lines = curve()
    for i, row in enumerate(lines):
        row["train/accuracy"] = 0.6 * i / len(lines)
    assert found(lines) == {}


def test_thresholds_have_an_origin_and_repo_ones_are_the_documents() -> None:
    assert limits.threshold("gradient starvation", "critical").value == 0.1
    assert limits.threshold("gradient starvation", "critical").origin == "repo"
    assert limits.threshold("gradient starvation", "warning").value == 0.2
    with pytest.raises(KeyError):
        limits.threshold("plateau", "critical")


def test_health_of_a_run(tmp_path: Path) -> None:
    writer = seeds(tmp_path / "run", {"overfit/E1a": 0.95, "overfit/E2a": 0.5}, target="phase1")
    lines = curve(0.5, **{"grad/encoder_norm": 0.01})
    writer.attempt(writer.folder("overfit/E2a"), 1, lines, end="finished")
    run = analysis.load(writer.path)
    table = analysis.health(run)
    assert tuple(table.columns) == COLUMNS
    assert set(table["trial_id"]) == {"overfit-E2a-s0"}
    assert set(table["sign"]) == {"gradient starvation", "plateau"}
    text = analysis.summary_text(run)
    assert "overfit-E2a-s0: critical, gradient starvation: encoder gradient is 1.0 %" in text
    assert max(map(len, text.splitlines())) <= 100


# --------------------------------------------------------------------------------- hypotheses


def verdicts(path: Path, **trial: Any) -> dict[str, analysis.Finding]:
    """H1 to H7 on one frozen trial; `trial` is what every row has, ``last`` the last one."""
    last, options = trial.pop("last", {}), trial.pop("options", {})
    status, tasks = trial.pop("status", "finished"), trial.pop("tasks", None)
    loss = trial.pop("loss", (8.0, 0.7))
    name = trial.pop("name", "frozen/frozen_decoder_correct")
    writer = FolderWriter(path, target="frozen1")
    writer.add(name, 0.8, options=options, status=status,
               result={"tasks": tasks} if tasks is not None else None)  # fmt: skip
    lines = [row | trial for row in rows(0.8)]
    for i, row in enumerate(lines):
        row["train/lm_loss"] = loss[0] + i / (len(lines) - 1) * (loss[1] - loss[0])
    lines[-1] |= {"eval/pass@1": 0.0, "eval/scheduled": 4.0} | last
    writer.attempt(writer.folder(name), 1, lines, end=status)
    return {one.hypothesis: one for one in analysis.hypotheses(analysis.load(path))}


def test_every_hypothesis_is_answered_and_absence_cannot_tell(tmp_path: Path) -> None:
    answers = verdicts(tmp_path / "run", options={"lr_warmup_steps": 10})
    assert list(answers) == list(TITLES)
    assert {one.verdict for one in answers.values()} == {"cannot tell"}
    assert all(one.evidence for one in answers.values())


FROZEN = {"train/decoder_frozen": 1.0}
FLOWS = {"grad/encoder_norm": 1.0, "grad/total_norm": 1.0}
OUTPUT = {"encoder/output_mean": 0.0, "encoder/output_std": 1.0, "encoder/output_norm": 8.0}
VARIES = OUTPUT | {"encoder/cross_sample_var": 0.2, "encoder/similarity": 0.3}
CONTROLS = {
    "control/normal_accuracy": 0.9, "control/zeroed_accuracy": 0.5, "control/other_accuracy": 0.6,
}  # fmt: skip
SCORED = [{"task": str(i), "pass@1": float(i == 0)} for i in range(4)]


@pytest.mark.parametrize(
    ("hypothesis", "verdict", "trial"),
    [
        ("H1", "refuted", FROZEN | {"decoder/tensors": 14.0, "decoder/tensors_equal": 14.0}),
        ("H1", "supported", FROZEN | {"decoder/tensors": 14.0, "decoder/tensors_equal": 2.0}),
        ("H1", "refuted", FROZEN | {"decoder/max_difference": 1e-6}),
        ("H1", "supported", FROZEN | {"decoder/max_difference": 0.6}),
        ("H1", "supported", FROZEN | {"decoder/max_difference": 0.0, "decoder/keys_missing": 3.0}),
        ("H1", "cannot tell", {"train/decoder_frozen": 0.0, "decoder/max_difference": 0.6}),
        ("H1", "cannot tell", {"options": {"pretrained_decoder": False}}),
        ("H2", "refuted", FLOWS),
        ("H2", "supported", {"grad/encoder_norm": 0.0, "grad/total_norm": 1.0}),
        ("H2", "cannot tell", {"grad/encoder_norm": 0.05, "grad/total_norm": 1.0}),
        ("H3", "cannot tell", OUTPUT),
        ("H3", "refuted", OUTPUT | {"interface/encoder_norm": 8.0, "interface/puzzle_norm": 9.0}),
        ("H3", "supported", OUTPUT | {"interface/encoder_norm": 8.0, "interface/puzzle_norm": 1.0}),
        ("H3", "supported", OUTPUT | {"status": "diverged",
                                      "last": {"encoder/output_norm": None}}),
        ("H4", "supported", {"status": "diverged"}),
        ("H4", "supported", {"options": {"lr_warmup_steps": 300}}),
        ("H4", "supported", {"grad/clip_factor": 0.01, "options": {"lr_warmup_steps": 10}}),
        ("H5", "refuted", CONTROLS),
        ("H5", "cannot tell", CONTROLS | {"control/other_accuracy": 0.9}),
        ("H5", "supported", {"data/demos_per_row": 0.0}),
        ("H5", "supported", CONTROLS | {"data/identifier_mismatches": 2.0}),
        ("H6", "refuted", {"tasks": SCORED, "last": {"eval/pass@1": 0.25}}),
        ("H6", "supported", {"tasks": SCORED, "last": {"eval/pass@1": 0.01}}),
        ("H6", "supported", {"tasks": SCORED, "last": {"eval/pass@1": 0.25,
                                                       "eval/scheduled": 400.0}}),
        ("H7", "supported", VARIES | {"encoder/cross_sample_var": 1e-6}),
        ("H7", "supported", VARIES | {"encoder/similarity": 0.999}),
        ("H7", "refuted", VARIES | {"last": {"eval/pass@1": 0.25}}),
        ("H7", "cannot tell", VARIES | FLOWS),
    ],
)  # fmt: skip
def test_hypotheses(tmp_path: Path, hypothesis: str, verdict: str, trial: dict[str, Any]) -> None:
    kept = {"lr_warmup_steps": 10} | trial.get("options", {})
    answer = verdicts(tmp_path / "run", **(trial | {"options": kept}))[hypothesis]
    assert answer.verdict == verdict, answer.evidence
    assert answer.title == TITLES[hypothesis]


def test_a_trained_but_useless_encoder_points_to_h7_and_is_not_called_proof(tmp_path: Path) -> None:
    answer = verdicts(tmp_path / "run", **VARIES, **FLOWS)["H7"]
    assert "does not prove it" in answer.evidence[-1]


def test_h1_of_a_trained_decoder_reads_the_row_of_loading(tmp_path: Path) -> None:
    """Later rows say how far it has trained away, and do not count."""
    writer = FolderWriter(tmp_path / "run", target="phase1")
    writer.add("overfit/E1a", 0.8)
    lines = [
        row | {"train/decoder_frozen": 0.0, "decoder/max_difference": 0.6} for row in rows(0.8)
    ]
    loaded = {"decoder/tensors": 14.0, "decoder/tensors_equal": 14.0, "decoder/keys_loaded": 14.0}
    loaded |= {"decoder/keys_missing": 0.0, "decoder/max_difference": 0.0, "decoder/ema": 1.0}
    lines[0] |= loaded
    writer.attempt(writer.folder("overfit/E1a"), 1, lines, end="finished")
    run = analysis.load(writer.path)
    (h1,) = [one for one in analysis.hypotheses(run) if one.hypothesis == "H1"]
    assert h1.verdict == "refuted"
    assert h1.evidence[0].startswith("14/14 decoder tensors equal, largest difference 0")
    assert "14 keys loaded, 0 missing" in h1.evidence


@pytest.mark.parametrize(("trm", "verdict"), [(0.82, "refuted"), (0.95, "cannot tell")])
def test_h4_is_measured_against_the_trm(tmp_path: Path, trm: float, verdict: str) -> None:
    writer = FolderWriter(tmp_path / "run", target="debug1")
    writer.add("debug/E0v2", trm, options={"kind": "trm"})
    writer.add("debug/E1v2", 0.8, options={"lr_warmup_steps": 10})
    answers = analysis.hypotheses(analysis.load(writer.path), "debug-E1v2-s0")
    (h4,) = [one for one in answers if one.hypothesis == "H4"]
    assert h4.verdict == verdict
    assert any("TRM" in said and "12800 samples" in said for said in h4.evidence)


def test_an_unknown_trial_names_the_nearest(tmp_path: Path) -> None:
    writer = seeds(tmp_path / "run", {"frozen/frozen_decoder": 0.8})
    with pytest.raises(UserError, match="frozen-frozen_decoder-s0"):
        analysis.hypotheses(analysis.load(writer.path), "frozen-frozen_decoder-s1")


def test_the_summary_of_a_frozen_run_answers_the_hypotheses(tmp_path: Path) -> None:
    writer = seeds(tmp_path / "run", {"frozen/frozen_decoder": 0.8}, target="frozen1")
    text = analysis.summary_text(analysis.load(writer.path))
    assert "Hypotheses" in text and "H6 the evaluator miscounts" in text
    assert "Decisions of the frozen series" in text
    assert max(map(len, text.splitlines())) <= 100
