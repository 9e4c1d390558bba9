"""The documentation holds: links and anchors resolve, code runs, commands exist with their options.

Marks in a page, as HTML comments on the line before a block:
``not run: why``; ``file: PATH`` (the block is that file); ``line: PATH after TEXT`` (the text is
inserted behind that line); ``run in the copy`` (runs in a copy of the code with both).
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from etrm_tune.cli import Parser, add_run_options, build_parser

ROOT = Path(__file__).parents[1]
PAGES = sorted([ROOT / "README.md", ROOT / "CHANGELOG.md", *(ROOT / "docs").rglob("*.md")])
sys.path.insert(0, str(ROOT / "tests" / "analysis"))

_FENCE = re.compile(
    r"(?:^<!-- (?P<mark>.*?) -->\n)?^(?P<fence>```+)(?P<language>\w*)\n(?P<code>.*?)^(?P=fence)$",
    re.M | re.S,
)
_LINK = re.compile(r"(?<!!)\[(?:[^\]`]|`[^`]*`)*\]\(([^)\s]+)\)")


@dataclass(frozen=True)
class Block:
    """One fenced block of a page."""

    page: Path
    line: int
    language: str
    code: str
    mark: str

    def __str__(self) -> str:
        return f"{self.page.relative_to(ROOT)}:{self.line}"


def blocks(page: Path, language: str) -> list[Block]:
    text = page.read_text()
    found = []
    for match in _FENCE.finditer(text):
        if match["language"] == language:
            line = text.count("\n", 0, match.start("fence")) + 1
            found.append(Block(page, line, language, match["code"], match["mark"] or ""))
    return found


def every(language: str) -> list[Block]:
    return [block for page in PAGES for block in blocks(page, language)]


def prose(page: Path) -> str:
    return _FENCE.sub("", page.read_text())


def anchors(page: Path) -> set[str]:
    """Anchors as GitHub makes them from headings."""
    found: dict[str, int] = {}
    names = set()
    for heading in re.findall(r"^#+ +(.+?) *$", prose(page), re.M):
        plain = re.sub(r"\[([^\]]*)\]\([^)]*\)", r"\1", heading).replace("`", "")
        slug = re.sub(r"[^\w\- ]", "", plain.lower()).replace(" ", "-")
        names.add(f"{slug}-{found[slug]}" if slug in found else slug)
        found[slug] = found.get(slug, 0) + 1
    return names


@pytest.mark.parametrize("page", PAGES, ids=lambda p: str(p.relative_to(ROOT)))
def test_links_and_anchors_resolve(page: Path) -> None:
    for target in _LINK.findall(prose(page)):
        if re.match(r"https?://|mailto:", target):
            continue
        path, _, anchor = target.partition("#")
        place = (page.parent / path).resolve() if path else page
        assert place.exists(), f"{page.name}: {target} is not there"
        assert place.is_relative_to(ROOT), f"{page.name}: {target} leaves the repository"
        if anchor and place.suffix == ".md":
            assert anchor in anchors(place), f"{page.name}: no heading for {target}"


def test_the_index_leads_to_the_pages_of_the_sidebar() -> None:
    """A new page stands under "More" of the built pages until it is named there and here."""
    navigation = build_module().NAVIGATION
    named = [name for heading, names in navigation if heading != "Reference" for name in names]
    linked = _LINK.findall(prose(ROOT / "docs" / "index.md"))
    assert set(named) <= set(linked)
    assert "(docs/index.md)" in (ROOT / "README.md").read_text()


# Shell blocks.


def commands(block: Block) -> Iterator[list[str]]:
    for line in block.code.replace("\\\n", " ").splitlines():
        words = shlex.split(line, comments=True)
        while words and re.fullmatch(r"[A-Z_]+=\S*", words[0]):
            words = words[1:]  # an environment variable
        if words:
            yield words


def _pytest(words: list[str]) -> None:
    for word in words:
        if word.endswith(".py") or word.startswith("tests"):
            assert (ROOT / word.partition("::")[0]).exists(), word


def _script(path: Path, words: list[str]) -> None:
    """A program of ours: it is there and has these options."""
    assert path.is_file(), f"{path} is not there"
    for word in words:
        if word.startswith("--"):
            assert f'"{word.partition("=")[0]}"' in path.read_text(), f"{path.name} has no {word}"


def check(words: list[str]) -> None:
    """A command of the pages exists, with every option it is given."""
    first, rest = words[0].removeprefix(".venv/bin/"), words[1:]
    if "|" in rest:
        rest = rest[: rest.index("|")]
    rest = [word for at, word in enumerate(rest) if word not in (">", "2>&1", "&")]
    if first == "make":
        targets = re.findall(r"^([\w-]+):", (ROOT / "Makefile").read_text(), re.M)
        for word in rest:
            assert "=" in word or word in targets, f"make has no target {word}"
    elif first == "etrm-tune":
        _parse(build_parser(), rest)
    elif first == "python" and rest[:2] == ["-m", "etrm_tune.run"]:
        if rest[2] == "search":
            _parse(build_parser(), rest[2:])
        else:
            parser = Parser()
            add_run_options(parser)
            _parse(parser, rest[2:])
    elif first == "python" and rest[:2] == ["-m", "pytest"]:
        _pytest(rest[2:])
    elif first == "python" and rest[:1] == ["-m"]:
        _script(ROOT / f"{rest[1].replace('.', '/')}.py", rest[2:])
    elif first == "python":
        _script(ROOT / rest[0], rest[1:])
    else:
        assert first in OTHERS, f"an unknown command {first!r}: is it one of ours?"


OTHERS = frozenset(
    (
        *("source", "cd", "pip", "git", "export", "curl", "open", "mkdir", "cp", "ls", "cat"),
        *("tail", "ssh", "rsync", "scp", "pytest", "nvidia-smi", "docker", "kubectl"),
        *("tensorboard", "ray", "prometheus", "grafana", "wandb", "mlflow", "jupyter"),
        *("sbatch", "srun", "squeue", "scancel"),
    )
)
"""Commands of others that the pages name."""


def _parse(parser: argparse.ArgumentParser, words: list[str]) -> None:
    if "--help" in words:
        words = [word for word in words if word != "--help"]
    assert isinstance(parser, Parser)
    parser.parse_all(words)


@pytest.mark.parametrize("block", every("bash"), ids=str)
def test_commands_exist_with_their_options(block: Block) -> None:
    for words in commands(block):
        check(words)


@pytest.mark.parametrize(
    "line",
    [
        "etrm-tune status runs/phase1 --colour",
        "etrm-tune nothing",
        "python -m etrm_tune.run phase1 --sed 3",
        "python -m etrm_tune.run search --spaces lr",
        "python -m benchmarks.nothing",
        "python -m benchmarks.steps --nothing 3",
        "make nothing",
        "frobnicate",
    ],
)
def test_a_wrong_command_is_found(line: str) -> None:
    with pytest.raises((AssertionError, Exception)):
        check(shlex.split(line))


# Python blocks.


def python_pages() -> list[Path]:
    return [page for page in PAGES if any(not block.mark for block in blocks(page, "python"))]


@pytest.mark.parametrize("page", python_pages(), ids=lambda p: str(p.relative_to(ROOT)))
def test_python_blocks_run(page: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """In order, in one namespace, beside a finished run in runs/phase1."""
    from synthetic_runs import phase1

    phase1(tmp_path / "runs" / "phase1", 0.93, 0.85, 0.7, 0.95)
    monkeypatch.chdir(tmp_path)
    names: dict[str, Any] = {"__name__": "page"}
    for block in blocks(page, "python"):
        if block.mark:
            assert block.mark.startswith(("not run: ", "file: ", "run in the copy"))
            continue
        exec(compile("\n" * block.line + block.code, str(page), "exec"), names)


ROOMS = ("trainable", "search_spaces", "analysis", "etrm_tune", "tests")


def copy_with(page: Path, folder: Path) -> Path:
    """A copy of the code with the files and lines that a page adds."""
    for room in ROOMS:
        skip = shutil.ignore_patterns("__pycache__", "golden*", "*.safetensors")
        shutil.copytree(ROOT / room, folder / room, ignore=skip)
    for name in ("pyproject.toml",):
        shutil.copy(ROOT / name, folder / name)
    for block in blocks(page, "python") + blocks(page, "text"):
        kind, _, rest = block.mark.partition(": ")
        if kind == "file":
            (folder / rest).write_text(block.code)
        elif kind == "line":
            path, _, after = rest.partition(" after ")
            lines = (folder / path).read_text().split("\n")
            lines.insert(lines.index(after) + 1, block.code.rstrip("\n"))
            (folder / path).write_text("\n".join(lines))
    return folder


def in_copy(folder: Path, *words: str) -> str:
    own = {"PYTHONPATH": str(folder), "OMP_NUM_THREADS": "1", "NO_COLOR": "1", "COLUMNS": "100"}
    done = subprocess.run(
        [sys.executable, *words],
        cwd=folder, env=os.environ | own, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.mark.slow
def test_your_own_encoder_works_as_its_page_says(tmp_path: Path) -> None:
    page = ROOT / "docs" / "own-encoder.md"
    folder = copy_with(page, tmp_path / "copy")
    [training] = [b for b in blocks(page, "python") if b.mark == "run in the copy"]
    said = in_copy(folder, "-c", training.code)
    assert re.match(r"finished \d+ steps", said)
    assert int(said.split()[1]) >= 4
    assert (folder / "runs" / "peak" / "attempt-1.jsonl").is_file()
    in_copy(folder, "-m", "ruff", "check", "trainable/models/encoders/peak.py")
    in_copy(folder, "-m", "ruff", "format", "--check", "trainable/models/encoders/peak.py")
    tests = ("tests/trainable/test_models.py", "tests/trainable/test_encoders.py", "-k", "peak")
    passed = in_copy(folder, "-m", "pytest", "-q", "-p", "no:cacheprovider", *tests)
    assert re.search(r"\b\d+ passed", passed) and "failed" not in passed


def test_your_own_experiment_works_as_its_page_says(tmp_path: Path) -> None:
    folder = copy_with(ROOT / "docs" / "own-experiment.md", tmp_path / "copy")
    listed = in_copy(folder, "-m", "etrm_tune", "list", "mine")
    assert "mine/A1" in listed and "mine/A2" in listed and "one layer" in listed
    shown = in_copy(folder, "-m", "etrm_tune", "show", "mine/A2")
    assert "encoder_set_layers" in shown


def test_the_marks_name_real_places() -> None:
    marked = [block for block in every("text") if block.mark]
    assert len(marked) >= 3
    for block in marked:
        kind, _, rest = block.mark.partition(": ")
        if kind == "line":
            path, _, after = rest.partition(" after ")
            assert after in (ROOT / path).read_text().split("\n"), f"{block}: {after!r}"


def test_benchmarks_named_in_pages_can_be_imported() -> None:
    named = {word for page in PAGES for word in re.findall(r"benchmarks\.(\w+)", page.read_text())}
    assert "load" in named
    for name in named:
        assert importlib.util.find_spec(f"benchmarks.{name}"), f"benchmarks.{name} is not there"


# The notebook.

NOTEBOOK = ROOT / "docs" / "results.ipynb"


def cells_of(notebook: Any) -> list[Any]:
    return [cell for cell in notebook["cells"] if cell["cell_type"] == "code"]


def test_the_notebook_is_stored_with_its_outputs() -> None:
    cells = cells_of(json.loads(NOTEBOOK.read_text()))
    assert len(cells) > 8
    for cell in cells:
        assert cell["outputs"], "run docs/results.ipynb and store it with its outputs"
        assert all(output["output_type"] != "error" for output in cell["outputs"])
    assert not re.search(r"/(?:home|root|work|tmp)/", NOTEBOOK.read_text()), "a path of a machine"


@pytest.mark.slow
def test_the_notebook_runs_and_says_what_is_stored(tmp_path: Path) -> None:
    """Executed in a kernel of its own, in its folder; printed text is that of the stored file."""
    own = {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "IPYTHONDIR": str(tmp_path)}
    code = (
        "import sys, nbformat, nbclient\n"
        "notebook = nbformat.read(sys.argv[1], 4)\n"
        "client = nbclient.NotebookClient(notebook, timeout=300, kernel_name='python3',\n"
        "    startup_timeout=300, resources={'metadata': {'path': sys.argv[2]}})\n"
        "client.execute()\n"
        "nbformat.write(notebook, sys.argv[3])\n"
    )
    words = [sys.executable, "-c", code, str(NOTEBOOK), str(NOTEBOOK.parent), str(tmp_path / "out")]
    done = subprocess.run(words, env=os.environ | own, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-3000:]

    def printed(path: Path) -> list[str]:
        cells = cells_of(json.loads(path.read_text()))
        return ["".join("".join(o.get("text", "")) for o in cell["outputs"]) for cell in cells]

    assert printed(tmp_path / "out") == printed(NOTEBOOK)


# The reference and the pages as HTML.


def build_module() -> Any:
    spec = importlib.util.spec_from_file_location("build", ROOT / "docs" / "build.py")
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("site")
    build_module().build(folder)
    return folder


def test_links_of_the_built_pages_resolve(site: Path) -> None:
    pages = sorted(site.rglob("*.html"))
    assert len(pages) > 15
    known = {page: set(re.findall(r'id="([^"]+)"', page.read_text())) for page in pages}
    for page in pages:
        text = page.read_text()
        assert text.count("<h1") == 1, page.name
        for target in re.findall(r'href="([^"]+)"', text):
            if target.startswith("http"):
                continue
            path, _, anchor = target.partition("#")
            place = (page.parent / path).resolve() if path else page
            assert place in known, f"{page.name}: {target}"
            assert not anchor or anchor in known[place], f"{page.name}: no heading for {target}"


def test_the_reference_says_everything(site: Path) -> None:
    import search_spaces
    from analysis import columns
    from trainable.config import DataConfig, ModelConfig, TrialConfig
    from trainable.encoder_options import ENCODER_FACTS

    def text(name: str) -> str:
        return (site / "reference" / f"{name}.html").read_text()

    rows = re.findall(r"<tr>(.*?)</tr>", text("options"), re.S)
    cells = {re.sub(r"<.*?>| ○", "", row.split("</td>")[0]).strip(): row for row in rows}
    for model in (TrialConfig, ModelConfig, DataConfig):
        for option in model.model_fields:
            if option not in ("model", "data"):
                meaning = re.sub(r"<.*?>", "", cells[option].split("</td>")[4]).strip()
                assert meaning, f"{option}: give its Field a description"
    for table in columns.COLUMNS.values():
        for column in table:
            assert f"<code>{column.name}</code>" in text("columns")
    for experiment in search_spaces.experiments():
        assert f"<code>{experiment.name}</code>" in text("experiments")
    for name in ENCODER_FACTS:
        assert f"<code>{name}</code>" in text("choices")
    for command in ("run", "search", "report", "evaluate", "checkpoint inspect"):
        assert re.search(rf"<h[23] id=\"[^\"]*\">{command}<", text("commands"))
    for function in ("load", "values_at", "comparison_matrix", "build_model", "train"):
        assert re.search(rf"<h3 id=\"[^\"]*\">{function}<", text("api"))
