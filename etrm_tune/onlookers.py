"""Who looks on while the conductor works: the terminal and Ray's metrics. They decide nothing."""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Mapping
from types import TracebackType
from typing import Any

from rich.console import Console

from etrm_tune.live import LiveTable
from etrm_tune.metrics import RayGauges, RunMetrics, discovered, scrape_targets
from etrm_tune.plan import PlannedTrial
from etrm_tune.run_folder import RunFolder


class Onlookers(LiveTable):
    """The live table, which also sends its numbers as Ray metrics. Entered with a Ray running."""

    def __init__(self, console: Console, trials: Iterable[PlannedTrial], folder: RunFolder) -> None:
        trials = list(trials)
        super().__init__(console, trials, title=str(folder.path))
        self.folder = folder
        names = {trial.trial_id: trial for trial in trials}
        self.metrics = RunMetrics(folder.name, self.board, names, RayGauges())
        self._inside = contextlib.ExitStack()
        self._on = False

    def __enter__(self) -> Onlookers:
        self._inside.enter_context(discovered(self.folder, scrape_targets))
        self._on = True
        super().__enter__()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._on = False
        try:
            super().__exit__(kind, error, trace)
        finally:
            self._inside.close()

    def add(self, trial: PlannedTrial) -> None:
        super().add(trial)
        self.metrics.add(trial)

    def update(self, trial_id: str, row: Mapping[str, Any], *, running: bool = True) -> None:
        super().update(trial_id, row, running=running)
        self.metrics.update(trial_id, row)

    def refresh(self, *, force: bool = False) -> None:
        super().refresh(force=force)
        if self._on:
            self.metrics.refresh()
