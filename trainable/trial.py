"""A trial: data, model, optimizers and streams of one configuration, and one training step of them.

What goes on around the step (rows, evaluation, stopping, saving) is `trainable.loop`; how a trial
is written and read is `trainable.trial_state`.
"""

from __future__ import annotations

import json
import math
import time
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from trainable import decoder
from trainable.collective import any_worker, gather, together
from trainable.config import TrialConfig
from trainable.data import ArcData
from trainable.data.checks import data_checks
from trainable.diagnostics import encoder_diagnostics, observe
from trainable.errors import CheckpointError, ConfigError
from trainable.evaluate import demonstration_controls, evaluate, ranks, to_tensors
from trainable.exposure import DECODER
from trainable.interface import Interface, interface_metrics, read_interface
from trainable.losses import act_loss, add_identity
from trainable.meters import IntervalSums, interval_metrics
from trainable.micro import added, joined, micro_batches
from trainable.models import Carry, build_model
from trainable.models.compiled import compile_, pays
from trainable.models.transfer import rows_of, upload
from trainable.random import RowGenerator, torch_generator
from trainable.updates import Updater


def total_steps(config: TrialConfig, data: ArcData) -> int:
    """Optimizer steps of a trial: epochs × groups × mean rows per puzzle / global batch."""
    rows = config.epochs * len(data.train_groups) * data.mean_queries
    return max(1, int(rows / config.global_batch_size))


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
        self.rows = config.global_batch_size // self.world
        self.micro_batches = micro_batches(self.rows, config.model.micro_batch_size)
        torch.set_num_threads(config.num_threads)
        torch.set_float32_matmul_precision(config.float32_matmul_precision)
        # oneDNN, which PyTorch takes for "medium", keeps a compiled product for every shape, and
        # shapes differ at each step: 1 MB a step at 64 wide, 40 at 512, and no faster.
        onednn = config.model.forward_dtype != "float32"
        torch.backends.mkldnn.enabled = onednn  # type: ignore[assignment]
        self.device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        self.data = ArcData.from_config(config)
        self.total_steps = total_steps(config, self.data)
        self.identity = config.identity(data_hash=self.data.data_hash)

        sized = {"num_puzzle_identifiers": self.data.num_puzzle_identifiers}
        self.model = build_model(config.replace(**sized).model, seed=config.seed)
        self.decoder: decoder.Decoder | None = None
        self.interface: Interface | None = None
        self.beginning: dict[str, float] = {}
        """What is checked before the first step; it stands in the first row."""
        if config.pretrained_decoder:
            together(self._load_decoder)
        self.beginning |= data_checks(self.data, known=self._puzzles_of_decoder)
        self.model.to(self.device).train()
        if config.compile:
            compile_(self.model)
        elif config.compile is None and pays(config.model, self.device):
            compile_(self.model, checked=True)
        self.parameters = sum(p.numel() for p in self.model.parameters())
        self.updater = Updater(self.model, config, total_steps=self.total_steps, world=self.world)
        self.sampler = self.data.train_sampler(
            config.global_batch_size, epochs_per_iter=max(1, math.ceil(config.eval_interval))
        )
        self.generators = {
            purpose: RowGenerator(
                torch_generator(config.seed, purpose), rank=self.rank, world=self.world
            )
            for purpose in ("halting", "sampling")
        }
        self.sums = IntervalSums(_longest_run(config), self.device)
        self.carries: list[Carry] = []  # one per micro batch
        self.seen: list[dict[str, Tensor]] = []  # of the last ACT step, for diagnostics
        self.step, self.samples, self.wall_s = 0, 0, 0.0
        self.last_row: dict[str, Any] = {}
        self.lineage: list[dict[str, Any]] = []
        """Copies that its state goes through: ``trial_id`` and ``step`` of each, oldest first."""
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
        self.beginning |= decoder.loading_metrics(self.model, self.decoder)
        seen = set((self.decoder.exposure or {}).get("trained", []))
        if config.decoder_puzzles == "disjoint" and seen & set(self.data.train_ids):
            raise CheckpointError(
                f"decoder {config.decoder} was trained on puzzles of this trial "
                f"({sorted(seen & set(self.data.train_ids))[0]} …): give another, or pass "
                f"--decoder-puzzles same"
            )
        self.interface = read_interface(
            config.decoder,
            config.model,
            self.data,
            identity=config.identity_weight > 0,
            device=self.device,
        )

    # --- one step ---------------------------------------------------------------------------------

    def train_step(self) -> None:
        """One batch: an ACT step and an update; in `online` as many of both as it has ACT steps."""
        model, step = self.config.model, self.step + 1
        batch = to_tensors(self.sampler.next_batch(rank=self.rank, world=self.world), self.device)
        parts = [
            batch if len(self.micro_batches) == 1 else rows_of(batch, rows)
            for rows in self.micro_batches
        ]
        if not self.carries:
            self.carries = [self.model.initial_carry(part) for part in parts]
        began = joined([carry.halted for carry in self.carries])
        self.updater.freeze_for(step)
        for _ in range(model.num_act_steps if model.encode_mode == "online" else 1):
            sums = self._accumulate(parts)
            norms = self.updater.update(step)
        self.updater.average()
        self.sums.add(
            sums,
            began=began,
            halted=joined([carry.halted for carry in self.carries]),
            steps=joined([carry.steps for carry in self.carries]),
            norms=norms,
        )
        self.step = step

    def _accumulate(self, parts: list[dict[str, Tensor]]) -> dict[str, Tensor]:
        """One ACT step of every row, forward and backward by micro batch; sums of the loss.

        Every micro batch takes its rows out of the same draws: the streams are wound back.
        """
        config, draws = self.config, self.generators
        several = len(parts) > 1
        before = {name: draw.get_state() for name, draw in draws.items()} if several else {}
        total: dict[str, Tensor] = {}
        self.seen = []
        for at, (part, rows) in enumerate(zip(parts, self.micro_batches, strict=True)):
            if several:
                for name, state in before.items():
                    self.generators[name].set_state(state)
                index = torch.arange(rows.start, rows.stop)
                draws = {n: g.select(index, self.rows) for n, g in self.generators.items()}
            carry, outputs = self.model(
                self.carries[at], part, generator=draws["halting"], sampling=draws["sampling"]
            )
            if (ends := self._staggered(rows)) is not None:
                carry.halted = carry.halted | upload(ends, self.device)
            carry.announce()
            loss, sums = act_loss(
                outputs,
                carry.current_data["labels"],
                carry=carry,
                kl_weight=config.kl_weight,
                kl_scaling=config.kl_scaling,
            )
            if config.identity_weight:
                assert self.interface is not None
                identifiers = carry.current_data["puzzle_identifiers"]
                distance = self.interface.distance(outputs["context"], identifiers)
                loss, sums = add_identity(loss, sums, distance, config.identity_weight)
            if loss.requires_grad:  # not with a frozen decoder where nothing was encoded
                (loss / config.global_batch_size).backward()  # type: ignore[no-untyped-call]
            self.updater.collect()
            whole = config.model.encode_mode != "cached"
            self.seen.append(observe(outputs, self.carries[at], carry, whole=whole))
            self.carries[at] = carry
            total = added(total, sums) if at else sums
        return total

    def _staggered(self, rows: slice) -> Tensor | None:
        """(rows) bool: rows whose first ACT run ends at this step by `stagger_starts`, if any does.

        Without it all rows of a batch begin together, and the same rows make every gradient until
        they end: `halt_max_steps` updates long, where no Q-head ends a row sooner.
        """
        config, longest = self.config, self.config.model.halt_max_steps
        if (
            not config.stagger_starts
            or config.model.encode_mode == "online"
            or self.step >= longest
        ):
            return None
        row = self.rank * self.rows + torch.arange(rows.start, rows.stop)
        return row * longest // config.global_batch_size == self.step

    # --- rows ------------------------------------------------------------------------------------

    def measure(self) -> dict[str, Any]:
        """The row of the interval that ends here: one reduction over workers, one fetch."""
        config = self.config
        total = self.sums.read()
        self.samples += int(total["began"])
        losses = {"loss", "lm_loss", "q_halt_loss"}
        encoder = self.model.encoder
        if encoder is not None and encoder.variational:
            losses.add("kl_loss")
        if not config.model.no_ACT_continue:
            losses.add("q_continue_loss")
        if config.identity_weight:
            losses.add("identity_loss")
        row: dict[str, Any] = {
            "step": self.step,
            "epoch": self.step * config.global_batch_size / self._rows_per_epoch,
            "samples": self.samples,
            "time": time.time(),
        }
        row |= interval_metrics(total, losses=losses)
        updater = self.updater
        row |= {f"train/{name}": value for name, value in updater.rates(self.step).items()}
        if config.population is not None:
            row["population/factor"] = updater.factor(self.step)
            row["population/copies"] = float(len(self.lineage))
        if encoder is not None:
            row["train/encoder_frozen"] = float(updater.encoder_frozen(self.step))
            row["train/decoder_frozen"] = float(updater.decoder_frozen(self.step))
        if encoder is not None:
            seen = {name: joined([part[name] for part in self.seen]) for name in self.seen[0]}
            if self.world > 1:
                seen = {name: gather(value) for name, value in seen.items()}
            found = encoder_diagnostics(seen, tokens=config.model.context_positions)
            values = torch.stack(list(found.values())).tolist()
            row |= {f"encoder/{name}": v for name, v in zip(found, values, strict=True)}
        first = min(config.log_interval, self.steps_of(config.eval_interval), self.total_steps)
        return row | (self.beginning if self.step <= first else {})

    def evaluate(self) -> dict[str, float]:
        """Held-out evaluation with the averaged weights (raw ones without EMA).

        With `eval_raw` the last one is followed by one of the raw weights, ``eval_raw/…``.
        """
        if not self.data.eval_groups:
            return {}
        model, data, size = self.model, self.data, self._evaluation_batch
        ema = self.updater.ema
        if ema is None:
            result = evaluate(model, data, size, device=self.device)
        else:
            with ema.applied():
                result = evaluate(model, data, size, device=self.device)
        self.tasks, metrics = result.tasks, result.metrics
        if ema is not None and self.config.eval_raw and self.step == self.total_steps:
            raw = evaluate(model, data, size, device=self.device, prefix="eval_raw")
            metrics = metrics | raw.metrics
        return metrics

    def compare(self) -> dict[str, float]:
        """The raw weights against the decoder's file: how far they have drifted, every tensor while
        they are frozen, and the contexts against its puzzle embeddings."""
        found: dict[str, float] = {}
        if self.decoder is not None:
            found = decoder.drift_metrics(self.model, self.decoder)
            if self.updater.decoder_frozen(self.step):
                found |= decoder.decoder_metrics(self.model, self.decoder)
        if self.interface is None:
            return found
        return found | interface_metrics(
            self.model, self.data, self.interface, self._evaluation_batch, device=self.device
        )

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
    def exposure(self) -> dict[str, list[str]]:
        """Task ids by role; those of the decoder's own training too, where its file tells."""
        seen = (self.decoder.exposure or {}) if self.decoder is not None else {}
        return self.data.exposure | {f"{DECODER}{role}": list(ids) for role, ids in seen.items()}

    @property
    def _puzzles_of_decoder(self) -> frozenset[str] | None:
        """Puzzles of the decoder's own table, where they must be this trial's."""
        if self.decoder is None or self.config.decoder_puzzles != "same":
            return None
        return self.decoder.puzzles

    @cached_property
    def identifiers(self) -> str:
        """Names of all puzzle identifiers in order, a JSON list."""
        return json.dumps(list(self.data.identifier_names))

    @property
    def _evaluation_batch(self) -> int:
        """Rows over all workers: at least 64, since small batches waste a processor."""
        return -(-max(self.config.global_batch_size, 64) // self.world) * self.world

    @property
    def _rows_per_epoch(self) -> float:
        return len(self.data.train_groups) * self.data.mean_queries

    def steps_of(self, epochs: float) -> int:
        """Optimizer steps of so many epochs, at least 1."""
        return max(1, round(epochs * self._rows_per_epoch / self.config.global_batch_size))

    def any(self, value: bool) -> bool:
        """Whether any worker says so."""
        return any_worker(value, world=self.world, device=self.device)

    def is_finite(self) -> bool:
        """Whether the interval's loss and all weights are numbers, on every worker."""
        return not self.any(not (self.sums.is_finite() and self.updater.weights_are_finite()))


def _longest_run(config: TrialConfig) -> int:
    """ACT steps after which every row has ended in training."""
    model = config.model
    return model.num_act_steps if model.encode_mode == "online" else model.halt_max_steps
