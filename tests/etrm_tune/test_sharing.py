"""Whether trials share a GPU: measured with processes that only pretend to train, then decided."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from etrm_tune import division
from etrm_tune.command import How
from etrm_tune.division import Measure, divide
from etrm_tune.plan import Options, Plan, PlannedTrial, complete, make_plan
from etrm_tune.preflight import Files
from etrm_tune.resources import Machine, ResourceError, choose_sharing, gpu_request
from etrm_tune.sharing import CONTEXT_BYTES, Sharing, measure_sharing
from tests.trainable.small_trials import puzzle_folder, tiny

FAKE = """
import json, sys
asked = json.loads(sys.stdin.readline())["config"]
import fcntl
with open(asked["file"], "a+") as file:
    fcntl.flock(file, fcntl.LOCK_EX)
    file.seek(0)
    number = len(file.readlines())
    file.write("started\\n")
if number >= asked["fit"]:
    print(json.dumps({"error": "out of GPU memory"}), flush=True)
    sys.exit()
print(json.dumps({"ready": True, "device": "Fake GPU", "gpu_memory": 1000,
                  "total_memory": 80 * 2**30}), flush=True)
for line in sys.stdin:
    print("noise", flush=True)
    print(json.dumps({"rows": 40, "seconds": json.loads(line)["seconds"]}), flush=True)
"""


def fake(tmp_path: Path, *, fit: int) -> Sharing:
    program = tmp_path / "fake.py"
    program.write_text(FAKE)
    return measure_sharing(
        {"file": str(tmp_path / "count"), "fit": fit},
        seconds=4.0, rounds=2, start_s=20, command=(sys.executable, str(program)),
    )  # fmt: skip


def test_rates_are_of_all_trials_together(tmp_path: Path) -> None:
    found = fake(tmp_path, fit=4)
    assert found.rates == {1: 10.0, 2: 20.0, 4: 40.0}
    assert found.device == "Fake GPU"
    assert found.gpu_memory == 1000 + CONTEXT_BYTES
    assert Sharing.from_json(found.to_json()) == found


def test_what_does_not_fit_is_left_out_and_told(tmp_path: Path) -> None:
    found = fake(tmp_path, fit=3)
    assert list(found.rates) == [1, 2]
    assert found.problem == "out of GPU memory"


def test_nothing_that_can_train_says_why(tmp_path: Path) -> None:
    broken = measure_sharing(
        {}, counts=(1,), start_s=20, command=(sys.executable, "-c", "raise OSError('no driver')")
    )
    assert (broken.device, broken.rates) == ("", {})
    assert broken.problem == "OSError: no driver"
    assert choose_sharing(broken) == 1


@pytest.mark.parametrize(
    ("rates", "count"),
    [
        ({1: 100.0, 2: 180.0, 4: 300.0}, 4),
        ({1: 100.0, 2: 180.0, 4: 190.0}, 2),  # 4 give less than a tenth more
        ({1: 100.0, 2: 104.0, 4: 109.0}, 1),
        ({1: 100.0, 2: 104.0, 4: 120.0}, 4),
        ({1: 100.0, 2: 90.0}, 1),
        ({1: 746.0, 2: 1_320.0, 4: 1_530.0}, 4),  # workstation profile on an H200 (docs/log.md)
        ({1: 1_140.0, 2: 1_190.0}, 1),  # paper profile on it
        ({}, 1),
    ],
)
def test_sharing_must_pay(rates: dict[int, float], count: int) -> None:
    assert choose_sharing(Sharing("Fake GPU", rates)) == count


def test_sharing_must_fit() -> None:
    rates = {1: 100.0, 2: 190.0, 4: 380.0}
    assert choose_sharing(Sharing("Fake GPU", rates, gpu_memory=20, total_memory=80)) == 2
    assert choose_sharing(Sharing("Fake GPU", rates), most=3) == 2


@pytest.mark.slow
def test_a_real_trial_is_measured_in_a_process_of_its_own(tmp_path: Path) -> None:
    config = tiny(puzzle_folder(tmp_path / "data")).model_dump(mode="json")
    from etrm_tune.costs import worker_environment

    found = measure_sharing(
        config, counts=(1,), seconds=0.05, rounds=1, environment=worker_environment(1)
    )
    assert found.rates[1] > 0, found.problem
    assert found.device


# A plan's share.


@pytest.fixture(scope="module")
def plan() -> Plan:
    options = complete(Options("phase1", "workstation", seeds=2), gpus=1)
    return make_plan(options, Files())


class Measured:
    """In place of a GPU: gives these rates, and remembers what it was asked."""

    def __init__(self, rates: dict[int, float]) -> None:
        self.rates, self.asked = rates, list[tuple[str, int, tuple[int, ...]]]()

    def __call__(self, trial: PlannedTrial, threads: int, counts: Sequence[int]) -> Sharing:
        self.asked.append((trial.role, threads, tuple(counts)))
        return Sharing("Fake GPU", {n: r for n, r in self.rates.items() if n in counts})


def test_trials_share_a_gpu_where_that_was_measured_to_be_faster(plan: Plan) -> None:
    machine = Machine(cpus=16, gpus=1, gpu_memory=80 * 10**9)
    gpu = Measured({1: 100.0, 2: 180.0, 4: 300.0})
    measure = Measure(None, gpu)
    got = divide(plan, machine, How(), None, measure=measure)
    arms = got["arm"]
    assert (arms.concurrent, arms.workers, arms.threads) == (4, 1, 4)
    assert arms.worker_resources["GPU"] == 0.25
    assert "rows/s measured" in str(arms)
    assert gpu.asked == [("decoder", 1, (1, 2)), ("arm", 1, (1, 2, 4))]
    # What was measured stands in plan.json: a rerun takes it from there.
    stored = {"sharing": measure.found, "num_threads": {"arm": 4, "decoder": 8}}
    again = Measure(stored, gpu)
    assert divide(plan, machine, How(), stored, measure=again)["arm"] == arms
    assert len(gpu.asked) == 2


def test_sharing_that_does_not_pay_is_not_done(plan: Plan) -> None:
    machine = Machine(cpus=16, gpus=2)
    got = divide(plan, machine, How(), None, measure=Measure(None, Measured({1: 100, 2: 105})))
    assert (got["arm"].concurrent, got["arm"].gpus_per_worker) == (2, 1.0)


def test_what_is_typed_wins_and_nothing_is_measured(plan: Plan) -> None:
    gpu = Measured({1: 100.0, 2: 180.0, 4: 300.0})
    machine = Machine(cpus=16, gpus=2)

    def typed(**how: Any) -> Any:
        return divide(plan, machine, How(**how), None, measure=Measure(None, gpu))["arm"]

    assert typed(gpus_per_trial=0.5).concurrent == 4
    assert typed(gpus_per_trial=0.3).worker_resources["GPU"] == 0.3
    assert typed(gpus_per_trial=0.3).concurrent == 6
    assert (typed(gpus_per_trial=2).workers, typed(gpus_per_trial=2).concurrent) == (2, 1)
    assert not typed(gpus_per_trial=0).use_gpu
    assert typed(concurrent=2).gpus_per_worker == 1.0
    assert gpu.asked == [], "a GPU for each trial needs no measurement"


@pytest.mark.parametrize(
    ("per_trial", "workers", "hint"),
    [
        (-1, None, "give 0"),
        (1.5, None, "whole number, or a share below 1"),
        (0.5, 2, "cannot share a GPU; give --gpus-per-trial 2"),
        (2, 4, "leave one of them out"),
        (1e-6, None, "steps of 0.0001"),
    ],
)
def test_shares_that_cannot_be_placed(per_trial: float, workers: int | None, hint: str) -> None:
    with pytest.raises(ResourceError, match=hint):
        gpu_request(per_trial, workers)


def test_a_share_without_a_gpu_is_refused(plan: Plan) -> None:
    with pytest.raises(ResourceError, match="this machine has none"):
        divide(plan, Machine(cpus=2), How(gpus_per_trial=0.5), None)
    with pytest.raises(ResourceError, match="4 workers need 4 GPUs, this machine has 2"):
        divide(plan, Machine(cpus=16, gpus=2), How(gpus_per_trial=4), None)


# Memory.


def test_memory_decides_how_many_gpus_a_trial_has_and_how_many_run_at_once(plan: Plan) -> None:
    from etrm_tune import memory

    arms = [t.config for t in plan.trials if t.role == "arm"]
    one = max(memory.on_gpu(config) for config in arms)
    two = max(memory.on_gpu(config, workers=2) for config in arms)
    assert two < one
    small = Machine(cpus=16, gpus=4, gpu_memory=int(0.5 * (one + two) / 0.9))
    got = divide(plan, small, How(), None)["arm"]
    assert (got.workers, got.concurrent) == (2, 2)
    assert "GPUs each for its memory" in str(got)

    host = Machine(cpus=16, gpus=4, memory=6 * 10**9)
    got = divide(plan, host, How(), None)["arm"]
    assert got.concurrent == 2, "two and a half gigabytes each"
    assert "memory: 2.5 GB each of 6.0 GB" in str(got)


def test_parameters_that_do_not_fit_are_refused_at_once(plan: Plan) -> None:
    with pytest.raises(ResourceError, match="for its parameters alone"):
        divide(plan, Machine(cpus=16, gpus=1, gpu_memory=10**7), How(), None)
    with pytest.raises(ResourceError, match="for its parameters alone"):
        divide(plan, Machine(cpus=16, memory=10**7), How(), None)


def test_the_memory_estimate_is_of_the_size_that_is_measured(tmp_path: Path) -> None:
    """What a step keeps for its backward pass, counted by torch, against the formula."""
    import torch

    from etrm_tune import memory
    from trainable.trial import Trial

    folder = puzzle_folder(tmp_path / "data")
    config = tiny(folder, hidden_size=64, canvas="full", global_batch_size=4, L_layers=2)
    trial = Trial(config, tmp_path)
    kept: dict[int, int] = {}

    def pack(tensor: torch.Tensor) -> torch.Tensor:
        kept[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        trial.train_step()
    found = memory.tensors(config)
    estimate = found.estimate - found.certain
    assert sum(kept.values()) / 3 < estimate < 6 * sum(kept.values())


def test_a_measurement_says_what_it_does(
    plan: Plan, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    seen: dict[str, Any] = {}
    monkeypatch.setattr(
        "etrm_tune.sharing.measure_sharing", lambda c, **k: seen.update(c, **k) or Sharing("", {})
    )
    division.measure_here(plan.trials[-1], 2, (1, 2))
    assert "whether up to 2 trials" in capsys.readouterr().out
    assert seen["num_threads"] == 2
    assert seen["pretrained_decoder"] is False
