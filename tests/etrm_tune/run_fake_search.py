"""Runs a search over fake trials: ``run_fake_search.py FOLDER '{"trials": 8, …}'``.

``accuracy`` maps `halt_max_steps` to what is reached; ``step_s``; ``nan`` lists sizes that diverge.
"""

from __future__ import annotations

import json
import sys
from dataclasses import replace
from typing import Any

from etrm_tune.command import How, Prepared
from etrm_tune.division import divide
from etrm_tune.plan import Options, Plan, PlannedTrial
from etrm_tune.resources import Machine
from etrm_tune.run_folder import RunFolder
from etrm_tune.search import Search, SearchOptions
from etrm_tune.search_run import execute_search, write_search
from etrm_tune.session import Signals
from trainable.errors import UserError


class FakeSearch(Search):
    """A search whose trials only count; no data and no decoder are needed."""

    asked_for: dict[str, Any]

    def _one(self, trial: PlannedTrial) -> PlannedTrial:
        size = str(trial.config.model.halt_max_steps)
        settings = {
            "accuracy": self.asked_for["accuracy"][size],
            "step_s": self.asked_for.get("step_s", 0.02),
            "nan_at": 2 if size in self.asked_for.get("nan", []) else None,
        }
        config = trial.config.replace(epochs=100, num_threads=1).model_copy(
            update={"batch_size_reason": json.dumps(settings)}
        )
        return replace(trial, config=config, needs=None)

    def planned(self, points: Any) -> Plan:
        plan = super().planned(points)
        return replace(plan, trials=tuple(self._one(t) for t in plan.trials if t.role == "arm"))


class NoFiles:
    """Nothing is read."""

    def data_hash(self, config: Any) -> str:
        return "none"

    def decoder_options(self, path: Any) -> dict[str, Any]:
        return {}

    def decoder_reference(self, path: Any) -> str:
        return ""


def main(path: str, text: str) -> int:
    asked = json.loads(text)
    options = Options("search halting,lr", "laptop", "2026-01-21", 1, scheduler=asked["scheduler"])
    folder = RunFolder(path)
    how = How(concurrent=2, again=("again",), train="fake_loop:train")
    with Signals() as signals, folder.locked():
        stored = folder.read_plan()
        told = stored["search"] if stored else None
        wanted = SearchOptions("halting,lr", "tpe", trials=asked["trials"]).merged(told)
        search = FakeSearch(folder, options, wanted, NoFiles())
        search.asked_for = asked
        search.load(told)
        plan = search.plan()
        machine = Machine(cpus=2)
        prepared = Prepared(plan, machine, divide(plan, machine, how, stored), stored=stored)
        write_search(folder, prepared, search)
        return execute_search(folder, prepared, search, signals, how)


if __name__ == "__main__":
    try:
        raise SystemExit(main(*sys.argv[1:]))
    except UserError as error:
        print(f"error: {error}")
        raise SystemExit(2) from None
