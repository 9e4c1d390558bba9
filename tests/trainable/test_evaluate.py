"""Evaluation and controls: what is counted, and that nothing is disturbed."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from tests.trainable.small_trials import puzzle_folder, tiny
from trainable import evaluate as evaluate_module
from trainable.config import TrialConfig
from trainable.data import ArcData
from trainable.data.controls import control_batches, trivial_baselines
from trainable.evaluate import (
    demonstration_controls,
    evaluate,
    evaluation_mode,
    run_act,
    to_tensors,
)
from trainable.losses import row_scores
from trainable.models import Outputs, RecursiveModel, build_model

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return puzzle_folder(tmp_path_factory.mktemp("puzzles"))


def build(config: TrialConfig, seed: int = 0) -> tuple[RecursiveModel, ArcData]:
    data = ArcData.from_config(config)
    sized = config.replace(num_puzzle_identifiers=data.num_puzzle_identifiers)
    model = build_model(sized.model, seed=seed)
    # a new model never says anything but one colour: make its answers depend on the input
    with torch.no_grad():
        model.inner.lm_head.weight.normal_(generator=torch.Generator().manual_seed(seed))
    return model.train(), data


@pytest.mark.parametrize("kind", ["etrm", "trm"])
def test_every_query_counts_once_whatever_the_batch(folder: Path, kind: str) -> None:
    model, data = build(tiny(folder, kind=kind))
    results = {size: evaluate(model, data, size, device=CPU) for size in (1, 4, 5, 64)}
    reference = results[1]
    assert reference.metrics["eval/rows"] == data.num_eval_rows() == (1 + 2) * 2
    assert reference.metrics["eval/scheduled"] == 2 and reference.metrics["eval/num_aug"] == 1
    for size, result in results.items():
        for name, value in reference.metrics.items():
            assert result.metrics[name] == pytest.approx(value, abs=1e-5, nan_ok=True), (size, name)
        assert [str(task) for task in result.tasks] == [str(task) for task in reference.tasks]
    metrics = reference.metrics
    assert metrics["eval/loss"] == metrics["eval/lm_loss"] + 0.5 * metrics["eval/q_halt_loss"]
    assert math.isnan(metrics["eval/pass@5"]), "two candidates at most"
    assert (0 if kind == "etrm" else -1) < metrics["eval/accuracy"] < 1


def test_evaluation_means_against_the_rows_themselves(folder: Path) -> None:
    model, data = build(tiny(folder))
    found = evaluate(model, data, 4, device=CPU).metrics
    scores, right = [], []
    with evaluation_mode(model):
        for arrays in data.eval_batches(1):
            batch = to_tensors(arrays, CPU)
            outputs = run_act(model, batch)
            _, correct, count = row_scores(outputs, outputs["labels"])
            scores.append(float(correct) / float(count))
            right.append(float(correct) == float(count) and bool(batch["fits"]))
    assert found["eval/accuracy"] == pytest.approx(np.mean(scores), abs=1e-6)
    assert found["eval/exact_accuracy"] == np.mean(right)


def test_calibration_of_the_q_head(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of six right rows the Q-head is sure of two; their tenths, shares and distance."""
    model, data = build(tiny(folder))
    total = data.num_eval_rows()
    answered: list[int] = []

    def knows(model: RecursiveModel, batch: dict[str, Tensor], context: Any = None) -> Outputs:
        logits = torch.nn.functional.one_hot(batch["labels"].long().clamp_min(0), 12).float()
        sure = torch.tensor([len(answered) + i < 2 for i in range(len(logits))])
        answered.extend(range(len(logits)))
        q = torch.logit(torch.where(sure, 0.95, 0.15))
        return Outputs(logits=logits, q_halt_logits=q, labels=batch["labels"])

    monkeypatch.setattr(evaluate_module, "run_act", knows)
    found = evaluate(model, data, 4, device=CPU).metrics
    assert [found[f"eval/q_rows/{k}"] for k in (1, 2, 10)] == pytest.approx(
        [0, (total - 2) / total, 2 / total]
    )
    assert found["eval/q_right/2"] == found["eval/q_right/10"] == 1.0
    assert "eval/q_right/1" not in found
    apart = (2 * 0.05 + (total - 2) * 0.85) / total
    assert found["eval/q_halt_calibration_error"] == pytest.approx(apart)
    told = demonstration_controls(model, data, 4, seed=0, device=CPU)
    assert told["control/q_rows/2"] == 1.0 and told["control/q_right/2"] == 1.0


def test_an_output_outside_its_canvas_is_never_exact(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A model that always answers rightly is exact on the rows that fit, and only there."""
    model, data = build(tiny(folder))

    def knows(model: RecursiveModel, batch: dict[str, Tensor], context: Any = None) -> Outputs:
        logits = torch.nn.functional.one_hot(batch["labels"].long().clamp_min(0), 12).float()
        q = torch.full((len(logits),), 9.0)
        return Outputs(logits=logits, q_halt_logits=q, labels=batch["labels"])

    monkeypatch.setattr(evaluate_module, "run_act", knows)
    fits = np.concatenate([b["fits"][b["puzzle_identifiers"] != 0] for b in data.eval_batches(4)])
    metrics = evaluate(model, data, 4, device=CPU).metrics
    assert metrics["eval/accuracy"] == 1.0
    assert metrics["eval/exact_accuracy"] == pytest.approx(fits.mean())
    monkeypatch.setattr(data, "eval_batches", cut_rows(data))
    cut = evaluate(model, data, 4, device=CPU).metrics
    assert cut["eval/rows"] == metrics["eval/rows"], "rows that do not fit stay in the denominator"
    assert cut["eval/exact_accuracy"] < metrics["eval/exact_accuracy"]


def cut_rows(data: ArcData) -> Any:
    """The data's evaluation batches with the first row of each said not to fit."""
    original = data.eval_batches

    def batches(*args: Any, **options: Any) -> Any:
        for batch in original(*args, **options):
            fits, labels = batch["fits"].copy(), batch["labels"].copy()
            fits[0] = False
            labels[0] = -100
            yield batch | {"fits": fits, "labels": labels}

    return batches


def test_evaluation_leaves_the_model_as_it_was(folder: Path) -> None:
    config = tiny(folder, encoder_type="hybrid_variational", kl_weight=1e-3)
    model, data = build(config)
    before = {n: v.clone() for n, v in model.state_dict().items()}
    torch.manual_seed(3)
    expected = torch.rand(2)
    torch.manual_seed(3)
    numpy_state = np.random.get_state()[1].copy()  # noqa: NPY002
    evaluate(model, data, 4, device=CPU)
    demonstration_controls(model, data, 4, seed=0, device=CPU)
    assert torch.equal(torch.rand(2), expected), "no draw from torch's global generator"
    assert np.array_equal(np.random.get_state()[1], numpy_state)  # noqa: NPY002
    assert model.training and all(module.training for module in model.modules())
    assert all(torch.equal(v, before[n]) for n, v in model.state_dict().items())
    assert all(p.grad is None and p.requires_grad for p in model.parameters())
    with pytest.raises(RuntimeError, match="inside"), evaluation_mode(model):
        assert not model.training and not torch.is_grad_enabled()
        raise RuntimeError("inside")
    assert model.training and torch.is_grad_enabled()


def test_controls_are_what_they_say(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model, data = build(tiny(folder))
    seen: list[tuple[dict[str, Tensor], Tensor | None]] = []
    logits: list[Tensor] = []
    original = evaluate_module.run_act

    def spy(model: RecursiveModel, batch: dict[str, Tensor], context: Any = None) -> Outputs:
        seen.append((batch, context))
        outputs = original(model, batch, context)
        logits.append(outputs["logits"])
        return outputs

    monkeypatch.setattr(evaluate_module, "run_act", spy)
    found = demonstration_controls(model, data, 64, seed=0, device=CPU)
    (normal, none), (zeroed, context), (shuffled, _), (other, _) = seen
    assert none is None
    assert context is not None and context.shape == (9, 4, 32) and not context.any()
    for batch in (zeroed, shuffled, other):
        for name in ("inputs", "labels", "canvas", "puzzle_identifiers"):
            assert torch.equal(batch[name], normal[name]), name
    queries = sum(len(group.rows) for group in data.train_groups)
    real = normal["puzzle_identifiers"] != 0
    assert int(real.sum()) == queries == 9
    assert torch.equal(shuffled["demo_inputs"], normal["demo_inputs"])
    assert (shuffled["demo_labels"] != normal["demo_labels"]).flatten(1).any(1)[real].all()
    assert (other["demo_inputs"] != normal["demo_inputs"]).flatten(1).any(1)[real].all()
    assert found.items() >= trivial_baselines(control_batches(data, 64)).items()
    for changed in logits[1:]:
        assert (changed != logits[0]).flatten(1).any(1)[real].all(), "the context has a say"
    assert demonstration_controls(model, data, 4, seed=0, device=CPU) == pytest.approx(found)


def test_a_zero_context_really_is_zero(folder: Path) -> None:
    """With it the encoder has no say: changing its weights changes nothing."""
    model, data = build(tiny(folder))
    assert model.encoder is not None
    before = demonstration_controls(model, data, 64, seed=0, device=CPU)
    with torch.no_grad():
        for parameter in model.encoder.parameters():
            parameter.mul_(-1.7)
    after = demonstration_controls(model, data, 64, seed=0, device=CPU)
    same = {name for name in before if before[name] == after[name]}
    assert "control/zeroed_accuracy" in same and "control/normal_accuracy" not in same


@pytest.mark.parametrize(
    ("options", "calls"),
    [
        ({}, 1),
        ({"encode_mode": "cached"}, 1),
        ({"kind": "etrmtrm", "recurrent_encoder_type": "recurrent_standard"}, 3),
    ],
)
def test_demonstrations_that_cannot_change_are_encoded_once(
    folder: Path, monkeypatch: pytest.MonkeyPatch, options: dict[str, Any], calls: int
) -> None:
    """Once per row, not at every ACT step (D8); a recurrent encoder moves on at each."""
    model, data = build(tiny(folder, **options))
    assert model.encoder is not None
    sets: list[int] = []
    method = "advance" if model.encoder.recurrent else "encode"
    encode = getattr(model.encoder, method)

    def count(found: Any, *args: Any, **named: Any) -> Any:
        sets.append(len(found.mask))
        return encode(found, *args, **named)

    monkeypatch.setattr(model.encoder, method, count)
    evaluate(model, data, 64, device=CPU)
    assert len(sets) == calls
    assert set(sets) == {sum(len(g.augmentations) for g in data.eval_groups)}, (
        "no padding row, and queries of one puzzle share a set"
    )


def test_padding_rows_are_never_computed(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Wherever they stand, they are in no metric (D7)."""
    model, data = build(tiny(folder))
    expected = evaluate(model, data, 4, device=CPU).metrics
    whole = data.eval_batches
    rows: list[int] = []

    def padded(*args: Any, **options: Any) -> Any:
        for batch in whole(*args, **options):
            blank = {name: np.zeros_like(array[:1]) for name, array in batch.items()}
            blank["labels"][:] = 5  # garbage that would count
            blank["canvas"][:] = (0, 0, 1, 1)
            yield {n: np.concatenate([blank[n], array, blank[n]]) for n, array in batch.items()}

    original = evaluate_module.run_act

    def spy(model: RecursiveModel, batch: dict[str, Tensor], context: Any = None) -> Outputs:
        rows.append(len(batch["inputs"]))
        return original(model, batch, context)

    monkeypatch.setattr(data, "eval_batches", padded)
    monkeypatch.setattr(evaluate_module, "run_act", spy)
    assert evaluate(model, data, 4, device=CPU).metrics == pytest.approx(expected, nan_ok=True)
    assert sum(rows) == data.num_eval_rows()


def test_votes_of_an_evaluation_are_its_own(folder: Path) -> None:
    """Other weights, other answers: nothing of the first evaluation is in the second (D4)."""
    model, data = build(tiny(folder))
    first = evaluate(model, data, 4, device=CPU)
    with torch.no_grad():
        model.inner.lm_head.weight.neg_()
    second = evaluate(model, data, 4, device=CPU)
    votes = [sum(task["votes"] for task in found.tasks) for found in (first, second)]
    assert votes == [data.num_eval_rows()] * 2
    assert first.voting.submission() != second.voting.submission()


def test_queries_of_unknown_solution_are_answered_and_not_scored(tmp_path: Path) -> None:
    """Without solutions nothing is taken for the truth (C6): NaN, not 0, and a whole submission."""
    folder = puzzle_folder(tmp_path / "puzzles")
    (folder / "arc-agi_evaluation_solutions.json").unlink()
    model, data = build(tiny(folder))
    found = evaluate(model, data, 4, device=CPU)
    assert found.metrics["eval/rows"] == found.metrics["eval/scheduled"] == 0
    for name in ("accuracy", "exact_accuracy", "lm_loss", "pass@1", "pass@2"):
        assert math.isnan(found.metrics[f"eval/{name}"]), name
    answers = found.voting.submission()
    assert {name: len(entries) for name, entries in answers.items()} == {"ev000": 1, "ev001": 2}
