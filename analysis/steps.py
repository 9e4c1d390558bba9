"""Next steps as data and as command lines that keep the options of the run they follow."""

from __future__ import annotations

import json
import shlex
from collections.abc import Mapping
from typing import Any

from analysis.decision import NextStep, StepKind
from analysis.load import Run
from search_spaces import DEFAULT_REVISION, targets

OPEN = ("pending", "running", "interrupted")

_DEFAULTS = (("revision", DEFAULT_REVISION), ("seeds", 1))


def step(
    run: Run,
    target: str,
    why: str,
    *,
    overrides: Mapping[str, Any] | None = None,
    default: bool = False,
    kind: StepKind = "run",
    seeds: int | None = None,
) -> NextStep:
    """A `NextStep` with its command line."""
    settings = dict(overrides or {})
    again = kind == "continue"
    line = command(run, target, again=again, overrides=settings, seeds=seeds)
    return NextStep(target, why, settings, default, kind, seeds, line)


def command(
    run: Run,
    target: str,
    *,
    again: bool = False,
    overrides: Mapping[str, Any] | None = None,
    seeds: int | None = None,
) -> str:
    """``python -m etrm_tune.run <target>`` with the options that this run was made with.

    `again` continues this very run, with what holds for it alone: its folder is named where the
    target alone would not find it, and failed trials are retried. `overrides` are added to the
    run's own, `seeds` replaces its number of seeds.
    """
    options: dict[str, Any] = {"profile": run.plan.get("profile")}
    options |= {"revision": run.plan.get("revision")} | dict(run.plan.get("options", {}))
    settings = dict(options.get("settings") or {})
    for name in () if again else options.get("own") or ():
        settings.pop(name, None)
    settings |= dict(overrides or {})
    # One name, one flag: these two are options of the command as well.
    if "decoder_puzzles" in settings:
        options["decoder_puzzles"] = settings.pop("decoder_puzzles")
    if seeds is not None:
        options["seeds"] = seeds
    words = ["python -m etrm_tune.run", target]
    for name in ("profile", "revision", "seeds", "decoder", "decoder_l_cycles"):
        value = options.get(name)
        if value is not None and (name, value) not in _DEFAULTS:
            words += [f"--{name.replace('_', '-')}", shlex.quote(str(value))]
    for name in ("decoder_puzzles", "data"):
        if options.get(name):
            words += [f"--{name.replace('_', '-')}", shlex.quote(str(options[name]))]
    for name, value in settings.items():
        text = value if isinstance(value, str) else json.dumps(value)
        words += ["--set", shlex.quote(f"{name}={text}")]
    folder = run.paths[0]
    if again and folder.parent.name != "runs":
        words += ["--runs", shlex.quote(str(folder.parent))]
    if again and folder.name != target:
        words += ["--name", shlex.quote(folder.name)]
    if again and "failed" in set(run.trials["status"]):
        words.append("--retry-failed")
    return " ".join(words)


def known(target: str) -> bool:
    """Whether the plan has this word."""
    return target in targets()


def debug_steps(run: Run, why: str) -> list[NextStep]:
    """The series that asks whether the encoder is the limit, where the plan has it."""
    return [step(run, "debug", why, kind="check")] if known("debug") else []


def unfinished(run: Run) -> NextStep | None:
    """The same command again, where trials crashed or are unfinished; None where none did."""
    status = set(run.trials["status"])
    target = str(run.plan.get("target"))
    if "failed" in status:
        return step(run, target, "some trials crashed: run again what failed", kind="continue")
    if status & set(OPEN):
        why = "some trials are unfinished: the same command goes on"
        return step(run, target, why, kind="continue")
    return None
