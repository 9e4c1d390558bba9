"""A run at a URL whose machine is lost: another one, which has nothing, goes on with it.

Once at a `file://` URL, once at an `s3://` one, where s3fs and moto (its server answers as S3 does,
on this machine) are installed: ``pip install s3fs "moto[s3,server]"``.
"""

from __future__ import annotations

import json
import os
import shlex
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import fsspec
import pytest

from etrm_tune.run_folder import RunFolder
from tests.test_random_kills import ROOT, SETTINGS, puzzles

__all__ = ["puzzles"]  # a fixture

pytestmark = [pytest.mark.slow, pytest.mark.ray]

TRIAL, NAME = "overfit-E4a-s0", "overfit-E4a"
PATIENCE_S = 400.0


@pytest.fixture(params=["file", "s3"])
def base(
    request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[str]:
    """A URL under which runs may lie."""
    if request.param == "file":
        yield f"file://{tmp_path}"
        return
    pytest.importorskip("s3fs", reason="s3fs is not installed")
    moto = pytest.importorskip("moto.server", reason="moto is not installed")
    server = moto.ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    try:
        host, port = server.get_host_and_port()
        monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://{host}:{port}")
        monkeypatch.setenv("AWS_DEFAULT_REGION", "us-east-1")
        for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
            monkeypatch.setenv(name, "testing")
        files_at("s3://bucket").mkdir("bucket")
        yield "s3://bucket/some/folder"
    finally:
        server.stop()


def files_at(url: str) -> Any:
    """The file system of a URL, which remembers no listing."""
    protocol = url.partition("://")[0]
    return fsspec.filesystem(protocol, use_listings_cache=False, skip_instance_cache=True)


def begin(home: Path, url: str, machine: str, data: Path) -> subprocess.Popen[str]:
    """The command on a machine, which is a cache folder of its own."""
    words = ["overfit/E4a", "--profile", "laptop", "--scheduler", "none", "--runs", url]
    settings = SETTINGS | {"epochs": 800}  # 100 steps
    words += ["--data", str(data), *(f"--set={name}={value}" for name, value in settings.items())]
    return subprocess.Popen(
        [sys.executable, "-m", "etrm_tune.run", *words],
        env=os.environ | {"PYTHONPATH": str(ROOT), "ETRM_TUNE_CACHE": str(home / machine)},
        cwd=home,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def done(process: subprocess.Popen[str]) -> tuple[int, str]:
    output, _ = process.communicate(timeout=PATIENCE_S)
    return process.returncode, f"{shlex.join(process.args)}\n{output}"  # type: ignore[arg-type]


def losses(url: str, copy: Path) -> dict[int, Any]:
    """Loss by step, as the rows at a URL tell it; each step once."""
    files_at(url).get(f"{url}/{NAME}", str(copy), recursive=True)
    rows = RunFolder(copy).rows(TRIAL)
    assert [row["step"] for row in rows] == list(range(1, 101))
    return {row["step"]: row["train/loss"] for row in rows}


def test_another_machine_goes_on_where_the_lost_one_was(
    tmp_path: Path, puzzles: Path, base: str
) -> None:
    whole, url = f"{base}/whole", f"{base}/store"
    code, told = done(begin(tmp_path, whole, "first", puzzles))
    assert code == 0, told

    files, store = files_at(url), f"{url}/{NAME}"
    lost = begin(tmp_path, url, "first", puzzles)
    deadline = time.monotonic() + PATIENCE_S
    # Two: a local folder as a store may keep half of the one that is being written.
    while len(files.glob(f"{store}/trials/{TRIAL}/checkpoints/*.pt")) < 2:
        assert lost.poll() is None and time.monotonic() < deadline, done(lost)
        time.sleep(0.05)
    lost.kill()
    lost.wait()
    assert lost.stdout is not None
    lost.stdout.close()
    code, told = done(begin(tmp_path, url, "second", puzzles))
    assert code == 2 and "is in use by process" in told, told
    shutil.rmtree(tmp_path / "first")  # the machine, with all that had not been sent
    lease = json.loads(files.cat_file(f"{store}/.session.json"))
    aged = json.dumps(lease | {"time": lease["time"] - 100})
    files.pipe_file(f"{store}/.session.json", aged.encode())

    code, told = done(begin(tmp_path, url, "second", puzzles))
    assert code == 0, told
    assert (tmp_path / "second").is_dir()
    attempts = sorted(files.glob(f"{store}/trials/{TRIAL}/attempt-*.jsonl"))
    opening = files.cat_file(attempts[-1]).decode().splitlines()[0]
    assert json.loads(opening)["resumed_from"] >= 5
    ended = losses(url, tmp_path / "ended")
    assert ended == losses(whole, tmp_path / "undisturbed"), "bit for bit"
