"""CPUs that a dead trial had reserved come back while the run goes on."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from tests.etrm_tune.test_ray import E1A, E2A, PATIENCE_S, command, environment, status, steps

pytestmark = [pytest.mark.slow, pytest.mark.ray]

GROUPS = """
import json, os, signal, time
import ray
from etrm_tune.reservations import release_orphans

ray.init(num_cpus=4, include_dashboard=False, log_to_driver=False, namespace="test")

@ray.remote(num_cpus=0)
class Holder:
    def hold(self, **options):
        self.group = ray.util.placement_group([{"CPU": 1}], **options)
        assert self.group.wait(60)
        return os.getpid()

own = ray.util.placement_group([{"CPU": 1}])
assert own.wait(60)
living, dead, leaver = Holder.remote(), Holder.remote(), Holder.remote()
ray.get(living.hold.remote())
victims = [ray.get(dead.hold.remote()), ray.get(leaver.hold.remote(lifetime="detached", name="d"))]
before = release_orphans()
for pid in victims:
    os.kill(pid, signal.SIGKILL)
deadline = time.monotonic() + 60
while not (found := release_orphans()) and time.monotonic() < deadline:
    time.sleep(0.1)
while ray.available_resources().get("CPU") != 1.0 and time.monotonic() < deadline:
    time.sleep(0.1)
print("found", json.dumps([before, found, release_orphans(), ray.available_resources().get("CPU")]))
"""


def test_only_groups_of_dead_actors_are_removed() -> None:
    """Not the driver's own, not a living actor's, not a detached one."""
    done = subprocess.run(
        [sys.executable, "-c", GROUPS],
        env=environment(),
        capture_output=True,
        text=True,
        timeout=PATIENCE_S,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    (told,) = [line for line in done.stdout.splitlines() if line.startswith("found ")]
    assert json.loads(told.removeprefix("found ")) == [0, 1, 0, 1.0]


def test_a_trial_that_dies_while_its_workers_start_does_not_hold_up_the_run(
    tmp_path: Path,
) -> None:
    """Its workers' CPU is the only one: without `release_orphans` nothing ever ran again."""
    folder, killed = tmp_path / "run", tmp_path / "killed"
    killed.mkdir()
    trials = {name: {"steps": 5, "step_s": 0.1} for name in (E1A, E2A)}
    hooks = {"RAY_TRAIN_CALLBACKS": "kill_early.KillTrial", "ETRM_KILL_EARLY": str(killed)}
    done = subprocess.run(
        command(folder, trials=trials, cpus=1),
        env=environment() | hooks,
        capture_output=True,
        text=True,
        timeout=PATIENCE_S,
        check=False,
    )
    told = f"{done.stdout}\n{done.stderr}"
    assert len(list(killed.iterdir())) == 1, told
    assert done.returncode == 0, told
    for name in trials:
        assert status(folder, name)["status"] == "finished", told
        assert steps(folder, name) == [1, 2, 3, 4, 5], told
