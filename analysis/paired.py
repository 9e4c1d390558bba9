"""Arms compared over paired seeds, at equal samples seen.

The arms of one seed share initial values, puzzles and augmentations by sample index, so that their
difference is the thing to look at. For every seed both curves are cut at the row whose ``samples``
is at most the smaller of both ends, and the rule's measure is taken from what is left. A trial that
the bar stopped enters with what it had seen; one that crashed, diverged or is missing leaves the
comparison undecided.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import pandas as pd

from analysis.load import Run
from analysis.metrics import measure
from analysis.observe import percent, problem_of
from analysis.statistics import (
    bootstrap_interval,
    holm,
    seeds_needed,
    sign_flip_p,
    smallest_effect,
    smallest_p,
)
from search_spaces.rules import ALPHA, CONFIDENCE, ComparisonRule, Measure

SAME_FOR_BOTH = (
    "profile", "revision", "config/source", "config/train_subsets", "config/eval_subset",
    "config/max_grid_side", "config/max_train_groups", "config/max_eval_groups", "num_aug",
    "config/hidden_size", "config/canvas",
)  # fmt: skip
"""Columns that must not differ between two arms that are compared: size and data of the run."""


@dataclass(frozen=True)
class Paired:
    """Left minus right over the seeds that both arms have."""

    left: str
    right: str
    measure: Measure
    seeds: tuple[int, ...] = ()
    differences: tuple[float, ...] = ()
    samples: tuple[float, ...] = ()
    """Samples seen at which each seed was compared."""
    left_mean: float = math.nan
    right_mean: float = math.nan
    low: float = math.nan
    high: float = math.nan
    """BCa bootstrap interval of the mean difference."""
    p: float = 1.0
    p_holm: float = 1.0
    comparisons: int = 1
    """Size of the phase's family of comparisons."""
    smallest: float = math.nan
    """Smallest detectable difference (`statistics.smallest_effect`)."""
    problem: str | None = None
    """Why there is no comparison at all; None when there is one."""
    notes: tuple[str, ...] = ()

    @property
    def n(self) -> int:
        """Paired seeds."""
        return len(self.differences)

    @property
    def needed(self) -> int:
        """Seeds from which on the test can pass."""
        return seeds_needed(self.comparisons)

    @property
    def enough(self) -> bool:
        """Whether the test could have passed with these seeds."""
        return self.problem is None and self.n >= self.needed

    @property
    def mean(self) -> float:
        """Mean difference; NaN without a pair."""
        return sum(self.differences) / self.n if self.n else math.nan

    @property
    def significant(self) -> bool:
        """Whether the corrected p-value is at most alpha."""
        return self.enough and self.p_holm <= ALPHA

    @property
    def better(self) -> bool:
        """Significant, and left is ahead."""
        return self.significant and self.mean > 0

    @property
    def too_few(self) -> str:
        """``not decided: needs N ≥ 8 (n = 1 …)``."""
        return (
            f"needs N ≥ {self.needed} paired seeds (n = {self.n}; the sign-flip test of {self.n} "
            f"gives p ≥ {smallest_p(self.n):.3g}, Holm over {self.comparisons} asks for "
            f"{ALPHA / self.comparisons:.3g})"
        )

    @property
    def told(self) -> str:
        """The comparison in words, with n, interval, p-values and smallest effect."""
        if self.problem is not None:
            return self.problem
        left, right = self.left.partition("/")[2], self.right.partition("/")[2]
        where = " to ".join(f"{value:.0f}" for value in sorted({min(self.samples),
                                                                max(self.samples)}))  # fmt: skip
        parts = [
            f"{left} {percent(self.left_mean)}, {right} {percent(self.right_mean)} at equal "
            f"samples ({where}), difference {points(self.mean)}"
        ]
        if self.n > 1:
            parts[0] += (
                f" ({100 * CONFIDENCE:g} % interval {100 * self.low:+.1f} to {points(self.high)}, "
                f"n = {self.n}; p = {self.p:.3g}, Holm {self.p_holm:.3g})"
            )
        else:
            parts[0] += f" (n = {self.n})"
        if math.isfinite(self.smallest):
            parts.append(f"smallest difference this n finds: {points(self.smallest, sign=False)}")
        return "; ".join([*parts, *self.notes])


def points(share: float, *, sign: bool = True) -> str:
    """A difference of shares in percentage points: ``+1.2 points``."""
    return "?" if math.isnan(share) else f"{100 * share:{'+' if sign else ''}.1f} points"


def paired(run: Run, left: str, right: str, how: Measure, *, comparisons: int = 1) -> Paired:
    """Compare two experiments; `comparisons` is the size of the family for Holm's correction.

    A single comparison is corrected as the first of its family; `compare` corrects all together.
    """
    made = Paired(left, right, how, comparisons=comparisons)
    found = [problem_of(run, name) for name in (left, right)]
    problems = [problem for problem in found if problem is not None]
    trials = run.arms[run.arms["experiment"].isin((left, right))]
    problems = problems or mixed(trials)
    if problems:
        return replace(made, problem="; ".join(problems))
    by_seed = {name: run.arm(name).set_index("seed") for name in (left, right)}
    common = sorted(set(by_seed[left].index) & set(by_seed[right].index))
    ids = [left.partition("/")[2], right.partition("/")[2]]
    if not common:
        return replace(made, problem=f"{ids[0]} and {ids[1]} have no seed in common")
    values, samples = [], []
    keys = {name: arm[["run", "trial_id"]] for name, arm in by_seed.items()}
    for seed in common:
        curves = [_curve(run, keys[name].loc[seed], how) for name in (left, right)]
        at = min(float(curve["samples"].max()) if len(curve) else math.nan for curve in curves)
        pair = [measure(curve[curve["samples"] <= at], how) for curve in curves]
        if any(math.isnan(value) for value in pair):
            return replace(
                made, problem=f"{ids[0]} and {ids[1]} share no rows with {how.metric} (seed {seed})"
            )
        values.append((pair[0], pair[1]))
        samples.append(at)
    return _numbers(made, common, values, samples, _notes(by_seed, common, ids))


def compare(run: Run, family: Sequence[ComparisonRule]) -> dict[str, Paired]:
    """Every comparison of a phase by the rule's name, Holm-corrected together.

    The family is all planned comparisons, also those that cannot be made.
    """
    made = {
        rule.name: paired(run, rule.left, rule.right, rule.measure, comparisons=len(family))
        for rule in family
    }
    tested = [name for name, one in made.items() if one.problem is None]
    adjusted = holm([made[name].p for name in tested], comparisons=len(family))
    for name, value in zip(tested, adjusted, strict=True):
        made[name] = replace(made[name], p_holm=value)
    return made


def _numbers(
    made: Paired,
    seeds: Sequence[int],
    values: Sequence[tuple[float, float]],
    samples: Sequence[float],
    notes: tuple[str, ...],
) -> Paired:
    differences = tuple(round(left - right, 12) for left, right in values)
    low, high = bootstrap_interval(differences)
    p = sign_flip_p(differences)
    return replace(
        made,
        seeds=tuple(int(seed) for seed in seeds),
        differences=differences,
        samples=tuple(samples),
        left_mean=sum(left for left, _ in values) / len(values),
        right_mean=sum(right for _, right in values) / len(values),
        low=low,
        high=high,
        p=p,
        p_holm=min(1.0, p * made.comparisons),
        smallest=smallest_effect(differences, comparisons=made.comparisons),
        notes=notes,
    )


def _curve(run: Run, trial: pd.Series[Any], how: Measure) -> pd.DataFrame:
    curve = run.curve(str(trial["run"]), str(trial["trial_id"]))
    return curve[[name for name in ("step", "samples", how.metric) if name in curve]]


def mixed(trials: pd.DataFrame) -> list[str]:
    """Why arms cannot be compared: sizes or data that differ, or decoders within a seed."""
    problems = []
    for column in SAME_FOR_BOTH:
        if column not in trials:
            continue
        values = sorted({_plain(value) for value in trials[column]})
        if len(values) > 1:
            name = column.removeprefix("config/")
            problems.append(f"the arms differ in {name} ({', '.join(values)}): not comparable")
    if "config/decoder_ref" in trials and "config/pretrained_decoder" in trials:
        loaded = trials[trials["config/pretrained_decoder"].fillna(False).astype(bool)]
        for seed, group in loaded.groupby("seed"):
            if group["config/decoder_ref"].dropna().nunique() > 1:
                problems.append(f"the arms of seed {seed} start from different decoders")
    return problems


def _plain(value: object) -> str:
    if isinstance(value, float):
        return "all" if math.isnan(value) else f"{value:g}"
    if isinstance(value, list | tuple):
        return "+".join(map(str, value))
    return "all" if value is None else str(value)


def _notes(
    by_seed: dict[str, pd.DataFrame],
    common: Sequence[int],
    ids: Sequence[str],
) -> tuple[str, ...]:
    notes = []
    every = {int(seed) for frame in by_seed.values() for seed in frame.index}
    if alone := sorted(every - set(common)):
        notes.append(f"seeds {', '.join(map(str, alone))} lack a partner and are left out")
    for name, frame in zip(ids, by_seed.values(), strict=True):
        stopped = int((frame["status"] == "stopped").sum())
        if stopped:
            notes.append(f"{stopped} of {len(frame)} {name} stopped by the bar, compared there")
    return tuple(notes)
