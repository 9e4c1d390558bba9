"""Costs and times: what is counted, what is measured, and the estimate against the truth."""

from __future__ import annotations

import io
import json
import subprocess
import sys
from pathlib import Path

import pytest
from rich.console import Console

from etrm_tune import costs, estimate
from etrm_tune.costs import Measured, Shape, TrialCost, dry_costs, makespan
from etrm_tune.estimate import Clock, estimate_line, minutes, show_costs
from etrm_tune.plan import Options, Plan, PlannedTrial
from etrm_tune.resources import Machine, allot
from etrm_tune.run_folder import RunFolder
from tests.trainable.small_trials import puzzle_folder, tiny
from trainable.config import TrialConfig
from trainable.flops import Parameters, Work

MACHINE = Machine(cpus=2)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return puzzle_folder(tmp_path_factory.mktemp("puzzles"))


def planned(trial_id: str, config: TrialConfig, role: str = "arm") -> PlannedTrial:
    return PlannedTrial(trial_id, role, config, trial_id)


def small_plan(folder: Path) -> Plan:
    trials = (
        planned("decoder-trm-s0", tiny(folder, kind="trm", steps=6), "decoder"),
        planned("a-s0", tiny(folder, steps=4)),
        planned("a-s1", tiny(folder, steps=4, seed=1)),
        planned("b-s0", tiny(folder, steps=8, global_batch_size=8)),
    )
    return Plan(Options("phase1", "laptop", "2026-01-21", 1), trials)


def allotments(plan: Plan) -> dict[str, costs.Allotment]:
    return {stage[0].role: allot(MACHINE, trials=len(stage)) for stage in plan.stages}


def test_wall_time_fills_the_slots_stage_by_stage() -> None:
    config = TrialConfig()
    stages = [
        [planned("d0", config, "decoder")],
        [planned(name, config) for name in ("a", "b", "c")],
    ]
    shares = {"decoder": allot(MACHINE, trials=1), "arm": allot(MACHINE, trials=3)}
    assert shares["arm"].concurrent == 2
    seconds = {"d0": 5.0, "a": 10.0, "b": 4.0, "c": 3.0}
    assert makespan(stages, seconds, shares) == 5 + 10
    assert makespan(stages, seconds | {"c": 8.0}, shares) == 5 + 12
    assert makespan(stages, {"c": 8.0}, shares) == 8.0, "what is done takes no time"


def test_shapes_of_equal_cost_are_measured_once(folder: Path) -> None:
    control = Shape(tiny(folder), 1)
    for same in ({"seed": 3}, {"lr": 1e-5}, {"halt_exploration_prob": 0.5}, {"name": "x/y"}):
        assert Shape(tiny(folder).replace(**same), 1).key == control.key
    for other in ({"hidden_size": 64}, {"global_batch_size": 8}, {"freeze_encoder": True}):
        assert Shape(tiny(folder).replace(**other), 1).key != control.key
    assert Shape(tiny(folder), 2).key != control.key
    two = Shape(tiny(folder, pretrained_decoder=True), 2).worker_config()
    assert two["global_batch_size"] == 2 and not two["pretrained_decoder"]


def test_what_was_not_measured_follows_by_operations(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plan = small_plan(folder)
    known = Shape(plan.trials[1].config, 1).key
    monkeypatch.setattr(costs, "measure_shapes", lambda *_: ({known: Measured(2.0, 10**8)}, 1e9))
    found = {cost.trial_id: cost for cost in dry_costs(plan, allotments(plan), done=["a-s1"])}
    assert list(found) == ["decoder-trm-s0", "a-s0", "b-s0"]
    assert found["a-s0"].basis == "measured"
    assert found["a-s0"].measured.step_s == 2.0
    assert found["b-s0"].basis == "as a-s0, by operations"
    ratio = found["b-s0"].work.step / found["a-s0"].work.step
    assert found["b-s0"].measured.step_s == pytest.approx(2.0 * ratio)
    assert 1.5 < ratio < 2.5, "twice the rows"
    expected = costs.TRIAL_START_S + found["a-s0"].work.step_equivalents * 2.0
    assert found["a-s0"].seconds == pytest.approx(expected)
    monkeypatch.setattr(costs, "measure_shapes", lambda *_: ({}, 1e9))
    slow = dry_costs(plan, allotments(plan))[1]
    assert slow.basis == "speed of matrix products"
    assert slow.measured.step_s == pytest.approx(slow.work.step / 5e8)


def test_measuring_process_trains_real_steps(folder: Path) -> None:
    configs = [tiny(folder), tiny(folder, kind="trm")]
    asked = {"seconds": 20, "configs": [c.model_dump(mode="json") for c in configs]}
    done = subprocess.run(
        [sys.executable, "-c", "import etrm_tune.measure as m; m.main()"],
        input=json.dumps(asked | {"seconds": 6}),
        capture_output=True,
        text=True,
        timeout=120,
        check=True,
    )
    lines = [json.loads(line) for line in done.stdout.splitlines()]
    assert lines[0]["product_rate"] > 1e8
    assert 2 <= len(lines) <= 3
    for line in lines[1:]:
        found = Measured(**line)
        assert found.steps >= 1 and 0 < found.step_s < 5
        assert 5e7 < found.memory < 5e9


def test_dry_run_shows_every_trial_and_the_time(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plan = small_plan(folder)
    shares = allotments(plan)
    work = Work(400, 2.5e10, 1e12, Parameters(1_200_000, 300_000))
    found = [
        TrialCost(t.trial_id, t.role, work, Measured(1.0, 4 * 10**8), "measured", 1)
        for t in plan.trials
    ]
    monkeypatch.setattr(estimate, "available_memory", lambda: 5 * 10**8)
    file = io.StringIO()
    console = Console(file=file, width=160, soft_wrap=True)
    show_costs(console, plan, found, shares)
    shown = file.getvalue()
    for text in ("decoder-trm-s0", "b-s0", "1.2 M", "300 k", "25 G", "11 T", "7 min", "400 MB"):
        assert text in shown, shown
    # 448 s each: the decoder, then three arms two at a time
    assert "estimated: 22 min in all (1 decoders at once, 2 arms at once)" in shown
    assert "warning: trials need 800 MB at once, 500 MB are free" in shown


def test_long_names_of_a_dry_run_stay_on_one_line(folder: Path) -> None:
    plan = small_plan(folder)
    name = "debug-E3E5_lpn_var_grad_clip-s0"
    work = Work(1743, 1.88e11, 3e12, Parameters(133_000, 288_000))
    cost = TrialCost(name, "arm", work, Measured(4.1, 75 * 10**7), "measured", 1)
    for width in (100, 140):
        file = io.StringIO()
        show_costs(Console(file=file, width=width), plan, [cost], allotments(plan))
        line = next(line for line in file.getvalue().splitlines() if name in line)
        for told in ("1743", "133 k", "288 k", "331 T", "2 h 00 min", "750 MB"):
            assert told in line, line


def test_the_first_steps_make_the_estimate_and_it_is_kept(folder: Path, tmp_path: Path) -> None:
    plan = small_plan(folder)
    run = RunFolder(tmp_path / "run")
    with run.locked():
        run.write_plan(plan.to_json({"decoder": 1, "arm": 1}))
        clock = Clock(run, plan, allotments(plan))
        clock.begin()
        clock.see("a-s0", {"step": 2, "wall_s": 1.0})
        assert "estimate" not in (run.read_plan() or {}), "too early"
        clock.see("a-s0", {"step": 4, "wall_s": 8.0})
        clock.see("b-s0", {"step": 8, "wall_s": 8.0})
        clock.tick()
        stored = run.read_plan()
        assert stored is not None
        found = stored["estimate"]
        assert found["basis"] == "first 4 steps of a-s0"
        assert found["trials"]["a-s0"]["step_s"] == pytest.approx(2.0)
        assert found["trials"].keys() == {t.trial_id for t in plan.trials}
        assert found["wall_s"] > found["trials"]["b-s0"]["seconds"]

        again = Clock(run, plan, allotments(plan))
        again.begin(done=["a-s0"])
        again.see("b-s0", {"step": 8, "wall_s": 80.0})
        stored = run.read_plan()
    assert stored is not None
    assert stored["estimate"] == found
    assert len(stored["sessions"]) == 2


def test_a_killed_session_counts_until_its_last_row(folder: Path, tmp_path: Path) -> None:
    plan = small_plan(folder)
    run = RunFolder(tmp_path / "run")
    with run.locked():
        run.write_plan(plan.to_json({"arm": 1}) | {"sessions": [[100.0, 100.0]]})
        home = run.trial("a-s0")
        home.mkdir(parents=True)
        lines = [{"kind": "start", "attempt": 1, "resumed_from": 0},
                 {"kind": "row", "step": 3, "time": 160.0}]  # fmt: skip
        (home / "attempt-1.jsonl").write_text("".join(json.dumps(x) + "\n" for x in lines))
        Clock(run, plan, allotments(plan)).begin()
        stored = run.read_plan()
    assert stored is not None
    assert stored["sessions"][0] == [100.0, 160.0]


def test_estimate_against_the_truth() -> None:
    stored = {
        "estimate": {"wall_s": 720.0, "basis": "first 10 steps of a-s0"},
        "sessions": [[0.0, 600.0], [1000.0, 1240.0]],
    }
    assert estimate_line(stored) == (
        "estimated 12 min (first 10 steps of a-s0), took 14 min in 2 sessions"
    )
    assert estimate_line({"sessions": [[0.0, 9.0]]}) == ""
    assert estimate_line(None) == ""
    assert [minutes(s) for s in (40, 720, 12_000)] == ["40 s", "12 min", "3 h 20 min"]
