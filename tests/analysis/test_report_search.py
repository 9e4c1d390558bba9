"""What a report says of a search, and that no name or text in a run can become markup."""

from __future__ import annotations

import json
import math
import random
from pathlib import Path

import pytest
from synthetic_runs import FolderWriter, rows, searched
from test_report import check, predictions

import analysis
from analysis.importance import groups_of, importance
from analysis.report import report_html, write_report
from analysis.report.inside import q_head
from analysis.report.material import Material
from analysis.report.parallel import Axis, parallel_chart
from analysis.report.parallel import Path as Line
from analysis.report.searched import searched as points_of

EVIL = "\"'><img src=x onerror=alert(1)><script>alert(2)</script>&"


def test_what_explains_the_accuracy_comes_first() -> None:
    draw = random.Random(0)
    points = [
        {"lr": draw.uniform(0, 1), "norm": draw.choice(["pre", "post"]), "noise": draw.random()}
        for _ in range(60)
    ]
    target = [0.5 + 0.3 * p["lr"] + 0.1 * (p["norm"] == "pre") for p in points]
    found = importance(points, target)
    assert [one.parameter for one in found] == ["lr", "norm", "noise"]
    lr, norm, noise = found
    assert lr.share > 0.6 > norm.share > 0.1 > noise.share
    assert lr.p < 0.01 and noise.p > 0.05
    assert norm.best.values == "pre" and lr.best == lr.groups[-1]
    assert sum(group.n for group in lr.groups) == lr.n == 60
    assert importance(points, target) == found, "the permutations are seeded"


def test_share_of_two_groups_by_hand() -> None:
    """Groups 0.4 ± 0.1 and 0.6 ± 0.1, six points each: between them 12 · 0.01, within 12 · 0.01."""
    points = [{"a": at % 2} for at in range(12)]
    target = [0.4 + 0.2 * (at % 2) + (0.1 if at // 2 % 2 else -0.1) for at in range(12)]
    (one,) = importance(points, target)
    assert one.share == pytest.approx((0.12 - 0.12 / 10) / 0.24)
    assert [group.mean for group in one.groups] == pytest.approx([0.4, 0.6])


def test_nothing_is_said_of_too_few_points() -> None:
    points = [{"a": at % 2} for at in range(9)]
    assert importance(points, [0.1 * at for at in range(9)]) == []
    points = [{"a": at % 2} for at in range(12)]
    assert importance(points, [math.nan] * 3 + [0.1 * at for at in range(9)]) == []
    assert importance(points, [0.5] * 12) == [], "nothing to explain"
    assert importance([{"a": 1}] * 12, [0.1 * at for at in range(12)]) == [], "one value"


def test_groups_of_values() -> None:
    assert groups_of(["post", "pre", "post"]) == [0, 1, 0]
    assert groups_of([2, 4, 2, 8]) == [0, 1, 0, 2]
    assert groups_of([float(v) for v in range(8)]) == [0, 0, 1, 1, 2, 2, 3, 3]
    assert groups_of([True, False]) == [1, 0]


def test_axes_of_parallel_coordinates() -> None:
    assert Axis("a", [1.0, 3.0, None, 2.0]).places == [0.0, 1.0, None, 0.5]
    assert Axis("a", [1e-4, 1e-2, 1e-3]).places == pytest.approx([0, 1, 0.5]), "logarithmic"
    assert Axis("a", ["pre", "post"]).places == [1.0, 0.0] and Axis("a", [5]).places == [0.5]
    axes = [Axis("a", [1, 2]), Axis("accuracy", [0.5, None], percent=True, ends=True)]
    svg = parallel_chart(axes, [Line("one", "best"), Line("two", "cut")], alt="x")
    assert svg.count("data-tip") == 1, "a point without accuracy on a single axis has no line"


def test_a_search_in_the_report(tmp_path: Path) -> None:
    writer = searched(tmp_path / "run")
    run = analysis.load(writer.path)
    points = points_of(Material.of(run))
    assert len(points) == 24 and sum(p.known for p in points) == 1
    assert {p.state for p in points} == {"finished", "stopped"}
    assert all(math.isfinite(p.accuracy) == (p.state == "finished") for p in points)
    assert all(math.isfinite(p.first_rung) for p in points), "stopped ones reached it too"
    html = report_html(run)
    check(html, searching=True)
    best = max((p for p in points if math.isfinite(p.accuracy)), key=lambda p: p.accuracy)
    assert f"Best point of 16 that finished (24 proposed): {best.name}" in html
    section = html.partition('id="search"')[2].partition("</section>")[0]
    assert "The final accuracy of the points that finished (n = 16)" in section
    assert "The accuracy on the first rung, stopped points too (n = 24)" in section
    assert section.index(">lr<") < section.index(">encoder_type<")
    lines = section.count('stroke="transparent"')
    assert lines == 24 and section.count("stroke-dasharray") >= 8
    assert len(html) < 9e5


def test_a_search_with_few_points(tmp_path: Path) -> None:
    html = report_html(analysis.load(searched(tmp_path / "run", 4).path))
    check(html, searching=True)
    assert "too few to say what matters" in html


def test_hostile_names_stay_text(tmp_path: Path) -> None:
    folder = tmp_path / f"run {EVIL}".replace("/", "∕")
    writer = FolderWriter(
        folder,
        target=EVIL,
        packages={EVIL: EVIL},
        machine={EVIL: EVIL},
        accepted=[{"field": EVIL, "value": EVIL, "reference": EVIL, "why": EVIL, "trials": [EVIL]}],
        estimate={"wall_s": 1.0, "basis": EVIL, "trials": {}},
        sessions=[[0.0, 5.0]],
        options={"settings": {EVIL: EVIL}},
        search={
            "points": [
                {"name": "overfit/E1a", "values": {EVIL: EVIL, "lr": 1e-4}, "known": True},
                {"name": EVIL, "values": {EVIL: 3}},
            ]
        },
    )
    trial = writer.add("overfit/E1a", 0.9, result={"exposure": {EVIL: ["a"]}})
    told = predictions(False)
    told["puzzles"][0] |= {"task": EVIL, "role": EVIL}
    told |= {"weights": EVIL, "step": EVIL, "tally": {EVIL: {"queries": 3, "solved": 1}}}
    (trial / "predictions.json").write_text(json.dumps(told))
    rung = {"rung": 500, "rule": EVIL, "epoch": 502, "step": 200, "value": 0.1, "stop": False}
    (trial / "scheduler.jsonl").write_text(json.dumps(rung | {"reason": EVIL}) + "\n")
    curve = rows(0.9)
    for row in curve:
        row[f"train/{EVIL}"] = 1.0
    writer.attempt(trial, 1, curve, end="finished")
    writer.add("overfit/E2a", 0.2, status="failed", reason=EVIL, identity=EVIL)
    name = EVIL.replace("/", "∕")
    writer.plan["trials"].append({"trial_id": name, "name": name, "seed": 0, "role": EVIL})
    writer.write_plan()
    html = report_html(analysis.load(folder))
    check(html, searching=True)
    assert "<img" not in html and "alert(2)</script>" not in html
    assert html.count("&lt;img src=x") >= 12, "the texts are there, as text"


@pytest.mark.parametrize(
    "damage",
    [
        {"puzzles": "none"},
        {"puzzles": [None, {}, {"task": "x"}]},
        {"puzzles": [{**predictions(True)["puzzles"][0], "output": [[11, 2]]}]},
        {"puzzles": [{**predictions(True)["puzzles"][0], "outcome": "<b>"}]},
        {"puzzles": [{**predictions(True)["puzzles"][0], "steps": [{"step": 1, "grid": [["a"]]}]}]},
    ],
)
def test_damaged_predictions_are_left_out(tmp_path: Path, damage: dict[str, object]) -> None:
    writer = FolderWriter(tmp_path / "run")
    trial = writer.add("overfit/E1a", 0.9)
    (trial / "predictions.json").write_text(json.dumps(predictions(True) | damage))
    html = report_html(analysis.load(writer.path))
    check(html)
    assert "No puzzle was answered yet" in html


def test_the_q_heads_probabilities(tmp_path: Path) -> None:
    """Two seeds: in the last tenth 40 % and 20 % of the rows, 50 % and 100 % of them right."""
    writer = FolderWriter(tmp_path / "run")
    for seed, (share, right) in enumerate(((0.4, 0.5), (0.2, 1.0))):
        told = {f"control/q_rows/{k}": 0.0 for k in range(2, 10)}
        told |= {"control/q_rows/1": 1 - share, "control/q_right/1": 0.0}
        told |= {"control/q_rows/10": share, "control/q_right/10": right}
        told |= {"control/q_halt_calibration_error": 0.1 + 0.1 * seed}
        writer.add("overfit/E1a", 0.9, seed=seed, **told)
    body = q_head(Material.of(analysis.load(writer.path))).body
    assert (
        "training puzzles, probability 90–100 %: 30.0 % of the rows, 66.7 % of them right" in body
    )
    assert "training puzzles, probability 0–10 %: 70.0 % of the rows, 0.0 % of them right" in body
    assert ">15.0 %<" in body and "held-out puzzles, probability" not in body


def test_tables_of_a_search(tmp_path: Path) -> None:
    files = write_report(searched(tmp_path / "run", 12).path)
    assert "report-search.csv" in [file.name for file in files]
