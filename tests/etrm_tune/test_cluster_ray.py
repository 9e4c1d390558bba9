"""A cluster of three nodes on this machine: a run on it, a submitted job, what is left behind."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from etrm_tune.run_folder import RunFolder
from tests.test_end_to_end import command
from trainable.ray_adapter import ray_environment

pytestmark = [pytest.mark.slow, pytest.mark.ray]

ROOT = Path(__file__).parents[2]
SETTINGS = {
    "epochs": 300,  # about sixty steps: longer than what lies between their starts
    "max_train_groups": 6,
    "max_eval_groups": 1,
    "eval_num_aug": 0,
    "halt_max_steps": 4,
}
WORDS = ["overfit/E4a", "--profile", "laptop", "--scheduler", "none"]
WORDS += [f"--set={name}={value}" for name, value in SETTINGS.items()]


@dataclass
class Three:
    """Three nodes of one CPU each."""

    address: str
    dashboard: str


def free_port() -> int:
    """A port that nobody listens on: other runs of this machine have the usual one."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@pytest.fixture(scope="module")
def three() -> Iterator[Three]:
    before = dict(os.environ)
    os.environ.update(ray_environment() | {"PYTHONPATH": str(ROOT)})
    from ray.cluster_utils import Cluster

    cluster = Cluster(
        initialize_head=True,
        head_node_args={
            "num_cpus": 1, "object_store_memory": 2**27, "include_dashboard": True,
            "dashboard_host": "127.0.0.1", "dashboard_port": free_port(),
            "dashboard_agent_listen_port": free_port(),  # jobs are submitted to the head's agent
        },
    )  # fmt: skip
    try:
        for _ in range(2):
            cluster.add_node(num_cpus=1, object_store_memory=2**27)
        cluster.wait_for_nodes()
        yield Three(cluster.address, str(cluster.head_node.webui_url))
    finally:
        cluster.shutdown()
        os.environ.clear()
        os.environ.update(before)


def left(three: Three) -> dict[str, Any]:
    """What the cluster has free, and which actors live."""
    code = (
        "import ray, sys, json, time; from ray.util.state import list_actors;"
        "ray.init(address=sys.argv[1], log_to_driver=False, logging_level='ERROR');"
        "end = time.time() + 20;\n"
        "while ray.available_resources().get('CPU') != 3 and time.time() < end: time.sleep(0.2)\n"
        "print(json.dumps(ray.available_resources().get('CPU')))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, three.address], capture_output=True, text=True, check=False
    )
    return {"cpus": done.stdout.strip(), "errors": done.stderr}


def test_a_run_on_three_nodes_then_a_job_that_finds_it_done(tmp_path: Path, three: Three) -> None:
    words = [*WORDS, "--seeds", "3", "--address", three.address]
    done = command(tmp_path, *words)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "3 nodes" in done.stdout and "3 trials at once" in done.stdout
    folder = RunFolder(tmp_path / "runs" / "overfit-E4a")
    ids = [f"overfit-E4a-s{seed}" for seed in range(3)]
    assert {folder.read_status(one)["status"] for one in ids} == {"finished"}
    rows = [folder.rows(one) for one in ids]
    began, ended = max(r[0]["time"] for r in rows), min(r[-1]["time"] for r in rows)
    assert began < ended, "all three at once"
    assert left(three)["cpus"] == "3.0", left(three)

    nested = command(tmp_path, *words, "--name", "nested", "--short-trials", "off")
    assert nested.returncode == 0, nested.stdout + nested.stderr
    other = RunFolder(tmp_path / "runs" / "nested")
    assert [r["train/loss"] for r in other.rows(ids[0])] == [r["train/loss"] for r in rows[0]]
    assert left(three)["cpus"] == "3.0", left(three)

    entry = [sys.executable, "-m", "etrm_tune.run", *WORDS, "--seeds", "3"]
    entry += ["--runs", str(tmp_path / "runs"), "--address", "auto"]
    job = subprocess.run(
        [
            str(Path(sys.executable).with_name("ray")), "job", "submit",
            "--address", f"http://{three.dashboard}", "--", *entry,
        ],
        cwd=tmp_path,
        env=os.environ | {"PYTHONPATH": str(ROOT), "NO_COLOR": "1"},
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )  # fmt: skip
    assert job.returncode == 0, job.stdout + job.stderr
    assert "All 3 trials are done" in job.stdout
    assert "succeeded" in job.stdout
