"""The machine's division: as many at once as fit, never more."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from etrm_tune.resources import DRIVER_CPUS, Machine, ResourceError, allot, this_machine


def test_four_arms_on_two_cores_run_two_at_once_with_one_thread() -> None:
    allotment = allot(Machine(2), trials=4)
    assert (allotment.concurrent, allotment.threads) == (2, 1)
    assert allotment.worker_resources == {"CPU": 0.99}


def test_one_trial_alone_gets_every_core() -> None:
    assert allot(Machine(2), trials=1).threads == 2


def test_threads_of_a_begun_run_do_not_change() -> None:
    allotment = allot(Machine(8), trials=1, threads=2)
    assert (allotment.threads, allotment.concurrent) == (2, 1)


def test_gpus_bound_the_trials_at_once() -> None:
    allotment = allot(Machine(cpus=32, gpus=2), trials=4, use_gpu=True)
    assert (allotment.concurrent, allotment.threads) == (2, 8)
    assert allotment.worker_resources["GPU"] == 1.0


@pytest.mark.parametrize(
    ("machine", "asked", "fix"),
    [
        (Machine(2), {"workers": 4}, "--workers 2"),
        (Machine(1), {"threads": 2}, "larger machine"),
        (Machine(2), {"concurrent": 3}, "--concurrent 2"),
        (Machine(8, 1), {"workers": 2, "use_gpu": True}, "--workers 1"),
    ],
)
def test_too_little_is_refused_with_a_fix(
    machine: Machine, asked: dict[str, int], fix: str
) -> None:
    with pytest.raises(ResourceError, match=fix):
        allot(machine, trials=4, **asked)  # type: ignore[arg-type]


@given(
    cpus=st.integers(1, 64),
    trials=st.integers(1, 20),
    workers=st.integers(1, 8),
    threads=st.none() | st.integers(1, 8),
)
def test_whole_groups_never_exceed_the_machine(
    cpus: int, trials: int, workers: int, threads: int | None
) -> None:
    try:
        got = allot(Machine(cpus), trials=trials, workers=workers, threads=threads)
    except ResourceError:
        assert workers * (threads or 1) > cpus
        return
    group = DRIVER_CPUS + workers * got.worker_resources["CPU"]
    assert got.concurrent * group <= cpus + 1e-9
    assert 1 <= got.concurrent <= trials


def test_this_machine_has_a_cpu() -> None:
    assert this_machine().cpus >= 1
