"""Writes run folders as docs/architecture.md describes them, without training anything."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import search_spaces
from search_spaces import trial_id
from trainable.config import TrialConfig

BAR = "bar: train/accuracy 12.0 % < 20 % at epoch 500 of 1000 (rung 500, first report at epoch 502)"
TOTAL = 400
INTERVAL = 10

CONTROLS = {
    "control/normal_accuracy": 0.95,
    "control/normal_exact_accuracy": 0.60,
    "control/zeroed_accuracy": 0.70,
    "control/zeroed_exact_accuracy": 0.02,
    "control/shuffled_accuracy": 0.72,
    "control/shuffled_exact_accuracy": 0.03,
    "control/other_accuracy": 0.71,
    "control/other_exact_accuracy": 0.01,
    "baseline/copy_accuracy": 0.65,
    "baseline/copy_exact_accuracy": 0.0,
    "baseline/background_accuracy": 0.60,
    "baseline/background_exact_accuracy": 0.0,
}
EVALUATION = {
    "eval/accuracy": 0.68,
    "eval/exact_accuracy": 0.0,
    "eval/pass@1": 0.0,
    "eval/pass@2": 0.0,
    "eval/scheduled": 32.0,
    "eval/num_aug": 8.0,
}


def rows(accuracy: float, *, steps: int = TOTAL, **more: Any) -> list[dict[str, Any]]:
    """A curve that rises to `accuracy` over the first half of the steps and stays there."""
    made = []
    for step in range(INTERVAL, steps + 1, INTERVAL):
        value = round(accuracy * min(1.0, step / (TOTAL / 2)), 12)
        made.append(
            {
                "kind": "row",
                "step": step,
                "epoch": step * 2.5,
                "samples": step * 32,
                "time": 1.7e9 + step,
                "wall_s": step * 0.4,
                "train/accuracy": value,
                "train/exact_accuracy": value / 2,
                "train/loss": 2.0 - step / TOTAL,
                "train/lm_loss": 1.5 - step / TOTAL,
                "train/q_halt_accuracy": 0.9,
                "train/q_halt_base_rate": 0.8,
                "train/steps": 5.0,
            }
        )
    if made:
        made[-1] |= more
    return made


class FolderWriter:
    """One run folder under construction."""

    def __init__(self, path: Path, *, target: str = "phase1", **plan: Any) -> None:
        self.path = path
        self.plan: dict[str, Any] = {
            "schema_version": 1,
            "target": target,
            "profile": "laptop",
            "revision": "2026-01-21",
            "num_threads": 1,
            "trials": [],
            "packages": {},
        } | plan
        path.mkdir(parents=True, exist_ok=True)
        self.write_plan()

    def write_plan(self) -> None:
        """Write plan.json as it stands."""
        (self.path / "plan.json").write_text(json.dumps(self.plan))

    def folder(self, name: str, seed: int = 0) -> Path:
        """Folder of one trial."""
        return self.path / "trials" / trial_id(name, seed)

    def plan_trial(self, name: str, *, seed: int = 0, role: str = "arm") -> None:
        """Name a trial in the plan, without a folder."""
        identifier = trial_id(name, seed)
        self.plan["trials"].append(
            {"trial_id": identifier, "name": name, "seed": seed, "role": role}
        )
        self.write_plan()

    def add(
        self,
        name: str,
        accuracy: float | None,
        *,
        seed: int = 0,
        status: str | None = "finished",
        reason: str = "",
        steps: int = TOTAL,
        role: str = "arm",
        options: dict[str, Any] | None = None,
        identity: str | None = None,
        result: dict[str, Any] | None = None,
        **last: Any,
    ) -> Path:
        """Add a trial with one attempt; `last` updates its last row. Returns its folder."""
        self.plan_trial(name, seed=seed, role=role)
        folder = self.folder(name, seed)
        folder.mkdir(parents=True)
        config = configuration(name, seed=seed, **(options or {}))
        _dump(
            folder / "config.json",
            {
                "schema_version": 1,
                "trial_id": folder.name,
                "identity": identity or config.identity(),
                "config": config.model_dump(mode="json"),
                "provenance": {},
                "subject": [],
                "role": role,
            },
        )
        if accuracy is not None:
            tail = CONTROLS | EVALUATION | last if status == "finished" else last
            self.attempt(folder, 1, rows(accuracy, steps=steps, **tail), end=status)
        if status is not None:
            _dump(
                folder / "status.json",
                {
                    "schema_version": 1,
                    "status": status,
                    "reason": reason,
                    "attempt": 1,
                    "step": steps,
                },
            )
        if result is not None:
            _dump(folder / "result.json", {"schema_version": 1} | result)
        return folder

    def attempt(
        self,
        folder: Path,
        number: int,
        lines: list[dict[str, Any]],
        *,
        resumed_from: int = 0,
        end: str | None = None,
    ) -> Path:
        """Write one attempt's file."""
        folder.mkdir(parents=True, exist_ok=True)
        start = {
            "kind": "start",
            "schema_version": 1,
            "attempt": number,
            "trial_id": folder.name,
            "identity": "0",
            "resumed_from": resumed_from,
            "total_steps": TOTAL,
            "time": 1.7e9,
        }
        ended = [{"kind": "end", "status": end, "reason": ""}] if end else []
        path = folder / f"attempt-{number}.jsonl"
        path.write_text("".join(json.dumps(line) + "\n" for line in [start, *lines, *ended]))
        return path


def configuration(name: str, *, seed: int = 0, **options: Any) -> TrialConfig:
    """A configuration that carries the experiment's overrides; a search's point has E1a's."""
    plain = "overfit/E1a" if "/search-" in name else name
    overrides = dict(search_spaces.experiment(plain).overrides)
    base = TrialConfig(name=name, seed=seed, profile="laptop")
    small = {"num_aug": 0, "eval_num_aug": 8, "pretrained_decoder": True}
    small |= {"max_train_groups": 32, "max_eval_groups": 32, "epochs": 1000.0}
    common = search_spaces.series(name.partition("/")[0]).common
    small |= {o: common[o] for o in ("kind", "pretrained_decoder", "encode_mode") if o in common}
    return base.replace(**(small | overrides | options))


def phase1(path: Path, e1a: float, e2a: float, e2b: float, e2c: float) -> FolderWriter:
    """A finished phase 1 with these accuracies."""
    writer = FolderWriter(path)
    for identifier, accuracy in zip(
        ("E1a", "E2a", "E2b", "E2c"), (e1a, e2a, e2b, e2c), strict=True
    ):
        writer.add(f"overfit/{identifier}", accuracy)
    return writer


def _dump(path: Path, values: dict[str, Any]) -> None:
    path.write_text(json.dumps(values))


def seeds(
    path: Path, accuracies: dict[str, list[float] | float], *, target: str = "phase2", **plan: Any
) -> FolderWriter:
    """A finished run with one accuracy per experiment and seed (a number: seed 0 alone)."""
    writer = FolderWriter(path, target=target, **plan)
    for name, values in accuracies.items():
        for seed, accuracy in enumerate(values if isinstance(values, list) else [values]):
            writer.add(name, accuracy, seed=seed)
    return writer


def searched(path: Path, count: int = 24) -> FolderWriter:
    """A search over rate and encoder: the rate decides, every third new point is stopped."""
    writer = FolderWriter(path, target="search encoder,lr")
    points: list[dict[str, Any]] = []
    for at in range(count):
        known = at == 0
        name = "overfit/E1a" if known else f"overfit/search-{at + 1:03}"
        rate = 1e-5 * 100 ** (at * 7 % count / count)
        kind = ("standard", "lpn_variational", "hybrid_standard")[at % 3]
        values: dict[str, Any] = {"lr": rate, "encoder_type": kind}
        if kind == "standard":
            values["encoder_num_layers[standard]"] = 1 + at % 4
        if kind == "lpn_variational":
            values["kl_weight"] = 1e-6 * 10 ** (at % 5)
        points.append({"name": name, "values": values, "known": known, "notes": {}})
        accuracy = 0.9 - 0.3 * (abs(at * 7 % count - count / 2) / count) + 0.01 * (at % 3)
        stopped = at % 3 == 2 and not known
        folder = writer.add(
            name,
            accuracy * (0.5 if stopped else 1.0),
            status="stopped" if stopped else "finished",
            steps=100 if stopped else TOTAL,
            reason="asha: not among the best" if stopped else "",
            result={"parameters": 300_000 + 1000 * at},
        )
        rung = {"rung": 250.0, "rule": "asha", "epoch": 250.0, "step": 100, "stop": stopped}
        rung |= {"value": accuracy / 2, "reason": "asha: rung 250"}
        (folder / "scheduler.jsonl").write_text(json.dumps(rung) + "\n")
    asked = {"space": "encoder,lr", "searcher": "tpe", "objectives": ["accuracy"], "seed": 0}
    writer.plan["search"] = asked | {"trials": count, "exhausted": False, "points": points}
    writer.write_plan()
    return writer
