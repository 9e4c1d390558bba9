"""Population-based training: judged as a pure function, run with real trials and no Ray."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest

from etrm_tune.plan import PlannedTrial
from etrm_tune.population import (
    FACTORS,
    Judged,
    Member,
    Population,
    check_population,
    copy_lines,
    judge,
    label,
    milestones,
)
from etrm_tune.run_folder import FINAL, RunFolder
from search_spaces import space
from tests.trainable.small_trials import comparable_rows, puzzle_folder, rows_of, tiny
from trainable.config import TrialConfig
from trainable.errors import ConfigError
from trainable.loop import train

WIDE = (1e-9, 1e9)


def judged(*values: float, diverged: tuple[int, ...] = (), draw: str = "0") -> list[Judged]:
    members = [
        Member(f"t{at}", value, rate=1.0 + at, diverged=at in diverged)
        for at, value in enumerate(values)
    ]
    return judge(members, step=10, draw=draw, limits=WIDE)


def test_the_last_quarter_copies_one_of_the_first() -> None:
    found = judged(0.1, 0.5, 0.9, 0.6, 0.2, 0.7, 0.8, 0.3)
    assert [one.parent is not None for one in found] == [
        True, False, False, False, True, False, False, False,
    ]  # fmt: skip
    first = found[0]
    assert first.parent in ("t2", "t6")
    rate = 1.0 + int(first.parent[1])
    assert first.factor in [pytest.approx(rate * factor) for factor in FACTORS]
    assert first.reason.startswith("pbt: 10.0 %, place 8 of 8: copies ")
    assert f"at step 10, rate 1 → {rate * FACTORS[0]:.3g}" in first.reason or (
        f"at step 10, rate 1 → {rate * FACTORS[1]:.3g}" in first.reason
    )
    assert found[2].reason == "pbt: 90.0 %, place 1 of 8: goes on"
    assert found[2].factor == 1.0


def test_a_judgement_depends_on_its_arguments_alone() -> None:
    values = (0.1, 0.5, 0.9, 0.6, 0.2, 0.7, 0.8, 0.3)
    assert judged(*values) == judged(*values)
    assert any(judged(*values) != judged(*values, draw=str(n)) for n in range(1, 6))


def test_nobody_copies_an_equal_or_what_was_not_measured() -> None:
    nan = math.nan
    for values in ((0.5, 0.5, 0.5, 0.5), (nan, nan, nan, nan), (0.3,)):
        assert all(one.parent is None for one in judged(*values))
    assert judged(nan, nan)[0].reason == "pbt: nothing was measured on this rung: goes on"
    found = judged(nan, 0.2, nan, 0.1)
    assert [one.parent for one in found] == [None, None, "t1", None]
    assert "not a number, place 4 of 4" in found[2].reason


def test_every_member_that_diverged_copies() -> None:
    found = judged(math.nan, math.nan, math.nan, 0.4, diverged=(0, 1))
    assert [one.parent for one in found] == ["t3", "t3", "t3", None]
    assert "diverged, not a number" in found[0].reason
    assert "diverged" not in found[2].reason


def test_rates_stay_within_the_space() -> None:
    members = [Member("a", 0.9, 1.0), Member("b", 0.1, 2.0)]
    found = judge(members, step=1, draw="", limits=(0.99, 1.01))
    assert found[1].factor * 2.0 in (pytest.approx(0.99), pytest.approx(1.01))


@pytest.mark.parametrize(
    ("total", "every", "found"),
    [(90, 5, [15, 30, 45, 60, 75]), (12, 1, [2, 4, 6, 8, 10]), (7, 5, [5]), (4, 5, [])],
)
def test_members_are_judged_at_reports(total: int, every: int, found: list[int]) -> None:
    assert milestones(total, every) == found


def test_only_rates_adapt() -> None:
    check_population(space("lr"), 2)
    with pytest.raises(ConfigError, match="halt_max_steps would differ between them: use --space"):
        check_population(space("halting,lr"), 8)
    with pytest.raises(ConfigError, match="2 members or more"):
        check_population(space("lr"), 1)


def test_identity_holds_the_population_and_found_schedules_but_not_a_members_factors() -> None:
    plain = TrialConfig()
    told = plain.replace(population=label([{"lr": 1e-4}], 0))
    assert told.identity() != plain.identity()
    assert told.replace(lr_factors=((5, 2.0),)).identity() == told.identity()
    assert plain.replace(lr_factors=((5, 2.0),)).identity() != plain.identity()
    assert label([{"lr": 1e-4}], 0) != label([{"lr": 2e-4}], 0)


# With trials.


class Killed(Exception):
    """In place of a signal."""


def members(folder: RunFolder, data: Path, rates: tuple[float, ...]) -> list[PlannedTrial]:
    planned = []
    for at, rate in enumerate(rates):
        config = tiny(
            data, steps=12, lr=rate, halt_max_steps=1, population="test", name=f"x/m{at}",
            checkpoint_interval=100,
        )  # fmt: skip
        trial = PlannedTrial(f"x-m{at}-s0", "arm", config, "")
        folder.trial(trial.trial_id).mkdir(parents=True, exist_ok=True)
        planned.append(trial)
    return planned


def run(
    path: Path, data: Path, rates: tuple[float, ...], *, kill_at: int = -1
) -> tuple[Population, RunFolder]:
    """A population to its end, as the conductor runs it; or to its n-th report."""
    folder = RunFolder(path)
    planned = members(folder, data, rates)
    stored = path / "population.json"
    rounds = json.loads(stored.read_text()) if stored.exists() else []
    population = Population(folder, 7, 12, WIDE, lambda: None, rounds, planned)
    population.save = lambda: stored.write_text(json.dumps(population.rounds)) and None
    statuses = {t.trial_id: str(folder.read_status(t.trial_id)["status"]) for t in planned}
    reports = 0

    def report(row: dict[str, Any]) -> bool:
        nonlocal reports
        reports += 1
        if reports == kill_at:
            raise Killed
        return False

    population.members = [
        PlannedTrial(**(vars(t) | {"identity": _identity(t.config)})) for t in planned
    ]
    while waiting := population.advance(statuses):
        for trial in population.members:
            if trial.trial_id in waiting and statuses[trial.trial_id] not in FINAL:
                config, until = population.task(trial)
                done = train(
                    config, out_dir=folder.trial(trial.trial_id), report=report, until=until,
                    resume_from="auto", progress=False,
                )  # fmt: skip
                status = "interrupted" if done.status == "paused" else done.status
                statuses[trial.trial_id] = status
                folder.write_status(trial.trial_id, status)
    return population, folder


def _identity(config: TrialConfig) -> str:
    from trainable.data import ArcData

    return config.identity(data_hash=ArcData.from_config(config).data_hash)


RATES = (1e-3, 3e-4, 3e-3, 1e-5)


def test_a_population_trains_copies_and_tells(
    undisturbed: tuple[Population, RunFolder, Path],
) -> None:
    population, folder, _ = undisturbed
    assert [one["step"] for one in population.rounds] == [2, 4, 6, 8, 10]
    copies = [
        (one["step"], m["trial_id"], m["parent"], m["factor"])
        for one in population.rounds for m in one["members"] if m["parent"]
    ]  # fmt: skip
    assert copies, population.rounds
    step, child, parent, factor = copies[0]
    base = dict(zip([t.trial_id for t in population.members], RATES, strict=True))
    # The rate that followed, in the rows; and whose state it is, in the attempt's first line.
    rows = {row["step"]: row for row in rows_of(folder.trial(child))}
    assert sorted(rows) == list(range(1, 13))
    assert rows[step + 1]["population/factor"] == pytest.approx(factor)
    assert rows[step + 1]["train/lr"] == pytest.approx(base[child] * factor)
    assert rows[step]["population/copies"] == 0
    assert rows[step + 1]["population/copies"] >= 1
    starts = [
        json.loads(path.read_text().splitlines()[0])
        for path in sorted(folder.trial(child).glob("attempt-*.jsonl"))
    ]
    assert [s for s in starts if s.get("lineage", [{}])[-1] == {"trial_id": parent, "step": step}]
    # One line per member and rung, with its reason.
    told = [
        json.loads(line)
        for line in (folder.trial(child) / "scheduler.jsonl").read_text().splitlines()
    ]
    assert [one["step"] for one in told] == [2, 4, 6, 8, 10]
    assert f"copies {parent}" in told[population.milestones.index(step)]["reason"]
    assert any(
        child in line and f"copies {parent}" in line for line in copy_lines(population.rounds)
    )
    # What a member's weights have been through: the parent's rate, then its own new one.
    schedule = population.schedule(child)
    assert schedule[0][0] == 0
    assert [since for since, _, _ in schedule] == sorted(since for since, _, _ in schedule)


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> tuple[Population, RunFolder, Path]:
    folder = tmp_path_factory.mktemp("undisturbed")
    data = puzzle_folder(folder / "data")
    return (*run(folder / "whole", data, RATES), data)


@pytest.mark.slow
@pytest.mark.parametrize("kill_at", [1, 9, 22, 40])
def test_a_population_that_is_killed_goes_on_bit_for_bit(
    tmp_path: Path, undisturbed: tuple[Population, RunFolder, Path], kill_at: int
) -> None:
    whole, folder, data = undisturbed
    with pytest.raises(Killed):
        run(tmp_path / "cut", data, RATES, kill_at=kill_at)
    again, other = run(tmp_path / "cut", data, RATES)
    assert again.rounds == whole.rounds
    for trial in whole.members:
        mine, theirs = folder.trial(trial.trial_id), other.trial(trial.trial_id)
        assert comparable_rows(mine) == comparable_rows(theirs)


@pytest.mark.slow
def test_killed_between_a_judgement_and_its_copies(
    tmp_path: Path,
    undisturbed: tuple[Population, RunFolder, Path],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    whole, _, data = undisturbed

    def killed(*_: Any, **__: Any) -> None:
        raise Killed

    with monkeypatch.context() as patched, pytest.raises(Killed):
        patched.setattr("etrm_tune.population.inherit", killed)
        run(tmp_path / "cut", data, RATES)
    again, _ = run(tmp_path / "cut", data, RATES)
    assert again.rounds == whole.rounds


def test_a_member_that_diverged_lives_on_as_a_copy(tmp_path: Path) -> None:
    data = puzzle_folder(tmp_path / "data")
    population, folder = run(tmp_path / "run", data, (1e-3, 1e-4, 1e30))
    first = population.rounds[0]["members"]
    assert first[2]["parent"] is not None
    assert "diverged" in first[2]["reason"]
    assert folder.read_status("x-m2-s0")["status"] == "finished"
    steps = [row["step"] for row in rows_of(folder.trial("x-m2-s0"))]
    assert steps == sorted(set(steps))
    assert steps[-1] == 12
