"""Writes the Grafana dashboard: ``python -m monitoring.dashboard``.

The JSON beside it is what Grafana imports; this file is what people edit.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

FILE = Path(__file__).parent / "grafana" / "dashboards" / "etrm-tune.json"
SOURCE = {"type": "prometheus", "uid": "${source}"}
PICKED = '{run=~"$run", experiment=~"$experiment"}'
LEGEND = "{{trial}}"

Query = tuple[str, str]
"""Expression and legend."""


def picked(metric: str) -> str:
    """A metric of the runs and experiments that were picked."""
    return f"ray_{metric}{PICKED}"


def trials(metric: str) -> list[Query]:
    """A line for each trial."""
    return [(picked(metric), LEGEND)]


PANELS: list[tuple[str, str, str, int, list[Query], str]] = [
    # title, kind, unit, width of 24, queries, what it says
    (
        "Trials by status", "stat", "none", 12,
        [('sum by (status) (ray_etrm_trials{run=~"$run"})', "{{status}}")],
        "Of the runs that were picked.",
    ),
    (
        "Done", "bargauge", "percentunit", 6, trials("etrm_progress"),
        "Part of each running trial's budget.",
    ),
    ("Time left", "bargauge", "s", 6, trials("etrm_eta_seconds"), "Of each running trial."),
    (
        "Accuracy", "timeseries", "percentunit", 12, trials("etrm_train_accuracy"),
        "train/accuracy: tokens of halted rows. Copying the input has 60 to 70 % already.",
    ),
    (
        "Whole grids right", "timeseries", "percentunit", 12, trials("etrm_train_exact_accuracy"),
        "train/exact_accuracy of halted rows.",
    ),
    ("Loss", "timeseries", "none", 12, trials("etrm_train_loss"), "train/loss, per row."),
    (
        "Held-out accuracy", "timeseries", "percentunit", 12,
        [
            (picked("etrm_eval_accuracy"), f"{LEGEND} tokens"),
            (picked("etrm_eval_exact_accuracy"), f"{LEGEND} whole grids"),
        ],
        "Puzzles that were not trained on, at the last evaluation.",
    ),
    (
        "ACT steps", "timeseries", "none", 8, trials("etrm_train_act_steps"),
        "Mean steps of halted rows; at the maximum the Q-head never halts by itself.",
    ),
    (
        "Q-head right", "timeseries", "percentunit", 8, trials("etrm_train_q_halt_accuracy"),
        "train/q_halt_accuracy of halted rows.",
    ),
    (
        "Learning rate", "timeseries", "none", 8,
        [(picked("etrm_lr"), LEGEND), (picked("etrm_encoder_lr"), f"{LEGEND} encoder")], "",
    ),
    (
        "Gradient norms", "timeseries", "none", 12,
        [
            (picked("etrm_grad_encoder_norm"), f"{LEGEND} encoder"),
            (picked("etrm_grad_decoder_norm"), f"{LEGEND} decoder"),
        ],
        "Before clipping.",
    ),
    (
        "Encoder's share of the gradient", "timeseries", "percentunit", 12,
        [(f"{picked('etrm_grad_encoder_norm')} / {picked('etrm_grad_total_norm')}", LEGEND)],
        "Below a few per cent the encoder starves.",
    ),
    (
        "Encoder variance between puzzles", "timeseries", "none", 8,
        trials("etrm_encoder_cross_sample_var"), "Falls when the encoder collapses.",
    ),
    (
        "Signs of ill health", "timeseries", "none", 8,
        [(f"sum by (trial, level) ({picked('etrm_health_signs')})", f"{LEGEND} {{{{level}}}}")],
        "etrm-tune watch names them.",
    ),
    (
        "Seconds per step", "timeseries", "s", 8, trials("etrm_step_seconds"),
        "Since the row before.",
    ),
    (
        "CPU", "timeseries", "percent", 8, [("ray_node_cpu_utilization", "{{ip}}")],
        "Of each node.",
    ),
    (
        "Memory used", "timeseries", "bytes", 8, [("ray_node_mem_used", "{{ip}}")],
        "Of each node.",
    ),
    (
        "GPU", "timeseries", "percent", 8,
        [("ray_node_gpus_utilization", "{{ip}} {{GpuIndex}}")], "Empty without a GPU.",
    ),
]  # fmt: skip


def variable(name: str, label: str) -> dict[str, Any]:
    """A label to pick by."""
    query = f"label_values(ray_etrm_epoch, {name})"
    return {
        "name": name, "label": label, "type": "query", "datasource": SOURCE, "query": query,
        "definition": query, "refresh": 2, "multi": True, "includeAll": True, "allValue": ".*",
        "current": {"text": ["All"], "value": ["$__all"]}, "sort": 1,
    }  # fmt: skip


def dashboard() -> dict[str, Any]:
    """The whole dashboard, as Grafana 10 and later import it."""
    panels, x, y = [], 0, 0
    for number, (title, kind, unit, width, queries, text) in enumerate(PANELS, start=1):
        if x + width > 24:
            x, y = 0, y + 8
        panels.append(
            {
                "id": number, "title": title, "type": kind, "description": text,
                "datasource": SOURCE, "gridPos": {"x": x, "y": y, "w": width, "h": 8},
                "fieldConfig": {"defaults": {"unit": unit, "min": 0}, "overrides": []},
                "options": {"legend": {"displayMode": "list", "placement": "bottom"}}
                if kind == "timeseries" else {"reduceOptions": {"calcs": ["lastNotNull"]}},
                "targets": [
                    {"refId": "ABCDEF"[i], "expr": expr, "legendFormat": legend,
                     "datasource": SOURCE, "instant": kind != "timeseries",
                     "range": kind == "timeseries"}
                    for i, (expr, legend) in enumerate(queries)
                ],
            }
        )  # fmt: skip
        x += width
    source = {"name": "source", "label": "Prometheus", "type": "datasource", "query": "prometheus"}
    return {
        "uid": "etrm-tune", "title": "etrm-tune", "tags": ["etrm-tune"], "schemaVersion": 39,
        "editable": True, "refresh": "10s", "time": {"from": "now-1h", "to": "now"},
        "templating": {"list": [source, variable("run", "Run"),
                                variable("experiment", "Experiment")]},
        "panels": panels,
    }  # fmt: skip


def expressions(board: dict[str, Any]) -> list[tuple[str, str]]:
    """Every query of a dashboard, with its panel's title; the variables' are there too."""
    found = [(p["title"], t["expr"]) for p in board["panels"] for t in p["targets"]]
    return found + [
        (f"variable {v['name']}", v["query"])
        for v in board["templating"]["list"]
        if "allValue" in v
    ]


if __name__ == "__main__":
    FILE.write_text(json.dumps(dashboard(), indent=1) + "\n")
    print(FILE)
