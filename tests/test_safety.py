"""A stranger's run folder runs no code here and leads nowhere outside of itself."""

from __future__ import annotations

import ast
import json
import pickle
from pathlib import Path
from typing import Any

import pytest

import analysis
from analysis.rows import ResultsError
from etrm_tune import cli
from etrm_tune.conductor import decoder_checkpoint
from etrm_tune.run_folder import RunFolder, RunFolderError
from search_spaces import trial_id

ROOT = Path(__file__).parents[1]
ROOMS = ("analysis", "benchmarks", "etrm_tune", "search_spaces", "trainable")
OUTSIDE = ["../../x", "..", "/etc", "a/b", "a\\b", "."]


def calls(tree: ast.AST) -> list[tuple[str, ast.Call]]:
    found = []
    for node in ast.walk(tree):
        if isinstance(node, ast.Call):
            found.append((ast.unparse(node.func), node))
    return found


def keyword(call: ast.Call, name: str) -> Any:
    found = [k.value for k in call.keywords if k.arg == name]
    return ast.unparse(found[0]) if found else None


def test_nothing_is_unpickled() -> None:
    """Readers of files: `torch.load` with ``weights_only=True``, and none that runs code."""
    never = {
        "pickle.load", "pickle.loads", "pickle.Unpickler", "cloudpickle.load", "cloudpickle.loads",
        "dill.load", "dill.loads", "joblib.load", "marshal.load", "marshal.loads", "shelve.open",
        "pd.read_pickle", "pandas.read_pickle", "yaml.load", "yaml.unsafe_load", "yaml.full_load",
        "torch.jit.load", "torch.package.PackageImporter", "eval", "exec",
    }  # fmt: skip
    loads = 0
    for room in ROOMS:
        for path in (ROOT / room).rglob("*.py"):
            for name, call in calls(ast.parse(path.read_text())):
                where = f"{path.relative_to(ROOT)}:{call.lineno}: {name}"
                assert name not in never, where
                if name == "torch.load":
                    loads += 1
                    assert keyword(call, "weights_only") == "True", where
                if name in ("np.load", "numpy.load"):
                    assert keyword(call, "allow_pickle") in (None, "False"), where
    assert loads, "the search found nothing at all"


class Trap:
    """Touches a file when unpickled."""

    def __init__(self, target: Path) -> None:
        self.target = target

    def __reduce__(self) -> Any:
        return Path.touch, (self.target,)


def run(folder: Path, *trials: str) -> RunFolder:
    entries = [{"trial_id": name, "identity": "x"} for name in trials]
    options = {"target": "phase1", "profile": "laptop", "revision": "2026-01-21", "seeds": 1}
    run = RunFolder(folder)
    run.write_plan({"target": "phase1", "trials": entries, "options": options})
    return run


def test_tables_that_hold_code_are_written_anew_and_never_read(tmp_path: Path) -> None:
    folder, trap = tmp_path / "run", tmp_path / "trap"
    run(folder, "overfit-E1a-s0").write_config("overfit-E1a-s0", {"identity": "x", "config": {}})
    for name in ("trials.parquet", "curves.parquet", "tasks.parquet", "decisions.json"):
        (folder / name).write_bytes(pickle.dumps(Trap(trap)))
    analysis.write_derived(folder)
    assert not trap.exists()
    assert (folder / "trials.parquet").read_bytes()[:4] == b"PAR1"


@pytest.mark.parametrize("name", OUTSIDE)
def test_a_trial_named_like_a_way_out_is_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], name: str
) -> None:
    folder = run(tmp_path / "run", name)
    before = sorted(tmp_path.rglob("*"))
    with pytest.raises(ResultsError, match="no folder name"):
        folder.write_status(name, "finished")
    with pytest.raises(ResultsError, match="no folder name"):
        analysis.load(folder.path)
    for words in (["status"], ["retry"], ["report"], ["replay"]):
        assert cli.main([*words, str(folder.path)]) == 2
        err = capsys.readouterr().err
        assert "no folder name" in err and len(err.strip().splitlines()) == 1
    assert sorted(tmp_path.rglob("*")) == before


def test_a_result_cannot_name_a_checkpoint_elsewhere(tmp_path: Path) -> None:
    folder = run(tmp_path / "run", "decoder-trm-s0")
    home = folder.trial("decoder-trm-s0")
    (home / "checkpoints").mkdir(parents=True)
    (tmp_path / "evil.pt").write_text("")
    for told in (str(tmp_path / "evil.pt"), "../../../evil.pt", "..", ""):
        (home / "result.json").write_text(json.dumps({"final_checkpoint": told}))
        with pytest.raises(RunFolderError, match="its checkpoint is gone"):
            decoder_checkpoint(folder, "decoder-trm-s0")
    (home / "checkpoints" / "step-4.pt").write_text("")
    (home / "result.json").write_text(json.dumps({"final_checkpoint": "/else/where/step-4.pt"}))
    found = decoder_checkpoint(folder, "decoder-trm-s0")
    assert found == home / "checkpoints" / "step-4.pt"


def test_names_of_experiments_and_runs_stay_inside(capsys: pytest.CaptureFixture[str]) -> None:
    assert "/" not in trial_id("../../overfit/E1a", 0)
    for name in ("../x", "/x", "..", "."):
        assert cli.main(["run", "overfit/E1a", "--dry-run", "--name", name]) == 2
        assert "without '/'" in capsys.readouterr().err
        assert cli.main(["search", "--space", "halting", "--dry-run", "--name", name]) == 2
        assert "without '/'" in capsys.readouterr().err
