"""Files below deploy/ that this machine cannot run: what can be said of them without a cluster."""

from __future__ import annotations

import shutil
import subprocess
from importlib.metadata import version
from pathlib import Path
from typing import Any

import yaml

from etrm_tune.cli import build_parser

ROOT = Path(__file__).parents[1]
DEPLOY = ROOT / "deploy"


def manifest() -> dict[str, Any]:
    return dict(yaml.safe_load((DEPLOY / "rayjob.yaml").read_text()))


def containers() -> list[dict[str, Any]]:
    spec = manifest()["spec"]["rayClusterSpec"]
    groups = [spec["headGroupSpec"], *spec["workerGroupSpecs"]]
    return [one for group in groups for one in group["template"]["spec"]["containers"]]


def test_the_manifest_is_a_rayjob_of_the_pinned_ray() -> None:
    found = manifest()
    assert (found["apiVersion"], found["kind"]) == ("ray.io/v1", "RayJob")
    assert set(found["spec"]) <= {
        "entrypoint", "shutdownAfterJobFinishes", "ttlSecondsAfterFinished", "backoffLimit",
        "submissionMode", "rayClusterSpec",
    }  # fmt: skip
    assert found["spec"]["rayClusterSpec"]["rayVersion"] == version("ray")
    for group in found["spec"]["rayClusterSpec"]["workerGroupSpecs"]:
        assert group["minReplicas"] <= group["replicas"] <= group["maxReplicas"]


def test_all_pods_have_one_image_and_the_runs() -> None:
    assert len({one["image"] for one in containers()}) == 1
    words = manifest()["spec"]["entrypoint"].split()
    runs = words[words.index("--runs") + 1]
    for one in containers():
        assert runs in [mount["mountPath"] for mount in one["volumeMounts"]]
    spec = manifest()["spec"]["rayClusterSpec"]
    for group in (spec["headGroupSpec"], *spec["workerGroupSpecs"]):
        (volume,) = group["template"]["spec"]["volumes"]
        assert volume["persistentVolumeClaim"]["claimName"]


def test_the_entrypoint_is_a_command_of_ours() -> None:
    words = manifest()["spec"]["entrypoint"].split()
    assert words[:3] == ["python", "-m", "etrm_tune.run"]
    args = build_parser().parse_all(["run", *words[3:]])
    assert (args.target, args.address, args.runs) == ("phase1", "auto", "/runs")


def test_the_image_has_every_room() -> None:
    text = (DEPLOY / "Dockerfile").read_text()
    for room in ("trainable", "search_spaces", "analysis", "etrm_tune"):
        assert f"COPY {room} {room}" in text


def test_the_script_is_valid_bash() -> None:
    bash = shutil.which("bash")
    assert bash is not None
    done = subprocess.run(
        [bash, "-n", str(DEPLOY / "slurm.sh")], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert (DEPLOY / "slurm.sh").stat().st_mode & 0o100
