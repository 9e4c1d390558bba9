"""What keeps a node of a cluster from training, in one line each; what is sent to it. No Ray."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from etrm_tune import cluster, node_probe
from etrm_tune.cluster import Cluster, ClusterError, Node, check, connected, differences, relocated
from etrm_tune.plan import Options, Plan, PlannedTrial
from etrm_tune.resources import Machine, ResourceError, allot
from etrm_tune.run_folder import RunFolder
from etrm_tune.session import Signals
from trainable.config import TrialConfig
from trainable.decoder import decoder_reference

NODE = Node("abcdef0123456789", "10.0.0.7", 4, 0, 0)
HERE: dict[str, Any] = {
    "code": "c0de",
    "folder": "",
    "url": "",
    "packages": {"python": "3.11.2", "torch": "2.13.0", "etrm-tune": "0.1.0"},
}


@pytest.mark.parametrize(
    ("there", "words"),
    [
        ({"code": None}, ["has no etrm-tune", "ray job submit --working-dir"]),
        ({"code": "0ther"}, ["other source", "0ther", "the same commit"]),
        ({"folder": "not there"}, ["run folder (not there)", "--runs"]),
        ({"packages": {"torch": "2.9.1"}}, ["torch 2.9.1, here 2.13.0", "pip install torch==2.13"]),
        ({"packages": {"torch": None}}, ["torch not at all", "pip install torch==2.13.0 there"]),
        ({"packages": {"python": "3.12.1"}}, ["python 3.12.1", "one Python"]),
    ],
)
def test_a_node_that_differs_is_told_with_the_fix(there: dict[str, Any], words: list[str]) -> None:
    packages = HERE["packages"] | there.get("packages", {})
    (problem,) = differences(HERE, HERE | there | {"packages": packages})
    for word in words:
        assert word in problem
    assert "\n" not in problem


def test_a_node_that_is_equal_has_no_problem() -> None:
    assert differences(HERE, HERE) == []


def test_with_a_url_a_node_need_not_see_the_run_folder() -> None:
    blind = HERE | {"folder": "not there"}
    assert differences(HERE, blind, "s3://bucket/x") == []
    (problem,) = differences(HERE, blind, "s3://bucket/x", workers=2)
    assert "--workers 1" in problem
    (problem,) = differences(HERE, blind | {"url": "ImportError: s3fs"}, "s3://bucket/x")
    assert "does not reach s3://bucket/x (ImportError: s3fs)" in problem


def test_a_look_at_this_machine(tmp_path: Path) -> None:
    (tmp_path / ".reach").write_text("token")
    (tmp_path / "decoder.pt").write_bytes(b"weights")
    config = TrialConfig(
        name="overfit/E1a", data={"max_train_groups": 2, "train_subsets": ["training"]}
    )
    asked = {
        "packages": ["torch", "no-such-package"],
        "folder": str(tmp_path),
        "token": "token",
        "files": [str(tmp_path / "decoder.pt"), "/nowhere.pt"],
        "data": {"puzzles": config.model_dump(mode="json")},
    }
    seen = node_probe.look(asked)
    assert seen["folder"] == "" and seen["code"] == node_probe.code_hash()
    assert seen["packages"]["torch"] and seen["packages"]["no-such-package"] is None
    assert seen["files"][asked["files"][0]] == decoder_reference(tmp_path / "decoder.pt")
    assert seen["files"]["/nowhere.pt"] is None
    assert len(seen["data"]["puzzles"]) == 16
    assert node_probe.look(asked | {"token": "other"})["folder"] == "another folder lies there"
    assert node_probe.look(asked | {"folder": "/nowhere"})["folder"] == "not there"
    other = config.replace(source="kaggle", path="/nowhere").model_dump(mode="json")
    assert "/nowhere" in node_probe.look(asked | {"data": {"x": other}})["data"]["x"]


def puzzle_folder(folder: Path) -> Path:
    folder.mkdir()
    pair = {"input": [[1, 2]], "output": [[2, 1]]}
    for subset in ("training", "evaluation"):
        task = {f"{subset}-1": {"train": [pair, pair], "test": [pair]}}
        (folder / f"arc-agi_{subset}_challenges.json").write_text(json.dumps(task))
    return folder


def plan_of(folder: Path) -> Plan:
    data = {"source": "kaggle", "path": str(puzzle_folder(folder / "puzzles"))}
    decoder = folder / "decoder.pt"
    decoder.write_bytes(b"weights")
    (folder / "all_config.yaml").write_text("arch: {}")
    config = TrialConfig(
        name="overfit/E1a", data=data, pretrained_decoder=True, decoder=str(decoder)
    )
    return Plan(
        Options("overfit/E1a", "laptop", "2026-01-21", 1),
        (PlannedTrial("overfit-E1a-s0", "arm", config, config.identity()),),
    )


def test_what_a_node_does_not_see_is_sent_under_its_hash(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plan = plan_of(tmp_path)
    folder = RunFolder(tmp_path / "runs/x")
    folder.path.mkdir(parents=True)

    def ask(nodes: list[Node], asked: dict[str, Any]) -> dict[Node, Any]:
        seen = node_probe.look(asked)
        blind = {path: None for path in seen["files"] if "inputs" not in path}
        elsewhere = {
            name: hash_ if "inputs" in json.dumps(asked["data"][name]) else "DataError: no folder"
            for name, hash_ in seen["data"].items()
        }
        return {node: seen | {"files": seen["files"] | blind, "data": elsewhere} for node in nodes}

    monkeypatch.setattr(cluster, "ask", ask)
    moved = check(Cluster("auto", "", [NODE]), plan, folder)
    config = plan.trials[0].config
    new = relocated(config, moved)
    assert new.decoder is not None and new.data.path is not None
    assert Path(new.decoder).read_bytes() == b"weights"
    assert decoder_reference(tmp_path / "decoder.pt") in new.decoder
    assert Path(new.decoder).with_name("all_config.yaml").is_file()
    assert Path(new.data.path).is_relative_to(folder.path / "inputs")
    assert new.identity(data_hash="x") == config.identity(data_hash="x")
    assert relocated(config, {}) is config
    assert not (folder.path / ".reach").exists()


def test_nothing_is_sent_where_all_is_seen_and_a_problem_names_the_node(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plan = plan_of(tmp_path)
    folder = RunFolder(tmp_path / "runs/x")
    folder.path.mkdir(parents=True)

    def alike(nodes: list[Node], asked: dict[str, Any]) -> dict[Node, Any]:
        return {node: node_probe.look(asked) for node in nodes}

    monkeypatch.setattr(cluster, "ask", alike)
    assert check(Cluster("auto", "", [NODE]), plan, folder) == {}
    assert not (folder.path / "inputs").exists()

    def unlike(nodes: list[Node], asked: dict[str, Any]) -> dict[Node, Any]:
        return {node: node_probe.look(asked) | {"code": "0ther"} for node in nodes}

    monkeypatch.setattr(cluster, "ask", unlike)
    with pytest.raises(ClusterError, match=r"^node 10\.0\.0\.7 \(abcdef01\) has other source"):
        check(Cluster("auto", "", [NODE]), plan, folder)


def test_a_worker_lies_on_one_node() -> None:
    three = Machine(9, 0, nodes=((4, 0), (4, 0), (1, 0)))
    assert allot(three, trials=20).concurrent == 9
    assert allot(three, trials=20, threads=2).concurrent == 4, "the small node has no room"
    assert allot(three, trials=2).threads == 4
    assert "9 CPUs of 3 nodes" in str(allot(three, trials=20))
    with pytest.raises(ResourceError, match="no node of the cluster has room"):
        allot(three, trials=1, threads=5)
    gpus = Machine(8, 2, nodes=((4, 2), (4, 0)))
    assert allot(gpus, trials=9, threads=1, use_gpu=True, gpus_per_worker=0.5).concurrent == 4


def test_addresses_that_cannot_work() -> None:
    with (
        Signals() as signals,
        pytest.raises(ClusterError, match="ray job submit"),
        connected("ray://head:10001", signals),
    ):
        pass
    with (
        Signals() as signals,
        pytest.raises(ClusterError, match=r"^no Ray cluster at 127\.0\.0\.1:1: .*ray start --head"),
        connected("127.0.0.1:1", signals),
    ):
        pass
    with Signals() as signals, connected(None, signals) as found:
        assert found is None
