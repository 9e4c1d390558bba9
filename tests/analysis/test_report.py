"""The report: every section, right numbers, nothing from outside, and runs in any state."""

from __future__ import annotations

import argparse
import base64
import hashlib
import json
import math
import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from synthetic_runs import BAR, FolderWriter, phase1, rows

import analysis
from analysis.report import BUILDERS, report_html, write_report
from analysis.report.curves import histogram
from analysis.report.material import Material
from analysis.report.puzzles import grid_svg
from analysis.report.results import front
from analysis.report.script import SCRIPT
from analysis.report.style import ARC
from analysis.report.svg import Line, lines_chart, nice_ticks, thin
from etrm_tune.commands import report as command
from etrm_tune.draw import PALETTE

VOID = {"meta", "br", "img", "link", "input", "hr"}


class Page(HTMLParser):
    """Text, section names, and whether every tag is closed in order."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.sections: list[str] = []
        self.outside: list[str] = []
        self.unlabelled = 0
        self.scripts: list[str] = []
        self.policies: list[str] = []
        self.feed(html)

    def handle_data(self, data: str) -> None:
        if self.open and self.open[-1] == "script":
            self.scripts.append(data)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        values = dict(attrs)
        if tag not in VOID:
            self.open.append(tag)
        if tag == "section":
            self.sections.append(str(values["id"]))
        if tag == "svg" and "aria-label" not in values and "aria-hidden" not in values:
            self.unlabelled += 1
        for name in ("src", "href", "xlink:href", "data", "srcset"):
            if name in values and not str(values[name]).startswith("#"):
                self.outside.append(str(values[name]))
        if values.get("http-equiv") == "Content-Security-Policy":
            self.policies.append(str(values["content"]))
        assert not any(name.startswith("on") for name in values)
        assert tag not in ("iframe", "object", "link", "img")

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        pass

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag


def check(html: str, *, searching: bool = False) -> Page:
    """A well-formed page of every section that refers to nothing outside itself."""
    page = Page(html)
    assert page.open == [] and page.outside == [] and page.unlabelled == 0
    assert len(page.sections) == len(set(page.sections)) == len(BUILDERS) - (not searching)
    assert page.scripts == [SCRIPT], "the page's own script and no other"
    digest = base64.b64encode(hashlib.sha256(SCRIPT.encode()).digest()).decode()
    (rules,) = page.policies
    assert rules.startswith("default-src 'none';") and f"script-src 'sha256-{digest}'" in rules
    assert not re.search(r"https?:|@import|url\((?!#)|fetch|XMLHttp|innerHTML", html)
    assert "nan" not in re.sub(r"<[^>]*>", " ", html).lower().split()
    assert not re.search(r'="[^"]*\b(nan|inf)\b', html)
    assert len(html) < 5e6
    return page


def full(path: Path) -> FolderWriter:
    """Two experiments with a halting histogram, a stop, a failure, a decoder and a pending one."""
    writer = FolderWriter(
        path,
        packages={"torch": "2.9"},
        estimate={
            "wall_s": 100.0,
            "basis": "first 10 steps of overfit-E1a-s0",
            "trials": {"overfit-E1a-s0": {"seconds": 80.0}},
        },
        sessions=[[0.0, 150.0]],
    )
    writer.add("decoder/trm", 0.8, role="decoder", options={"kind": "trm"})
    for seed in (0, 1, 2):
        folder = writer.add("overfit/E1a", 0.9 + 0.02 * seed, seed=seed)
        curve = rows(0.9 + 0.02 * seed)
        for row in curve:
            row |= {"train/steps_hist/1": 0.25, "train/steps_hist/2": 0.75}
            row |= {"grad/encoder_norm": 0.1, "grad/decoder_norm": 1.0, "grad/total_norm": 1.0}
            row |= {"encoder/cross_sample_var": 0.5, "decoder/max_difference": row["step"] / 1e4}
        writer.attempt(folder, 1, curve, end="finished")
    folder = writer.add("overfit/E1b", 0.12, status="stopped", reason=BAR, steps=200)
    rung = {"rung": 500, "rule": "bar", "epoch": 502, "step": 200, "value": 0.12, "stop": True}
    (folder / "scheduler.jsonl").write_text(json.dumps(rung | {"reason": BAR}) + "\n")
    writer.add("overfit/E2a", math.nan, status="diverged", reason="loss is <not> finite", steps=50)
    writer.add("overfit/E2b", None, status="failed", reason="OutOfMemory")
    writer.plan_trial("overfit/E2c")
    return writer


def test_a_run_in_every_state(tmp_path: Path) -> None:
    html = report_html(analysis.load(full(tmp_path / "run").path))
    page = check(html)
    assert page.sections == [
        "decision", "run", "matrix", "controls", "pareto", "puzzles", "curves", "halting", "q-head",
        "gradients", "drift", "stopping", "estimate", "findings",
    ]  # fmt: skip
    matrix = analysis.comparison_matrix(analysis.load(tmp_path / "run")).set_index("experiment")
    best = matrix.loc["overfit/E1a"]
    low, high = 100 * best["accuracy_low"], 100 * best["accuracy_high"]
    assert f">{100 * best['accuracy']:.1f} %<" in html and f">{low:.1f}-{high:.1f}<" in html
    assert "took 2.5 min in 1 session (× 1.50)" in html
    assert "× 2.00" in html  # 160 s against 80 s, all steps
    assert "torch 2.9" in html and "loss is &lt;not&gt; finite" in html
    assert "etrm-tune report" in html and "--puzzles" in html
    assert html.count('class="lead"') == len(BUILDERS) - 1, "a sentence under every title"
    stopping = html.partition('id="stopping"')[2]
    assert "rung 500, first report at epoch 502" in stopping and ">stopped<" in stopping
    assert html.count('class="rung"') == 1  # on the chart of the stopped experiment


def test_an_empty_run(tmp_path: Path) -> None:
    writer = FolderWriter(tmp_path / "run")
    check(report_html(analysis.load(writer.path)))
    writer.plan_trial("overfit/E1a")
    html = report_html(analysis.load(writer.path))
    check(html)
    assert "No arm has reported an accuracy yet" in html


def test_many_experiments_stay_small(tmp_path: Path) -> None:
    writer = FolderWriter(tmp_path / "run", target="overfit")
    for at, identifier in enumerate(("E1a", "E1b", "E2a", "E2b", "E2c", "E3a", "E3b", "E4a")):
        for seed in (0, 1):
            writer.add(f"overfit/{identifier}", 0.5 + 0.05 * at, seed=seed)
    assert len(report_html(analysis.load(writer.path))) < 4e5


def predictions(correct: bool) -> dict[str, Any]:
    """What `trainable.predictions` writes, for one puzzle of 1 × 2 cells."""
    truth = [[1, 2]]
    last = truth if correct else [[1, -1]]
    steps = [
        {"step": 1, "grid": [[0, 0]], "size": [1, 1], "q": 0.1, "accuracy": 0.0, "correct": False},
        {"step": 3, "grid": last, "size": [1, 2], "q": 0.9, "accuracy": 1.0, "correct": correct},
    ]
    return {
        "schema_version": 1,
        "weights": "ema",
        "step": 400,
        "tally": {"trained": {"queries": 30, "solved": 7}},
        "puzzles": [
            {
                "task": "00d62c1b",
                "role": "trained",
                "outcome": "solved" if correct else "failed",
                "demos": [{"input": [[3]], "output": [[4]]}],
                "input": [[5, 5]],
                "output": truth,
                "steps": steps,
            }
        ],
    }


def test_puzzles_are_drawn_with_wrong_cells_marked(tmp_path: Path) -> None:
    writer = phase1(tmp_path / "run", 0.9, 0.8, 0.7, 0.6)
    folder = writer.folder("overfit/E1a")
    (folder / "predictions.json").write_text(json.dumps(predictions(False)))
    html = report_html(analysis.load(writer.path))
    check(html)
    assert "trained: 7 solved of 30 queries" in html
    assert "step 1: ✗ 2 wrong, size 1 × 1, q 0.10" in html
    assert 'data-truth="12"' in html and 'data-g="1." data-w="1"' in html, "for the script"
    assert "step 3: ✗ 1 wrong, q 0.90" in html
    (folder / "predictions.json").write_text(json.dumps(predictions(True)))
    assert "step 3: ✓ right, q 0.90" in report_html(analysis.load(writer.path))


def test_no_variable_of_the_script_hides_a_function() -> None:
    functions = re.findall(r"function (\w+)\(", SCRIPT)
    variables = re.findall(r"(?:var|,) (\w+) =", SCRIPT)
    assert len(functions) >= 7 and not set(functions) & set(variables)
    assert SCRIPT.count("{") == SCRIPT.count("}") and SCRIPT.count("(") == SCRIPT.count(")")


def test_grids() -> None:
    svg = grid_svg([[1, 1, 2], [0, -1, 2]], "step", [[1, 1, 2], [0, 3, 3]])
    assert "2 by 3 cells, 2 wrong" in svg and svg.count(ARC[1]) == 1 and "url(#none)" in svg
    assert [tuple(int(c[i : i + 2], 16) for i in (1, 3, 5)) for c in ARC] == list(PALETTE)


def test_charts() -> None:
    nan = math.nan
    svg = lines_chart([Line([0, 1, 2, 3], [0.0, 1.0, nan, 0.5], stop=True)], alt="a<b", x_name="x")
    assert "a&lt;b" in svg and "nan" not in svg and "l10,10" in svg
    assert lines_chart([Line([0, 1], [nan, nan])], alt="", x_name="") == ""
    assert lines_chart([Line([0, 1], [0.0, -1.0])], alt="", x_name="", log=True) == ""
    assert "e+" not in lines_chart([Line([0, 1], [1e-9, 1e-9])], alt="", x_name="", log=True)
    assert nice_ticks(0, 1) == [0, 0.25, 0.5, 0.75, 1] and nice_ticks(2, 2) == [2]
    assert len(thin(range(10_000), 160)) == 160 and thin([1, 2], 160) == [0, 1]
    assert thin(range(1000), 5)[-1] == 999


def test_the_halting_histogram_is_the_mean_of_the_last_rows(tmp_path: Path) -> None:
    material = Material.of(analysis.load(full(tmp_path / "run").path))
    assert histogram(material.seeds("overfit/E1a")) == {1: 0.25, 2: 0.75}
    assert histogram(material.seeds("overfit/E1b")) == {}


def test_the_pareto_front() -> None:
    matrix = pd.DataFrame(
        {
            "experiment": ["a", "b", "c", "d", "e"],
            "n": [1, 1, 1, 0, 1],
            "status": ["finished"] * 5,
            "accuracy": [0.9, 0.8, 0.7, 1.0, 0.9],
            "wall_s": [30.0, 10.0, 20.0, 1.0, 40.0],
        }
    )
    assert front(matrix, "wall_s") == {"a", "b"}
    matrix.loc[1, "status"] = "1 finished, 1 stopped"
    assert front(matrix, "wall_s") == {"a", "c"}, "what was cut is cheap and no bargain"


def test_files_and_the_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = phase1(tmp_path / "run", 0.9, 0.8, 0.7, 0.6).path
    files = write_report(path)
    assert [f.name for f in files] == [
        "report.html", "report.md", "report-comparison.csv", "report-trials.csv",
        "report-health.csv", "report-curves.csv",
    ]  # fmt: skip
    table = pd.read_csv(path / "report-comparison.csv")
    assert table["accuracy"].tolist() == pytest.approx([0.9, 0.8, 0.7, 0.6])
    told = (path / "report.md").read_text()
    assert "# Comparison" in told and "## Stopping rules replayed" in told
    curves = pd.read_csv(path / "report-curves.csv")
    assert curves.groupby("trial_id")["step"].max().tolist() == [400] * 4
    assert curves["train/accuracy"].notna().all() and curves["eval/pass@1"].count() == 4
    parser = argparse.ArgumentParser()
    command.add(parser.add_subparsers())
    out = tmp_path / "page.html"
    args = parser.parse_args(["report", str(path), "--out", str(out)])
    assert args.action(args) == 0 and out.exists()
    assert str(out) in capsys.readouterr().out
    args = parser.parse_args(["report", str(path), "--out", str(tmp_path / "page.pdf")])
    with pytest.raises(Exception, match=r"report\.html"):
        args.action(args)
