"""A run on a small disk that fills up while it trains: ``probe_full.py DISK DATA``, prints JSON.

Wants to be alone in a mount namespace of its own, with a file system of 130 MB at DISK.
"""

from __future__ import annotations

import json
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from etrm_tune.run_folder import RunFolder

TRIAL = "overfit-E4a-s0"


def run(words: list[str], log: Path) -> subprocess.Popen[bytes]:
    with log.open("ab") as out:
        return subprocess.Popen(
            [sys.executable, "-m", "etrm_tune.run", *words],
            stdout=out,
            stderr=subprocess.STDOUT,
            cwd=log.parent,
        )


def fill(disk: Path) -> None:
    """Leave no byte."""
    with (disk / "filler").open("wb", buffering=0) as file:
        for size in (2**20, 2**12, 1):
            try:
                while True:
                    file.write(bytes(size))
            except OSError:
                continue


def main(disk: Path, home: Path, words: list[str]) -> dict[str, Any]:
    log = home / "terminal"
    words = [*words, "--runs", str(disk / "runs"), "--name", "run"]
    folder = RunFolder(disk / "runs" / "run")
    process = run(words, log)
    deadline = time.monotonic() + 400
    while not list((folder.trial(TRIAL) / "checkpoints").glob("*.pt")):
        if process.poll() is not None or time.monotonic() > deadline:
            return {"early": log.read_text()}
        time.sleep(0.05)
    fill(disk)
    code = process.wait(timeout=400)
    seen: dict[str, Any] = {"code": code, "output": log.read_text()}
    seen["rows"] = [row["step"] for row in folder.rows(TRIAL)]
    seen["saved"] = [p.name for p in (folder.trial(TRIAL) / "checkpoints").iterdir()]
    (disk / "filler").unlink()
    log.unlink()
    seen["again"] = run(words, log).wait(timeout=400)
    seen["again_output"] = log.read_text()
    seen["status"] = folder.read_status(TRIAL)["status"]
    seen["loss"] = {row["step"]: row["train/loss"] for row in folder.rows(TRIAL)}
    return seen


if __name__ == "__main__":
    print(json.dumps(main(Path(sys.argv[1]), Path(sys.argv[2]), sys.argv[3:])))
