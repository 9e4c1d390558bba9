"""``--log-to mlflow:URI``, ``--log-to wandb:PROJECT``: a run's rows in an experiment tracker too.

Ray's own callbacks do the work; here they get a trial's name, options and metrics as the run folder
has them. Nothing depends on a tracker: one that fails while trials run is left alone, with a line
in run.log.
"""

from __future__ import annotations

import contextlib
import logging
import math
import re
import time
from collections.abc import Callable, Mapping, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from etrm_tune.plan import PlannedTrial
from etrm_tune.run_folder import RunFolder
from trainable.errors import ConfigError

TRACKERS = {"mlflow": ("URI", "mlflow"), "wandb": ("PROJECT", "wandb")}
"""Kind → what follows the colon, and the package (a name of PyPI) that it needs."""

logger = logging.getLogger(__name__)


def check_trackers(words: Sequence[str]) -> tuple[str, ...]:
    """``mlflow:URI``, ``wandb:PROJECT``. Raises `ConfigError` for another word, and where the
    package is missing."""
    for word in words:
        kind, _, where = word.partition(":")
        if kind not in TRACKERS or not where:
            forms = " or ".join(f"{name}:{TRACKERS[name][0]}" for name in TRACKERS)
            raise ConfigError(f"--log-to {word}: give {forms}")
        package = TRACKERS[kind][1]
        if find_spec(package) is None:
            raise ConfigError(
                f"--log-to {word}: the package {package} is not installed: pip install {package}"
            )
    return tuple(words)


def clean(row: Mapping[str, Any]) -> dict[str, Any]:
    """Finite metrics of a report by names that every tracker accepts, and the optimizer step as
    its axis."""
    found = {
        name.replace("@", "_at_"): value
        for name, value in row.items()
        if ("/" in name or name in ("epoch", "samples", "wall_s"))
        and isinstance(value, int | float)
        and not isinstance(value, bool)
        and math.isfinite(value)
    }
    return found | {"training_iteration": int(row.get("step") or 0)}


class Named:
    """What Ray's callbacks ask a Tune trial for, from the plan."""

    def __init__(self, run: str, trial: PlannedTrial, local_path: str) -> None:
        self.run = run
        self.name = trial.trial_id
        self.trial_id = re.sub(r"\W+", "-", f"{run}-{trial.trial_id}-{trial.identity[:8]}")
        self.config = {k: v for k, v in trial.config.flat().items() if v is not None}
        self.local_path = local_path
        self.experiment_dir_name = run
        self.checkpoint = None

    def __str__(self) -> str:
        return self.name

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Named) and other.trial_id == self.trial_id

    def __hash__(self) -> int:
        return hash(self.trial_id)


class Translated:
    """Mixed in before one of Ray's logger callbacks: see the module."""

    run: RunFolder
    planned: Callable[[str], PlannedTrial | None]
    broken = False

    def begin(self, run: RunFolder, planned: Callable[[str], PlannedTrial | None]) -> None:
        """Whose trials these are."""
        self.run, self.planned = run, planned
        self._open: dict[str, Any] = {}

    def __reduce__(self) -> tuple[Any, ...]:
        from ray import tune

        return tune.Callback, ()  # Tune saves its experiment with pickle; nobody reads it

    def _named(self, trial: Any) -> Named | None:
        planned = self.planned(str(trial.config["trial_id"]))
        return None if planned is None else Named(self.run.name, planned, str(trial.local_path))

    def _try(self, method: str, trial: Any, *arguments: Any, **more: Any) -> None:
        named = self._named(trial)
        if self.broken or named is None:
            return
        try:
            getattr(super(), method)(*arguments, **{"trial": named} | more)
        except Exception as error:
            self.broken = True
            logger.warning("%s: logging ends here: %s", type(self).__name__, error, exc_info=True)

    def log_trial_start(self, trial: Any) -> None:
        """A trial begins or goes on."""
        self._open[str(trial.config["trial_id"])] = trial
        self._try("log_trial_start", trial)

    def log_trial_result(self, iteration: int, trial: Any, result: dict[str, Any]) -> None:
        """A report; the last one, which only says that it was the last, is left out."""
        if "outcome_status" not in result:
            self._try("log_trial_result", trial, iteration=iteration, result=clean(result))

    def log_trial_end(self, trial: Any, failed: bool = False) -> None:
        """A trial ended."""
        self._open.pop(str(trial.config["trial_id"]), None)
        self._try("log_trial_end", trial, failed=failed)

    def close(self) -> None:
        """The run ends: so do the trials that were interrupted, and what is still to be sent."""
        for trial in list(self._open.values()):
            self.log_trial_end(trial, failed=True)
        if hasattr(self, "on_experiment_end") and not self.broken:
            with contextlib.suppress(Exception):
                self.on_experiment_end([])


def make_trackers(
    words: Sequence[str], folder: RunFolder, planned: Callable[[str], PlannedTrial | None]
) -> list[Any]:
    """Ray's callbacks for these trackers. Raises `ConfigError` in one line where one cannot be
    reached."""
    found = []
    for word in check_trackers(words):
        kind, _, where = word.partition(":")
        try:
            tracker = (_mlflow if kind == "mlflow" else _wandb)(where, folder)
            tracker.begin(folder, planned)
            tracker.setup()  # Tune would call it in the middle of the run
        except ConfigError:
            raise
        except Exception as error:
            reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
            raise ConfigError(f"--log-to {word}: {reason}") from None
        found.append(tracker)
    return found


def _mlflow(uri: str, folder: RunFolder) -> Any:
    from mlflow.entities import Metric
    from ray.air.integrations.mlflow import MLflowLoggerCallback

    class Batched(MLflowLoggerCallback):  # type: ignore[misc]
        """A row as one request rather than one for each of its metrics."""

        def log_trial_start(self, trial: Any) -> None:
            client, key = self.mlflow_util._get_client(), f"tags.trial_key = '{trial.trial_id}'"
            before = client.search_runs([self.mlflow_util.experiment_id], key)
            if before and trial not in self._trial_runs:  # it goes on where it was
                self._trial_runs[trial] = before[0].info.run_id
                client.update_run(before[0].info.run_id, status="RUNNING")
            super().log_trial_start(trial)
            client.set_tag(self._trial_runs[trial], "trial_key", trial.trial_id)

        def log_trial_result(self, iteration: int, trial: Any, result: dict[str, Any]) -> None:
            now, step = int(time.time() * 1000), result.pop("training_iteration")
            rows = [Metric(name, float(value), now, step) for name, value in result.items()]
            client = self.mlflow_util._get_client()
            client.log_batch(self._trial_runs[trial], metrics=rows)

    class MLflow(Translated, Batched):
        """MLflow."""

        ready = False

        def setup(self, *arguments: Any, **more: Any) -> None:
            if not self.ready:  # every stage of a run would begin its trials' runs anew
                super().setup(*arguments, **more)
                self.ready = True

    named = ":" in uri or uri.startswith("databricks")
    where = uri if named else f"file:{Path(uri).absolute()}"
    return MLflow(tracking_uri=where, experiment_name=folder.name, tags={"run": str(folder.path)})


def _wandb(project: str, folder: RunFolder) -> Any:
    from ray.air.integrations.wandb import WandbLoggerCallback

    class WandB(Translated, WandbLoggerCallback):  # type: ignore[misc]
        """Weights & Biases. A trial that goes on in a later session goes on there too."""

    home = folder.path / "wandb"
    home.mkdir(parents=True, exist_ok=True)
    return WandB(
        project=project, group=folder.name, resume="allow", dir=str(home), upload_timeout=60
    )
