"""Which parameters of a search matter: how much of the accuracy's variance each explains alone.

Main effects only, by groups of equal (or neighbouring) values, with a permutation test. A searcher
does not sample at random, so parameters can be confounded: a hint where to look, no proof.
"""

from __future__ import annotations

import math
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

FEW = 10
"""Below this many points with a parameter nothing is said about it (ours)."""
GROUPS = 4
"""Of neighbouring values, where a parameter has more different ones."""
SMALLEST = 2
"""Points that a group must have."""
PERMUTATIONS = 999

Array = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Group:
    """Points with equal or neighbouring values of one parameter."""

    values: str
    n: int
    mean: float


@dataclass(frozen=True)
class Importance:
    """What one parameter explains."""

    parameter: str
    n: int
    """Points in which it is active and measured."""
    share: float
    """Of the variance of the target between its groups, corrected for their number (ε²); may be
    below 0 where it explains less than chance would."""
    p: float
    """Share of permutations of the target that explain as much: of this parameter alone."""
    groups: tuple[Group, ...]
    """In the order of the values."""

    @property
    def best(self) -> Group:
        """The group with the highest mean."""
        return max(self.groups, key=lambda group: group.mean)


def importance(
    points: Sequence[Mapping[str, Any]], target: Sequence[float], *, seed: int = 0
) -> list[Importance]:
    """One entry for each parameter that enough points have, the most important first.

    Args:
        points: values by parameter; one that is not active in a point is absent from it.
        target: what to explain, one number for each point; NaN leaves the point out.
        seed: of the permutations.
    """
    found = []
    for name in dict.fromkeys(name for point in points for name in point):
        pairs = [
            (point[name], value)
            for point, value in zip(points, target, strict=True)
            if name in point and math.isfinite(value)
        ]
        one = _importance(name, pairs, np.random.default_rng(seed))
        if one is not None:
            found.append(one)
    return sorted(found, key=lambda one: -one.share)


def _importance(
    name: str, pairs: Sequence[tuple[Any, float]], rng: np.random.Generator
) -> Importance | None:
    sizes: dict[int, int] = {}
    labels = groups_of([value for value, _ in pairs])
    for label in labels:
        sizes[label] = sizes.get(label, 0) + 1
    kept = [at for at, label in enumerate(labels) if sizes[label] >= SMALLEST]
    used = sorted({labels[at] for at in kept})
    if len(kept) < FEW or len(used) < 2:
        return None
    values = np.array([pairs[at][1] for at in kept], dtype=np.float64)
    member = np.array([used.index(labels[at]) for at in kept])
    if not values.std() > 0:
        return None
    between = _between(values, member)
    shuffled = sum(
        _between(rng.permutation(values), member) >= between - 1e-12 for _ in range(PERMUTATIONS)
    )
    total = float(((values - values.mean()) ** 2).sum())
    within = (total - between) / max(1, len(values) - len(used))
    groups = []
    for at, label in enumerate(used):
        inside = [pairs[i][0] for i in kept if labels[i] == label]
        groups.append(Group(_span(inside), len(inside), float(values[member == at].mean())))
    return Importance(
        name,
        len(values),
        (between - (len(used) - 1) * within) / total,
        (shuffled + 1) / (PERMUTATIONS + 1),
        tuple(groups),
    )


def groups_of(values: Sequence[Hashable]) -> list[int]:
    """Number of the group of each value: the values themselves in order where they are few, else
    `GROUPS` of neighbouring numbers, about equally many in each; equal values stay together."""
    numbers = all(isinstance(v, int | float) and not isinstance(v, bool) for v in values)
    distinct = sorted(set(values), key=lambda v: v if numbers else str(v))  # type: ignore[arg-type, return-value]
    if len(distinct) <= GROUPS or not numbers:
        return [distinct.index(value) for value in values]
    rank = {value: at for at, value in enumerate(sorted(values))}  # type: ignore[type-var]
    return [rank[value] * GROUPS // len(values) for value in values]


def _between(values: Array, member: npt.NDArray[np.int64]) -> float:
    """Sum of squares between the groups."""
    counts = np.bincount(member)
    means = np.bincount(member, weights=values) / counts
    return float((counts * (means - values.mean()) ** 2).sum())


def _span(values: Sequence[Any]) -> str:
    """``pre``, ``0.1``, ``0.001 … 0.003``."""
    if all(isinstance(v, int | float) and not isinstance(v, bool) for v in values):
        low, high = min(values), max(values)
        return f"{low:.3g}" if low == high else f"{low:.3g} … {high:.3g}"
    return str(values[0])
