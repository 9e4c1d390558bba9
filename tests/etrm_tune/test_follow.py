"""``next``, ``followup`` and ``auto`` over real plans and decisions; nothing is trained."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from stand_in import Outcomes

from etrm_tune import cli
from etrm_tune import run as run_module
from etrm_tune.preflight import Files
from etrm_tune.run_folder import RunFolder

SMALL = ["--set", "max_train_groups=4", "--set", "max_eval_groups=1"]
"""Fewer puzzles: quicker to read, and to draw."""


@pytest.fixture(scope="module")
def files() -> Files:
    return Files()


@pytest.fixture
def outcomes(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, files: Files) -> Outcomes:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("etrm_tune.preflight.Files", lambda: files)  # puzzles are read once
    found = Outcomes()
    monkeypatch.setattr("etrm_tune.command.execute", found.execute)
    return found


def start(*words: str) -> int:
    return run_module.main([*words])


def plan(folder: str) -> dict[str, Any]:
    return json.loads(Path(folder, "plan.json").read_text())


def failing(capsys: pytest.CaptureFixture[str], *words: str) -> str:
    capsys.readouterr()
    assert start(*words) == 2
    lines = capsys.readouterr().err.strip().splitlines()
    assert len(lines) == 1 and lines[0].startswith("error: ")
    return lines[0]


def test_next_killed_before_its_plan_stood_begins_again(
    capsys: pytest.CaptureFixture[str], outcomes: Outcomes, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert start("phase1", "--profile", "laptop", *SMALL) == 0

    class Killed(BaseException):
        pass

    def kill(*_: Any) -> None:
        raise Killed

    with monkeypatch.context() as patch, pytest.raises(Killed):
        patch.setattr("etrm_tune.command.write_plan", kill)
        cli.main(["next", "runs/phase1"])
    assert [p.name for p in Path("runs/phase2").iterdir() if p.name != "lock"] == ["trials"]
    assert cli.main(["next", "runs/phase1"]) == 0
    before = len(outcomes.trained)
    statuses = [
        RunFolder("runs/phase2").read_status(t["trial_id"]) for t in plan("runs/phase2")["trials"]
    ]
    assert {status["status"] for status in statuses} == {"finished"}
    assert sum("taken_from" in status for status in statuses) >= 4
    assert before == len(set(outcomes.trained)), "nothing is trained twice"


def test_next_carries_options_over_and_trains_nothing_twice(
    capsys: pytest.CaptureFixture[str], outcomes: Outcomes
) -> None:
    settings = ["--profile", "laptop", "--set", "lr=2e-3", *SMALL]
    assert start("phase1", "--revision", "2026-01-09", *settings) == 0
    before = len(outcomes.trained)
    assert before == 5  # a decoder and four arms
    assert cli.main(["next", "runs/phase1"]) == 0
    shown = capsys.readouterr().out
    assert "taken from runs/phase1, not trained again" in shown

    child = plan("runs/phase2")
    assert child["parent"] == "../phase1"
    options = child["options"]
    assert (options["profile"], options["revision"], options["seeds"]) == (
        "laptop", "2026-01-09", 1
    )  # fmt: skip
    assert options["settings"]["lr"] == 2e-3
    assert outcomes.trained[before:] == [
        f"phase2/overfit-{arm}-s0" for arm in ("E1b", "E1c", "E3a", "E3b")
    ]
    folder = RunFolder("runs/phase2")
    for trial_id in ("decoder-trm-s0", "overfit-E1a-s0", "overfit-E2c-s0"):
        assert folder.read_status(trial_id)["taken_from"] == "../phase1"
        there, here = (Path(f"runs/{run}/trials/{trial_id}") for run in ("phase1", "phase2"))
        assert (there / "attempt-1.jsonl").samefile(here / "attempt-1.jsonl")
    arm = folder.read_config("overfit-E1b-s0")
    assert arm is not None
    assert arm["config"]["decoder_ref"] == folder.read_config("decoder-trm-s0")["identity"]

    again = len(outcomes.trained)
    assert start("next", "runs/phase1") == 0  # continues: there is nothing left
    assert start("phase2") == 0
    assert len(outcomes.trained) == again
    # A child stays whole when its parent is gone, as far as its own trials go.
    Path("runs/phase1").rename("runs/away")
    assert start("phase2") == 0
    assert "follows" in failing(capsys, "next", "runs/phase2")


def test_more_seeds_take_the_first_and_train_the_rest(
    capsys: pytest.CaptureFixture[str], outcomes: Outcomes
) -> None:
    assert start("phase1", *SMALL) == 0
    before = len(outcomes.trained)
    assert start("next", "runs/phase1", "--seeds", "2") == 0
    new = outcomes.trained[before:]
    assert "phase2/decoder-trm-s1" in new and "phase2/decoder-trm-s0" not in new
    assert "phase2/overfit-E1b-s0" in new and "phase2/overfit-E1b-s1" in new
    assert not [one for one in new if "E1a-s0" in one]
    assert start("next", "runs/phase1") == 0, "what its plan knows need not be said again"


def test_another_profile_or_revision_is_not_followed(
    capsys: pytest.CaptureFixture[str], outcomes: Outcomes
) -> None:
    assert start("phase1", *SMALL) == 0
    line = failing(capsys, "next", "runs/phase1", "--profile", "workstation")
    assert "profile laptop, not workstation" in line and "do not carry over" in line
    line = failing(capsys, "next", "runs/phase1", "--revision", "2026-01-09")
    assert "revision 2026-01-21, not 2026-01-09" in line
    assert not Path("runs/phase2").exists()


def test_what_cannot_be_followed_is_one_line(
    capsys: pytest.CaptureFixture[str], outcomes: Outcomes
) -> None:
    assert "of which run" in failing(capsys, "next")
    assert "of which run" in failing(capsys, "followup")
    assert "holds no run" in failing(capsys, "next", "runs/nothing")
    Path("runs/odd").mkdir(parents=True)
    assert "holds no run" in failing(capsys, "followup", "runs/odd")
    assert "did you mean 'debug'" in failing(capsys, "auto", "debgu")
    assert "auto walks overfit, debug, act" in failing(capsys, "auto", "xyz")
    assert "commas" in failing(capsys, "phase1", "phase2")

    outcomes.interrupt_in = "overfit/E2b"
    assert start("phase1", *SMALL) == 130
    line = failing(capsys, "next", "runs/phase1")
    assert "not finished (overfit-E2b-s0 is interrupted)" in line
    assert "python -m etrm_tune.run phase1 --name phase1" in line
    outcomes.default = 0.85
    assert start("phase1") == 0
    assert "no arm above the threshold" not in failing(capsys, "phase3", "--name", "phase1")
    with RunFolder("runs/phase1").locked():
        assert "in use by process" in failing(capsys, "next", "runs/phase1")


def test_followup_needs_an_arm_above_the_threshold(
    capsys: pytest.CaptureFixture[str], outcomes: Outcomes
) -> None:
    outcomes.default = 0.85
    assert start("phase1", *SMALL) == 0
    assert "no arm above the threshold" in failing(capsys, "followup", "runs/phase1")
    assert not Path("runs").joinpath("overfit-E1a-full").exists()


def test_followup_trains_the_best_on_every_puzzle(
    capsys: pytest.CaptureFixture[str], outcomes: Outcomes, monkeypatch: pytest.MonkeyPatch
) -> None:
    outcomes.accuracy = {"overfit/E2a": 0.5, "overfit/E2b": 0.5, "overfit/E2c": 0.97}
    assert start("phase1", *SMALL) == 0
    before = len(outcomes.trained)
    assert start("followup", "runs/phase1") == 0
    new = outcomes.trained[before:]
    assert [one for one in new if "decoder" not in one] == [
        "overfit-E2c-full/overfit-E2c-s0",
        "overfit-E1a-full/overfit-E1a-s0",
    ]
    child = plan("runs/overfit-E2c-full")
    assert child["parent"] == "../phase1"
    assert child["options"]["settings"]["max_train_groups"] is None
    assert child["options"]["decoder_puzzles"] == "same"
    assert "each in a folder" in failing(capsys, "followup", "runs/phase1", "--name", "x")


def test_auto_walks_three_phases_and_says_where_nothing_was_decided(
    capsys: pytest.CaptureFixture[str], outcomes: Outcomes
) -> None:
    assert start("auto", *SMALL) == 0
    shown = capsys.readouterr().out
    way = json.loads(Path("runs/auto.json").read_text())
    assert [stage["folder"] for stage in way["stages"]] == ["phase1", "phase2", "phase3"]
    assert way["stages"][2]["default"], "phase 2 is not decided with one seed"
    assert "Not decided, the default is taken" in shown
    assert "[default: the control is kept]" in shown
    assert "the way taken" in shown and "end: follow up on the full data" in shown
    assert len(outcomes.trained) == len(set(outcomes.trained))
    trained = [one.partition("/")[2] for one in outcomes.trained]
    assert len(trained) == len(set(trained)), "no trial of the way is trained twice"
    before = list(outcomes.trained)
    assert start("auto") == 0
    assert outcomes.trained == before
    assert "phase1 is done" in capsys.readouterr().out


@pytest.mark.slow
def test_auto_is_interrupted_and_continued(
    capsys: pytest.CaptureFixture[str], outcomes: Outcomes
) -> None:
    outcomes.interrupt_in = "overfit/E3a"
    assert start("auto", "--name", "big", *SMALL) == 130
    assert json.loads(Path("runs/big-auto.json").read_text())["ended"] == "interrupted"
    at = len(outcomes.trained)
    assert outcomes.trained[-1].startswith("big-phase2/")
    assert start("auto", "--name", "big") == 0
    assert outcomes.trained[at].startswith("big-phase2/overfit-E3a")
    way = json.loads(Path("runs/big-auto.json").read_text())
    assert [stage["folder"] for stage in way["stages"]] == [
        "big-phase1",
        "big-phase2",
        "big-phase3",
    ]
    line = failing(capsys, "auto", "--name", "big", "--seeds", "2")
    assert "--seeds 1, not 2" in line


def test_auto_stops_at_a_red_flag_with_checks(
    capsys: pytest.CaptureFixture[str], outcomes: Outcomes
) -> None:
    outcomes.default = 0.6
    assert start("auto", *SMALL) == 3
    shown = capsys.readouterr().out
    assert "red flag 1" in shown and "check:" in shown
    assert not Path("runs/phase2").exists()
    way = json.loads(Path("runs/auto.json").read_text())
    assert way["ended"].startswith("stopped at red flag 1")
    assert way["code"] == 3


@pytest.mark.slow
def test_auto_goes_on_past_an_arm_that_crashed_and_says_so(
    capsys: pytest.CaptureFixture[str], outcomes: Outcomes
) -> None:
    outcomes.status = {"overfit/E2a": "failed"}
    assert start("auto", *SMALL) == 1
    shown = capsys.readouterr().out
    assert "4 finished, 1 failed" in shown
    assert "phase2 in phase2" in shown


@pytest.mark.slow
def test_auto_gives_an_arm_that_still_rises_more_epochs(
    capsys: pytest.CaptureFixture[str], outcomes: Outcomes
) -> None:
    outcomes.accuracy, outcomes.rising = {"overfit/E4a": 0.85}, ("overfit/E4a",)
    assert start("auto", *SMALL) == 0
    way = json.loads(Path("runs/auto.json").read_text())
    assert [stage["folder"] for stage in way["stages"]][2:] == ["phase3", "overfit-E4a-extended"]
    assert outcomes.trained[-1] == "overfit-E4a-extended/overfit-E4a-s0"
    own = plan("runs/phase3")["options"]["settings"].get("epochs")
    assert own is None and plan("runs/overfit-E4a-extended")["options"]["settings"]["epochs"] > 300
    # Decisions read it together with the runs before: the selection is made over all of them.
    assert any(text.startswith("selection: E") for text in way["stages"][3]["decided"])
    # Its epochs are its own: arms of other runs that are followed up keep theirs.
    capsys.readouterr()
    outcomes.trained.clear()
    assert start("followup", "runs/overfit-E4a-extended") == 0
    more = {name: epochs_of(f"runs/overfit-{name}-full") for name in followed(outcomes)}
    assert len(more) >= 2 and "E4a" not in more
    assert set(more.values()) == {plan_epochs("runs/phase3", "overfit-E1a-s0")}


def followed(outcomes: Outcomes) -> set[str]:
    """Experiments that trained in folders ``overfit-NAME-full``."""
    folders = {one.partition("/")[0] for one in outcomes.trained}
    return {name.removeprefix("overfit-").removesuffix("-full") for name in folders}


def plan_epochs(folder: str, trial_id: str) -> float:
    config = RunFolder(folder).read_config(trial_id)
    assert config is not None
    return float(config["config"]["epochs"])


def epochs_of(folder: str) -> float:
    return plan_epochs(
        folder, next(t["trial_id"] for t in plan(folder)["trials"] if t["role"] == "arm")
    )


def test_auto_ends_where_a_decoder_crashed(
    capsys: pytest.CaptureFixture[str], outcomes: Outcomes
) -> None:
    outcomes.status = {"decoder/trm": "failed"}
    outcomes.waiting = True
    assert start("auto", *SMALL) == 1
    assert "has trials that are not done: 4 pending" in capsys.readouterr().out
    assert not Path("runs/phase2").exists()


def test_dry_run_of_what_follows_writes_nothing(
    capsys: pytest.CaptureFixture[str], outcomes: Outcomes
) -> None:
    assert start("phase1", *SMALL) == 0
    capsys.readouterr()
    assert start("next", "runs/phase1", "--dry-run") == 0
    shown = capsys.readouterr().out
    assert "estimated:" in shown and "taken from runs/phase1" in shown
    assert not Path("runs/phase2").exists()
    assert not Path("runs/auto.json").exists()


def test_a_phase_without_its_control_says_so(
    capsys: pytest.CaptureFixture[str], outcomes: Outcomes
) -> None:
    assert start("phase2", *SMALL) == 0
    shown = capsys.readouterr().out.replace("\n", " ")
    assert "the control overfit/E1a is not part of this run" in shown
