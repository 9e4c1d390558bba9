"""Alignment with the reference: what is intended, scaled, warned about, refused."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

import search_spaces
from search_spaces import act
from search_spaces.alignment import Finding, align, critical, verdict
from trainable.config import ModelConfig
from trainable.errors import ConfigError


def found(name: str = "overfit/E1a", *, given: dict[str, Any] | None = None,
          **keywords: Any) -> dict[str, Finding]:  # fmt: skip
    return {f.option: f for f in align(search_spaces.resolve(name, **keywords), **(given or {}))}


@pytest.mark.parametrize("profile", list(search_spaces.PROFILES))
@pytest.mark.parametrize("revision", list(search_spaces.REVISIONS))
def test_the_plan_itself_is_never_refused_nor_warned_about(profile: str, revision: str) -> None:
    """But for the two arms whose document gives lpn_variational set layers, which it has not."""
    plan = [*search_spaces.experiments(revision), search_spaces.experiment("decoder/trm")]
    warned = set()
    for arm in plan:
        findings = align(search_spaces.resolve(arm, profile=profile, revision=revision))
        warned |= {(arm.name, f.option) for f in findings if f.level == "warning"}
        assert "critical" not in {f.level for f in findings}, arm.name
        assert all(f.why for f in findings if f.level != "match")
    assert warned == {(arm, "encoder_set_layers") for arm in ("overfit/E2b", "act/E3")}


@pytest.mark.parametrize("winner", list(act.MODES))
def test_a_decided_mode_is_intended(winner: str) -> None:
    for arm in search_spaces.resolve_target(f"act3@{winner}"):
        findings = align(search_spaces.resolve(arm))
        assert "critical" not in {f.level for f in findings}


def test_table_covers_the_reference_in_order() -> None:
    assert list(found()) == list(search_spaces.REFERENCE)


def test_exploration_is_critical_where_it_is_not_the_subject() -> None:
    assert found()["halt_exploration_prob"].level == "match"
    assert found("overfit/E1b")["halt_exploration_prob"].level == "intended"
    for name in ("overfit/E2a", "overfit/E1b", "overfit/E1a"):
        typed = found(name, overrides={"halt_exploration_prob": 0.5})
        assert typed["halt_exploration_prob"].level == "critical", name
    old = found("overfit/E2a", revision="2026-01-09")["halt_exploration_prob"]
    assert (old.level, old.value) == ("intended", 0.5)


@pytest.mark.parametrize("revision", list(search_spaces.REVISIONS))
def test_subjects_of_act_and_frozen_are_intended(revision: str) -> None:
    for name in ("act/O1", "act/O2", "act/O3", "frozen/frozen_decoder"):
        finding = found(name, revision=revision)["halt_exploration_prob"]
        assert (finding.level, finding.why) == ("intended", f"subject of {name}")
    cycles = found("frozen/frozen_decoder", revision=revision, given={"decoder_l_cycles": 4})
    assert cycles["L_cycles"].level == "intended"
    assert found("frozen/staged", revision=revision)["L_cycles"].level == "match"


@pytest.mark.parametrize(
    ("name", "typed"),
    [
        ("overfit/E2b", {"encoder_pooling_method": "attention"}),
        ("debug/E0v2", {"encoder_num_layers": 4}),
        ("overfit/E1a", {"kl_weight": 0.1}),
        ("overfit/E1a", {"num_act_steps": 8}),
    ],
)
def test_typed_options_without_effect_are_refused(name: str, typed: dict[str, Any]) -> None:
    (option,) = typed
    finding = found(name, overrides=typed)[option]
    assert finding.level == "critical"
    assert finding.why.startswith("has no effect, ")
    assert option not in found(name)


def test_kl_weight_of_variational_encoders() -> None:
    assert "kl_weight" not in found("overfit/E2c")
    resolved = search_spaces.resolve("overfit/E2a")
    (right,) = (f for f in align(resolved) if f.option == "kl_weight")
    assert right.level == "intended"
    unchecked = replace(resolved, config=resolved.config.model_copy(update={"kl_weight": 0.0}))
    (wrong,) = (f for f in align(unchecked) if f.option == "kl_weight")
    assert wrong.level == "critical"


def test_a_freeze_that_ends_lasts_at_most_half_of_the_run() -> None:
    frozen = search_spaces.resolve("frozen/staged").config.freeze_decoder_steps
    given = {"total_steps": 2 * frozen - 1}
    assert found("frozen/staged", given=given)["freeze_decoder_steps"].level == "warning"
    assert "freeze_decoder_steps" not in found("frozen/staged", given={"total_steps": 2 * frozen})
    assert "freeze_decoder_steps" not in found("frozen/prefix1", given=given)


def test_verdict() -> None:
    findings = align(search_spaces.resolve("overfit/E1a", overrides={"L_cycles": 6}))
    assert verdict(findings).startswith("refused (L_cycles): ")
    allowed = verdict(findings, allowed=["L_cycles"])
    assert allowed.startswith("ok, allowed in spite of a critical difference (L_cycles): ")
    assert "1 critical" in allowed
    assert verdict(align(search_spaces.resolve("overfit/E1a"))).startswith("ok: ")


def test_exploration_does_not_apply_to_online() -> None:
    online = found(overrides={"halt_exploration_prob": 0.5, "encode_mode": "online"})
    assert online["halt_exploration_prob"].level == "intended"


def test_l_cycles_must_be_the_decoders() -> None:
    wrong = found(overrides={"L_cycles": 6})["L_cycles"]
    assert (wrong.level, wrong.why) == (
        "critical",
        "the decoder was trained with 4: set L_cycles=4",
    )
    assert found(given={"decoder_l_cycles": 6})["L_cycles"].level == "critical"
    right = found(overrides={"L_cycles": 6}, given={"decoder_l_cycles": 6})["L_cycles"]
    assert right.level == "intended"


def test_l_cycles_from_scratch_is_a_warning() -> None:
    scratch = found("overfit/E4a", overrides={"L_cycles": 6})["L_cycles"]
    assert scratch.level == "warning"
    assert found("overfit/E4a", given={"decoder_l_cycles": 6})["L_cycles"].level == "match"


def test_batch_below_the_reference_needs_a_reason() -> None:
    assert found(profile="paper")["global_batch_size"].level == "intended"
    assert found()["global_batch_size"].level == "scaled"
    bare = found(overrides={"batch_size_reason": None})["global_batch_size"]
    assert bare.level == "warning"


def test_scaled_differences_name_the_profile() -> None:
    width = found()["hidden_size"]
    assert (width.level, width.reference, width.value) == ("scaled", 512, 64)
    assert "profile laptop" in width.why
    rate = found("overfit/E5a_low")["lr"]
    assert rate.level == "intended"
    assert "× 15 by profile laptop" in rate.why


def test_typed_differences_are_warned_about() -> None:
    assert found(overrides={"weight_decay": 0.0})["weight_decay"].level == "warning"


def test_canvas_must_be_the_decoders() -> None:
    wrong = found(given={"decoder_canvas": "full"})["canvas"]
    assert wrong.level == "critical"
    assert found(given={"decoder_canvas": "demos"})["canvas"].level == "scaled"
    assert found("overfit/E4a", given={"decoder_canvas": "full"})["canvas"].level == "scaled"


def test_sizes_of_a_given_decoder_are_intended() -> None:
    small = ModelConfig(kind="trm", hidden_size=256).model_dump()
    assert found(decoder_model=small)["hidden_size"].level == "intended"


def test_warm_up_longer_than_half_of_the_run() -> None:
    assert found(given={"total_steps": 60})["lr_warmup_steps"].level == "scaled"
    late = found(given={"total_steps": 59})["lr_warmup_steps"]
    assert (late.level, late.why) == (
        "warning",
        "warm-up exceeds half of the run: 30 of 59 steps",
    )


def test_critical_findings_can_be_allowed_by_name() -> None:
    findings = align(
        search_spaces.resolve(
            "overfit/E1a", overrides={"halt_exploration_prob": 0.5, "L_cycles": 6}
        )
    )
    assert [f.option for f in critical(findings)] == ["halt_exploration_prob", "L_cycles"]
    assert [f.option for f in critical(findings, allowed=["L_cycles"])] == ["halt_exploration_prob"]
    with pytest.raises(ConfigError, match="did you mean 'L_cycles'"):
        critical(findings, allowed=["L_cycle"])
