"""``auto``: a series from its first phase to its end, unattended.

What was run so far is read off the run folders, so that the same command continues after any
interruption. Where a decision point decides nothing, the stated default is taken (the control is
kept) and said; a red flag ends the way with what it recommends to check. The way taken stands in
``<runs>/auto.json`` (``auto-debug.json``, ``auto-act.json``), which is written anew each time.
"""

from __future__ import annotations

import json
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from rich.console import Console

import analysis
from analysis import NextStep
from analysis.recommend import recommend
from etrm_tune.follow import Parent
from etrm_tune.run_folder import FINAL, RunFolder, RunFolderError, write_atomic
from etrm_tune.steps import Asked, Run, child_of, read, reasons, say_flag, start
from etrm_tune.terminal import console as new_console
from etrm_tune.terminal import say
from trainable.errors import ConfigError, nearest

STARTS = {"overfit": "phase1", "debug": "debug1", "act": "act1"}
"""Series that can be walked, and where each begins."""

GOES_ON = ("run", "extend")
"""Kinds of steps that are taken unattended; others are left to a person."""

MOST_RUNS = 12
"""Runs of one way, at most: no series has as many."""

RED_FLAG = 3
"""Exit status when a red flag ended the way."""


@dataclass
class Stage:
    """One run of the way."""

    target: str
    folder: str
    why: str
    default: bool = False
    """Taken because nothing was decided: the control is kept."""
    code: int = 0
    statuses: dict[str, int] = field(default_factory=dict)
    decided: list[str] = field(default_factory=list)


@dataclass
class Way:
    """What was run, and how it ended."""

    series: str
    stages: list[Stage] = field(default_factory=list)
    ended: str = ""
    code: int = 0

    def write(self, path: Path) -> None:
        """Keep it beside the run folders."""
        values = {"schema_version": 1, "time": time.time(), **asdict(self)}
        path.parent.mkdir(parents=True, exist_ok=True)
        write_atomic(path, json.dumps(values, indent=1, ensure_ascii=False) + "\n")


def check_series(word: str | None) -> str:
    """The series that ``auto WORD`` walks. Raises `ConfigError` for an unknown one."""
    series = word or "overfit"
    if series not in STARTS:
        raise ConfigError(
            f"auto walks {', '.join(STARTS)}, not {series!r}{nearest(series, STARTS)}"
        )
    return series


def auto(word: str | None, asked: Asked, run: Run) -> int:
    """Walk a series; returns the exit status (3 at a red flag, a signal's when interrupted)."""
    series = check_series(word)
    console = new_console()
    prefix = f"{asked.name}-" if asked.name else ""
    kept = asked.runs / f"{prefix}auto{'' if series == 'overfit' else f'-{series}'}.json"
    way = Way(series)
    first = NextStep(STARTS[series], f"the first phase of {series}")
    folder = RunFolder(asked.runs / f"{prefix}{first.target}")
    try:
        _walk(console, way, first, folder, asked, run, kept)
    except KeyboardInterrupt:
        way.ended, way.code = "interrupted", 130
    if asked.dry_run:
        return way.code
    way.write(kept)
    _summary(console, way, kept)
    return way.code


def _walk(
    console: Console,
    way: Way,
    first: NextStep,
    folder: RunFolder,
    asked: Asked,
    run: Run,
    kept: Path,
) -> None:
    step, parent = first, None
    seen: set[Path] = set()
    while True:
        stage = Stage(step.target, folder.name, step.why, step.default)
        way.stages.append(stage)
        seen.add(folder.path)
        stage.code = _run_stage(console, step, parent, folder, asked, run)
        if asked.dry_run:
            way.code = stage.code
            say(console, "Dry run: what follows depends on the results.")
            return
        way.write(kept)
        if stage.code >= 128:
            way.ended, way.code = "interrupted", stage.code
            return
        plan = folder.read_plan()
        assert plan is not None
        parent = Parent(folder, plan)
        stage.statuses = _statuses(folder, plan)
        open_ = {s: n for s, n in stage.statuses.items() if s not in (*FINAL, "failed")}
        if open_:
            way.ended = f"{folder.name} has trials that are not done: {_counts(open_)}"
            way.code = stage.code or 1
            return
        results = read(folder)
        decisions = analysis.decide(results)
        stage.decided = reasons(decisions)
        if flags := [decision for decision in decisions if decision.raised]:
            for flag in flags:
                say_flag(console, flag)
            way.ended = "stopped at " + "; ".join(
                f"{f.name} ({f.text}); check: {'; '.join(f.checks) or 'see the document'}"
                for f in flags
            )
            way.code = RED_FLAG
            return
        found = recommend(results, decisions)
        chosen = choose(found.steps)
        if chosen is None:
            left = "; ".join(one.command for one in found.steps if one.kind != "continue")
            way.ended = found.why + (f". Left to you: {left}" if left else "")
            way.code = 1 if any("failed" in one.statuses for one in way.stages) else 0
            return
        if chosen.default:
            say(console, f"Not decided, the default is taken: {chosen.why}", "yellow")
        step, folder = chosen, child_of(parent, chosen, asked)
        if folder.path in seen or len(way.stages) >= MOST_RUNS:
            way.ended, way.code = f"{step.target} would be run again: {step.why}", 1
            return


def choose(steps: Sequence[NextStep]) -> NextStep | None:
    """The stated default where there is one, else the first step that may run unattended."""
    default = next((step for step in steps if step.default), None)
    if default is not None:
        return default
    return steps[0] if steps and steps[0].kind in GOES_ON else None


def _run_stage(
    console: Console,
    step: NextStep,
    parent: Parent | None,
    folder: RunFolder,
    asked: Asked,
    run: Run,
) -> int:
    """Run or continue one stage; one that is done is only checked against what was typed."""
    plan = folder.read_plan() if folder.path.exists() else None
    if plan is not None:
        replace(asked.typed, target=step.target).merged(plan)
        if folder.in_use():
            raise RunFolderError(
                f"{folder.path} is in use by process {folder.holder() or 'unknown'}: wait for it, "
                f"or stop it"
            )
        statuses = _statuses(folder, plan)
        again = "failed" in statuses and asked.how.retry_failed
        if not again and not statuses.keys() - {*FINAL, "failed"}:
            say(console, f"{folder.name} is done ({_counts(statuses)})")
            return 1 if "failed" in statuses else 0
    if parent is None:
        options = replace(asked.typed, target=step.target)
        return run(options, folder, asked.how, dry_run=asked.dry_run)
    return start(console, parent, step, asked, run, folder)


def _statuses(folder: RunFolder, plan: dict[str, Any]) -> dict[str, int]:
    found: dict[str, int] = {}
    for trial in plan["trials"]:
        status = str(folder.read_status(trial["trial_id"])["status"])
        found[status] = found.get(status, 0) + 1
    return found


def _counts(statuses: dict[str, int]) -> str:
    return ", ".join(f"{count} {status}" for status, count in statuses.items())


def _summary(console: Console, way: Way, kept: Path) -> None:
    """The way taken, one line per run."""
    say(console, f"\nauto {way.series}: the way taken ({kept})", "bold")
    for number, stage in enumerate(way.stages, start=1):
        default = " [default: the control is kept]" if stage.default else ""
        trials = f" ({_counts(stage.statuses)})" if stage.statuses else ""
        say(console, f"  {number}. {stage.target} in {stage.folder}{trials}{default}")
        say(console, f"     why: {stage.why}")
        for text in stage.decided:
            say(console, f"     {text}")
    say(console, f"  end: {way.ended}")
