"""Models by contract: every encoder, both canvases against a dense reference, halting, the loss.

Shape legend: B rows, K demonstration slots, S cells, P prefix tokens, L = P + S, D width.
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from tests.trainable.small_trials import TINY_MODEL, batches, puzzle_folder, tiny
from trainable.config import ENCODER_TYPES, VARIATIONAL_ENCODERS, ModelConfig
from trainable.encoder_options import RECURRENT_ENCODERS
from trainable.errors import ConfigError, DataError
from trainable.losses import act_loss, row_scores, stablemax_cross_entropy
from trainable.models import ENCODERS, Carry, EncoderOutput, Outputs, RecursiveModel, build_model
from trainable.models.encoders import DemonstrationEncoder
from trainable.optim import SignSGDEmbedding
from trainable.random import torch_generator

CELLS, SLOTS, ROWS = 36, 3, 3
ALL = sorted(ENCODERS)
VARIANTS = [
    *({"encoder_type": name} for name in ALL),
    {"encoder_type": "standard", "encoder_pooling_method": "attention"},
    {"encoder_type": "standard", "encoder_pooling_method": "weighted"},
    {"encoder_type": "standard", "encoder_pooling_method": "cls", "encoder_norm_style": "pre"},
    {"encoder_type": "standard", "encoder_norm_style": "pre", "encoder_layer_scale_init": 0.1},
    {"encoder_type": "hybrid_standard", "encoder_layer_scale_init": 0.1, "encoder_qk_norm": True},
]


def name_of(variant: Any) -> str:
    return "-".join(str(value) for value in variant.values())


every_encoder = pytest.mark.parametrize("variant", VARIANTS, ids=name_of)


def model_config(**options: Any) -> ModelConfig:
    if options.get("encoder_type") in RECURRENT_ENCODERS:
        options.setdefault("kind", "etrmtrm")
    return ModelConfig(**(TINY_MODEL | {"seq_len": CELLS} | options))


def encoder_of(seed: int = 0, **options: Any) -> DemonstrationEncoder:
    encoder = build_model(model_config(**options), seed=seed).encoder
    assert isinstance(encoder, DemonstrationEncoder)
    return encoder.eval()


def demonstrations(seed: int = 0, *, pad: bool = True) -> tuple[Tensor, Tensor, Tensor]:
    """(B, K, S) inputs and labels, (B, K) mask; with `pad` every grid ends in PAD cells."""
    rng = torch.Generator().manual_seed(seed)
    shape = ROWS, SLOTS, CELLS
    inputs = torch.randint(1, 12, shape, generator=rng)
    labels = torch.randint(1, 12, shape, generator=rng)
    mask = torch.ones(ROWS, SLOTS, dtype=torch.bool)
    if pad:
        for grids in (inputs, labels):
            length = torch.randint(4, CELLS - 4, shape[:2], generator=rng)
            grids[torch.arange(CELLS) >= length[..., None]] = 0
        mask[1, 2:] = False
        mask[2, 1:] = False
    return inputs, labels, mask


def fields(output: EncoderOutput) -> dict[str, Tensor]:
    names = ("context", "z_pooled", "kl_loss", "kl_rows", "mu", "logvar")
    return {name: getattr(output, name) for name in names if getattr(output, name) is not None}


def assert_close(actual: Tensor, expected: Tensor, tolerance: float, what: str = "") -> None:
    difference = float((actual.detach().double() - expected.detach().double()).abs().max())
    assert difference <= tolerance, f"{what}: {difference:.2e} > {tolerance:.0e}"


# --- encoders ------------------------------------------------------------------------------------


def test_one_registry_that_the_configuration_knows() -> None:
    assert set(ENCODER_TYPES) == set(ENCODERS)
    variational = {name for name in ENCODERS if encoder_of(encoder_type=name).variational}
    assert variational == VARIATIONAL_ENCODERS
    with pytest.raises(ConfigError, match=r"did you mean 'standard'.*choose from"):
        build_model(model_config(encoder_type="standrad"))


@every_encoder
def test_shapes_and_kl(variant: dict[str, Any]) -> None:
    encoder = encoder_of(**variant)
    output = encoder.train()(*demonstrations())
    # the paper's encoders have a width of their own
    width = {"lpn": 128, "lpn_var": encoder.config.lpn_latent_dim}.get(variant["encoder_type"], 32)
    assert output.context.shape == (ROWS, 4, 32) and output.z_pooled.shape == (ROWS, width)
    if variant["encoder_type"] in VARIATIONAL_ENCODERS:
        assert output.kl_loss.dtype == output.kl_rows.dtype == torch.float32
        assert output.kl_loss.shape == () and output.kl_rows.shape == (ROWS,)
        assert bool((output.kl_rows > 0).all())
    else:
        assert fields(output).keys() == {"context", "z_pooled"}


@every_encoder
def test_empty_slots_and_pad_cells_count_nowhere(variant: dict[str, Any]) -> None:
    encoder, (inputs, labels, mask) = encoder_of(**variant), demonstrations()
    before = fields(encoder(inputs, labels, mask))
    for grids in (inputs, labels):
        grids[~mask] = 5
    extra = torch.full((ROWS, 2, CELLS), 7)
    after = fields(
        encoder(
            torch.cat([inputs, extra], 1),
            torch.cat([labels, extra], 1),
            F.pad(mask, (0, 2), value=False),
        )
    )
    with torch.no_grad():
        for name, parameter in encoder.named_parameters():
            if name.endswith("put_embed.embedding_weight"):
                parameter[0] += 100.0  # the PAD token's embedding
    moved = fields(encoder(inputs, labels, mask))
    for name, value in before.items():
        assert_close(after[name], value, 1e-5, f"{name} with other empty slots")
        assert_close(moved[name], value, 1e-5, f"{name} with another PAD embedding")


@every_encoder
def test_rows_are_independent(variant: dict[str, Any]) -> None:
    encoder, (inputs, labels, mask) = encoder_of(**variant), demonstrations()
    together = fields(encoder(inputs, labels, mask))
    for row in range(ROWS):
        at = slice(row, row + 1)
        alone = fields(encoder(inputs[at], labels[at], mask[at]))
        for name in together.keys() - {"kl_loss"}:
            assert_close(together[name][at], alone[name], 1e-5, name)


@every_encoder
def test_the_order_of_cells_matters(variant: dict[str, Any]) -> None:
    encoder, (inputs, labels, mask) = encoder_of(**variant), demonstrations(pad=False)
    context = encoder(inputs, labels, mask).context
    other = encoder(inputs.flip(-1), labels, mask).context
    swapped = encoder(labels, inputs, mask).context
    for changed in (other, swapped):
        assert float((changed - context).detach().abs().max()) > 1e-3


@every_encoder
@pytest.mark.parametrize("parity", [False, True])
def test_every_parameter_gets_a_gradient(variant: dict[str, Any], parity: bool) -> None:
    encoder = encoder_of(parity=parity, **variant).train()
    output = encoder(*demonstrations(), generator=torch_generator(0, "noise"))
    weight = torch.randn(output.context.shape, generator=torch.Generator().manual_seed(1))
    loss = (output.context * weight).sum()
    if output.kl_rows is not None:
        loss = loss + output.kl_rows.sum()
    loss.backward()
    for name, parameter in encoder.named_parameters():
        assert parameter.grad is not None and bool(parameter.grad.abs().sum() > 0), name
        assert bool(parameter.grad.isfinite().all()), name


@every_encoder
def test_bfloat16(variant: dict[str, Any]) -> None:
    encoder = encoder_of(forward_dtype="bfloat16", **variant).train()
    assert {p.dtype for p in encoder.parameters()} == {torch.float32}
    output = encoder(*demonstrations(), generator=torch_generator(0, "noise"))
    assert output.context.dtype == output.z_pooled.dtype == torch.bfloat16
    assert all(bool(value.isfinite().all()) for value in fields(output).values())
    output.context.float().square().sum().backward()
    with torch.no_grad():
        exact = encoder_of(**variant)(*demonstrations()).context
        rounded = encoder.eval()(*demonstrations()).context
    assert float((rounded - exact).abs().mean() / exact.abs().mean()) < 0.05


@every_encoder
@pytest.mark.parametrize("rows", [(0,), (0, 1, 2)])
def test_rows_without_demonstrations_are_finite(
    variant: dict[str, Any], rows: tuple[int, ...]
) -> None:
    encoder, (inputs, labels, mask) = encoder_of(**variant).train(), demonstrations()
    mask[list(rows)] = False
    output = encoder(inputs, labels, mask, generator=torch_generator(0, "noise"))
    assert all(bool(value.isfinite().all()) for value in fields(output).values())
    output.context.sum().backward()
    for name, parameter in encoder.named_parameters():
        assert parameter.grad is None or bool(parameter.grad.isfinite().all()), name


@every_encoder
@pytest.mark.parametrize("training", [False, True])
def test_equal_sets_are_encoded_once_with_equal_result(
    variant: dict[str, Any], training: bool
) -> None:
    encoder, (inputs, labels, mask) = encoder_of(**variant).train(training), demonstrations()
    for tensor in (inputs, labels, mask):
        tensor[2] = tensor[0]
    results = []
    weight = torch.randn(ROWS, 4, 32, generator=torch.Generator().manual_seed(1))
    for keys in (None, torch.tensor([7, 3, 7])):
        encoder.zero_grad()
        output = encoder(inputs, labels, mask, generator=torch_generator(0, "n"), keys=keys)
        (output.context * weight).sum().backward()
        grads = {n: p.grad.clone() for n, p in encoder.named_parameters() if p.grad is not None}
        results.append((fields(output), grads))
    (plain, plain_grads), (shared, shared_grads) = results
    for name, value in plain.items():
        assert_close(shared[name], value, 1e-5, name)
    assert plain_grads.keys() == shared_grads.keys()
    for name, value in plain_grads.items():
        assert_close(shared_grads[name], value, 2e-5 * max(1.0, float(value.abs().max())), name)


def test_sampling_is_reproducible_and_only_in_training() -> None:
    for name in sorted(VARIATIONAL_ENCODERS):
        encoder, demos = encoder_of(encoder_type=name), demonstrations()
        assert torch.equal(encoder(*demos).context, encoder(*demos).context)
        encoder.train()
        draws = [encoder(*demos, generator=torch_generator(s, "n")).context for s in (0, 0, 1)]
        assert torch.equal(draws[0], draws[1]) and not torch.equal(draws[0], draws[2])


@every_encoder
def test_parity_differs_from_the_default_only_by_pad(variant: dict[str, Any]) -> None:
    if variant.get("encoder_qk_norm"):
        pytest.skip("the references ignore qk_norm")
    default, parity = encoder_of(**variant), encoder_of(parity=True, **variant)
    full = demonstrations(pad=False)
    expected = fields(default(*full))
    for name, value in fields(parity(*full)).items():
        assert_close(value, expected[name], 1e-5, name)
    padded = demonstrations()
    difference = (parity(*padded).context - default(*padded).context).detach().abs().max()
    assert float(difference) > 1e-3


# --- the recursion against a dense reference -----------------------------------------------------


def reference_step(
    weights: dict[str, Tensor], config: ModelConfig, tokens: Tensor, prefix: Tensor, exists: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """One ACT step from the initial states, written plainly on dense (B, L, D) tensors.

    `exists` (B, L): tokens that are keys. Returns logits (B, S, V), q (B, 2), z_H (B, L, D).
    """
    heads, head, width = config.num_heads, config.head_dim, config.hidden_size
    rows, length = exists.shape
    frequency = config.rope_theta ** (-torch.arange(0, head, 2) / head)
    angle = torch.arange(length)[:, None] * torch.cat([frequency, frequency])
    cos, sin = angle.cos()[:, None], angle.sin()[:, None]

    def turn(x: Tensor) -> Tensor:
        half = torch.cat([-x[..., head // 2 :], x[..., : head // 2]], dim=-1)
        return x * cos + half * sin

    def rms(x: Tensor) -> Tensor:
        return x / torch.sqrt((x * x).mean(-1, keepdim=True) + config.rms_norm_eps)

    def block(h: Tensor, i: int) -> Tensor:
        at = f"inner.L_level.layers.{i}."
        qkv = h @ weights[at + "self_attn.qkv_proj.weight"].T
        q, k, v = qkv.view(rows, length, 3, heads, head).unbind(2)
        scores = torch.einsum("blhc,bmhc->bhlm", turn(q), turn(k)) / math.sqrt(head)
        scores = scores.masked_fill(~exists[:, None, None, :], -math.inf)
        mixed = torch.einsum("bhlm,bmhc->blhc", scores.softmax(-1), v).reshape(rows, length, width)
        h = rms(h + mixed @ weights[at + "self_attn.o_proj.weight"].T)
        gate, up = (h @ weights[at + "mlp.gate_up_proj.weight"].T).chunk(2, -1)
        hidden = gate / (1 + torch.exp(-gate)) * up
        return rms(h + hidden @ weights[at + "mlp.down_proj.weight"].T)

    def f(h: Tensor, u: Tensor) -> Tensor:
        h = h + u
        for i in range(config.L_layers):
            h = block(h, i)
        return h

    embedded = weights["inner.embed_tokens.embedding_weight"][tokens.long()]
    x = math.sqrt(width) * torch.cat([prefix, embedded], dim=1)
    z_H = weights["inner.H_init"].expand(rows, length, width)
    z_L = weights["inner.L_init"].expand(rows, length, width)
    for cycle in range(config.H_cycles):
        with torch.set_grad_enabled(cycle == config.H_cycles - 1):
            for _ in range(config.L_cycles):
                z_L = f(z_L, z_H + x)
            z_H = f(z_H, z_L)
    logits = z_H[:, config.prefix_len :] @ weights["inner.lm_head.weight"].T
    q = z_H[:, 0] @ weights["inner.q_head.weight"].T + weights["inner.q_head.bias"]
    return logits, q, z_H


def loss_of(logits: Tensor, q: Tensor, labels: Tensor) -> Tensor:
    """The step's loss, from its definition."""
    scored = labels != -100
    x = logits.double()
    s = torch.where(x >= 0, x + 1, 1 / (1 - x.clamp_max(0)))
    target = labels.clamp_min(0).long()[..., None]
    nll = s.sum(-1).log() - s.gather(-1, target)[..., 0].log()
    count = scored.sum(-1)
    right = ((logits.argmax(-1) == labels) & scored).sum(-1) == count
    lm = ((nll * scored).sum(-1) / count.clamp_min(1)).sum()
    return lm + 0.5 * F.binary_cross_entropy_with_logits(q[:, 0], right.float(), reduction="sum")


@pytest.mark.parametrize("canvas", ["full", "demos"])
@pytest.mark.parametrize("layers", [1, 2])
def test_packed_tokens_give_what_a_dense_reference_gives(
    canvas: str, layers: int, folder: Path
) -> None:
    if canvas == "full":
        config = model_config(L_layers=layers)
        rng = torch.Generator().manual_seed(0)
        batch = {
            "inputs": torch.randint(0, 12, (ROWS, CELLS), generator=rng),
            "labels": torch.randint(2, 12, (ROWS, CELLS), generator=rng),
        }
        batch["labels"][0, 3:] = -100
        exists = torch.ones(ROWS, 4 + CELLS, dtype=torch.bool)
    else:
        trial = tiny(folder, L_layers=layers)
        config, (batch,) = trial.model, batches(trial, 1)
        exists = torch.cat([torch.ones(4, 4), inside(batch["canvas"])], dim=1).bool()
        assert 4 < int(exists.sum(1).min()) < int(exists.sum(1).max()) < 100
    model = build_model(config, seed=1).train()
    with torch.no_grad():
        model.inner.q_head.weight.normal_(generator=torch.Generator().manual_seed(2))
    rows = len(batch["inputs"])
    prefix = torch.randn(rows, 4, 32, generator=torch.Generator().manual_seed(3)) / 6
    ours, theirs = prefix.clone().requires_grad_(), prefix.clone().requires_grad_()

    carry, outputs = model(model.initial_carry(batch), batch, context=ours)
    labels = carry.current_data["labels"]
    loss, _ = act_loss(outputs, labels, carry=carry)
    loss.backward()

    weights = {n: v.detach().clone() for n, v in model.state_dict().items() if "inner." in n}
    names = dict(model.inner.named_parameters())
    for name in names:
        weights[f"inner.{name}"].requires_grad_()
    logits, q, z_H = reference_step(weights, config, batch["inputs"], theirs, exists)
    expected = loss_of(logits, q, labels)
    expected.backward()

    cells = exists[:, 4:]
    assert_close(outputs["logits"][cells], logits[cells], 1e-5, "logits")
    assert_close(torch.stack([outputs.q_halt_logits, outputs.q_continue_logits], 1), q, 1e-5, "q")
    assert_close(carry.inner.z_H[exists], z_H[exists], 1e-5, "z_H")
    assert_close(loss, expected, 1e-5, "loss")
    assert ours.grad is not None and theirs.grad is not None
    assert_close(ours.grad, theirs.grad, 1e-5 * float(theirs.grad.abs().max()), "prefix")
    for name, parameter in names.items():
        theirs_grad = weights[f"inner.{name}"].grad
        assert parameter.grad is not None and theirs_grad is not None, name
        scale = max(1.0, float(theirs_grad.abs().max()))
        assert_close(parameter.grad, theirs_grad, 1e-5 * scale, name)


def inside(canvas: Tensor) -> Tensor:
    """(B, 900) bool: cells of each row's rectangle."""
    top, left, height, width = canvas.long().T[:, :, None, None]
    row, column = torch.arange(30)[:, None], torch.arange(30)[None, :]
    within = (row >= top) & (row < top + height) & (column >= left) & (column < left + width)
    return within.flatten(1)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return puzzle_folder(tmp_path_factory.mktemp("puzzles"))


@pytest.mark.parametrize("kind", ["etrm", "trm"])
@pytest.mark.parametrize("canvas", ["demos", "full"])
def test_a_row_does_not_depend_on_its_neighbours(folder: Path, kind: str, canvas: str) -> None:
    # one cycle: the recursion amplifies rounding, and the shapes of alone and together differ
    trial = tiny(
        folder,
        kind=kind,
        canvas=canvas,
        H_cycles=1,
        L_cycles=1,
        halt_max_steps=8,
        num_puzzle_identifiers=200,
    )
    first, second = batches(trial, 2)
    model = build_model(trial.model, seed=0)
    if kind == "trm":
        table = model.inner.puzzle_emb.weights
        table.normal_(generator=torch.Generator().manual_seed(4))
    halts = [[True] * 4, [False, True, False, False], [True, False, False, True], [False] * 4]

    def run(rows: slice) -> tuple[list[Tensor], Carry]:
        logits = []
        carry = model.initial_carry({k: v[rows] for k, v in first.items()})
        for at, halted in enumerate(halts):
            carry.halted = torch.tensor(halted[rows])
            offered = first if at == 0 else second
            carry, outputs = model(carry, {k: v[rows] for k, v in offered.items()})
            logits.append(outputs["logits"].detach())
        return logits, carry

    def near(actual: Tensor, expected: Tensor, what: str) -> None:
        assert_close(actual, expected, 1e-5 * max(1.0, float(expected.abs().max())), what)

    together, carry = run(slice(0, 4))
    for row in range(4):
        alone, single = run(slice(row, row + 1))
        for step, (mine, theirs) in enumerate(zip(together, alone, strict=True)):
            near(mine[row : row + 1], theirs, f"row {row}, step {step}")
        near(carry.inner.z_H[row : row + 1], single.inner.z_H, "z_H")
        near(carry.inner.z_L[row : row + 1], single.inner.z_L, "z_L")
    if canvas == "demos":
        cells = inside(carry.current_data["canvas"])
        for states in (carry.inner.z_H, carry.inner.z_L):
            assert bool((states[:, 4:][~cells] == 0).all())
            assert bool((states[:, 4:][cells].abs().sum(-1) > 0).all())


def test_canvas_is_derived_where_a_batch_lacks_it(folder: Path) -> None:
    trial = tiny(folder)
    (batch,) = batches(trial, 1)
    model = build_model(trial.model, seed=0).eval()
    bare = {k: v for k, v in batch.items() if k not in ("canvas", "fits")}
    with torch.no_grad():
        given = model(model.initial_carry(batch), batch)
        derived = model(model.initial_carry(bare), bare)
    assert torch.equal(given[0].current_data["canvas"], derived[0].current_data["canvas"])
    assert torch.equal(given[0].current_data["fits"], derived[0].current_data["fits"])
    assert torch.equal(given[1]["logits"], derived[1]["logits"])
    trm = build_model(trial.replace(kind="trm").model)
    plain = {k: batch[k] for k in ("inputs", "labels", "puzzle_identifiers")}
    with pytest.raises(DataError, match="canvas"):
        trm(trm.initial_carry(plain), plain)


# --- halting -------------------------------------------------------------------------------------


def plain_batch(seed: int, rows: int = 4) -> dict[str, Tensor]:
    rng = torch.Generator().manual_seed(seed)
    return {
        "inputs": torch.randint(0, 12, (rows, CELLS), generator=rng),
        "labels": torch.randint(2, 12, (rows, CELLS), generator=rng),
        "puzzle_identifiers": torch.randint(1, 9, (rows,), generator=rng),
    }


def trm(**options: Any) -> RecursiveModel:
    return build_model(model_config(kind="trm", num_puzzle_identifiers=9, **options), seed=0)


def eager(model: RecursiveModel) -> RecursiveModel:
    """A model whose halting head always says stop."""
    with torch.no_grad():
        model.inner.q_head.bias.fill_(5.0)
    return model


def test_only_halted_rows_take_new_data() -> None:
    model = trm(halt_max_steps=4).train()
    first, second = plain_batch(1), plain_batch(2)
    carry, _ = model(model.initial_carry(first), first)
    assert carry.steps.tolist() == [1] * 4 and not carry.halted.any()
    before = carry.inner.z_H.clone()
    carry.halted = torch.tensor([True, False, False, True])
    carry, outputs = model(carry, second)
    assert carry.steps.tolist() == [1, 2, 2, 1]
    for name in first:
        assert torch.equal(carry.current_data[name][1:3], first[name][1:3]), name
        assert torch.equal(carry.current_data[name][::3], second[name][::3]), name
    fresh, fresh_outputs = model(model.initial_carry(second), second)
    assert_close(outputs["logits"][::3], fresh_outputs["logits"][::3], 1e-5, "restarted rows")
    difference = (outputs["logits"][1:3] - fresh_outputs["logits"][1:3]).detach().abs().max()
    assert float(difference) > 1e-3
    assert not torch.equal(before, carry.inner.z_H) and fresh.steps.tolist() == [1] * 4
    with pytest.raises(DataError, match="start from initial_carry"):
        model(carry, second | {"fits": torch.ones(4)})


def test_last_step_halts_and_evaluation_runs_them_all() -> None:
    for training in (True, False):
        model = trm(halt_max_steps=3, halt_exploration_prob=0.0).train(training)
        if not training:
            eager(model)
        carry, batch = model.initial_carry(plain_batch(1)), plain_batch(1)
        halted = []
        for _ in range(4):
            carry, _ = model(carry, batch)
            halted.append(bool(carry.halted.all()))
            assert bool(carry.halted.all()) == bool(carry.halted.any())
        assert halted == [False, False, True, False]


def test_exploration_is_drawn_from_its_generator() -> None:
    batch = plain_batch(1, rows=16)

    def run(seed: int, probability: float) -> list[list[bool]]:
        model = eager(trm(halt_max_steps=6, halt_exploration_prob=probability)).train()
        carry, generator = model.initial_carry(batch), torch_generator(seed, "halting")
        seen = []
        for _ in range(5):
            carry, _ = model(carry, batch, generator=generator)
            seen.append(carry.halted.tolist())
        return seen

    assert all(all(row) for row in run(0, 0.0)), "without exploration every row stops at once"
    explored = run(0, 1.0)
    assert not any(explored[0]), "an exploring row makes at least two steps"
    assert any(map(any, explored)) and explored == run(0, 1.0) and explored != run(1, 1.0)


def test_gradients_do_not_cross_steps() -> None:
    model = trm(halt_max_steps=4).train()
    batch = plain_batch(1)
    carry, outputs = model(model.initial_carry(batch), batch)
    assert outputs["logits"].requires_grad
    for state in (carry.inner.packed_H, carry.inner.packed_L):
        assert not state.requires_grad
    carry, outputs = model(carry, batch)
    loss, _ = act_loss(outputs, carry.current_data["labels"], carry=carry)
    loss.backward()


def test_the_continue_head_trains_only_when_asked() -> None:
    batch = plain_batch(1)
    for off in (True, False):
        model = trm(no_ACT_continue=off).train()
        with torch.no_grad():
            model.inner.q_head.weight.normal_(generator=torch.Generator().manual_seed(2))
        carry, outputs = model(model.initial_carry(batch), batch)
        loss, sums = act_loss(outputs, carry.current_data["labels"], carry=carry)
        loss.backward()
        halt, proceed = model.inner.q_head.bias.grad
        assert halt != 0 and (proceed == 0) == off
        assert ("q_continue_loss" in sums) != off
        expected = sums["lm_loss"] + 0.5 * sums["q_halt_loss"]
        if not off:
            assert sums["q_continue_loss"] > 0
            expected = expected + 0.5 * sums["q_continue_loss"]
            target = outputs["target_q_continue"]
            assert not target.requires_grad and bool(((target > 0) & (target < 1)).all())
        assert_close(loss, expected, 1e-9, "total")


def test_without_no_act_continue_rows_stop_when_halt_exceeds_continue() -> None:
    model = trm(no_ACT_continue=False, halt_exploration_prob=0.0, halt_max_steps=9).train()
    batch = plain_batch(1)
    for bias, stops in (((-6.0, -5.0), False), ((-5.0, -6.0), True)):
        with torch.no_grad():
            model.inner.q_head.bias.copy_(torch.tensor(bias))
        carry, _ = model(model.initial_carry(batch), batch)
        assert bool(carry.halted.all()) == stops == bool(carry.halted.any())


def test_the_puzzle_table_gets_only_its_sparse_update() -> None:
    model = trm().train()
    assert not any("puzzle_emb" in name or "init" in name for name, _ in model.named_parameters())
    batch = plain_batch(1)
    before = {n: model.get_buffer(f"inner.{n}").clone() for n in ("H_init", "L_init")}
    carry, outputs = model(model.initial_carry(batch), batch)
    loss, _ = act_loss(outputs, carry.current_data["labels"], carry=carry)
    loss.backward()
    SignSGDEmbedding(model.inner.puzzle_emb, lr=0.1, weight_decay=0.0).step()
    torch.optim.SGD(model.parameters(), lr=0.1).step()
    table = model.inner.puzzle_emb.weights
    used = set(batch["puzzle_identifiers"].tolist())
    for row in range(9):
        assert (set(table[row].unique().tolist()) <= {0.0}) == (row not in used)
        assert bool((table[row].abs() - 0.1 * (row in used)).abs().max() < 1e-6)
    for name, value in before.items():
        assert torch.equal(model.get_buffer(f"inner.{name}"), value)


def test_evaluation_encodes_once_and_agrees_with_encoding_every_step(folder: Path) -> None:
    trial = tiny(folder)
    (batch,) = batches(trial, 1)
    model = build_model(trial.model, seed=0).eval()
    assert model.encoder is not None
    calls = []
    model.encoder.register_forward_hook(lambda *_: calls.append(1))
    with torch.no_grad():
        carry = again = model.initial_carry(batch)
        for _ in range(3):
            carry, outputs = model(carry, batch)
            again.encoded = None
            again, plain = model(again, batch)
    assert len(calls) == 1 + 3
    assert torch.equal(outputs["logits"], plain["logits"])


# --- paired initialisation -----------------------------------------------------------------------


def test_arms_with_the_same_tensor_start_equal() -> None:
    states = {
        name: build_model(model_config(encoder_type=name), seed=5).state_dict() for name in ALL
    }
    states["trm"] = trm_state = build_model(model_config(kind="trm"), seed=5).state_dict()
    assert len(trm_state) == 6 + 4 + 1  # with one layer, and a puzzle table
    paper = {"lpn", "lpn_var"}  # start from other distributions than the rest
    for mine, state in states.items():
        for theirs, other in states.items():
            # the published encoders start logvar_proj differently: zeros, or drawn
            names = state.keys() & other.keys() - {"encoder.logvar_proj.weight"}
            if (mine in paper) != (theirs in paper):
                names = {name for name in names if not name.startswith("encoder.")}
            for name in names:
                if state[name].shape == other[name].shape:
                    assert torch.equal(state[name], other[name]), name
    other_seed = build_model(model_config(), seed=6).state_dict()
    assert not torch.equal(other_seed["inner.lm_head.weight"], trm_state["inner.lm_head.weight"])


def test_initialisation_does_not_touch_the_global_generator() -> None:
    torch.manual_seed(0)
    expected = torch.rand(3)
    torch.manual_seed(0)
    build_model(model_config(), seed=1)
    assert torch.equal(torch.rand(3), expected)
    torch.manual_seed(1)
    drawn = build_model(model_config()).state_dict()
    torch.manual_seed(1)
    again = build_model(model_config()).state_dict()
    assert all(torch.equal(drawn[name], again[name]) for name in drawn)


def test_recurrent_encoders_belong_to_their_kind() -> None:
    with pytest.raises(ConfigError, match=r"'trm_style' is recurrent: set kind='etrmtrm'"):
        build_model(model_config(kind="etrm", encoder_type="trm_style"))
    with pytest.raises(ConfigError, match=r"not 'lpn': set recurrent_encoder_type"):
        build_model(model_config(kind="etrmtrm", encoder_type="lpn"))


# --- loss ----------------------------------------------------------------------------------------


def test_stablemax_gradient_against_float64_autograd() -> None:
    rng = torch.Generator().manual_seed(0)
    start = torch.randn(5, 7, 12, generator=rng, dtype=torch.float64) * 4
    labels = torch.randint(0, 12, (5, 7), generator=rng)
    labels[0, :3] = -100
    ours, theirs = start.clone().requires_grad_(), start.clone().requires_grad_()
    weight = torch.rand(5, 7, generator=rng)
    (stablemax_cross_entropy(ours, labels) * weight).sum().backward()
    s = torch.where(theirs >= 0, theirs + 1, 1 / (1 - theirs.clamp_max(0)))
    nll = (s.sum(-1).log() - s.log().gather(-1, labels.clamp_min(0)[..., None])[..., 0]) * weight
    torch.where(labels == -100, 0.0, nll).sum().backward()
    assert ours.grad is not None and theirs.grad is not None
    assert_close(ours.grad, theirs.grad, 1e-12)
    assert bool((ours.grad[0, :3] == 0).all())


def scored(outputs: Outputs, labels: Tensor, **options: Any) -> tuple[Tensor, dict[str, Tensor]]:
    rows = len(labels)
    carry = Carry(
        inner=None,  # type: ignore[arg-type]
        steps=torch.full((rows,), 2),
        halted=options.pop("halted", torch.ones(rows, dtype=torch.bool)),
        current_data=options.pop("data", {}),
    )
    return act_loss(outputs, labels, carry=carry, **options)


def random_outputs(rows: int, seed: int = 0, **more: Tensor) -> Outputs:
    rng = torch.Generator().manual_seed(seed)
    return Outputs(
        logits=torch.randn(rows, CELLS, 12, generator=rng),
        q_halt_logits=torch.randn(rows, generator=rng),
        q_continue_logits=torch.randn(rows, generator=rng),
        **more,
    )


def test_every_row_weighs_one_whatever_its_size() -> None:
    labels = plain_batch(0, rows=2)["labels"]
    labels[1, 3:] = -100
    outputs = random_outputs(2)
    cells = stablemax_cross_entropy(outputs["logits"], labels)
    _, sums = scored(outputs, labels)
    assert_close(sums["lm_loss"], cells[0].mean() + cells[1, :3].mean(), 1e-9)


def test_kl_weight_is_per_row_whatever_the_batch() -> None:
    labels, kl = plain_batch(0)["labels"], torch.tensor([1.0, 2.0, 3.0, 4.0])
    once, sums = scored(random_outputs(4, kl_rows=kl), labels, kl_weight=0.1)
    plain, _ = scored(random_outputs(4), labels, kl_weight=0.1)
    assert_close(once - plain, torch.tensor(1.0), 1e-6)
    assert float(sums["kl_loss"]) == 10.0
    single = random_outputs(4, kl_rows=kl)
    doubled = Outputs(**{k: torch.cat([v, v]) for k, v in single.items()})
    twice, sums = scored(doubled, labels.repeat(2, 1), kl_weight=0.1)
    assert_close(twice, 2 * once, 1e-6)
    assert float(sums["kl_loss"]) == 20.0


def test_rows_that_do_not_fit_are_never_exact() -> None:
    labels = plain_batch(0, rows=3)["labels"]
    labels[2] = -100
    outputs = random_outputs(3)
    outputs["logits"] = F.one_hot(labels.clamp_min(0), 12).float()
    halted = torch.ones(3, dtype=torch.bool)
    _, all_fit = scored(outputs, labels, data={"fits": torch.ones(3, dtype=torch.bool)})
    _, one_not = scored(outputs, labels, data={"fits": torch.tensor([True, False, True])})
    assert float(all_fit["exact_accuracy"]) == 2 and float(one_not["exact_accuracy"]) == 1
    assert float(one_not["accuracy"]) == 2 == float(one_not["count"]), "trained on what is visible"
    _, few = scored(outputs, labels, halted=halted & torch.tensor([True, False, True]))
    assert float(few["count"]) == 1 and float(few["all_count"]) == 2
    assert float(few["steps"]) == 2 and float(few["all_steps"]) == 4


def test_the_labels_of_the_carry_are_scored_not_those_offered() -> None:
    model = trm(halt_max_steps=4).train()
    first, second = plain_batch(1), plain_batch(2)
    carry, _ = model(model.initial_carry(first), first)
    carry, outputs = model(carry, second)
    assert torch.equal(carry.current_data["labels"], first["labels"])
    loss, correct, count = row_scores(outputs, carry.current_data["labels"])
    assert torch.equal(loss, row_scores(outputs, first["labels"])[0])
    assert not torch.equal(loss, row_scores(outputs, second["labels"])[0])
    assert int(count.sum()) == 4 * CELLS and int(correct.sum()) <= int(count.sum())
