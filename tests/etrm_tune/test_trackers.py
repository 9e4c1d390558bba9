"""``--log-to``: what experiment trackers are told. MLflow and W&B themselves where installed."""

from __future__ import annotations

import math
import pickle
from importlib.util import find_spec
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from etrm_tune import trackers
from etrm_tune.cli import main
from etrm_tune.plan import PlannedTrial
from etrm_tune.run_folder import RunFolder
from etrm_tune.trackers import Translated, check_trackers, clean, make_trackers
from tests.test_end_to_end import command
from trainable.config import TrialConfig
from trainable.errors import ConfigError

PLANNED = PlannedTrial("overfit-E1a-s0", "arm", TrialConfig(name="overfit/E1a"), "abcdef0123456789")


def tune_trial(trial_id: str = PLANNED.trial_id) -> Any:
    """A Tune trial as the conductor's are: its parameters hold everybody's specification."""
    config = {"trial_id": trial_id, "specs": {trial_id: "x" * 10_000}}
    return SimpleNamespace(config=config, local_path="/nowhere", trial_id="00000")


def planned(trial_id: str) -> PlannedTrial | None:
    return PLANNED if trial_id == PLANNED.trial_id else None


def row(step: int, **more: Any) -> dict[str, Any]:
    metrics = {"train/accuracy": step / 10, "train/loss": math.nan, "eval/pass@2": 0.5}
    extra = {"step": step, "epoch": float(step), "wall_s": 1.0, "time": 5.0, "done": False}
    return metrics | extra | {"pid": 7, "config": {}, "trial_id": "0000"} | more


@pytest.mark.parametrize("word", ["mlflow", "mlflow:", "tensorboard:x", ":x", ""])
def test_wrong_words_are_one_line(word: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["run", "overfit/E4a", "--dry-run", f"--log-to={word}"]) == 2
    told = capsys.readouterr().err
    assert told == f"error: --log-to {word}: give mlflow:URI or wandb:PROJECT\n"


def test_a_missing_package_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(trackers, "find_spec", lambda name: None)
    for word, package in (("mlflow:http://a:5000", "mlflow"), ("wandb:trm", "wandb")):
        with pytest.raises(ConfigError, match=f"not installed: pip install {package}"):
            check_trackers([word])
    assert check_trackers([]) == ()


def test_what_is_told_is_what_the_run_folder_has() -> None:
    assert clean(row(3)) == {
        "train/accuracy": 0.3, "eval/pass_at_2": 0.5, "epoch": 3.0, "wall_s": 1.0,
        "training_iteration": 3,
    }  # fmt: skip


class Fake:
    """In place of one of Ray's callbacks."""

    def __init__(self) -> None:
        self.told: list[tuple[str, Any, Any]] = []
        self.fails = False

    def log_trial_start(self, trial: Any) -> None:
        if self.fails:
            raise OSError("no server")
        self.told.append(("start", str(trial), trial.config))

    def log_trial_result(self, iteration: int, trial: Any, result: dict[str, Any]) -> None:
        self.told.append(("row", str(trial), result))

    def log_trial_end(self, trial: Any, failed: bool = False) -> None:
        self.told.append(("end", str(trial), failed))


class Told(Translated, Fake):
    pass


def told(tmp_path: Path) -> Told:
    tracker = Told()
    tracker.begin(RunFolder(tmp_path / "phase1"), planned)
    return tracker


def test_rays_callback_sees_the_plans_trial(tmp_path: Path) -> None:
    tracker, trial = told(tmp_path), tune_trial()
    tracker.log_trial_start(trial)
    tracker.log_trial_result(1, trial, row(1))
    tracker.log_trial_result(2, trial, row(1, outcome_status="finished"))
    tracker.log_trial_end(trial)
    (_, name, options), (_, _, told_row), end = tracker.told
    assert name == "overfit-E1a-s0"
    assert options["encoder_type"] == "standard" and "specs" not in options
    assert told_row == clean(row(1)), "and the last report only once"
    assert end == ("end", "overfit-E1a-s0", False)
    tracker.close()
    assert len(tracker.told) == 3
    assert pickle.loads(pickle.dumps(tracker)) is not None, "Tune saves its callbacks"


def test_interrupted_trials_end_too(tmp_path: Path) -> None:
    tracker = told(tmp_path)
    tracker.log_trial_start(tune_trial())
    tracker.close()
    assert tracker.told[-1] == ("end", "overfit-E1a-s0", True)


def test_a_tracker_that_fails_costs_no_run(tmp_path: Path) -> None:
    tracker, trial = told(tmp_path), tune_trial()
    tracker.fails = True
    tracker.log_trial_start(trial)
    tracker.log_trial_result(1, trial, row(1))
    tracker.log_trial_end(trial)
    assert tracker.told == []


needs_mlflow = pytest.mark.skipif(find_spec("mlflow") is None, reason="mlflow is not installed")


@needs_mlflow
@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("store", ["file", "sqlite"])
def test_mlflow(tmp_path: Path, store: str, monkeypatch: pytest.MonkeyPatch) -> None:
    from mlflow.tracking import MlflowClient

    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")
    uri = f"sqlite:///{tmp_path}/m.db" if store == "sqlite" else str(tmp_path / "mlruns")
    folder = RunFolder(tmp_path / "phase1")
    for session in range(2):
        (tracker,) = make_trackers([f"mlflow:{uri}"], folder, planned)
        tracker.log_trial_start(tune_trial())
        for step in range(5):
            step += 1 + 5 * session
            tracker.log_trial_result(step, tune_trial(), row(step))
        if session == 1:
            tracker.log_trial_end(tune_trial())
        tracker.close()
        assert not tracker.broken
    client = MlflowClient(uri if store == "sqlite" else f"file:{uri}")
    experiment = client.get_experiment_by_name("phase1")
    (run,) = client.search_runs([experiment.experiment_id])
    assert run.info.run_name == "overfit-E1a-s0" and run.info.status == "FINISHED"
    assert run.data.params["encoder_type"] == "standard"
    history = client.get_metric_history(run.info.run_id, "train/accuracy")
    assert [(m.step, m.value) for m in history] == [(s, s / 10) for s in range(1, 11)]
    assert "eval/pass_at_2" in run.data.metrics and "train/loss" not in run.data.metrics


@pytest.mark.skipif(find_spec("wandb") is None, reason="wandb is not installed")
@pytest.mark.slow
@pytest.mark.ray
def test_wandb_offline_by_a_whole_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WANDB_MODE", "offline")
    settings = {"epochs": 60, "max_train_groups": 4, "max_eval_groups": 0, "halt_max_steps": 4}
    words = ["overfit/E4a", "--profile", "laptop", "--log-to", "wandb:trm", "--scheduler", "none"]
    done = command(tmp_path, *words, *(f"--set={name}={value}" for name, value in settings.items()))
    assert done.returncode == 0, done.stdout + done.stderr
    (kept,) = tmp_path.glob("runs/overfit-E4a/**/*.wandb")
    content = kept.read_bytes()
    for told in (b"overfit-E4a-s0", b"encoder_type", b"train/loss", b"train/accuracy"):
        assert told in content, told
