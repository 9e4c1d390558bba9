"""The command line: plans, refusals, one line each."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from etrm_tune import cli
from etrm_tune import run as run_module


def failing(capsys: pytest.CaptureFixture[str], *words: str) -> str:
    """Run, expect status 2 and exactly one line on stderr; returns it."""
    assert run_module.main(words) == 2
    lines = capsys.readouterr().err.strip().splitlines()
    assert len(lines) == 1
    assert lines[0].startswith("error: ")
    return lines[0]


@pytest.mark.parametrize(
    ("words", "hint"),
    [
        (["phse1"], "did you mean 'phase1'"),
        (["overfit/E2x"], "did you mean 'overfit/E2"),
        (["phase1", "--seds", "2"], "did you mean '--seeds'"),
        (["phase1", "--set", "halt_exploration_pro=0.3"], "halt_exploration_prob"),
        (["phase1", "--set", "lr"], "--set option=value"),
        (["phase1", "--set", "lr=fast"], "lr"),
        (["phase1", "--profile", "laptp"], "did you mean 'laptop'"),
        (["phase1", "--revision", "2026-01-20"], "2026-01-21"),
        (["phase1", "--scheduler", "asha"], "bar, none"),
        (["phase1", "--seeds", "0"], "1 or more"),
        (["phase1", "--seeds", "two"], "invalid int value"),
        (["phase1", "--name", "../x"], "without '/'"),
        ([], "required"),
    ],
)
def test_misspelt_words_are_one_line(
    capsys: pytest.CaptureFixture[str], words: list[str], hint: str
) -> None:
    assert hint in failing(capsys, *words)


@pytest.mark.parametrize(
    ("words", "hint"),
    [
        (["--data", "missing"], "missing"),
        (["--decoder", "missing.pt"], "missing.pt"),
        (["--workers", "1000"], "--workers"),
        (["--concurrent", "1000"], "--concurrent"),
        (["--profile", "paper"], "--data FOLDER"),
        (["--set", "halt_exploration_prob=0.4"], "--allow halt_exploration_prob"),
    ],
)
def test_what_cannot_run_is_refused_before_anything_is_written(
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    words: list[str],
    hint: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    assert hint in failing(capsys, "phase1", "--dry-run", *words)
    assert list(tmp_path.iterdir()) == []


def test_dry_run_shows_the_trials_and_writes_nothing(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert run_module.main(["phase1", "--dry-run", "--profile", "laptop"]) == 0
    shown = capsys.readouterr().out
    for trial in ("decoder-trm-s0", *(f"overfit-{e}-s0" for e in ("E1a", "E2a", "E2b", "E2c"))):
        assert trial in shown
    assert list(tmp_path.iterdir()) == []


def test_allowed_difference_passes(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    words = ["overfit/E1a", "--dry-run", "--set", "halt_exploration_prob=0.4"]
    assert run_module.main([*words, "--allow", "halt_exploration_prob"]) == 0
    out = capsys.readouterr().out
    assert "allowed in spite of a critical difference" in out and "must be 0.1" in out


def test_an_allowed_difference_is_recorded_and_a_rerun_takes_it_from_the_plan(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import analysis
    from analysis.derived import decisions_json
    from etrm_tune.command import How, prepare, write_plan
    from etrm_tune.plan import Options
    from etrm_tune.preflight import Files
    from etrm_tune.run_folder import RunFolder

    monkeypatch.chdir(tmp_path)
    field, files = "halt_exploration_prob", Files()
    options = Options("overfit/E1a", "laptop", settings={field: 0.4})
    for name, asked, allow in (
        ("mine", options, (field,)),
        ("none", Options("overfit/E1a", "laptop"), ()),
    ):
        folder = RunFolder(f"runs/{name}")
        with folder.locked():
            write_plan(folder, prepare(asked, folder, How(allow=allow), files))
    (one,) = json.loads(Path("runs/mine/plan.json").read_text())["accepted"]
    assert (one["field"], one["value"], one["reference"]) == (field, 0.4, 0.1)
    assert one["trials"] == ["overfit-E1a-s0"] and one["why"].startswith("must be 0.1")
    assert json.loads(Path("runs/none/plan.json").read_text())["accepted"] == []

    assert run_module.main(["overfit/E1a", "--name", "mine", "--dry-run"]) == 0
    assert "allowed in spite of" in capsys.readouterr().out
    child = Options(
        "overfit/E1a", "laptop", "2026-01-21", 1, settings={field: 0.4}, parent="../mine"
    )
    found = prepare(child, RunFolder("runs/child"), How(), files)
    assert field in [note.option for _, note in found.notes]
    assert "--allow" in failing(capsys, "overfit/E1a", "--set", f"{field}=0.4", "--dry-run")

    run = analysis.load(Path("runs/mine"))
    told = f"allowed in spite of a critical difference: {field} 0.4, reference 0.1 (overfit-E1a-s0)"
    assert told in " ".join(analysis.summary_text(run).split())
    assert json.loads(decisions_json(run, analysis.decide(run)))["accepted"] == [one]
    assert "in spite of" not in analysis.summary_text(analysis.load(Path("runs/none")))


@pytest.mark.parametrize("columns", [None, 80])
def test_a_piped_dry_run_is_readable(
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    columns: int | None,
) -> None:
    """No line is longer than the pipe is wide, and no number or name is cut."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("COLUMNS", raising=False)
    if columns is not None:
        monkeypatch.setenv("COLUMNS", str(columns))
    words = ["debug/E4_lower_lr,overfit/E2b", "--set", "max_train_groups=4", "--dry-run"]
    assert run_module.main([*words, "--profile", "laptop"]) == 0
    lines = [line.rstrip() for line in capsys.readouterr().out.splitlines()]
    assert max(map(len, lines)) <= (columns or 100)
    assert "…" not in "".join(lines)
    for trial in ("decoder-trm-s0", "overfit-E2b-s0", "debug-E4_lower_lr-s0"):
        table, *costs = [line.split() for line in lines if line.startswith(f"  {trial} ")]
        assert len(table) > 5
        for cells in costs:  # in 80 columns a long name takes two lines here
            assert table[3] == cells[1], "steps"
            assert len(cells) >= 8
        assert costs or columns == 80


def test_rerun_takes_the_plan_and_refuses_another(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from etrm_tune.command import How, prepare, write_plan
    from etrm_tune.plan import Options
    from etrm_tune.preflight import Files
    from etrm_tune.run_folder import RunFolder

    monkeypatch.chdir(tmp_path)
    folder = RunFolder("runs/overfit-E1a")
    options = Options("overfit/E1a", "laptop", seeds=2, settings={"lr": 3e-4})
    with folder.locked():
        write_plan(folder, prepare(options, folder, How(), Files()))
    plan = json.loads((folder.path / "plan.json").read_text())
    assert (plan["profile"], plan["revision"]) == ("laptop", "2026-01-21")
    assert [t["trial_id"] for t in plan["trials"]] == [
        "decoder-trm-s0",
        "decoder-trm-s1",
        "overfit-E1a-s0",
        "overfit-E1a-s1",
    ]
    assert plan["num_threads"].keys() == {"decoder", "arm"}
    config = folder.read_config("overfit-E1a-s1")
    assert config is not None
    assert config["config"]["lr"] == 3e-4
    assert config["config"]["decoder_ref"] == plan["trials"][1]["identity"]
    assert config["provenance"]["lr"].startswith("command line")

    assert run_module.main(["overfit/E1a", "--dry-run"]) == 0
    assert "2 seeds" in capsys.readouterr().out
    line = failing(capsys, "overfit/E1a", "--seeds", "3")
    assert "--seeds 2, not 3" in line
    assert "--name" in line
    assert "workstation" in failing(capsys, "overfit/E1a", "--profile", "workstation")
    assert "settings" in failing(capsys, "overfit/E1a", "--set", "lr=1e-3")
    assert "phase1" in failing(capsys, "phase1", "--name", "overfit-E1a")

    plan["trials"][2]["identity"] = "another"
    (folder.path / "plan.json").write_text(json.dumps(plan))
    assert "another configuration" in failing(capsys, "overfit/E1a")


def test_threads_and_workers_come_from_the_plan(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from etrm_tune.command import How, prepare, write_plan
    from etrm_tune.plan import Options
    from etrm_tune.preflight import Files
    from etrm_tune.resources import Machine
    from etrm_tune.run_folder import RunFolder

    monkeypatch.chdir(tmp_path)
    folder = RunFolder("runs/phase1")
    monkeypatch.setattr("etrm_tune.command.this_machine", lambda: Machine(4))
    with folder.locked():
        write_plan(folder, prepare(Options("phase1", "laptop"), folder, How(), Files()))
    monkeypatch.setattr("etrm_tune.command.this_machine", lambda: Machine(16))
    again = prepare(Options("phase1"), folder, How(), Files())
    assert again.threads == {"decoder": 1, "arm": 1}
    assert again.workers == {"decoder": 4, "arm": 1}  # a lone trial is spread over the CPUs
    assert again.plan.trials[0].config.num_threads == 1
    monkeypatch.setattr("etrm_tune.command.this_machine", lambda: Machine(2))
    assert "needs 4 CPUs" in failing(capsys, "phase1")


def test_list_show_and_status(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    assert cli.main(["list"]) == 0
    assert "overfit/E2b" in capsys.readouterr().out
    assert cli.main(["show", "overfit/E2b"]) == 0
    assert "lpn_variational" in capsys.readouterr().out
    assert cli.main(["show", "overfit/E2bb"]) == 2
    assert "did you mean 'overfit/E2b'" in capsys.readouterr().err
    assert cli.main(["status", str(tmp_path)]) == 2
    assert "runs/phase1" in capsys.readouterr().err
    assert cli.main(["lst"]) == 2
    assert capsys.readouterr().err.count("\n") == 1


def test_unexpected_errors_are_one_line_and_a_traceback_in_the_log(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*_: object, **__: object) -> int:
        folder = tmp_path / "runs" / "phase1"
        folder.mkdir(parents=True)
        raise RuntimeError("a bug\nwith details")

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("etrm_tune.command.run", broken)
    assert run_module.main(["phase1"]) == 1
    line = capsys.readouterr().err
    assert line.count("\n") == 1
    assert "RuntimeError: a bug" in line
    assert "with details" in (tmp_path / "runs/phase1/run.log").read_text()


def test_a_batch_job_is_continued_by_submitting_it_again(monkeypatch: pytest.MonkeyPatch) -> None:
    words = ("phase1", "--address", "10.0.0.1:20005", "--runs", "/shared/my runs")
    assert cli.run_again(*words) == ("python", "-m", "etrm_tune.run", *words)
    monkeypatch.setenv("ETRM_TUNE_COMMAND", "sbatch --nodes=2 deploy/slurm.sh")
    submit = ("sbatch", "--nodes=2", "deploy/slurm.sh")
    assert cli.run_again(*words) == (*submit, "phase1", "--runs", "/shared/my runs")
    assert cli.run_again("phase1", "--address=auto") == (*submit, "phase1")
