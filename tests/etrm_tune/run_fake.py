"""Runs a plan of fake trials as the command line does: ``run_fake.py FOLDER '{"trials": …}'``.

``trials`` maps an experiment's name to the settings of `fake_loop`; ``decoder`` (optional) holds
those of a decoder that every trial needs; ``workers``, ``concurrent``, ``retry_failed``; with
``forked`` every trial of one worker is forked, without a trainer; ``gpus`` that Ray is told of, and
``gpus_per_trial``.
"""

from __future__ import annotations

import json
import sys
from typing import Any

from etrm_tune import short
from etrm_tune.command import How, Prepared, execute, write_plan
from etrm_tune.division import divide
from etrm_tune.plan import Options, Plan, PlannedTrial
from etrm_tune.resources import Machine
from etrm_tune.run_folder import RunFolder
from etrm_tune.session import Signals
from search_spaces import trial_id
from trainable.config import TrialConfig
from trainable.errors import UserError


def planned(name: str, settings: dict[str, Any], needs: str | None = None) -> PlannedTrial:
    config = TrialConfig(name=name, epochs=100, batch_size_reason=json.dumps(settings))
    role = "decoder" if name.startswith("decoder/") else "arm"
    plain = config.model_copy(update={"batch_size_reason": None})
    return PlannedTrial(trial_id(name, 0), role, config, plain.identity(), needs=needs)


def main(path: str, text: str) -> int:
    asked = json.loads(text)
    trials = []
    needs = None
    if "decoder" in asked:
        trials.append(planned("decoder/trm", asked["decoder"]))
        needs = trials[0].trial_id
    trials += [planned(name, settings, needs) for name, settings in asked["trials"].items()]
    gpus = asked.get("gpus", 0)
    profile = "workstation" if gpus else "laptop"
    options = Options("phase1", profile, "2026-01-21", 1, scheduler="bar")
    how = How(
        gpus_per_trial=asked.get("gpus_per_trial"),
        workers=asked.get("workers"),
        concurrent=asked.get("concurrent"),
        retry_failed=asked.get("retry_failed", False),
        again=("again",),
        train="fake_loop:train",
    )
    folder, forked = RunFolder(path), asked.get("forked", False)
    with Signals() as signals, folder.locked():
        plan = Plan(options, tuple(trials))
        machine = Machine(cpus=asked.get("cpus", 2), gpus=gpus)
        stored = folder.read_plan()
        starts = short.choose(plan, divide(plan, machine, how, stored), forked, stored)
        allotments = short.apply(divide(plan, machine, how, stored), starts)
        prepared = Prepared(plan, machine, allotments, stored=stored, starts=starts)
        write_plan(folder, prepared)
        return execute(folder, plan, prepared.allotments, signals, how)


if __name__ == "__main__":
    try:
        raise SystemExit(main(*sys.argv[1:]))
    except UserError as error:
        print(f"error: {error}")
        raise SystemExit(2) from None
