"""The command ``search`` from its words to its tables, with trials that end at once."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from stand_in import Outcomes

from etrm_tune import run as run_module
from etrm_tune import search_run
from etrm_tune.command import summarise
from etrm_tune.conductor import settle
from etrm_tune.run_folder import FINAL, RunFolder
from etrm_tune.search import OBJECTIVES, Search
from etrm_tune.search_report import dominates, report, rungs
from etrm_tune.terminal import console

pytestmark = pytest.mark.filterwarnings("default")  # Ray's imports warn about their own parts

Go = Callable[..., int]


class Trials(Outcomes):
    """Ends the trials of a search one after the other, growing it as the conductor does."""

    stop_after: int | None = None
    """Trials after which a signal arrives."""

    def search(
        self, folder: RunFolder, prepared: Any, search: Search, signals: Any, how: Any
    ) -> int:
        """Stands for `etrm_tune.search_run.execute_search`."""
        left = list(prepared.plan.trials)
        while left or (left := search.grow({})):
            trial = left.pop(0)
            known = settle(folder, trial, retry_failed=how.retry_failed)
            if known in FINAL or known == "failed":
                continue
            if self.stop_after is not None and len(self.trained) >= self.stop_after:
                return 130
            size = trial.config.model.halt_max_steps
            self.accuracy[trial.config.name] = 0.5 + size / 100 + trial.config.seed / 10
            self.train(folder, trial)
        summarise(folder, console())
        report(console(), search)
        return 0


@pytest.fixture
def trials(monkeypatch: pytest.MonkeyPatch) -> Trials:
    made = Trials()
    monkeypatch.setattr(search_run, "execute_search", made.search)
    return made


def go(tmp_path: Path, *words: str) -> int:
    return run_module.main(["search", *words, "--runs", str(tmp_path), "--profile", "laptop"])


def plan(folder: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((folder / "plan.json").read_text())
    return found


@pytest.mark.parametrize(
    ("words", "hint"),
    [
        ([], "give --space: halting"),
        (["--space", "haltin"], "did you mean 'halting'"),
        (["--space", "exploration", "--searcher", "gird"], "did you mean 'grid'"),
        (["--space", "exploration", "--searcher", "grid"], "--searcher quasi-random"),
        (["--space", "halting", "--scheduler", "ashaa"], "did you mean 'asha'"),
        (["--space", "halting", "--trials", "0"], "--trials 0: give 1 or more"),
        (["--space", "halting", "--seeds", "0"], "--seeds 0: give 1 or more"),
        (["--space", "halting", "--objective", "acuracy"], "did you mean 'accuracy'"),
        (["--space", "halting", "--objective", ","], "choose from accuracy"),
        (["--space", "lr", "--set", "lr=1e-4"], "--set lr: the search over lr varies it"),
        (["--space", "halting", "--name", "../x"], "without '/'"),
        (["runs/phase1", "--space", "halting"], "unexpected 'runs/phase1'"),
        (["--spce", "halting"], "did you mean '--space'"),
    ],
)
def test_bad_input_is_one_line(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, words: list[str], hint: str
) -> None:
    assert go(tmp_path, *words) == 2
    lines = capsys.readouterr().err.strip().splitlines()
    assert len(lines) == 1
    assert hint in lines[0]
    assert list(tmp_path.iterdir()) == []


def test_an_interrupted_search_goes_on_as_if_it_had_not_been(
    trials: Trials, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ("--space", "halting,lr", "--trials", "14", "--searcher", "optuna")
    assert go(tmp_path, *words, "--name", "whole") == 0
    whole = plan(tmp_path / "whole")
    out = capsys.readouterr().out
    assert "n = 14 points (14 finished)" in out
    assert "Search on: python -m etrm_tune.run search --space halting,lr" in out
    assert "laptop profile: scaled" in out
    assert "Confirm the best point with more seeds" in out
    names = [point["name"] for point in whole["search"]["points"]]
    assert names[:3] == ["overfit/E1a", "overfit/E3a", "overfit/E3b"]
    assert names[-1] == "overfit/search-014"

    trials.trained.clear()
    for stop in (7, 9):  # a known point is left, then one of the searcher's
        trials.stop_after = stop
        assert go(tmp_path, *words, "--name", "cut") == 130
    trials.stop_after = None
    assert go(tmp_path, *words, "--name", "cut") == 0
    again = plan(tmp_path / "cut")
    assert again["search"] == whole["search"]
    assert again["trials"] == whole["trials"]
    assert len(trials.trained) == len(set(trials.trained)) == len(whole["trials"])

    assert go(tmp_path, *words[:2], "--trials", "16", "--name", "cut") == 0
    longer = plan(tmp_path / "cut")
    assert longer["search"]["points"][:14] == whole["search"]["points"]
    assert len(longer["search"]["points"]) == 16

    for other, hint in (
        (("--space", "halting"), "begun with --space halting,lr, not halting"),
        ((*words[:2], "--searcher", "gp"), "begun with --searcher tpe, not gp"),
        ((*words[:2], "--objective", "time"), "begun with --objective accuracy, not time"),
        ((*words[:2], "--scheduler", "bar"), "begun with --scheduler asha, not bar"),
        ((*words[:2], "--seeds", "2"), "begun with --seeds 1, not 2"),
    ):
        capsys.readouterr()
        assert go(tmp_path, *other, "--name", "cut") == 2
        assert hint in capsys.readouterr().err


def test_seeds_are_an_axis_and_a_finite_space_ends(
    trials: Trials, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: Any
) -> None:
    kept: list[Search] = []
    monkeypatch.setattr(
        search_run, "execute_search", lambda *a: kept.append(a[2]) or trials.search(*a)
    )
    assert go(tmp_path, "--space", "halting", "--seeds", "2", "--searcher", "grid") == 0
    out = capsys.readouterr().out
    assert "Every point of the space was tried: 4." in out
    search = kept[0]
    found = {one.values["halt_max_steps"]: one.objectives[0] for one in search.tried()}
    assert found == pytest.approx({4: 0.59, 8: 0.63, 16: 0.71, 32: 0.87})
    assert {trial["seed"] for trial in plan(search.folder.path)["trials"]} == {0, 1}
    # Stopped, diverged and failed trials are told to the searcher as what they are.
    first, second, third, fourth = (search.of(point) for point in search.points)
    search.folder.write_status(first[1].trial_id, "stopped")
    search.folder.write_status(second[0].trial_id, "diverged")
    search.folder.write_status(third[0].trial_id, "failed")
    search.folder.write_status(fourth[0].trial_id, "running")
    states = [one.state for one in search.tried()]
    assert states == ["stopped", "diverged", "failed", "running"]
    assert search.tried()[0].objectives and not search.tried()[1].objectives
    lines = rungs(search)
    assert [line.rule for line in lines] == ["halving", "halving", "bar"]
    assert lines[0].reached == 8


def test_several_objectives_show_a_front(
    trials: Trials, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ("--space", "halting", "--objective", "accuracy,act_steps,time,parameters")
    assert go(tmp_path, *words, "--searcher", "nsga2") == 0
    assert "Pareto front of accuracy, act_steps, time, parameters: 1 of 4" in (
        capsys.readouterr().out
    )


def test_domination() -> None:
    ways = ("maximize", "minimize")
    assert dominates((0.9, 3), (0.9, 4), ways)
    assert not dominates((0.9, 3), (0.9, 3), ways)
    assert not dominates((0.9, 3), (0.8, 2), ways)


def test_objectives_are_measured_from_rows() -> None:
    from trainable.config import TrialConfig

    rows = [
        {"step": i, "epoch": i, "wall_s": 2.0 * i, "train/accuracy": i / 100, "train/steps": 5.0}
        for i in range(1, 51)
    ]
    rows.append({"step": 51, "epoch": 51, "wall_s": 102.0})
    config = TrialConfig(epochs=100)
    values = {name: one.value(rows, config) for name, one in OBJECTIVES.items()}
    assert values["time"] == pytest.approx(200)  # of the whole budget, though it was stopped
    assert values["act_steps"] == 5
    assert 0.4 < values["accuracy"] <= 0.5
    assert values["parameters"] > 1e6
