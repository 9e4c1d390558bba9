"""Hands Tune the trials of a growing plan, one whenever a slot is free."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from ray.tune.search import Searcher


class Feed(Searcher):  # type: ignore[misc]
    """A Tune searcher that decides nothing: `take` gives the next trial's id and specification.

    `take` is called only when a trial may start, and None ends the search.
    """

    def __init__(self, take: Callable[[], tuple[str, str] | None]) -> None:
        super().__init__()
        self.take = take

    def __reduce__(self) -> tuple[Any, ...]:
        # Tune saves its experiment with pickle; nobody reads it.
        return Searcher, ()

    def set_search_properties(self, metric: Any, mode: Any, config: Any, **spec: Any) -> bool:
        """Metric and mode are the scheduler's own."""
        return True

    def suggest(self, trial_id: str) -> Any:
        """The parameters of the next `RayTrial`."""
        found = self.take()
        if found is None:
            return Searcher.FINISHED
        name, spec = found
        return {"trial_id": name, "specs": {name: spec}}

    def on_trial_complete(self, trial_id: str, result: Any = None, error: bool = False) -> None:
        """Nothing: results are read from the run folder."""

    def save(self, checkpoint_path: str) -> None:
        """Leave an empty file: the run folder holds the search."""
        Path(checkpoint_path).touch()

    def restore(self, checkpoint_path: str) -> None:
        """Nothing to restore."""

    def get_state(self) -> dict[str, Any]:
        """Nothing to keep."""
        return {}

    def set_state(self, state: dict[str, Any]) -> None:
        """Nothing to set."""
