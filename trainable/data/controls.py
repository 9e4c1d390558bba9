"""Batches that ask whether a model reads its demonstrations, and baselines that read nothing."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import numpy as np

from trainable.data.batches import Batch, Row, build_batch
from trainable.data.dataset import ArcData
from trainable.data.grids import EOS, FIRST_COLOUR, IGNORE
from trainable.errors import DataError
from trainable.random import numpy_generator


def control_batches(
    data: ArcData, batch_size: int, *, rank: int = 0, world: int = 1
) -> Iterator[Batch]:
    """Every query of every training puzzle once, original and untranslated, in stored order.

    The last batch is padded (identifier 0, labels −100). The rows are the same for TRM, which gets
    them without demonstrations; evaluation puzzles are never among them.
    """
    rows: list[Row] = []
    for group in data.train_groups:
        if group.puzzle.subset == data.config.eval_subset:
            continue
        plain = group.plain()
        queries = {id(pair) for pair in group.puzzle.queries}
        rows.extend(Row(plain, 0, i) for i in plain.rows if id(plain.pairs[i]) in queries)
    return data.in_order(iter(rows), batch_size, rank=rank, world=world)


def other_demos(data: ArcData, batch: Batch) -> Batch:
    """The batch with every row's demonstrations replaced by another training puzzle's.

    The partner is the next training puzzle in stored order (the last takes the first's), original
    and untranslated: a fixed derangement. Queries, labels and canvas stay; `demo_key` becomes the
    partner's. Padding rows stay empty. Raises `DataError` with fewer than two training puzzles.
    """
    groups = data.train_groups
    if len(groups) < 2:
        raise DataError(
            "another puzzle's demonstrations need two training puzzles: raise max_train_groups"
        )
    partner = {
        group.index: groups[(at + 1) % len(groups)].plain() for at, group in enumerate(groups)
    }
    base = batch["base_puzzle"]
    real = np.flatnonzero(base >= 0)
    rows = []
    for puzzle in base[real].tolist():
        if puzzle not in partner:
            raise DataError("other_demos works on batches of training puzzles: pass those")
        rows.append(Row(partner[puzzle], 0, 0))
    donor = build_batch(rows, len(rows), canvas=data.canvas, max_demos=data.config.max_demos)
    changed = dict(batch)
    for name in ("demo_inputs", "demo_labels", "demo_mask", "demo_key"):
        array = batch[name].copy()
        array[real] = donor[name]
        changed[name] = array
    return changed


def shuffle_demos(batch: Batch, generator: np.random.Generator) -> Batch:
    """The batch with outputs exchanged among each row's demonstrations, so that no pair is whole.

    The exchange is one random cycle over the row's slots, the same for rows with equal `demo_key`.
    A row with a single demonstration keeps it: there is nothing to exchange. Canvas and queries
    stay; `demo_key` keeps telling equal demonstrations within the batch. One number is drawn from
    ``generator`` per call and everything derived from it, so that ranks with equal generators
    treat their slices as one worker treats the whole.
    """
    labels = batch["demo_labels"].copy()
    seed = int(generator.integers(2**63))
    cycles: dict[tuple[int, int], tuple[np.ndarray, np.ndarray]] = {}
    for r, key in enumerate(batch["demo_key"].tolist()):
        slots = np.flatnonzero(batch["demo_mask"][r])
        if len(slots) < 2:
            continue
        known = cycles.get((key, len(slots)))
        if known is None:
            order = numpy_generator(seed, key).permutation(slots)
            known = cycles[key, len(slots)] = order, np.roll(order, 1)
        target, source = known
        labels[r, target] = batch["demo_labels"][r, source]
    return batch | {"demo_labels": labels}


def trivial_baselines(batches: Iterable[Batch]) -> dict[str, float]:
    """What copying the input, and painting everything background, score on the batches' rows.

    Scored like a model: share of the row's scored cells (label ≠ −100), averaged over the rows that
    have any; exact where all are right and the output fits the canvas.

    - copy: the prediction is the input's own tokens, end markers included.
    - background: colour 0 on every colour cell of the true output, and its end markers right, as
      if the output's shape were known: the stronger reading.

    Returns ``baseline/{copy,background}_{accuracy,exact_accuracy}`` and ``baseline/rows``; the
    accuracies are NaN without rows.
    """
    sums = np.zeros(4)
    rows = 0
    for batch in batches:
        labels = batch["labels"].astype(np.int64)
        scored = labels != IGNORE
        count = scored.sum(axis=1)
        some = count > 0
        rows += int(some.sum())
        background = np.where(labels == EOS, EOS, FIRST_COLOUR)
        for at, prediction in enumerate((batch["inputs"].astype(np.int64), background)):
            right = ((prediction == labels) & scored).sum(axis=1)
            sums[2 * at] += (right / np.maximum(count, 1))[some].sum()
            sums[2 * at + 1] += ((right == count) & batch["fits"])[some].sum()
    means = sums / rows if rows else np.full(4, np.nan)
    names = [
        f"{baseline}_{score}"
        for baseline in ("copy", "background")
        for score in ("accuracy", "exact_accuracy")
    ]
    result = {f"baseline/{name}": float(mean) for name, mean in zip(names, means, strict=True)}
    return result | {"baseline/rows": float(rows)}
