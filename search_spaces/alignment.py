"""The hyperparameter review, live: every configuration against the published reference.

Levels: *match*; *intended*, the value is the experiment's or the revision's subject or a common
setting of its series; *scaled* by the profile; *warning*; *critical*, refused before compute is
spent unless allowed by option name. Critical are an exploration other than the published one, an
L_cycles other than the pretrained decoder's, a canvas other than a given decoder's, a variational
encoder without a KL weight (refused by `TrialConfig` already), and an option from the command line
that changes nothing. Where the plan's own documents set such an option it is a warning.

A value typed on the command line is not what the experiment declares, and so not its subject.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from search_spaces.common import FOR_EVER
from search_spaces.reference import REFERENCE
from search_spaces.resolve import CHECKPOINT, COMMAND_LINE, Resolved
from trainable.config import VARIATIONAL_ENCODERS, ineffective_options, option_owner

Level = Literal["match", "intended", "scaled", "warning", "critical"]
LEVELS: tuple[Level, ...] = ("match", "intended", "scaled", "warning", "critical")

WARMUP_SHARE = 0.5
"""A warm-up longer than this share of the run is warned about, and a freeze of the decoder that
is meant to end."""


@dataclass(frozen=True)
class Finding:
    """One line of the alignment table."""

    option: str
    reference: Any
    value: Any
    level: Level
    why: str


def align(
    resolved: Resolved,
    *,
    decoder_l_cycles: int | None = None,
    decoder_canvas: str | None = None,
    total_steps: int | None = None,
) -> list[Finding]:
    """Compare a configuration with the reference: one finding per reference option, in its order.

    Findings about options that the reference does not have follow: the KL weight of a variational
    encoder, options without effect, and a decoder that is frozen for too long.

    `decoder_l_cycles` and `decoder_canvas` are those of the decoder checkpoint that the trial will
    load (default: the published L_cycles; canvas not compared). With `total_steps`, the optimizer
    steps of the run, the lengths of warm-up and freeze are judged too.
    """
    findings: list[Finding] = []
    for option, reference in REFERENCE.items():
        if option == "halt_exploration_prob":
            finding = _exploration(resolved, reference)
        elif option == "L_cycles":
            finding = _l_cycles(resolved, reference, decoder_l_cycles)
        elif option == "global_batch_size":
            finding = _batch(resolved, reference)
        elif option == "canvas" and decoder_canvas is not None:
            finding = _canvas(resolved, reference, decoder_canvas)
        elif option == "lr_warmup_steps" and total_steps is not None:
            finding = _warmup(resolved, reference, total_steps)
        else:
            finding = _general(resolved, option, reference)
        findings.append(finding)
    findings += _kl_weight(resolved)
    if total_steps is not None:
        findings += _freeze(resolved, total_steps)
    return findings + _ineffective(resolved)


def verdict(findings: Iterable[Finding], *, allowed: Sequence[str] = ()) -> str:
    """One line: ``"ok: 20 match, 5 intended, 14 scaled"``, ``"refused: L_cycles, …"``."""
    told = list(findings)
    counts = [f"{n} {level}" for level in LEVELS if (n := sum(f.level == level for f in told))]
    refused = [f.option for f in critical(told, allowed=allowed)]
    accepted = [f.option for f in told if f.level == "critical" and f.option not in refused]
    word = f"refused ({', '.join(refused)})" if refused else "ok"
    if accepted:
        word += f", allowed in spite of a critical difference ({', '.join(accepted)})"
    return f"{word}: {', '.join(counts)}"


def critical(findings: Iterable[Finding], *, allowed: Sequence[str] = ()) -> list[Finding]:
    """Critical findings that are not allowed by option name.

    Raises `ConfigError` for an unknown name in `allowed`, naming the nearest.
    """
    for option in allowed:
        option_owner(option)
    return [f for f in findings if f.level == "critical" and f.option not in allowed]


def _general(resolved: Resolved, option: str, reference: Any) -> Finding:
    value, planned = resolved.config.get(option), resolved.plan[option]
    if value == reference:
        return Finding(option, reference, value, "match", "")
    if resolved.provenance[option] == CHECKPOINT:
        return Finding(option, reference, value, "intended", "as the given decoder has it")
    if planned == reference:
        return Finding(option, reference, value, "scaled", resolved.provenance[option])
    declared = _subject(resolved, option) or _series(resolved, option)
    if declared is None:
        why = f"{resolved.origin[option]} sets it, and it is not the experiment's subject"
        return Finding(option, reference, value, "warning", why)
    if value == planned:
        return Finding(option, reference, value, "intended", declared)
    if option in resolved.subject:
        why = f"{declared}; {resolved.provenance[option]}"
        return Finding(option, reference, value, "intended", why)
    return Finding(option, reference, value, "scaled", resolved.provenance[option])


def _subject(resolved: Resolved, option: str) -> str | None:
    """How the deviation is the experiment's or the revision's subject; None if it is not."""
    origin = resolved.origin[option]
    if option in resolved.subject and origin != COMMAND_LINE:
        return f"subject of {resolved.experiment.name}"
    return f"{origin} sets it" if origin.startswith("revision ") else None


def _series(resolved: Resolved, option: str) -> str | None:
    """Whether a common setting of the series deviates; None if not."""
    origin = resolved.origin[option]
    return f"{origin} sets it" if origin.startswith("series ") else None


def _exploration(resolved: Resolved, reference: Any) -> Finding:
    option = "halt_exploration_prob"
    finding = _general(resolved, option, reference)
    if finding.level == "match":
        return finding
    declared = _subject(resolved, option)
    if declared is not None:
        return Finding(option, reference, finding.value, "intended", declared)
    model = resolved.config.model
    if model.encode_mode == "online":
        why = "online training has a fixed number of ACT steps and does not explore"
        return Finding(option, reference, finding.value, "intended", why)
    why = (
        f"must be {reference}: more exploration slows the Q-head "
        f"({resolved.origin[option]} sets {finding.value})"
    )
    return Finding(option, reference, finding.value, "critical", why)


def _l_cycles(resolved: Resolved, reference: Any, decoder: int | None) -> Finding:
    option = "L_cycles"
    value, declared = resolved.config.get(option), _subject(resolved, option)
    pretrained = resolved.config.pretrained_decoder
    expected = decoder if pretrained and decoder is not None else reference
    if value == expected:
        why = "" if value == reference else f"as the decoder was trained ({expected})"
        return Finding(option, reference, value, "match" if not why else "intended", why)
    if declared is not None and value != reference:
        return Finding(option, reference, value, "intended", declared)
    if pretrained:
        why = f"the decoder was trained with {expected}: set L_cycles={expected}"
        return Finding(option, reference, value, "critical", why)
    why = f"the reference has {reference}; from scratch other values are permitted"
    return Finding(option, reference, value, "warning", why)


def _batch(resolved: Resolved, reference: int) -> Finding:
    option = "global_batch_size"
    value, planned = resolved.config.global_batch_size, resolved.plan[option]
    reason = resolved.config.batch_size_reason
    if value == reference:
        return Finding(option, reference, value, "match", "")
    if planned < reference:
        if reason is None:
            why = f"below {reference} without a reason: set batch_size_reason"
            return Finding(option, reference, value, "warning", why)
        if value == planned:
            return Finding(option, reference, value, "intended", reason)
        level: Level = "intended" if option in resolved.subject else "scaled"
        why = f"{resolved.provenance[option]} ({reason})"
        return Finding(option, reference, value, level, why)
    return _general(resolved, option, reference)


def _canvas(resolved: Resolved, reference: Any, decoder: str) -> Finding:
    value = resolved.config.model.canvas
    if resolved.config.pretrained_decoder and value != decoder:
        why = f"the decoder was trained on canvas {decoder!r}: set canvas={decoder}"
        return Finding("canvas", reference, value, "critical", why)
    return _general(resolved, "canvas", reference)


def _warmup(resolved: Resolved, reference: Any, total_steps: int) -> Finding:
    option = "lr_warmup_steps"
    value = resolved.config.lr_warmup_steps
    if value > WARMUP_SHARE * total_steps:
        why = f"warm-up exceeds half of the run: {value} of {total_steps} steps"
        return Finding(option, reference, value, "warning", why)
    return _general(resolved, option, reference)


def _kl_weight(resolved: Resolved) -> list[Finding]:
    config, option = resolved.config, "kl_weight"
    if config.model.kind == "trm" or config.model.encoder_name not in VARIATIONAL_ENCODERS:
        return []
    value = config.kl_weight
    if value <= 0:
        why = f"{config.model.encoder_name} is variational: set kl_weight above 0"
        return [Finding(option, None, value, "critical", why)]
    why = _subject(resolved, option) or f"{resolved.origin[option]} sets it"
    return [Finding(option, None, value, "intended", why)]


def _freeze(resolved: Resolved, total_steps: int) -> list[Finding]:
    option = "freeze_decoder_steps"
    value, planned = resolved.config.freeze_decoder_steps, resolved.plan[option]
    if planned >= FOR_EVER or value <= WARMUP_SHARE * total_steps:
        return []
    why = f"the decoder is frozen for more than half of the run: {value} of {total_steps} steps"
    return [Finding(option, None, value, "warning", why)]


def _ineffective(resolved: Resolved) -> list[Finding]:
    """Options that the experiment or the command line sets, and that change nothing."""
    findings = []
    model = resolved.config.model
    reasons = ineffective_options(resolved.config)
    if model.encode_mode != "online":
        reasons = {"num_act_steps": "only encode_mode 'online' reads it"} | reasons
    for option, reason in reasons.items():
        origin, value = resolved.origin[option], resolved.config.get(option)
        if origin == COMMAND_LINE:
            why = f"has no effect, {reason}: leave it out"
            findings.append(Finding(option, None, value, "critical", why))
        elif origin == resolved.experiment.name:
            why = f"has no effect, {reason} ({origin} sets it)"
            findings.append(Finding(option, None, value, "warning", why))
    return findings
