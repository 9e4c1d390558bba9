"""`torch.compile` on or off: the same numbers to rounding, the same names, the same identity.

The backends "eager" and "aot_eager" trace as the compiler does and generate no code, so that they
run everywhere; "inductor" needs a C++ compiler or CUDA.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.trainable.small_trials import puzzle_folder, tiny
from trainable.config import TrialConfig
from trainable.models import build_model
from trainable.models.compiled import compile_, pays
from trainable.trial import Trial

# Torch's own, while it traces.
pytestmark = [
    pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf"),
]
TINIER: dict[str, Any] = {"global_batch_size": 2, "num_aug": 0, "max_demos": 2, "lr": 1e-4}
CASES: dict[str, dict[str, Any]] = {
    "trm-full": {"kind": "trm", "canvas": "full"},
    "etrm-demos": {"canvas": "demos"},
}


@pytest.fixture(autouse=True)
def _fresh_compiler() -> Iterator[None]:
    torch.compiler.reset()
    yield
    torch.compiler.reset()


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return puzzle_folder(tmp_path_factory.mktemp("puzzles"), training=2, evaluation=1)


def rows_of(trial: Trial, steps: int) -> list[dict[str, Any]]:
    rows = []
    for _ in range(steps):
        trial.train_step()
        rows.append(trial.measure())
    return rows


def compare(eager: Trial, compiled: Trial, *, steps: int, tolerance: float) -> None:
    for expected, found in zip(rows_of(eager, steps), rows_of(compiled, steps), strict=True):
        for name in ("train/loss", "grad/total_norm"):
            assert found[name] == pytest.approx(expected[name], rel=tolerance), name
        assert found.keys() == expected.keys()


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("backend", [pytest.param("eager", marks=pytest.mark.slow), "aot_eager"])
def test_compiled_steps_are_those_of_eager_code(
    folder: Path, tmp_path: Path, case: str, backend: str
) -> None:
    config = tiny(folder, **(TINIER | CASES[case]))
    eager, compiled = Trial(config, tmp_path), Trial(config, tmp_path)
    names = compile_(compiled.model, backend=backend)
    assert ("inner.L_level" in names) == (config.model.canvas == "full")
    assert names and eager.model.state_dict().keys() == compiled.model.state_dict().keys()
    compare(eager, compiled, steps=2, tolerance=1e-4)


def test_bfloat16_compiles(folder: Path, tmp_path: Path) -> None:
    config = tiny(folder, forward_dtype="bfloat16", **TINIER)
    eager, compiled = Trial(config, tmp_path), Trial(config, tmp_path)
    compile_(compiled.model, backend="aot_eager")
    compare(eager, compiled, steps=1, tolerance=2e-2)


@pytest.mark.slow
@pytest.mark.timeout(300)
@pytest.mark.filterwarnings("ignore:`torch.jit:DeprecationWarning")
@pytest.mark.skipif(
    not torch.cuda.is_available() and shutil.which("c++") is None,
    reason="inductor needs a C++ compiler or CUDA",
)
@pytest.mark.parametrize("case", CASES)
def test_inductor(folder: Path, tmp_path: Path, case: str) -> None:
    """The option itself, training and evaluation."""
    config = tiny(folder, **(TINIER | CASES[case]))
    eager, compiled = Trial(config, tmp_path), Trial(config.replace(compile=True), tmp_path)
    compare(eager, compiled, steps=2, tolerance=1e-3)
    expected, found = eager.evaluate(), compiled.evaluate()
    assert found["eval/lm_loss"] == pytest.approx(expected["eval/lm_loss"], rel=1e-3)


def test_the_option_compiles_and_is_off_by_default(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    compiled: list[object] = []
    monkeypatch.setattr("trainable.trial.compile_", compiled.append)
    config = tiny(folder, **TINIER)
    Trial(config, tmp_path)
    assert not compiled
    trial = Trial(config.replace(compile=True), tmp_path)
    assert compiled == [trial.model]


def test_compiling_is_outside_the_identity() -> None:
    """It changes numbers by rounding alone, as micro batches and workers do."""
    config = TrialConfig()
    assert config.compile is None
    assert config.replace(compile=True).identity() == config.identity()


def test_unset_it_is_on_where_it_was_measured_to_pay(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("trainable.models.compiled.find_spec", lambda name: name)
    monkeypatch.setattr("shutil.which", lambda name: name if name == "gcc" else None)
    cuda, wide = torch.device("cuda"), {"hidden_size": 512, "num_heads": 8}
    assert pays(tiny(folder, **wide).model, cuda)
    assert not pays(tiny(folder, **wide).model, torch.device("cpu"))
    assert not pays(tiny(folder).model, cuda)
    assert not pays(tiny(folder, canvas="full", **wide).model, cuda)
    monkeypatch.setattr("shutil.which", lambda name: None)
    assert not pays(tiny(folder, **wide).model, cuda), "nothing to compile with"


@pytest.mark.parametrize("dtype", ["float32", pytest.param("bfloat16", marks=pytest.mark.slow)])
def test_compiled_halves_are_compared_with_eager_code_first(
    folder: Path, monkeypatch: pytest.MonkeyPatch, dtype: str
) -> None:
    config = tiny(folder, forward_dtype=dtype).model
    model = build_model(config, seed=0)
    assert "inner.L_level.layers.0.mlp" in compile_(model, backend="aot_eager", checked=True)

    def wrong(function: Any, **_: Any) -> Any:
        return lambda *values: function(*values) * 1.2

    monkeypatch.setattr(torch, "compile", wrong)
    with pytest.warns(UserWarning, match="differs from eager code by 2.0e-01"):
        assert compile_(build_model(config, seed=0), checked=True) == []

    def broken(function: Any, **_: Any) -> Any:
        raise RuntimeError("no compiler\nat all")

    monkeypatch.setattr(torch, "compile", broken)
    with pytest.warns(UserWarning, match="left out: .*RuntimeError: no compiler"):
        assert compile_(build_model(config, seed=0), checked=True) == []


def test_what_is_compiled_has_stable_shapes(folder: Path) -> None:
    full = compile_(build_model(tiny(folder, canvas="full").model, seed=0), backend="eager")
    demos = compile_(build_model(tiny(folder, canvas="demos").model, seed=0), backend="eager")
    assert "inner.L_level" in full and not any("L_level.layers" in name for name in full)
    assert "inner.L_level.layers.0.mlp" in demos and "inner.L_level" not in demos
    assert {n for n in full if n.startswith("encoder.")} == {
        n for n in demos if n.startswith("encoder.")
    }
