"""The machine's division: as many at once as fit, never more."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from etrm_tune.resources import (
    Machine,
    ResourceError,
    allot,
    gpu_request,
    share_of,
    this_machine,
)


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


def test_more_at_once_than_there_are_trials_is_no_error() -> None:
    assert allot(Machine(2), trials=1, concurrent=2).concurrent == 1


@settings(max_examples=1000)
@given(
    cpus=st.integers(1, 64),
    gpus=st.integers(0, 9),
    trials=st.integers(1, 40),
    workers=st.integers(1, 8),
    threads=st.none() | st.integers(1, 8),
    concurrent=st.none() | st.integers(1, 40),
    sharing=st.integers(1, 9),
    per_trial=st.none() | st.floats(1e-4, 1.0) | st.integers(1, 8),
    use_gpu=st.booleans(),
    memory=st.integers(0, 10**11),
    room=st.none() | st.integers(10**9, 10**11),
)
def test_no_setting_can_deadlock(
    cpus: int, gpus: int, trials: int, workers: int, threads: int | None, concurrent: int | None,
    sharing: int, per_trial: float | None, use_gpu: bool, memory: int, room: int | None,
) -> None:  # fmt: skip
    """Every trial that is admitted has its driver and its whole group of workers, at once with all
    others: nobody waits for anybody. What cannot be placed is refused."""
    share = 1.0
    if use_gpu and per_trial is not None:
        asked, share = gpu_request(per_trial, None)
        workers = asked or 1
    elif use_gpu and workers == 1:
        share = share_of(sharing)
    machine = Machine(cpus, gpus, room)
    try:
        got = allot(
            machine, trials=trials, workers=workers, threads=threads, concurrent=concurrent,
            use_gpu=use_gpu, gpus_per_worker=share, memory=memory,
        )  # fmt: skip
    except ResourceError:
        fits = cpus // (workers * (threads or 1))
        if use_gpu:
            fits = min(fits, gpus // workers * int(1 / share + 1e-9))
        assert fits < (concurrent or 1)
        return
    worker = got.worker_resources
    group = got.driver_resources["CPU"] + got.workers * worker["CPU"]
    assert got.concurrent * group <= cpus + 1e-9
    assert 1 <= got.concurrent <= trials
    assert got.threads >= (threads or 1)
    if use_gpu:
        # Ray places a share on a single GPU, in whole ten-thousandths of it.
        unit = round(worker["GPU"] * 10_000)
        assert abs(worker["GPU"] * 10_000 - unit) < 1e-6
        assert -(-got.concurrent * got.workers // (10_000 // unit)) <= gpus
    else:
        assert "GPU" not in worker
    if concurrent is not None:
        assert got.concurrent == min(concurrent, trials)


@given(count=st.integers(1, 200))
def test_shares_add_up_to_a_gpu_at_most(count: int) -> None:
    assert count * round(share_of(count) * 10_000) <= 10_000


def test_this_machine_has_a_cpu() -> None:
    assert this_machine().cpus >= 1
