"""Evaluation over two workers (gloo): every query once, also where one of them has no row."""

from __future__ import annotations

import json
import socket
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp

from tests.trainable.small_trials import puzzle_folder, tiny
from trainable.data import ArcData
from trainable.evaluate import evaluate
from trainable.models import build_model

CASES: dict[str, dict[str, Any]] = {
    "etrm": {},
    "trm": {"kind": "trm"},
    # a single query: the second worker has nothing in any batch
    "idle": {"max_eval_groups": 1, "eval_num_aug": 0},
}


def outcome(folder: Path, case: str) -> dict[str, Any]:
    config = tiny(folder, **CASES[case])
    data = ArcData.from_config(config)
    model = build_model(
        config.replace(num_puzzle_identifiers=data.num_puzzle_identifiers).model, seed=0
    )
    with torch.no_grad():
        model.inner.lm_head.weight.normal_(generator=torch.Generator().manual_seed(0))
    found = evaluate(model, data, 4, device=torch.device("cpu"))
    assert (case == "idle") == (data.num_eval_rows() == 1)
    return {
        "metrics": found.metrics,
        "tasks": found.tasks,
        "submission": found.voting.submission(),
        "unmatched": found.voting.unmatched,
    }


def work(rank: int, world: int, port: int, folder: Path, out: Path) -> None:
    torch.set_num_threads(1)
    dist.init_process_group(
        "gloo",
        init_method=f"tcp://127.0.0.1:{port}",
        rank=rank,
        world_size=world,
        timeout=timedelta(seconds=30),  # a worker that waits for ever fails here
    )
    for case in CASES:
        (out / f"{case}-{rank}.json").write_text(json.dumps(outcome(folder, case)))
    dist.destroy_process_group()


@pytest.fixture(scope="module")
def places(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    folder = puzzle_folder(tmp_path_factory.mktemp("puzzles"))
    out = tmp_path_factory.mktemp("workers")
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    mp.spawn(work, (2, port, folder, out), nprocs=2)
    return folder, out


@pytest.mark.parametrize("case", CASES)
def test_two_workers_score_as_one(places: tuple[Path, Path], case: str) -> None:
    folder, out = places
    one = json.loads(json.dumps(outcome(folder, case)))
    for rank in range(2):
        two = json.loads((out / f"{case}-{rank}.json").read_text())
        assert two["metrics"] == pytest.approx(one["metrics"], abs=1e-5, nan_ok=True)
        assert {t["task"]: t["votes"] for t in two["tasks"]} == {
            t["task"]: t["votes"] for t in one["tasks"]
        }, "every query once"
        assert two["unmatched"] == one["unmatched"] == 0
        assert two["submission"].keys() == one["submission"].keys()
    assert one["metrics"]["eval/scheduled"] == (1 if case == "idle" else 2)
