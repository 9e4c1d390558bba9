"""Small folders of random puzzles in Kaggle's format, for the tests of data."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np

from trainable.config import DataConfig

Task = dict[str, Any]
LAPTOP = DataConfig(
    train_subsets=("training",),
    max_grid_side=10,
    shuffle_groups=False,
    max_train_groups=32,
    max_eval_groups=8,
    num_aug=4,
    eval_num_aug=4,
)


def random_grid(rng: np.random.Generator, side: int = 6) -> list[list[int]]:
    return rng.integers(0, 10, rng.integers(1, side + 1, 2)).tolist()


def write_folder(
    folder: Path, *, sizes: dict[str, int], seed: int = 0, test_first: bool = True
) -> dict[str, dict[str, Task]]:
    """Challenges and solutions of random puzzles; returns the tasks with their solutions."""
    rng = np.random.default_rng(seed)
    whole: dict[str, dict[str, Task]] = {}
    for subset, count in sizes.items():
        challenges, solutions, tasks = {}, {}, {}
        for number in range(count):
            pairs = [
                {"input": random_grid(rng), "output": random_grid(rng)}
                for _ in range(int(rng.integers(3, 8)))
            ]
            queries = int(rng.integers(1, 3))
            test, train = pairs[:queries], pairs[queries:]
            hidden = [{"input": pair["input"]} for pair in test]
            name = f"{subset[:2]}{number:03d}"
            parts = (
                {"test": hidden, "train": train} if test_first else {"train": train, "test": hidden}
            )
            challenges[name] = parts
            solutions[name] = [pair["output"] for pair in test]
            tasks[name] = {key: {"test": test, "train": train}[key] for key in parts}
        (folder / f"arc-agi_{subset}_challenges.json").write_text(json.dumps(challenges))
        (folder / f"arc-agi_{subset}_solutions.json").write_text(json.dumps(solutions))
        whole[subset] = tasks
    return whole


def options(**values: Any) -> DataConfig:
    return DataConfig(**({"num_aug": 6, "eval_num_aug": 6} | values))
