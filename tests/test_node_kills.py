"""A node of a cluster dies while it trains: its trials go on elsewhere, bit for bit."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

import analysis
from etrm_tune.run_folder import RunFolder
from tests.etrm_tune.test_ray import alive, descendants
from tests.test_random_kills import PATIENCE_S, ROOT, SETTINGS, check_kept, curves, puzzles, title
from trainable.ray_adapter import ray_environment

__all__ = ["puzzles"]  # a fixture

pytestmark = [
    pytest.mark.slow,
    pytest.mark.ray,
    pytest.mark.timeout(3 * PATIENCE_S),
]

WORDS = ["overfit/E4a,debug/E3_lpn_var", "--profile", "laptop", "--scheduler", "none"]
TRAINING = ("ray::RayTrainWorker", "ray::ForkedTrial")


@pytest.fixture
def cluster() -> Iterator[Any]:
    """A head and two nodes; the head has no CPU to train with."""
    before = dict(os.environ)
    os.environ.update(ray_environment() | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"})
    from ray.cluster_utils import Cluster

    cluster = Cluster(
        initialize_head=True, head_node_args={"num_cpus": 0, "object_store_memory": 2**27}
    )
    try:
        for _ in range(2):
            cluster.add_node(num_cpus=1, object_store_memory=2**27)
        cluster.wait_for_nodes()
        yield cluster
    finally:
        cluster.shutdown()
        os.environ.clear()
        os.environ.update(before)


def begin(folder: Path, data: Path, name: str, address: str | None) -> subprocess.Popen[bytes]:
    settings = [f"--set={key}={value}" for key, value in SETTINGS.items()]
    words = [*WORDS, "--name", name, "--data", str(data), *settings, "--short-trials", "off"]
    where = [] if address is None else ["--address", address]
    with (folder / f"{name}.out").open("ab") as out:
        return subprocess.Popen(
            [sys.executable, "-m", "etrm_tune.run", *words, *where],
            cwd=folder,
            stdout=out,
            stderr=subprocess.STDOUT,
        )


def raylet(node: Any) -> int:
    return int(node.all_processes["raylet"][0].process.pid)


def trains(node: Any) -> bool:
    return any(title(pid).startswith(TRAINING) for pid in descendants(raylet(node)))


def free(address: str) -> tuple[float, int]:
    """CPUs that are free, and placement groups that are not removed."""
    code = (
        "import ray, sys, time; from ray.util import placement_group_table as table\n"
        "ray.init(address=sys.argv[1], log_to_driver=False, logging_level='ERROR')\n"
        "end = time.time() + 60\n"
        "def groups(): return [g for g in table().values() if g['state'] != 'REMOVED']\n"
        "def cpus(): return ray.available_resources().get('CPU', 0)\n"
        "while (cpus() != 2 or groups()) and time.time() < end: time.sleep(0.2)\n"
        "print(cpus(), len(groups()))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, address], capture_output=True, text=True, check=True
    )
    cpus, groups = done.stdout.split()
    return float(cpus), int(groups)


def test_a_dead_node_costs_nothing(tmp_path: Path, puzzles: Path, cluster: Any) -> None:
    whole = begin(tmp_path, puzzles, "undisturbed", cluster.address)
    assert whole.wait(timeout=PATIENCE_S) == 0, (tmp_path / "undisturbed.out").read_text()
    expected = curves(tmp_path / "runs" / "undisturbed")

    path = tmp_path / "runs" / "disturbed"
    session = begin(tmp_path, puzzles, "disturbed", cluster.address)
    deadline = time.monotonic() + PATIENCE_S
    while not list(path.glob("trials/*/checkpoints/*.pt")) and time.monotonic() < deadline:
        assert session.poll() is None, (tmp_path / "disturbed.out").read_text()
        time.sleep(0.1)
    victim = next(node for node in cluster.worker_nodes if trains(node))
    orphans = descendants(raylet(victim))
    os.kill(raylet(victim), signal.SIGKILL)
    cluster.remove_node(victim, allow_graceful=False)
    check_kept(path, expected)
    cluster.add_node(num_cpus=1, object_store_memory=2**27)
    code = session.wait(timeout=PATIENCE_S)
    if code != 0:  # "after rerunning the command"
        session = begin(tmp_path, puzzles, "disturbed", cluster.address)
        code = session.wait(timeout=PATIENCE_S)
    told = (tmp_path / "disturbed.out").read_text()
    assert code == 0, told
    assert set(analysis.load(path).trials["status"]) == {"finished"}, told
    pd.testing.assert_frame_equal(curves(path), expected, check_exact=True)
    attempts = analysis.load(path).trials["attempts"]
    assert attempts.max() > 1, "the node that died was training"
    assert not RunFolder(path).in_use()
    assert free(cluster.address) == (2.0, 0)
    assert not [pid for pid in orphans if alive(pid)]
