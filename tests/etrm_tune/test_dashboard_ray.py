"""A run in Ray as a dashboard, Prometheus and a stranger on the network see it."""

from __future__ import annotations

import json
import re
import shutil
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from monitoring.check import check
from monitoring.dashboard import FILE
from tests.etrm_tune.test_ray import ROOT, alive, descendants, started, wait_for

pytestmark = [pytest.mark.slow, pytest.mark.ray]

PROMETHEUS = shutil.which("prometheus")
MORE = {
    "train/steps": 8.0, "train/q_halt_accuracy": 0.9, "train/lr": 1e-3, "train/lm_loss": 0.9,
    "grad/encoder_norm": 0.4, "grad/decoder_norm": 0.6, "grad/total_norm": 0.7,
    "encoder/cross_sample_var": 0.1, "eval/accuracy": 0.4, "eval/exact_accuracy": 0.0,
}  # fmt: skip


def token() -> str:
    ray = Path(sys.executable).with_name("ray")
    done = subprocess.run([ray, "get-auth-token"], capture_output=True, text=True, check=True)
    return done.stdout.split()[-1]


def get(url: str, headers: dict[str, str] | None = None) -> Any:
    with urllib.request.urlopen(urllib.request.Request(url, headers=headers or {})) as answer:
        return answer.read().decode()


def listening(pids: set[int]) -> set[str]:
    """Addresses on which these processes listen."""
    inodes = set()
    for pid in pids:
        for link in Path(f"/proc/{pid}/fd").glob("*"):
            try:
                inodes |= set(re.findall(r"socket:\[(\d+)\]", str(link.readlink())))
            except OSError:
                continue
    found = set()
    for table in ("tcp", "tcp6"):
        for line in Path(f"/proc/net/{table}").read_text().splitlines()[1:]:
            fields = line.split()
            if fields[3] == "0A" and fields[9] in inodes:
                raw = bytes.fromhex(fields[1].split(":")[0])
                words = b"".join(raw[i : i + 4][::-1] for i in range(0, len(raw), 4))
                family = socket.AF_INET if len(words) == 4 else socket.AF_INET6
                found.add(socket.inet_ntop(family, words))
    return found


@pytest.fixture(scope="module")
def going(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Path, str, int]]:
    """A run that goes on: its folder, the dashboard's link, its process."""
    folder = tmp_path_factory.mktemp("runs") / "phase1"
    trials = {
        "overfit/E1a": {"steps": 20000, "step_s": 0.2, "more": MORE},
        "overfit/E2a": {"steps": 20000, "step_s": 0.2, "more": MORE},
    }
    with started(folder, trials=trials) as process:
        assert process.stdout is not None
        told = next(line for line in process.stdout if line.startswith("Dashboard:"))
        assert "asks for a token" in told and "get-auth-token" in told
        wait_for(lambda: len(list(folder.glob("trials/*/attempt-1.jsonl"))) == 2)
        yield folder, told.split()[1], process.pid
        below = descendants(process.pid)
        process.terminate()
        process.wait(60)
        wait_for(lambda: not any(map(alive, below)))
        assert not (folder.parent / ".prometheus").exists()


def test_only_this_machine_is_let_in(going: tuple[Path, str, int]) -> None:
    _, link, pid = going
    found = listening(descendants(pid) | {pid})
    assert found <= {"127.0.0.1", "::ffff:127.0.0.1", "::1"}, found
    assert "127.0.0.1" in found
    with pytest.raises(urllib.error.HTTPError) as refused:
        get(f"{link}/api/jobs/")
    assert refused.value.code == 401
    refused.value.close()


def test_train_runs_are_in_rays_state_api(going: tuple[Path, str, int]) -> None:
    _, link, _ = going
    headers = {"Authorization": f"Bearer {token()}"}

    def runs() -> Any:
        try:
            told = json.loads(get(f"{link}/api/train/v2/runs/v1", headers))["train_runs"]
        except urllib.error.HTTPError as error:
            error.close()
            return None  # no run has begun yet
        names = {run["name"].rsplit("-", 1)[0] for run in told if run["status"] == "RUNNING"}
        return names == {"overfit-E1a-s0", "overfit-E2a-s0"}

    wait_for(runs)


@pytest.mark.skipif(PROMETHEUS is None, reason="no prometheus on this machine (apt: prometheus)")
def test_prometheus_answers_every_query_of_the_dashboard(
    going: tuple[Path, str, int], tmp_path: Path
) -> None:
    folder, _, _ = going
    config = yaml.safe_load((ROOT / "monitoring" / "prometheus.yml").read_text())
    config["global"]["scrape_interval"] = "2s"
    for one in config["scrape_configs"]:
        one["file_sd_configs"][0]["files"] = [str(folder.parent / ".prometheus" / "*.json")]
    (tmp_path / "prometheus.yml").write_text(yaml.safe_dump(config))
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    server = subprocess.Popen(
        [
            str(PROMETHEUS),
            f"--config.file={tmp_path / 'prometheus.yml'}",
            f"--storage.tsdb.path={tmp_path / 'data'}",
            f"--web.listen-address=127.0.0.1:{port}",
        ],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    try:
        board, url = json.loads(FILE.read_text()), f"http://127.0.0.1:{port}"
        deadline, answers = time.monotonic() + 120, []
        while time.monotonic() < deadline:
            try:
                answers = check(url, board)
            except OSError:
                answers = []
            if answers and all(answer.ok for answer in answers):
                break
            time.sleep(1)
        assert answers, "Prometheus does not answer"
        assert all(answer.ok for answer in answers), [a for a in answers if not a.ok]
        accuracy = next(a for a in answers if "etrm_train_accuracy" in a.query)
        assert accuracy.series == 2, "one for each trial"
    finally:
        server.terminate()
        server.wait(30)
