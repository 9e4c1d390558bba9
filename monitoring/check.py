"""Runs every query of the Grafana dashboard against a Prometheus, as Grafana would:
``python -m monitoring.check [http://127.0.0.1:9090]`` while a run goes on.

Exit status 1 where one is refused or has no data. Panels of what a machine or a trial may lack
(GPU, held-out evaluation, an encoder of its own rate) may be empty.
"""

from __future__ import annotations

import json
import re
import sys
import urllib.error
import urllib.parse
import urllib.request
from dataclasses import dataclass
from typing import Any

from monitoring.dashboard import FILE, expressions

MAY_BE_EMPTY = ("ray_node_gpus_utilization", "ray_etrm_eval_", "ray_etrm_encoder_")
LABELS = re.compile(r"label_values\((\w+), (\w+)\)")


@dataclass(frozen=True)
class Answer:
    """What Prometheus said to one query."""

    panel: str
    query: str
    series: int
    error: str = ""

    @property
    def ok(self) -> bool:
        """It was understood, and had data where it must."""
        optional = any(name in self.query for name in MAY_BE_EMPTY)
        return not self.error and (self.series > 0 or optional)


def ask(url: str, path: str, **parameters: str) -> Any:
    """``data`` of an answer of Prometheus's API. Raises `ValueError` with what it refused."""
    text = urllib.parse.urlencode(parameters, doseq=True)
    try:
        with urllib.request.urlopen(f"{url}{path}?{text}", timeout=10) as answer:
            return json.load(answer)["data"]
    except urllib.error.HTTPError as error:
        raise ValueError(json.load(error).get("error", str(error))) from None


def check(url: str, board: dict[str, Any]) -> list[Answer]:
    """Ask everything that the dashboard asks, with every run and experiment picked."""
    answers = []
    for panel, query in expressions(board):
        try:
            if match := LABELS.fullmatch(query):
                metric, label = match.groups()
                path = f"/api/v1/label/{label}/values"
                series = len(ask(url, path, **{"match[]": metric}))
            else:
                filled = query.replace("$run", ".*").replace("$experiment", ".*")
                series = len(ask(url, "/api/v1/query", query=filled)["result"])
            answers.append(Answer(panel, query, series))
        except ValueError as error:
            answers.append(Answer(panel, query, 0, str(error)))
    return answers


def main(url: str = "http://127.0.0.1:9090") -> int:
    """Print the answers; 1 if one is not as it should be."""
    try:
        answers = check(url.rstrip("/"), json.loads(FILE.read_text()))
    except OSError as error:
        print(f"no Prometheus at {url}: {error}", file=sys.stderr)
        return 2
    for answer in answers:
        sign = "ok " if answer.ok else "BAD"
        print(f"{sign} {answer.series:3d} series  {answer.panel}: {answer.query} {answer.error}")
    return 0 if all(answer.ok for answer in answers) else 1


if __name__ == "__main__":
    raise SystemExit(main(*sys.argv[1:]))
