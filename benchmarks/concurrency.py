"""Two trials on two cores: at once with one thread each, or in turn with two threads?

Runs the same steps of E1a both ways, in processes of their own, and prints the seconds that two
trials take.

    python -m benchmarks.concurrency [--steps 12] [--json FILE]
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import tempfile
import time
from multiprocessing.synchronize import Barrier
from pathlib import Path

import search_spaces
from trainable.trial import Trial


def work(steps: int, threads: int, start: Barrier, seconds: multiprocessing.Queue[float]) -> None:
    """Take `steps` training steps once everyone is ready; report the seconds."""
    resolved = search_spaces.resolve(
        "overfit/E1a",
        profile="laptop",
        overrides={"pretrained_decoder": False, "num_threads": threads},
    )
    with tempfile.TemporaryDirectory() as folder:
        trial = Trial(resolved.config, Path(folder))
        for _ in range(2):
            trial.train_step()
        start.wait()
        began = time.perf_counter()
        for _ in range(steps):
            trial.train_step()
        seconds.put(time.perf_counter() - began)


def measure(trials: int, threads: int, steps: int) -> float:
    """Seconds until `trials` processes at once have taken `steps` steps each."""
    context = multiprocessing.get_context("spawn")
    start, seconds = context.Barrier(trials), context.Queue()
    processes = [
        context.Process(target=work, args=(steps, threads, start, seconds)) for _ in range(trials)
    ]
    for process in processes:
        process.start()
    slowest = max(float(seconds.get()) for _ in processes)
    for process in processes:
        process.join()
    return slowest


def main() -> None:
    """Print both ways and their ratio."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--steps", type=int, default=12)
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    side_by_side = measure(2, 1, args.steps)
    in_turn = 2 * measure(1, 2, args.steps)
    result = {"two_at_once_s": side_by_side, "in_turn_s": in_turn, "ratio": in_turn / side_by_side}
    print(f"two trials × 1 thread, at once : {side_by_side:6.1f} s for {args.steps} steps each")
    print(f"two trials × 2 threads, in turn: {in_turn:6.1f} s")
    print(f"ratio: {result['ratio']:.2f}")
    if args.json:
        args.json.write_text(json.dumps(result) + "\n")


if __name__ == "__main__":
    main()
