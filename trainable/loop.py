"""The training loop: one trial from its configuration to its result, in plain PyTorch.

It runs in one process, or in several under torch.distributed (each takes its rows of the global
batch; gradients are summed). Ray is not needed. What it leaves in the trial's folder is described
in `docs/architecture.md`.
"""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from tqdm import tqdm

from trainable import checkpoint, decoder
from trainable.config import SEMANTICS_VERSION, VARIATIONAL_ENCODERS, TrialConfig
from trainable.data import ArcData
from trainable.diagnostics import context_diagnostics
from trainable.errors import CheckpointError, ConfigError
from trainable.evaluate import demonstration_controls, evaluate, ranks, to_tensors
from trainable.losses import act_loss
from trainable.meters import IntervalSums, interval_metrics
from trainable.models import Carry, build_model
from trainable.models.act import InnerCarry
from trainable.models.layout import TokenLayout
from trainable.optim import EMA, AdamATan2, SignSGDEmbedding, clip_, grad_norm, learning_rate
from trainable.random import RowGenerator, torch_generator
from trainable.records import Recorder, plain, write_json

Report = Callable[[dict[str, Any]], bool | None]


@dataclass(frozen=True)
class TrainResult:
    """How a trial ended. `status`: finished, stopped, diverged or superseded."""

    status: str
    reason: str | None
    step: int
    total_steps: int
    wall_s: float
    parameters: int
    encoder_parameters: int
    final_checkpoint: str | None
    last_row: dict[str, Any]
    exposure: dict[str, list[str]]
    tasks: list[dict[str, Any]] = field(repr=False)


def total_steps(config: TrialConfig, data: ArcData) -> int:
    """Optimizer steps of a trial: epochs × groups × mean rows per puzzle / global batch."""
    rows = config.epochs * len(data.train_groups) * data.mean_queries
    return max(1, int(rows / config.global_batch_size))


def train(
    config: TrialConfig,
    *,
    out_dir: str | Path,
    report: Report | None = None,
    resume_from: str | Path | None = None,
    progress: bool = True,
    attempt: int | None = None,
) -> TrainResult:
    """Train one trial.

    Args:
        config: the resolved configuration.
        out_dir: the trial's folder; rows, checkpoints, events and ``result.json`` go there.
        report: called with every row on every rank; returning True stops the trial.
        resume_from: a checkpoint of this trial, or "auto" for the newest readable one in `out_dir`.
        progress: show a progress bar on rank 0.
        attempt: number of this attempt (default: the next free one).

    Raises:
        UserError: bad data, configuration or checkpoint, or a folder that cannot be written.
    """
    out_dir = Path(out_dir)
    trial = Trial(config, out_dir)
    recorder = Recorder(out_dir, attempt=attempt, writes=trial.rank == 0)
    try:
        resumed = trial.resume(resume_from)
        recorder.start(
            resumed_from=resumed,
            trial_id=out_dir.name,
            identity=trial.identity,
            total_steps=trial.total_steps,
            data_hash=trial.data.data_hash,
            workers=trial.world,
            threads=torch.get_num_threads(),
            parameters=trial.parameters,
        )
        return trial.run(recorder, report, progress=progress)
    finally:
        recorder.close()


class Trial:
    """The state of a trial: everything that a checkpoint holds."""

    def __init__(self, config: TrialConfig, out_dir: Path) -> None:
        self.config, self.out_dir = config, out_dir
        self.rank, self.world = ranks()
        if config.global_batch_size % self.world:
            raise ConfigError(
                f"global_batch_size {config.global_batch_size} does not divide by {self.world} "
                f"workers: choose a multiple"
            )
        if config.freeze_decoder_steps and (config.freeze_encoder or config.encoder_freeze_steps):
            raise ConfigError(
                "freeze_decoder_steps with a frozen encoder leaves nothing to train: set one of "
                "freeze_decoder_steps and freeze_encoder / encoder_freeze_steps to 0"
            )
        torch.set_num_threads(config.num_threads)
        self.device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        self.data = ArcData.from_config(config)
        self.total_steps = total_steps(config, self.data)
        self.identity = config.identity(data_hash=self.data.data_hash)

        sized = {"num_puzzle_identifiers": self.data.num_puzzle_identifiers}
        self.model = build_model(config.replace(**sized).model, seed=config.seed)
        self.decoder: decoder.Decoder | None = None
        if config.pretrained_decoder:
            self._load_decoder()
        self.model.to(self.device).train()
        self.encoder_params = [
            p for n, p in self.model.named_parameters() if n.startswith("encoder.")
        ]
        self.decoder_params = [
            p for n, p in self.model.named_parameters() if n.startswith("inner.")
        ]
        self.parameters = sum(p.numel() for p in self.model.parameters())
        if config.freeze_encoder:
            _freeze(self.encoder_params, frozen=True)

        options: dict[str, Any] = {
            "lr": config.lr,
            "betas": (config.beta1, config.beta2),
            "weight_decay": config.weight_decay,
        }
        groups = [
            {"params": params} for params in (self.decoder_params, self.encoder_params) if params
        ]
        self.optimizer = AdamATan2(groups, **options)
        self.puzzle_optimizer: SignSGDEmbedding | None = None
        if config.model.kind == "trm" and config.model.puzzle_emb_ndim:
            self.puzzle_optimizer = SignSGDEmbedding(
                self.model.inner.puzzle_emb, config.puzzle_emb_lr, config.puzzle_emb_weight_decay
            )
        self.ema = EMA(self.model, config.ema_rate) if config.ema else None
        self.sampler = self.data.train_sampler(
            config.global_batch_size, epochs_per_iter=max(1, math.ceil(config.eval_interval))
        )
        self.generators = {
            purpose: RowGenerator(
                torch_generator(config.seed, purpose), rank=self.rank, world=self.world
            )
            for purpose in ("halting", "sampling")
        }
        self.sums = IntervalSums(config.model.halt_max_steps, self.device)
        self.carry: Carry | None = None
        self.context: Tensor | None = None
        self.step, self.samples, self.wall_s = 0, 0, 0.0
        self.last_row: dict[str, Any] = {}
        self.tasks: list[dict[str, Any]] = []

    def _load_decoder(self) -> None:
        config = self.config
        if config.decoder is None:
            raise ConfigError(
                "pretrained_decoder is set but no checkpoint is given: pass --decoder PATH, or set "
                "pretrained_decoder=False"
            )
        problem = decoder.decoder_problem(
            config.decoder, config.model, l_cycles=config.decoder_l_cycles
        )
        if problem:
            raise CheckpointError(problem)
        self.decoder = decoder.load_decoder(self.model, config.decoder)
        seen = set((self.decoder.exposure or {}).get("trained", []))
        if config.decoder_puzzles == "disjoint" and seen & set(self.data.train_ids):
            raise CheckpointError(
                f"decoder {config.decoder} was trained on puzzles of this trial "
                f"({sorted(seen & set(self.data.train_ids))[0]} …): give another, or pass "
                f"--decoder-puzzles same"
            )

    # --- the story -------------------------------------------------------------------------------

    def run(self, recorder: Recorder, report: Report | None, *, progress: bool) -> TrainResult:
        """Step, report, evaluate, save; until the budget is spent or something says stop."""
        config = self.config
        evaluate_every = self._steps_of(config.eval_interval)
        bar = tqdm(
            total=self.total_steps,
            initial=self.step,
            desc=config.name,
            unit="step",
            disable=not progress or self.rank > 0,
        )
        status, reason = "finished", None
        while self.step < self.total_steps and status == "finished":
            began = time.perf_counter()
            self.train_step()
            last = self.step == self.total_steps
            evaluates = last or self.step % evaluate_every == 0
            row: dict[str, Any] | None = None
            if evaluates or self.step % config.log_interval == 0:
                row = self.measure()
                if not math.isfinite(row["train/loss"]):
                    status, reason = "diverged", f"train/loss is not finite at step {self.step}"
                else:
                    if evaluates:
                        row |= self.evaluate()
                    if last:
                        row |= self.controls()
                self.wall_s += time.perf_counter() - began
                began = time.perf_counter()
                row["wall_s"] = self.wall_s
                recorder.row(row)
                self.last_row = row
                stop = bool(report(row)) if report is not None else False
                superseded = recorder.superseded()
                if self._any(stop or superseded) and status == "finished" and not last:
                    status = "stopped"
                    reason = "the reporting function said stop"
                if self._any(superseded):
                    status, reason = "superseded", "a later attempt of this trial has begun"
                bar.set_postfix(
                    accuracy=f"{row.get('train/accuracy', math.nan):.3f}",
                    loss=f"{row['train/loss']:.3f}",
                )
            self.wall_s += time.perf_counter() - began
            bar.update()
            due = self.step % config.checkpoint_interval == 0 or self.step == self.total_steps
            if (due or status == "stopped") and status in ("finished", "stopped"):
                self.save()
        bar.close()
        if status == "superseded":
            return self._result(status, reason)
        recorder.end(status, reason)
        result = self._result(status, reason)
        if self.rank == 0:
            write_json(self.out_dir / "result.json", {"schema_version": 1, **asdict(result)})
        return result

    def _result(self, status: str, reason: str | None) -> TrainResult:
        saved = checkpoint.list_steps(self.out_dir / "checkpoints")
        return TrainResult(
            status=status,
            reason=reason,
            step=self.step,
            total_steps=self.total_steps,
            wall_s=self.wall_s,
            parameters=self.parameters,
            encoder_parameters=sum(p.numel() for p in self.encoder_params),
            final_checkpoint=str(saved[-1][1].relative_to(self.out_dir)) if saved else None,
            last_row=plain(self.last_row),
            exposure=self.data.exposure,
            tasks=self.tasks,
        )

    def train_step(self) -> None:
        """One ACT step on the global batch, one optimizer update."""
        config, step = self.config, self.step + 1
        batch = to_tensors(self.sampler.next_batch(rank=self.rank, world=self.world), self.device)
        if self.carry is None:
            self.carry = self.model.initial_carry(batch)
        began = self.carry.halted
        self._freeze_for(step)
        carry, outputs = self.model(
            self.carry,
            batch,
            generator=self.generators["halting"],
            sampling=self.generators["sampling"],
        )
        loss, sums = act_loss(
            outputs, carry.current_data["labels"], carry=carry, kl_weight=config.kl_weight
        )
        (loss / config.global_batch_size).backward()  # type: ignore[no-untyped-call]
        self._reduce_gradients()
        norms = self._clip()
        self._update(step)
        self.carry, self.context = carry, outputs.get("context")
        if self.context is not None:
            self.context = self.context.detach()
        self.sums.add(sums, began=began, halted=carry.halted, steps=carry.steps, norms=norms)
        self.step = step

    def _freeze_for(self, step: int) -> None:
        """Freezing is per parameter group: a frozen group gets no gradient and no update."""
        config = self.config
        if config.freeze_decoder_steps:
            _freeze(self.decoder_params, frozen=step <= config.freeze_decoder_steps)
        if config.encoder_freeze_steps and not config.freeze_encoder:
            _freeze(self.encoder_params, frozen=step <= config.encoder_freeze_steps)

    def _reduce_gradients(self) -> None:
        """Sum gradients over workers, in one buffer; gather the puzzle table's rows."""
        if self.world == 1:
            return
        grads = [p.grad for p in self.model.parameters() if p.grad is not None]
        buffer = torch.cat([grad.flatten() for grad in grads])
        dist.all_reduce(buffer)
        for grad, part in zip(grads, torch.split(buffer, [g.numel() for g in grads]), strict=True):
            grad.copy_(part.view_as(grad))

    def _clip(self) -> dict[str, Tensor]:
        """Norms of the global gradient before clipping, and the clip factor."""
        norms = {
            "encoder_norm": grad_norm(self.encoder_params),
            "decoder_norm": grad_norm(self.decoder_params),
        }
        total = torch.linalg.vector_norm(torch.stack([n.to(self.device) for n in norms.values()]))
        factor = clip_(self.model.parameters(), total, self.config.grad_clip_norm)
        return {**norms, "total_norm": total, "clip_factor": factor}

    def _update(self, step: int) -> None:
        rates = self.rates(step)
        for group, name in zip(self.optimizer.param_groups, rates, strict=False):
            group["lr"] = rates[name]
        if self.puzzle_optimizer is not None:
            self.puzzle_optimizer.lr = self._rate(step, self.config.puzzle_emb_lr)
            ids, grad = None, None
            table = self.model.inner.puzzle_emb
            if self.world > 1 and table.local_weights is not None:
                assert table.local_weights.grad is not None and table.local_ids is not None
                ids, grad = _gather(table.local_ids), _gather(table.local_weights.grad)
            self.puzzle_optimizer.step(ids, grad)
        self.optimizer.step()
        self.optimizer.zero_grad()
        if self.ema is not None:
            self.ema.update()

    def _rate(self, step: int, base: float) -> float:
        config = self.config
        return learning_rate(
            step,
            base=base,
            warmup=config.lr_warmup_steps,
            total=self.total_steps,
            min_ratio=config.lr_min_ratio,
        )

    def rates(self, step: int) -> dict[str, float]:
        """Learning rates at a step: decoder, then encoder where there is one."""
        config = self.config
        rates = {"lr": self._rate(step, config.lr)}
        if self.encoder_params:
            scale = config.encoder_lr_scale or 1.0
            rates["encoder_lr"] = self._rate(step, config.lr * scale)
        return rates

    # --- rows ------------------------------------------------------------------------------------

    def measure(self) -> dict[str, Any]:
        """The row of the interval that ends here: one reduction over workers, one fetch."""
        config = self.config
        total = self.sums.read()
        self.samples += int(total["began"])
        losses = {"loss", "lm_loss", "q_halt_loss"}
        if config.model.kind != "trm" and config.model.encoder_type in VARIATIONAL_ENCODERS:
            losses.add("kl_loss")
        if not config.model.no_ACT_continue:
            losses.add("q_continue_loss")
        row: dict[str, Any] = {
            "step": self.step,
            "epoch": self.step * config.global_batch_size / self._rows_per_epoch,
            "samples": self.samples,
            "time": time.time(),
        }
        row |= interval_metrics(total, losses=losses)
        row |= {f"train/{name}": value for name, value in self.rates(self.step).items()}
        if self.encoder_params:
            frozen = config.freeze_encoder or self.step <= config.encoder_freeze_steps
            row["train/encoder_frozen"] = float(frozen)
            row["train/decoder_frozen"] = float(self.step <= config.freeze_decoder_steps)
        if self.context is not None and self.carry is not None:
            base = self.carry.current_data["base_puzzle"]
            context = self.context
            if self.world > 1:
                context, base = _gather(context), _gather(base)
            found = context_diagnostics(context, base)
            values = torch.stack(list(found.values())).tolist()
            row |= {f"encoder/{name}": v for name, v in zip(found, values, strict=True)}
        return row

    def evaluate(self) -> dict[str, float]:
        """Held-out evaluation with the averaged weights (raw ones without EMA)."""
        if not self.data.eval_groups:
            return {}
        size = self._evaluation_batch
        if self.ema is None:
            result = evaluate(self.model, self.data, size, device=self.device)
        else:
            with self.ema.applied():
                result = evaluate(self.model, self.data, size, device=self.device)
        self.tasks = result.tasks
        return result.metrics

    def controls(self) -> dict[str, float]:
        """Demonstration controls of an ETRM, with the raw weights."""
        if self.model.encoder is None:
            return {}
        return demonstration_controls(
            self.model,
            self.data,
            self._evaluation_batch,
            seed=self.config.seed,
            device=self.device,
        )

    @property
    def _evaluation_batch(self) -> int:
        """Rows over all workers: at least 64, since small batches waste a processor."""
        return -(-max(self.config.global_batch_size, 64) // self.world) * self.world

    @property
    def _rows_per_epoch(self) -> float:
        return len(self.data.train_groups) * self.data.mean_queries

    def _steps_of(self, epochs: float) -> int:
        return max(1, round(epochs * self._rows_per_epoch / self.config.global_batch_size))

    def _any(self, value: bool) -> bool:
        """Whether any worker says so: all leave the loop together."""
        if self.world == 1:
            return value
        flag = torch.tensor(float(value), device=self.device)
        dist.all_reduce(flag)
        return bool(flag > 0)

    # --- checkpoints -----------------------------------------------------------------------------

    def save(self) -> None:
        """Everything that the rest of the curve depends on. Rows of all workers are gathered."""
        assert self.carry is not None
        inner = self.carry.inner
        assert inner.layout is not None
        rows = {
            "z_H": inner.z_H,
            "z_L": inner.z_L,
            "steps": self.carry.steps,
            "halted": self.carry.halted,
            **{f"data/{name}": value for name, value in self.carry.current_data.items()},
        }
        if self.world > 1:
            rows = {name: _gather(value) for name, value in rows.items()}
            sums = self.sums.values.clone()
            dist.all_reduce(sums)
            sums[len(self.sums.summed) :] = self.sums.values[len(self.sums.summed) :]
        else:
            sums = self.sums.values
        if self.rank > 0:
            return
        state = {
            "config": self.config.model_dump_json(),
            "identity": self.identity,
            "semantics_version": SEMANTICS_VERSION,
            "data_hash": self.data.data_hash,
            "step": self.step,
            "samples": self.samples,
            "wall_s": self.wall_s,
            "model": self.model.state_dict(),
            "ema": None if self.ema is None else self.ema.shadow,
            "optimizer": self.optimizer.state_dict(),
            "carry": rows,
            "sums": sums,
            "generators": {name: g.get_state() for name, g in self.generators.items()},
            "sampler": json.dumps(self.sampler.state()),
            "exposure": self.data.exposure,
            "tasks": json.dumps(self.tasks),
            "last_row": json.dumps(self.last_row),
        }
        checkpoint.save(
            self.out_dir / "checkpoints", self.step, state, keep=self.config.keep_checkpoints
        )

    def resume(self, source: str | Path | None) -> int:
        """Continue from a checkpoint; returns its step, 0 for a fresh start."""
        if source is None:
            return 0
        if source == "auto":
            found = self._newest()
            if found is None:
                return 0
            path, state = found
        else:
            path = Path(source)
            state = checkpoint.read_own(path)
        checkpoint.check_resume(state, self.config, self.data.data_hash, path)
        self.step, self.samples, self.wall_s = state["step"], state["samples"], state["wall_s"]
        self.model.load_state_dict(state["model"])
        if self.ema is not None:
            for name, value in state["ema"].items():
                self.ema.shadow[name].copy_(value)
        self.optimizer.load_state_dict(state["optimizer"])
        for name, generator in self.generators.items():
            generator.set_state(state["generators"][name])
        self.sampler.restore(json.loads(state["sampler"]))
        self.tasks = json.loads(state["tasks"])
        self.last_row = json.loads(state.get("last_row", "{}"))
        if self.rank == 0:
            self.sums.values.copy_(state["sums"])
        else:  # sums were reduced before they were saved; norms are equal everywhere
            self.sums.values[len(self.sums.summed) :] = state["sums"][len(self.sums.summed) :]
        self._resume_carry(state["carry"])
        return self.step

    def _newest(self) -> tuple[Path, checkpoint.State] | None:
        """The newest readable checkpoint; rank 0 chooses, so that all workers take the same."""
        folder = self.out_dir / "checkpoints"
        found = checkpoint.newest(folder) if self.rank == 0 else None
        if self.world > 1:
            chosen = [None if found is None else str(found[0])]
            dist.broadcast_object_list(chosen)
            if self.rank > 0 and chosen[0] is not None:
                found = Path(chosen[0]), checkpoint.read_own(chosen[0])
        return found

    def _resume_carry(self, rows: dict[str, Tensor]) -> None:
        count = self.config.global_batch_size // self.world
        mine = slice(self.rank * count, (self.rank + 1) * count)
        rows = {name: value[mine].to(self.device) for name, value in rows.items()}
        data = {n.removeprefix("data/"): v for n, v in rows.items() if n.startswith("data/")}
        layout: TokenLayout = self.model.layout(data)
        inner = InnerCarry(layout.to_packed(rows["z_H"]), layout.to_packed(rows["z_L"]), layout)
        self.carry = Carry(inner, rows["steps"], rows["halted"], data)


def _freeze(params: list[nn.Parameter], *, frozen: bool) -> None:
    for p in params:
        p.requires_grad_(not frozen)


def _gather(value: Tensor) -> Tensor:
    """Rows of all workers, in rank order; sent as bytes, since gloo and nccl lack some types."""
    raw = value.contiguous().view(torch.uint8)
    parts = [torch.empty_like(raw) for _ in range(dist.get_world_size())]
    dist.all_gather(parts, raw)
    return torch.cat(parts).view(value.dtype)
