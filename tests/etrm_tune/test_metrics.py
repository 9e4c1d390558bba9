"""Our numbers as Ray metrics, and the Grafana dashboard that asks for them."""

from __future__ import annotations

import fcntl
import importlib.util
import json
import math
import re
import time
from pathlib import Path
from typing import Any

import pytest
import yaml

from etrm_tune.board import STATUSES, Board, Line
from etrm_tune.metrics import COUNTS, DERIVED, LABELS, ROWS, SEND_S, RunMetrics, discovered
from etrm_tune.plan import PlannedTrial
from etrm_tune.run_folder import RunFolder
from etrm_tune.session import login_line
from monitoring.check import Answer
from monitoring.dashboard import FILE, dashboard, expressions
from trainable.config import TrialConfig

ROOT = Path(__file__).parents[2]
TRIALS = {
    name: PlannedTrial(name, "arm", TrialConfig(name=f"overfit/{name[:-3]}", epochs=100), "id")
    for name in ("E1a-s0", "E2a-s0")
}


class Sent:
    """Keeps what was sent."""

    def __init__(self) -> None:
        self.values: list[tuple[str, float, dict[str, str]]] = []

    def __call__(
        self, name: str, text: str, keys: tuple[str, ...], value: float, labels: dict[str, str]
    ) -> None:
        assert set(labels) == set(keys) and text
        self.values.append((name, value, labels))

    def of(self, name: str) -> dict[str, float]:
        return {
            labels.get("trial", labels.get("status", "")): value
            for told, value, labels in self.values
            if told == name
        }


def make() -> tuple[Board, RunMetrics, Sent]:
    board = Board("run", {name: Line(name, 100.0, {}) for name in TRIALS})
    sent = Sent()
    return board, RunMetrics("phase1", board, TRIALS, sent), sent


def report(step: int, **more: Any) -> dict[str, Any]:
    return {"step": step, "epoch": float(step), "time": time.time(), "wall_s": step * 0.5} | more


def test_a_running_trial_is_sent_and_an_ended_one_is_not() -> None:
    board, metrics, sent = make()
    for name, line in board.lines.items():
        line.set("running", "", None)
        for step in (10, 20):
            row = report(step, **{"train/accuracy": 0.5, "train/loss": math.nan, "train/lr": None})
            line.add(row)
            metrics.update(name, row)
    metrics.refresh(force=True)
    assert sent.of("etrm_train_accuracy") == {"E1a-s0": 0.5, "E2a-s0": 0.5}
    assert sent.of("etrm_step_seconds") == {"E1a-s0": 0.5, "E2a-s0": 0.5}
    assert sent.of("etrm_progress") == {"E1a-s0": 0.2, "E2a-s0": 0.2}
    assert not sent.of("etrm_train_loss") and not sent.of("etrm_lr"), "nothing that is no number"
    labels = next(labels for name, _, labels in sent.values if name == "etrm_step")
    assert labels == {
        "run": "phase1", "experiment": "overfit/E1a", "trial": "E1a-s0", "seed": "0", "role": "arm",
    }  # fmt: skip
    assert sent.of(COUNTS) == dict.fromkeys(STATUSES, 0.0) | {"running": 2.0}

    sent.values.clear()
    board.lines["E1a-s0"].set("stopped", "bar: too low", None)
    metrics.refresh()
    assert not sent.values, f"not within {SEND_S} s"
    metrics.refresh(force=True)
    assert sent.of("etrm_train_accuracy") == {"E2a-s0": 0.5}
    assert sent.of(COUNTS)["stopped"] == 1.0


def test_what_fails_costs_no_run() -> None:
    board, metrics, _ = make()
    board.lines["E1a-s0"].set("running", "", None)

    def send(*values: Any) -> None:
        raise RuntimeError("no Ray")

    metrics.send = send
    metrics.refresh(force=True)


def test_prometheus_is_told_where_a_run_is(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path / "phase1")
    folder.path.mkdir()
    home = tmp_path / ".prometheus"
    home.mkdir()
    for name in ("killed", "other"):
        (home / f"{name}.json").write_text("[]")
    (tmp_path / "other").mkdir()
    with (tmp_path / "other" / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        with discovered(folder, lambda: ["127.0.0.1:1234"]):
            found = json.loads((home / "phase1.json").read_text())
            assert found == [{"targets": ["127.0.0.1:1234"], "labels": {"job": "etrm-tune"}}]
            assert sorted(p.stem for p in home.iterdir()) == ["other", "phase1"]
    assert [p.stem for p in home.iterdir()] == ["other"]


def test_configuration_looks_where_the_runs_are() -> None:
    config = yaml.safe_load((ROOT / "monitoring" / "prometheus.yml").read_text())
    (pattern,) = config["scrape_configs"][0]["file_sd_configs"][0]["files"]
    assert pattern == "../runs/.prometheus/*.json"
    for path in (ROOT / "monitoring" / "grafana" / "provisioning").glob("*/*.yml"):
        assert yaml.safe_load(path.read_text())["apiVersion"] == 1


def test_dashboard_is_what_its_program_writes() -> None:
    assert json.loads(FILE.read_text()) == dashboard(), "run python -m monitoring.dashboard"


def test_queries_name_only_metrics_that_exist() -> None:
    """Ours, or one that Ray's reporter defines by name."""
    spec = importlib.util.find_spec("ray")
    assert spec is not None and spec.origin is not None
    reporter = Path(spec.origin).parent / "dashboard/modules/reporter/reporter_agent.py"
    rays = set(re.findall(r'"(node_\w+)"', reporter.read_text()))
    ours = {*ROWS, *DERIVED, COUNTS}
    asked = set()
    for _, query in expressions(json.loads(FILE.read_text())):
        found = re.findall(r"ray_(\w+)", query)
        assert found, query
        asked |= set(found)
    assert asked <= ours | rays, asked - ours - rays
    assert len(asked & ours) >= 18 and asked & rays
    labels = {
        label
        for _, query in expressions(dashboard())
        for group in re.findall(r"\{([^}]*)\}", query)
        for label in re.findall(r"(\w+)=~", group)
    }
    assert labels <= {*LABELS, "status"}


def test_panels_do_not_overlap() -> None:
    taken: set[tuple[int, int]] = set()
    for panel in dashboard()["panels"]:
        at = panel["gridPos"]
        cells = {
            (x, y)
            for x in range(at["x"], at["x"] + at["w"])
            for y in range(at["y"], at["y"] + at["h"])
        }
        assert not cells & taken and at["x"] + at["w"] <= 24
        taken |= cells


@pytest.mark.parametrize(
    ("answer", "ok"),
    [
        (Answer("p", "ray_etrm_epoch", 1), True),
        (Answer("p", "ray_etrm_epoch", 0), False),
        (Answer("p", "ray_node_gpus_utilization", 0), True),
        (Answer("p", "ray_node_gpus_utilization", 0, "parse error"), False),
    ],
)
def test_what_a_check_accepts(answer: Answer, ok: bool) -> None:
    assert answer.ok is ok


def test_one_line_says_where_the_dashboard_is_and_how_to_log_in(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.delenv("RAY_AUTH_MODE", raising=False)
    told = login_line("127.0.0.1:8265")
    assert told.startswith("Dashboard: http://127.0.0.1:8265  (asks for a token: paste what `")
    assert told.endswith("get-auth-token` prints)") and "\n" not in told
    monkeypatch.setenv("RAY_AUTH_MODE", "disabled")
    assert login_line("127.0.0.1:8265") == "Dashboard: http://127.0.0.1:8265"
    assert login_line("") == "Dashboard: off"
