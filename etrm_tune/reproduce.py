"""Runs one trial again from its saved configuration, and compares the two row by row."""

from __future__ import annotations

import json
import math
import socket
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from analysis.rows import Attempt, ResultsError, merge, read_attempts, read_object
from etrm_tune.run_folder import RunFolder
from trainable.config import TrialConfig
from trainable.errors import nearest

CLOCK = frozenset({"kind", "attempt", "time", "wall_s"})
"""What is not measured again."""

Rows = Sequence[Mapping[str, Any]]


@dataclass(frozen=True)
class Recorded:
    """A trial as it lies on the disk."""

    home: Path
    config: TrialConfig
    identity: str | None
    needs: str | None
    rows: list[dict[str, Any]]
    starts: list[dict[str, Any]]
    """First lines of its attempts: versions, threads, workers."""

    @property
    def copied_at(self) -> int | None:
        """Step at which a population's member first took over another's state."""
        return next((int(s["resumed_from"]) for s in self.starts if s.get("lineage")), None)

    @property
    def workers(self) -> int:
        """Workers that it was trained with."""
        return max((int(start.get("workers") or 1) for start in self.starts), default=1)


def find_trial(path: Path | str) -> Path:
    """The folder of a trial, from itself or its config.json. Raises `ResultsError`."""
    given = Path(path)
    home = given.parent if given.name == "config.json" else given
    if (home / "plan.json").is_file():
        trials = home / "trials"
        names = sorted(p.name for p in trials.iterdir()) if trials.is_dir() else []
        example = trials / (names[0] if names else "overfit-E1a-s0")
        raise ResultsError(f"{home} is a run: give one of its trials, such as {example}")
    if not home.is_dir():
        there = [p.name for p in home.parent.iterdir()] if home.parent.is_dir() else []
        raise ResultsError(
            f"there is no trial {home}{nearest(home.name, there)}: give the folder of a trial, "
            f"such as runs/phase1/trials/overfit-E1a-s0"
        )
    return home


def read_trial(path: Path | str) -> Recorded:
    """Read what a trial has left. Raises `ResultsError` in one line where that is not enough."""
    home = find_trial(path)
    told = read_object(home / "config.json")
    if told is None or not isinstance(told.get("config"), dict):
        raise ResultsError(
            f"{home} holds no readable config.json: give the folder of a trial, such as "
            f"runs/phase1/trials/overfit-E1a-s0"
        )
    attempts: list[Attempt] = read_attempts(home, [])
    rows = merge(attempts)
    if not rows:
        raise ResultsError(f"{home} has no rows to compare with: the trial has not reported yet")
    starts = [attempt.start for attempt in attempts if attempt.start.get("versions")]
    config = TrialConfig(**told["config"])
    return Recorded(home, config, told.get("identity"), told.get("needs"), rows, starts)


def with_decoder(recorded: Recorded) -> TrialConfig:
    """The configuration with its decoder's path: that of a decoder of the run is found again."""
    config = recorded.config
    if config.pretrained_decoder and config.decoder is None and recorded.needs is not None:
        from etrm_tune.conductor import decoder_checkpoint

        folder = RunFolder(recorded.home.parent.parent)
        return config.replace(decoder=str(decoder_checkpoint(folder, recorded.needs)))
    return config


# Training it again.


def rerun(
    config: TrialConfig, out: Path, *, workers: int, steps: int | None, progress: bool
) -> list[dict[str, Any]]:
    """Train into an empty folder, up to `steps` or to the end; returns the rows."""
    if workers == 1:
        _train(config, out, steps, progress)
    else:
        import torch.multiprocessing as mp

        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port = probe.getsockname()[1]
        args = (config.model_dump_json(), str(out), workers, port, steps, progress)
        mp.spawn(_worker, args=args, nprocs=workers)  # type: ignore[attr-defined,no-untyped-call]
    return merge(read_attempts(out, []))


def _train(config: TrialConfig, out: Path, steps: int | None, progress: bool) -> None:
    from trainable.loop import train

    def report(row: Mapping[str, Any]) -> bool:
        return steps is not None and row["step"] >= steps

    train(config, out_dir=out, report=report, progress=progress)


def _worker(
    rank: int, text: str, out: str, world: int, port: int, steps: int | None, progress: bool
) -> None:
    import torch.distributed as dist

    config = TrialConfig.model_validate_json(text)
    place = f"tcp://127.0.0.1:{port}"
    dist.init_process_group("gloo", init_method=place, rank=rank, world_size=world)
    try:
        _train(config, Path(out), steps, progress)
    finally:
        dist.destroy_process_group()


# The comparison.


@dataclass
class Comparison:
    """Rows of a trial against those of its repetition."""

    compared: int = 0
    equal: int = 0
    first: tuple[int, str, Any, Any] | None = None
    """Step, metric, value then, value now: the largest of the first step that differs."""
    worst: dict[str, tuple[int, float]] = field(default_factory=dict)
    """By metric: step and size of its largest difference."""
    missing: list[int] = field(default_factory=list)
    """Steps with a row then and none now."""
    more: list[int] = field(default_factory=list)
    """Steps with a row now and none then."""

    @property
    def same(self) -> bool:
        """Whether every row is equal, bit for bit."""
        return self.equal == self.compared and not self.missing and not self.more


def size(then: Any, now: Any) -> float:
    """Difference relative to the larger of both; infinite where one is no number."""
    if then == now:
        return 0.0
    numbers = isinstance(then, int | float) and isinstance(now, int | float)
    if not numbers or not (math.isfinite(then) and math.isfinite(now)):
        return math.inf
    return float(abs(then - now) / max(abs(then), abs(now)))


def compare(then: Rows, now: Rows, *, until: int | None = None) -> Comparison:
    """Compare by step; times are left out. `until` is the last step that counts."""
    before = {int(row["step"]): row for row in then if until is None or row["step"] <= until}
    after = {int(row["step"]): row for row in now if until is None or row["step"] <= until}
    found = Comparison(
        missing=sorted(before.keys() - after.keys()), more=sorted(after.keys() - before.keys())
    )
    for step in sorted(before.keys() & after.keys()):
        found.compared += 1
        old, new = before[step], after[step]
        sizes = {
            name: size(old.get(name), new.get(name))
            for name in [*old, *(name for name in new if name not in old)]
            if name not in CLOCK and old.get(name) != new.get(name)
        }
        found.equal += not sizes
        if sizes and found.first is None:
            name = max(sizes, key=lambda one: sizes[one])
            found.first = step, name, old.get(name), new.get(name)
        for name, value in sizes.items():
            if value > found.worst.get(name, (0, -1.0))[1]:
                found.worst[name] = step, value
    return found


def surroundings(recorded: Recorded, now: Mapping[str, Any]) -> list[str]:
    """What may explain a difference: versions, threads, workers and data, then against now."""
    lines = []
    for what in ("workers", "threads", "cpu", "data_hash", "identity", "total_steps"):
        values = list(dict.fromkeys(start.get(what) for start in recorded.starts))
        if values and values != [now.get(what)]:
            told = ", ".join(map(str, values))
            lines.append(f"{what.replace('_', ' ')}: {told} then, {now.get(what)} now")
    mine = now.get("versions", {})
    for start in recorded.starts:
        theirs = start["versions"]
        for name in sorted(theirs.keys() | mine.keys()):
            if theirs.get(name) != mine.get(name):
                lines.append(
                    f"{name}: {theirs.get(name, 'none')} then, {mine.get(name, 'none')} now"
                )
    return list(dict.fromkeys(lines))


def describe(found: Comparison) -> list[str]:
    """A comparison in lines."""
    if not found.compared:
        return ["no step was reported by both"]
    if found.same:
        return [f"{found.equal} of {found.compared} rows are equal bit for bit"]
    lines = [f"{found.equal} of {found.compared} rows are equal bit for bit"]
    if found.first is not None:
        step, name, then, now = found.first
        told = _relative(size(then, now))
        lines.append(f"first difference at step {step}: {name} {then!r} then, {now!r} now{told}")
        worst = max(found.worst, key=lambda one: found.worst[one][1])
        step, value = found.worst[worst]
        lines.append(f"largest difference: {worst} at step {step}{_relative(value)}")
    for steps, text in ((found.missing, "then and not now"), (found.more, "now and not then")):
        if steps:
            lines.append(f"{len(steps)} rows were reported {text}, the first at step {steps[0]}")
    return lines


def _relative(value: float) -> str:
    return f" ({value:.1e} relative)" if math.isfinite(value) else ""


def reproduce(
    path: Path | str,
    *,
    steps: int | None = None,
    out: Path | None = None,
    progress: bool = True,
) -> tuple[Recorded, Comparison, list[str]]:
    """Run a trial again; returns what was recorded, the comparison, and what else differs.

    Args:
        path: the trial's folder or its config.json.
        steps: compare up to this step; None for all that was recorded.
        out: an empty folder for the repetition; a temporary one by default.
        progress: show a progress bar.

    Raises:
        ResultsError: no trial, or nothing to compare with.
        UserError: what training raises: data, decoder.
    """
    recorded = read_trial(path)
    copied = recorded.copied_at
    if copied is not None and (steps is None or steps > copied):
        raise ResultsError(
            f"{recorded.home.name} took over another trial's state at step {copied}, which its own "
            f"configuration does not tell: reproduce it up to there with --steps {copied}"
        )
    config = with_decoder(recorded)
    last = int(recorded.rows[-1]["step"])
    until = last if steps is None else min(steps, last)
    if out is not None and out.exists() and any(out.iterdir()):
        raise ResultsError(f"--out {out} is not empty: give a new folder")
    with tempfile.TemporaryDirectory(prefix="etrm-tune-reproduce-") as temporary:
        place = out or Path(temporary) / recorded.home.name
        rows = rerun(config, place, workers=recorded.workers, steps=until, progress=progress)
        start = read_attempts(place, [])[0].start
    return recorded, compare(recorded.rows, rows, until=until), surroundings(recorded, start)


def comparison_json(found: Comparison, changes: Sequence[str]) -> str:
    """The same as one JSON object."""
    first = None
    if found.first is not None:
        step, name, then, now = found.first
        first = {"step": step, "metric": name, "then": then, "now": now}
    values = {
        "equal": found.same,
        "rows_compared": found.compared,
        "rows_equal": found.equal,
        "first_difference": first,
        "steps_missing": found.missing,
        "steps_more": found.more,
        "surroundings": list(changes),
    }
    return json.dumps(values, indent=1)
