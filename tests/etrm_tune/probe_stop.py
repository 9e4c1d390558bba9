"""Stops three trials by the bar, then asks Ray what is left: prints one JSON object."""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path

from rich.console import Console
from run_fake import planned

from etrm_tune.command import How, Prepared, write_plan
from etrm_tune.conductor import Conductor
from etrm_tune.division import divide
from etrm_tune.live import LiveTable
from etrm_tune.plan import Options, Plan
from etrm_tune.resources import Machine
from etrm_tune.run_folder import RunFolder
from etrm_tune.session import Signals, ray_session


def alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
    except FileNotFoundError:
        return False


def main() -> None:
    folder = RunFolder(Path(sys.argv[1]) / "run")
    names = ("overfit/E1a", "overfit/E2a", "overfit/E2b")
    settings = {"accuracy": 0.0, "steps": 400}
    trials = tuple(planned(name, settings) for name in names)
    plan = Plan(Options("phase1", "laptop", "2026-01-21", 1, scheduler="bar"), trials)
    machine = Machine(cpus=2)
    allotments = divide(plan, machine, How(), None)
    with folder.locked(), Signals() as signals:
        write_plan(folder, Prepared(plan, machine, allotments))
        table = LiveTable(Console(file=sys.stderr), trials, "probe")
        conductor = Conductor(folder, plan, allotments, signals, table, train="fake_loop:train")
        conductor.prepare()
        with ray_session(machine, signals):
            conductor.run()
            import ray
            from ray.util import placement_group_table

            deadline = time.monotonic() + 10  # the last driver's own share is freed by its exit
            while ray.available_resources().get("CPU") != 2.0 and time.monotonic() < deadline:
                time.sleep(0.2)
            groups = [g for g in placement_group_table().values() if g["state"] != "REMOVED"]
            pids = [int(p.read_text()) for p in folder.path.glob("trials/*/pid-*")]
            seen = {
                "outcomes": list(conductor.statuses.values()),
                "cpus": ray.available_resources().get("CPU"),
                "placement_groups": len(groups),
                "workers_alive": sum(map(alive, pids)),
            }
    print(json.dumps(seen))


if __name__ == "__main__":
    main()
