"""Tiny trials for the tests: random puzzles of at most 6 x 6 cells, models 32 wide."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from tests.trainable.puzzle_folders import random_grid
from trainable.config import TrialConfig
from trainable.data import ArcData
from trainable.evaluate import to_tensors

SIZES = {"training": 6, "evaluation": 2}
TINY_MODEL: dict[str, Any] = {
    "hidden_size": 32,
    "num_heads": 2,
    "L_layers": 1,
    "H_cycles": 2,
    "L_cycles": 2,
    "puzzle_emb_ndim": 32,
    "puzzle_emb_len": 4,
    "halt_max_steps": 3,
    "encoder_num_layers": 1,
    "forward_dtype": "float32",
}
TINY: dict[str, Any] = TINY_MODEL | {
    "canvas": "demos",
    "source": "kaggle",
    "train_subsets": ("training",),
    "shuffle_groups": False,
    "num_aug": 2,
    "eval_num_aug": 1,
    "max_demos": 4,
    "profile": "laptop",
    "global_batch_size": 4,
    "eval_interval": 10_000,
    "log_interval": 1,
    "checkpoint_interval": 1000,
    "lr": 1e-3,
    "lr_warmup_steps": 2,
    "ema_rate": 0.9,
}


def puzzle_folder(folder: Path, **sizes: int) -> Path:
    """A Kaggle-format folder of random puzzles, the n-th with sides of at most 2 + n mod 5."""
    folder.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(3)
    for subset, count in (sizes or SIZES).items():
        challenges, solutions = {}, {}
        for number in range(count):
            pairs = [
                {"input": random_grid(rng, 2 + number % 5), "output": random_grid(rng, 3)}
                for _ in range(4 + number % 3)
            ]
            queries = 1 + number % 2
            name = f"{subset[:2]}{number:03d}"
            challenges[name] = {
                "test": [{"input": pair["input"]} for pair in pairs[:queries]],
                "train": pairs[queries:],
            }
            solutions[name] = [pair["output"] for pair in pairs[:queries]]
        (folder / f"arc-agi_{subset}_challenges.json").write_text(json.dumps(challenges))
        (folder / f"arc-agi_{subset}_solutions.json").write_text(json.dumps(solutions))
    return folder


@cache
def _rows_per_epoch(folder: Path, kind: str, demos: int) -> float:
    options = TINY | {"path": str(folder), "kind": kind, "max_demos": demos}
    config = TrialConfig().replace(**options)
    data = ArcData.from_config(config)
    return len(data.train_groups) * data.mean_queries


def tiny(folder: Path, *, steps: int = 4, **options: Any) -> TrialConfig:
    """A configuration of exactly `steps` optimizer steps."""
    values = TINY | {"path": str(folder)} | options
    per_epoch = _rows_per_epoch(folder, values.get("kind", "etrm"), values["max_demos"])
    values.setdefault("epochs", (steps + 0.5) * values["global_batch_size"] / per_epoch)
    return TrialConfig().replace(**values)


def batches(config: TrialConfig, count: int) -> list[dict[str, Tensor]]:
    """The first training batches of a configuration."""
    sampler = ArcData.from_config(config).train_sampler(config.global_batch_size)
    return [to_tensors(sampler.next_batch(), torch.device("cpu")) for _ in range(count)]


def rows_of(trial: Path) -> list[dict[str, Any]]:
    """The rows of a trial as a reader keeps them: later attempts replace what they redo."""
    attempts = sorted(trial.glob("attempt-*.jsonl"), key=lambda p: int(p.stem.split("-")[1]))
    kept: dict[int, dict[str, Any]] = {}
    for path in attempts:
        lines = [json.loads(line) for line in path.read_text().splitlines()]
        assert lines[0]["kind"] == "start"
        kept = {step: row for step, row in kept.items() if step <= lines[0]["resumed_from"]}
        kept |= {line["step"]: line for line in lines if line["kind"] == "row"}
    return [kept[step] for step in sorted(kept)]


def comparable(row: Mapping[str, Any]) -> str:
    """A row without its clock, as text in which every bit of a number counts."""
    return json.dumps({k: v for k, v in row.items() if k not in ("kind", "time", "wall_s")})


def comparable_rows(trial: Path) -> list[str]:
    """`comparable` of every kept row."""
    return [comparable(row) for row in rows_of(trial)]


def same_state(a: Any, b: Any, where: str = "state") -> None:
    """Assert that two nested states are equal bit for bit."""
    if isinstance(a, Tensor):
        assert torch.equal(a, b), where
    elif isinstance(a, Mapping):
        assert a.keys() == b.keys(), where
        for key in a:
            same_state(a[key], b[key], f"{where}.{key}")
    elif isinstance(a, list | tuple):
        assert len(a) == len(b), where
        for at, (x, y) in enumerate(zip(a, b, strict=True)):
            same_state(x, y, f"{where}[{at}]")
    else:
        assert a == b or (math.isnan(a) and math.isnan(b)), where
