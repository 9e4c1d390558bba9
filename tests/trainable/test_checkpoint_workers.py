"""A file that one worker cannot read or write ends all of them, in one line, without waiting."""

from __future__ import annotations

import socket
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp

from tests.trainable.small_trials import puzzle_folder, tiny
from trainable.collective import together
from trainable.errors import CheckpointError, UserError
from trainable.loop import train

WORLD = 2


def failing(rank: int, out: Path, name: str, action: Callable[[], object]) -> None:
    """Run `action`, note the one line that it raises."""
    try:
        action()
        text = "nothing was raised"
    except UserError as error:
        text = str(error)
    (out / f"{name}-{rank}").write_text(text)


def work(rank: int, port: int, folder: Path, out: Path) -> None:
    torch.set_num_threads(1)
    dist.init_process_group(
        "gloo",
        init_method=f"tcp://127.0.0.1:{port}",
        rank=rank,
        world_size=WORLD,
        timeout=timedelta(seconds=60),
    )

    def only_second() -> int:
        if rank == 1:
            raise CheckpointError("the file is damaged")
        return 3

    failing(rank, out, "read", lambda: together(only_second))
    assert together(lambda: rank + 3) == rank + 3, "and all go on"
    config = tiny(folder, steps=1, max_eval_groups=0, global_batch_size=2)
    trial = out / "trial"
    failing(rank, out, "write", lambda: train(config, out_dir=trial, progress=False))
    source = out / ("none.pt" if rank else "bad.pt")
    failing(
        rank,
        out,
        "resume",
        lambda: train(config, out_dir=out / "fresh", resume_from=source, progress=False),
    )
    dist.destroy_process_group()


@pytest.mark.slow
def test_all_workers_stop_for_one(tmp_path: Path) -> None:
    folder = puzzle_folder(tmp_path / "puzzles")
    (tmp_path / "trial").mkdir()
    (tmp_path / "trial" / "checkpoints").write_text("a file where the folder should be")
    (tmp_path / "bad.pt").write_bytes(b"PK")
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    mp.spawn(work, (port, folder, tmp_path), nprocs=WORLD)

    def text(name: str) -> list[str]:
        return [(tmp_path / f"{name}-{rank}").read_text() for rank in range(WORLD)]

    assert text("read") == ["worker 1: the file is damaged", "the file is damaged"]
    first, second = text("write")
    assert "cannot write" in first and second == f"worker 0: {first}"
    assert "bad.pt" in text("resume")[0] and "none.pt" in text("resume")[1]
