"""Seconds per training step, side by side: default against `parity` settings, TRM and ETRM.

Parity settings do the work of the public implementations: 30 × 30 canvas, every demonstration slot
and every PAD cell encoded. Steps of both settings alternate, so that a noisy machine slows both.

    python -m benchmarks.steps [--hidden 128] [--batch 8] [--repeats 3] [--json FILE]
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
import time
from pathlib import Path

import torch

import search_spaces
from trainable.config import TrialConfig
from trainable.trial import Trial


def trial(kind: str, *, parity: bool, hidden: int, batch: int, folder: Path) -> Trial:
    """A trial on the laptop's puzzles, ready to step."""
    resolved = search_spaces.resolve(
        "overfit/E1a",
        profile="laptop",
        overrides={
            "pretrained_decoder": False,
            "hidden_size": hidden,
            "num_heads": max(1, hidden // 64),
            "global_batch_size": batch,
        },
    )
    config: TrialConfig = resolved.config
    if kind == "trm":
        config = config.replace(kind="trm", puzzle_emb_ndim=hidden, max_eval_groups=0)
    if parity:
        config = config.replace(parity=True, canvas="full")
    return Trial(config, folder)


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--hidden", type=int, default=128)
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        for kind in ("trm", "etrm"):
            pair = {
                name: trial(
                    kind,
                    parity=name == "parity",
                    hidden=args.hidden,
                    batch=args.batch,
                    folder=Path(folder),
                )
                for name in ("default", "parity")
            }
            seconds: dict[str, list[float]] = {name: [] for name in pair}
            for repeat in range(args.repeats + 1):
                for name, one in pair.items():
                    began = time.perf_counter()
                    one.train_step()
                    if repeat:  # the first step allocates
                        seconds[name].append(time.perf_counter() - began)
            medians = {name: statistics.median(values) for name, values in seconds.items()}
            rows.append(
                {
                    "kind": kind,
                    "hidden": args.hidden,
                    "batch": args.batch,
                    "threads": torch.get_num_threads(),
                    "default_s": medians["default"],
                    "parity_s": medians["parity"],
                    "ratio": medians["parity"] / medians["default"],
                    "samples_per_s": args.batch / medians["default"],
                }
            )
    print(f"{'':6}{'default s/step':>16}{'parity s/step':>16}{'ratio':>8}{'rows/s':>10}")
    for row in rows:
        print(
            f"{row['kind']:6}{row['default_s']:16.3f}{row['parity_s']:16.3f}"
            f"{row['ratio']:8.1f}{row['samples_per_s']:10.1f}"
        )
    if args.json:
        args.json.write_text(json.dumps(rows, indent=1) + "\n")


if __name__ == "__main__":
    main()
