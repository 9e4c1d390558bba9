"""The seven hypotheses about low performance, each checked on a trial's rows.

A finding is *supported*, *refuted* or *cannot tell*, with its evidence. What was not measured is
said and never guessed. Margins: `search_spaces.rules.hypotheses`.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any, Literal

import pandas as pd

from analysis.evaluator import recount
from analysis.frozen import decoder_stayed, progress
from analysis.load import Run
from analysis.margins import GENERALISES
from analysis.metrics import measure
from analysis.observe import percent
from search_spaces.rules import TRAIN_ACCURACY, above, at_most, debug, frozen
from search_spaces.rules import health as health_limits
from search_spaces.rules import hypotheses as limits
from trainable.errors import UserError, nearest

Verdict = Literal["supported", "refuted", "cannot tell"]


@dataclass(frozen=True)
class Finding:
    """One hypothesis on one trial."""

    hypothesis: str
    """``H1`` … ``H7``."""
    title: str
    trial_id: str
    verdict: Verdict
    evidence: tuple[str, ...]

    def to_json(self) -> dict[str, Any]:
        """Plain JSON values."""
        return asdict(self)


@dataclass(frozen=True)
class Trial:
    """What a check reads: one trial's summary, its curve, and the run around it."""

    run: Run
    summary: pd.Series[Any]
    curve: pd.DataFrame

    def option(self, name: str, default: Any = None) -> Any:
        """A flat option; `default` where it was not recorded."""
        value = self.summary.get(f"config/{name}", default)
        return default if value is None or value is pd.NA else value

    def number(self, column: str) -> float:
        """A number of the trials table; NaN where it is missing."""
        value = self.summary.get(column)
        return float(value) if isinstance(value, int | float) else math.nan

    def last(self, metric: str) -> float:
        """Last measured value of a metric; NaN where none is."""
        if metric not in self.curve:
            return math.nan
        values = self.curve[metric].dropna()
        return float(values.iloc[-1]) if len(values) else math.nan


Check = Callable[[Trial], tuple[Verdict, list[str]]]


def hypotheses(run: Run, trial_id: str | None = None) -> list[Finding]:
    """H1 to H7 on one trial, or on every trial with an encoder.

    Raises `UserError` for an unknown trial, naming the nearest.
    """
    trials = run.arms
    if trial_id is not None:
        if trial_id not in set(trials["trial_id"]):
            raise UserError(
                f"no trial {trial_id!r} in this run{nearest(trial_id, trials['trial_id'].tolist())}"
            )
        trials = trials[trials["trial_id"] == trial_id]
    elif "config/kind" in trials:
        trials = trials[trials["config/kind"] != "trm"]
    findings = []
    for _, summary in trials.iterrows():
        trial = Trial(run, summary, run.curve(str(summary["run"]), str(summary["trial_id"])))
        for name, check in CHECKS.items():
            verdict, evidence = check(trial)
            findings.append(
                Finding(
                    name, limits.TITLES[name], str(summary["trial_id"]), verdict, tuple(evidence)
                )
            )
    return findings


def _h1(trial: Trial) -> tuple[Verdict, list[str]]:
    if not trial.option("pretrained_decoder", False):
        return "cannot tell", ["the trial starts without a pretrained decoder"]
    curve = trial.curve
    judged = curve["step"] == 0
    if "train/decoder_frozen" in curve:
        judged |= curve["train/decoder_frozen"] == 1.0
    if "decoder/keys_loaded" in curve:  # this row holds the comparison made at loading
        judged |= curve["decoder/keys_loaded"].notna()
    curve = curve[judged]
    stayed, said = decoder_stayed([curve])
    evidence = [said]
    loaded, missing = trial.last("decoder/keys_loaded"), trial.last("decoder/keys_missing")
    if not math.isnan(missing):
        evidence.append(f"{loaded:.0f} keys loaded, {missing:.0f} missing")
        if missing > 0:
            return "supported", evidence
    mean, averaged = trial.last("decoder/mean_difference"), trial.last("decoder/ema")
    if not math.isnan(mean):
        evidence.append(f"mean difference {mean:.2g}")
    if not math.isnan(averaged):
        evidence.append("averaged (EMA) weights" if averaged else "raw weights, not averaged ones")
    if stayed is None:
        if curve.empty and len(trial.curve):
            evidence = ["the decoder trains: its weights no longer tell what was loaded"]
        return "cannot tell", evidence
    return ("refuted" if stayed else "supported"), evidence


def _h2(trial: Trial) -> tuple[Verdict, list[str]]:
    if trial.option("freeze_encoder", False):
        return "cannot tell", ["the encoder is frozen on purpose"]
    found = progress(trial.curve)
    if found.gradient is None:
        return "cannot tell", ["grad/encoder_norm was not measured"]
    evidence = [found.told[0]]
    if found.vanishes:
        return "supported", evidence
    if "grad/total_norm" not in trial.curve:
        return "refuted", evidence
    ratios = (trial.curve["grad/encoder_norm"] / trial.curve["grad/total_norm"]).dropna()
    share = float(ratios.iloc[-health_limits.RECENT :].mean()) if len(ratios) else math.nan
    evidence.append(f"{100 * share:.1f} % of the total gradient norm")
    if share < health_limits.STARVED:
        return "cannot tell", [*evidence, "it flows but starves (below 10 %)"]
    return "refuted", evidence


def _h3(trial: Trial) -> tuple[Verdict, list[str]]:
    curve = trial.curve
    names = [name for name in ("mean", "std", "min", "max", "norm")
             if f"encoder/output_{name}" in curve]  # fmt: skip
    if not names:
        return "cannot tell", ["encoder/* was not measured"]
    last = {name: trial.last(f"encoder/output_{name}") for name in names}
    evidence = [", ".join(f"{name} {value:.3g}" for name, value in last.items())]
    rows = curve[[f"encoder/output_{name}" for name in names]]
    if rows.isna().iloc[-1].any() and trial.summary["status"] in ("diverged", "failed"):
        return "supported", [*evidence, "the output is not finite at the end"]
    wrong = []
    for name in ("norm", "std"):
        mine, theirs = (trial.last(f"interface/{who}_{name}") for who in ("encoder", "puzzle"))
        if math.isnan(mine) or math.isnan(theirs) or theirs == 0:
            continue
        ratio = mine / theirs
        evidence.append(f"{name} {mine:.3g}, puzzle embeddings {theirs:.3g}: ratio {ratio:.2f}")
        wrong.append(not limits.SIMILAR_RANGE.contains(ratio))
    distance = trial.last("interface/frechet")
    if not math.isnan(distance):
        evidence.append(f"Fréchet distance to the puzzle embeddings {distance:.3g}")
    if not wrong:
        return "cannot tell", [*evidence, "finite; no puzzle embeddings to compare with"]
    return ("supported" if any(wrong) else "refuted"), evidence


def _h4(trial: Trial) -> tuple[Verdict, list[str]]:
    evidence = [
        f"rate {trial.option('lr')}, encoder × {trial.option('encoder_lr_scale')}, batch "
        f"{trial.option('global_batch_size')}"
    ]
    if trial.summary["status"] == "diverged":
        return "supported", [*evidence, str(trial.summary["reason"] or "diverged")]
    warmup, total = trial.option("lr_warmup_steps"), trial.number("total_steps")
    if warmup is not None and not math.isnan(total):
        evidence.append(f"warm-up {float(warmup):.0f} of {total:.0f} steps")
        if float(warmup) > limits.WARMUP_SHARE * total:
            return "supported", [*evidence, "most of the run is warm-up"]
    clip = trial.last("grad/clip_factor")
    if not math.isnan(clip) and clip < limits.CLIPPED:
        return "supported", [*evidence, f"clipped to {clip:.3g} of the gradient"]
    behind, said = _against_trm(trial)
    found = progress(trial.curve)
    evidence += [said, *(text for text in found.told if text.startswith("lm_loss"))]
    if behind is None or found.falls is None:
        return "cannot tell", evidence
    if not behind and found.falls:
        return "refuted", evidence
    return "cannot tell", [*evidence, "slower than the TRM, which has other causes as well"]


def _against_trm(trial: Trial) -> tuple[bool | None, str]:
    """Train accuracy against debug/E0v2 of the same seed at equal samples."""
    arms = trial.run.arm(debug.E0)
    same = arms["seed"] == trial.summary["seed"]
    if not same.any():
        return None, "no TRM baseline (debug/E0v2) of this seed in the run"
    baseline = arms[same].iloc[0]
    rows = trial.run.curve(str(baseline["run"]), str(baseline["trial_id"]))
    at = min(trial.curve["samples"].max(), rows["samples"].max())
    values = [
        measure(curve[curve["samples"] <= at], TRAIN_ACCURACY) for curve in (trial.curve, rows)
    ]
    if any(math.isnan(value) for value in values):
        return None, "no common samples with the TRM baseline"
    said = f"accuracy {percent(values[0])}, TRM {percent(values[1])} at {at:.0f} samples"
    return values[0] < values[1] - limits.BEHIND, said


def _h5(trial: Trial) -> tuple[Verdict, list[str]]:
    evidence, problems = [], []
    for metric, right, text in (
        ("data/demos_per_row", above(0.0), "demonstrations per row"),
        ("data/identifier_mismatches", at_most(0.0), "identifiers that do not match"),
        ("data/augmentation_mismatches", at_most(0.0), "augmentations that do not match"),
    ):
        value = trial.last(metric)
        if not math.isnan(value):
            evidence.append(f"{value:g} {text}")
            problems.append(not right.contains(value))
    if any(problems):
        return "supported", evidence
    gaps = {}
    for name in ("zeroed", "other"):
        for metric in ("accuracy", "exact_accuracy"):
            normal, control = (trial.last(f"control/{who}_{metric}") for who in ("normal", name))
            if not math.isnan(normal - control):
                gaps[f"{name} ({'tokens' if metric == 'accuracy' else 'grids'})"] = normal - control
    if not gaps:
        return "cannot tell", [*evidence, "the demonstration controls were not measured"]
    evidence += [f"true demonstrations above {name} by {100 * gap:.1f} points"
                 for name, gap in gaps.items()]  # fmt: skip
    others = [gap for name, gap in gaps.items() if name.startswith("other")]
    if others and max(others) > limits.FED:
        return "refuted", [*evidence, "the right demonstrations reach the model"]
    return "cannot tell", [*evidence, "the demonstrations are not used: unfed, or ignored"]


def _h6(trial: Trial) -> tuple[Verdict, list[str]]:
    return recount(trial.run, trial.summary, limits.SAME_SCORE)


def _h7(trial: Trial) -> tuple[Verdict, list[str]]:
    variance = trial.last("encoder/cross_sample_var")
    mean, std = trial.last("encoder/output_mean"), trial.last("encoder/output_std")
    similarity = trial.last("encoder/similarity")
    evidence = []
    varies: list[bool] = []
    rms = math.sqrt(mean**2 + std**2) if not math.isnan(mean + std) else math.nan
    if not math.isnan(variance) and rms > 0:
        spread = math.sqrt(max(variance, 0.0)) / rms
        evidence.append(f"spread between puzzles {spread:.2f} of the output's size")
        varies.append(spread > limits.HARDLY_VARIES)
    if not math.isnan(similarity):
        evidence.append(f"cosine between puzzles {similarity:.3f}")
        varies.append(similarity <= limits.ALIKE)
    if not varies:
        return "cannot tell", ["the variation between demonstration sets was not measured"]
    if not all(varies):
        return "supported", [*evidence, "the output hardly varies between demonstration sets"]
    score = trial.number("eval/pass@1")
    if math.isnan(score):
        return "cannot tell", [*evidence, "held-out pass@1 was not measured"]
    evidence.append(f"held-out pass@1 {percent(score)}")
    if score >= GENERALISES:
        return "refuted", evidence
    found = progress(trial.curve)
    if found.falls and found.vanishes is False:
        evidence.append(f"{frozen.USELESS}: points to H7, does not prove it")
    return "cannot tell", evidence


CHECKS: dict[str, Check] = {
    "H1": _h1, "H2": _h2, "H3": _h3, "H4": _h4, "H5": _h5, "H6": _h6, "H7": _h7,
}  # fmt: skip
