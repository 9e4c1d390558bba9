"""What every registered encoder keeps, and what recurrent and variational ones keep besides.

`tests/trainable/test_models.py` holds the rest of the contract: shapes, PAD and empty slots, batch
neighbours, gradients, bfloat16, equal sets encoded once. Shape legend: B rows, K slots, S cells, T
context tokens, D width.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from torch import Tensor

from tests.trainable.small_models import (
    ALL,
    CELLS,
    ROWS,
    SLOTS,
    assert_close,
    demonstrations,
    encoder_of,
    fields,
    model_config,
)
from trainable.config import ModelConfig, TrialConfig, ineffective_options
from trainable.encoder_options import (
    ENCODER_FACTS,
    ENCODER_OPTIONS,
    RECURRENT_ENCODERS,
    VARIATIONAL_ENCODERS,
)
from trainable.errors import ConfigError
from trainable.models import ENCODERS, build_model
from trainable.models.encoders import DemonstrationEncoder, EncoderOutput
from trainable.models.encoders.bottleneck import kl_to_standard_normal
from trainable.random import torch_generator

OTHER = {
    "encoder_num_layers": 2,  # 1 in the tests' model
    "encoder_set_layers": 2,
    "encoder_pooling_method": "attention",
    "encoder_norm_style": "pre",
    "encoder_layer_scale_init": 0.1,
    "encoder_qk_norm": True,
    "lpn_latent_dim": 8,
    "encoder_h_cycles": 2,
    "encoder_l_cycles": 3,
    "encoder_l_layers": 1,
    "recurrent_blend": 0.5,
}
"""Another value than the default for every encoder option."""

every = pytest.mark.parametrize("name", ALL)
recurrent = pytest.mark.parametrize("name", sorted(RECURRENT_ENCODERS))
variational = pytest.mark.parametrize("name", sorted(VARIATIONAL_ENCODERS))


# --- options -------------------------------------------------------------------------------------


def test_the_configuration_knows_what_the_classes_say() -> None:
    assert ENCODER_FACTS.keys() == ENCODERS.keys() and OTHER.keys() == ENCODER_OPTIONS
    for name, encoder in ENCODERS.items():
        facts = ENCODER_FACTS[name]
        said = (encoder.effective, encoder.variational, encoder.recurrent)
        assert said == (facts.effective, facts.variational, facts.recurrent), name


@every
@pytest.mark.parametrize("option", OTHER)
def test_an_option_has_an_effect_or_is_reported(name: str, option: str) -> None:
    demos = demonstrations()
    plain, other = (encoder_of(encoder_type=name, **o) for o in ({}, {option: OTHER[option]}))
    mine, theirs = plain.state_dict(), other.state_dict()
    same_tensors = {k: v.shape for k, v in mine.items()} == {k: v.shape for k, v in theirs.items()}
    with torch.no_grad():
        same = same_tensors and torch.equal(plain(*demos).context, other(*demos).context)
    effective = option in ENCODERS[name].effective
    assert same != effective
    fixed = ENCODER_FACTS[name].fixed.get(option)
    value = 3 if option == "encoder_num_layers" else OTHER[option]
    config = model_config(**{"encoder_type": name, "encoder_num_layers": 2} | {option: value})
    reported = ineffective_options(config)
    assert reported.keys() == (set() if effective or fixed == value else {option})


def test_what_an_encoder_does_anyway_is_not_reported() -> None:
    e2b = {"encoder_num_layers": 6, "encoder_norm_style": "pre", "encoder_set_layers": 3}
    config = ModelConfig(encoder_type="lpn_variational", **e2b)  # type: ignore[arg-type]
    assert ineffective_options(config) == {
        "encoder_set_layers": "encoder 'lpn_variational' does not read it"
    }
    config = ModelConfig(encoder_type="lpn_standard", encoder_pooling_method="cls")
    assert ineffective_options(config) == {}
    assert ineffective_options(ModelConfig(encoder_type="standard", encoder_qk_norm=True)) == {}


def test_ineffective_options_of_kinds_and_trials() -> None:
    def reported(**options: Any) -> set[str]:
        return set(ineffective_options(TrialConfig().replace(**options)))

    assert reported() == reported(kind="trm") == reported(kind="etrmtrm") == set()
    assert reported(kind="trm", encoder_num_layers=4) == {"encoder_num_layers"}
    assert reported(kl_weight=1e-4) == {"kl_weight"}
    assert reported(kl_weight=1e-4, encoder_type="lpn_var") == set()
    assert reported(recurrent_encoder_type="trm_style") == {"recurrent_encoder_type"}
    assert reported(kind="etrmtrm", recurrent_encoder_type="trm_style", encoder_l_cycles=4) == set()
    both = {"kind": "etrmtrm", "recurrent_encoder_type": "trm_style", "encoder_type": "lpn"}
    assert reported(**both) == {"encoder_type"}
    assert reported(encoder_qk_norm=True, parity=True) == {"encoder_qk_norm"}


def test_trials_that_cannot_be_are_refused() -> None:
    def refused(match: str, **options: Any) -> None:
        with pytest.raises(ConfigError, match=match) as caught:
            TrialConfig().replace(**options)
        assert "\n" not in str(caught.value)

    refused("'trm_style' is recurrent: set kind='etrmtrm'", encoder_type="trm_style")
    refused("set recurrent_encoder_type", kind="etrmtrm", encoder_type="lpn")
    refused(
        r"unknown recurrent_encoder_type 'trm_stile' \(did you mean 'trm_style'\?\)",
        kind="etrmtrm",
        recurrent_encoder_type="trm_stile",
    )
    for name in VARIATIONAL_ENCODERS:  # A7: lpn_var too
        refused(f"'{name}' is variational: set kl_weight > 0", encoder_type=name)
        TrialConfig().replace(encoder_type=name, kl_weight=1e-4)


def test_the_paper_encoder_needs_square_grids() -> None:
    for cells in (35, 31 * 31):
        with pytest.raises(ConfigError, match="set seq_len to a square up to 900"):
            build_model(model_config(encoder_type="lpn", seq_len=cells))


def test_etrmtrm_names_its_encoder_either_way() -> None:
    assert ModelConfig(kind="etrmtrm").encoder_name == "recurrent_standard"
    assert ModelConfig(kind="etrmtrm", encoder_type="trm_style").encoder_name == "trm_style"
    given = ModelConfig(kind="etrmtrm", recurrent_encoder_type="trm_style")
    assert given.encoder_name == "trm_style"


def test_a_new_encoder_is_one_class_and_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    class Mine(ENCODERS["standard"]):  # type: ignore[misc]
        pass

    monkeypatch.setitem(ENCODERS, "mine", Mine)
    assert isinstance(encoder_of(encoder_type="mine"), Mine)


# --- demonstrations ------------------------------------------------------------------------------


@every
@pytest.mark.parametrize("parity", [False, True])
@torch.no_grad()
def test_a_row_without_demonstrations_is_what_no_demonstration_gives(
    name: str, parity: bool
) -> None:
    encoder = encoder_of(encoder_type=name, parity=parity)
    inputs, labels, mask = demonstrations()
    mask[1] = False
    among = fields(encoder(inputs, labels, mask))
    nobody = fields(encoder(inputs, labels, torch.zeros_like(mask)))
    for field in among.keys() - {"kl_loss"}:
        assert bool(among[field].isfinite().all()), field
        assert_close(among[field][1], nobody[field][1], 1e-6, field)


@every
@pytest.mark.parametrize("parity", [False, True])
@torch.no_grad()
def test_a_demonstration_of_pad_alone_is_finite(name: str, parity: bool) -> None:
    encoder = encoder_of(encoder_type=name, parity=parity)
    inputs, labels, mask = demonstrations()
    inputs[0, 0] = labels[0, 0] = 0
    assert all(bool(v.isfinite().all()) for v in fields(encoder(inputs, labels, mask)).values())
    inputs[:], labels[:] = 0, 0
    assert all(bool(v.isfinite().all()) for v in fields(encoder(inputs, labels, mask)).values())


@every
@pytest.mark.parametrize("count", [1, 2, SLOTS])
@torch.no_grad()
def test_demonstration_counts(name: str, count: int) -> None:
    encoder, (inputs, labels, _) = encoder_of(encoder_type=name), demonstrations(pad=False)
    mask = (torch.arange(SLOTS) < count).expand(ROWS, -1)
    cut = encoder(inputs[:, :count], labels[:, :count], torch.ones(ROWS, count).bool())
    padded = encoder(inputs, labels, mask)
    assert_close(padded.context, cut.context, 1e-5)
    if count < SLOTS:
        everything = encoder(inputs, labels, torch.ones(ROWS, SLOTS).bool())
        assert float((everything.context - padded.context).abs().max()) > 1e-4


@every
@torch.no_grad()
def test_the_order_of_demonstrations_does_not_matter(name: str) -> None:
    encoder, (inputs, labels, mask) = encoder_of(encoder_type=name), demonstrations()
    turned = encoder(inputs.flip(1), labels.flip(1), mask.flip(1))
    assert_close(turned.context, encoder(inputs, labels, mask).context, 1e-5)


# --- numerics ------------------------------------------------------------------------------------


@every
def test_layer_scale_in_bfloat16(name: str) -> None:  # B3
    encoder = encoder_of(
        encoder_type=name, encoder_layer_scale_init=0.1, forward_dtype="bfloat16"
    ).train()
    output = encoder(*demonstrations(), generator=torch_generator(0, "noise"))
    assert output.context.dtype == torch.bfloat16
    output.context.float().square().sum().backward()
    for parameter_name, parameter in encoder.named_parameters():
        if parameter_name.endswith(("gamma_1", "gamma_2")):
            assert parameter.grad is not None and bool(parameter.grad.abs().sum() > 0)


def test_the_paper_encoder_computes_in_float32() -> None:
    seen = set()
    for name in ("lpn", "lpn_var"):
        encoder = encoder_of(encoder_type=name, forward_dtype="bfloat16")
        for module in encoder.modules():
            if not list(module.children()):
                module.register_forward_hook(lambda _m, _i, out: seen.add(out.dtype))
        assert encoder(*demonstrations()).context.dtype == torch.bfloat16
    assert seen == {torch.float32}


@variational
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("training", [False, True])
def test_kl_is_float32_and_its_rows_make_the_scalar(name: str, dtype: str, training: bool) -> None:
    encoder = encoder_of(encoder_type=name, forward_dtype=dtype).train(training)
    inputs, labels, mask = demonstrations()
    output = encoder(inputs, labels, mask, generator=torch_generator(0, "noise"))
    terms = output.kl_loss, output.kl_rows, output.mu, output.logvar
    assert all(term is not None and term.dtype == torch.float32 for term in terms)  # B5
    assert output.kl_rows is not None and output.kl_loss is not None
    assert bool((output.kl_rows >= 0).all()) and bool(output.kl_loss > 0)
    per_demo = name in ("lpn_variational", "lpn_var")
    weight = mask.sum(1).float() if per_demo else torch.ones(ROWS)
    mean = (output.kl_rows * weight).sum() / weight.sum()
    assert_close(output.kl_loss, mean, 1e-5 * float(mean.detach()))
    if not per_demo:
        assert output.mu is not None and output.logvar is not None
        assert torch.equal(kl_to_standard_normal(output.mu, output.logvar), output.kl_rows)


@variational
@torch.no_grad()
def test_a_sample_moves_by_its_standard_deviation(name: str) -> None:
    encoder, rows = encoder_of(encoder_type=name), 600
    demos = [x[2:].expand(rows, *x.shape[1:]) for x in demonstrations()]
    assert demos[2].sum() == rows  # of one demonstration, the mean of the samples is its sample
    same = torch.zeros(rows, dtype=torch.int64)
    output = encoder.train()(*demos, generator=torch_generator(0, "noise"), keys=same)
    assert output.mu is not None and output.logvar is not None
    z = (output.z_pooled - output.mu) / torch.exp(0.5 * output.logvar)
    assert_close(z.mean(0), torch.zeros(z.shape[1]), 0.2)  # 5 standard errors
    assert_close(z.std(0), torch.ones(z.shape[1]), 0.15)
    assert torch.equal(encoder.eval()(*demos, keys=same).z_pooled, output.mu)


# --- recurrent encoders --------------------------------------------------------------------------


@recurrent
def test_a_state_moves_by_its_share_and_keeps_its_gradient(name: str) -> None:
    encoder, demos = encoder_of(encoder_type=name), demonstrations()
    start = encoder.initial_state(ROWS, torch.device("cpu"))
    assert all(z.shape == (ROWS, 4, 32) and not z.requires_grad for z in start)
    output = encoder(*demos)
    assert output.state is not None and output.state[0] is output.context
    assert all(z.requires_grad for z in output.state)  # A1: the caller detaches what it stores
    whole = encoder_of(encoder_type=name, recurrent_blend=1.0)
    moved = whole(*demos).state
    assert moved is not None
    for mine, old, new in zip(output.state, start, moved, strict=True):
        assert_close(mine, 0.9 * old + 0.1 * new, 1e-6)  # A18
    again = encoder(*demos, state=tuple(z.detach() for z in output.state))
    assert bool((again.context - output.context).abs().max() > 1e-3)
    from_start = encoder(*demos, state=start)
    assert torch.equal(from_start.context, output.context)


@recurrent
@torch.no_grad()
def test_rows_with_equal_demonstrations_keep_their_own_state(name: str) -> None:
    encoder, (inputs, labels, mask) = encoder_of(encoder_type=name), demonstrations()
    for tensor in (inputs, labels, mask):
        tensor[2] = tensor[0]
    rng = torch.Generator().manual_seed(0)
    start = encoder.initial_state(ROWS, torch.device("cpu"))
    state = tuple(torch.randn(z.shape, generator=rng) for z in start)
    with counted_pairs(encoder) as pairs:
        shared = encoder(inputs, labels, mask, state=state, keys=torch.tensor([7, 3, 7]))
        plain = encoder(inputs, labels, mask, state=state)
    assert pairs == [5, 8] and int(mask.sum()) == 8  # the shared set is encoded once
    assert shared.state is not None and plain.state is not None
    for mine, theirs in zip(shared.state, plain.state, strict=True):
        assert_close(mine, theirs, 1e-5)
    assert float((plain.context[0] - plain.context[2]).abs().max()) > 1e-3


@contextmanager
def counted_pairs(encoder: DemonstrationEncoder) -> Iterator[list[int]]:
    """Number of pairs of every call of the grid encoder inside the block."""
    counts: list[int] = []
    grid = encoder.get_submodule("grid_encoder")
    hook = grid.register_forward_hook(lambda _m, args, _out: counts.append(int(args[0].mask.sum())))
    yield counts
    hook.remove()


@recurrent
@pytest.mark.parametrize("options", [{}, {"encoder_norm_style": "pre"}, {"mlp_t": True}], ids=str)
def test_the_model_carries_the_state_and_trains_the_encoder(
    name: str, options: dict[str, Any]
) -> None:
    model = build_model(model_config(encoder_type=name, halt_max_steps=4, **options), seed=0)
    inputs, labels, mask = demonstrations()
    rng = torch.Generator().manual_seed(0)
    batch = {
        "inputs": torch.randint(0, 12, (ROWS, CELLS), generator=rng),
        "labels": torch.randint(2, 12, (ROWS, CELLS), generator=rng),
        "puzzle_identifiers": torch.zeros(ROWS, dtype=torch.int32),
        "demo_inputs": inputs,
        "demo_labels": labels,
        "demo_mask": mask,
    }
    carry, first = model.train()(model.initial_carry(batch), batch)
    stored = carry.encoder_state
    assert stored is not None and not any(z.requires_grad for z in stored)
    assert torch.equal(stored[0], first["context"].detach())
    carry.halted = torch.tensor([False, True, False])
    carry, second = model(carry, batch)
    assert_close(second["context"][1], first["context"][1], 1e-6, "a row that starts again")
    assert bool((second["context"][0] - first["context"][0]).abs().max() > 1e-3)
    second["logits"].square().sum().backward()
    assert model.encoder is not None
    for parameter_name, parameter in model.encoder.named_parameters():
        assert parameter.grad is not None and bool(parameter.grad.any()), parameter_name


# --- memory --------------------------------------------------------------------------------------


@every
def test_the_default_keeps_less_for_backward_than_parity(name: str) -> None:
    def kept(parity: bool) -> int:
        encoder = encoder_of(encoder_type=name, parity=parity).train()
        return saved_bytes(encoder, lambda: encoder(*demonstrations()))

    assert 0 < kept(parity=False) < 0.7 * kept(parity=True)


def saved_bytes(encoder: DemonstrationEncoder, run: Callable[[], EncoderOutput]) -> int:
    """Bytes of distinct storages that a forward pass keeps for backward, parameters left out."""
    own = {p.untyped_storage().data_ptr() for p in encoder.parameters()}
    sizes: dict[int, int] = {}
    alive: list[Tensor] = []

    def note(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in own:
            sizes[storage.data_ptr()] = storage.nbytes()
            alive.append(tensor)
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
        output = run()
    assert output.context.requires_grad
    return sum(sizes.values())


# --- CUDA ----------------------------------------------------------------------------------------


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs CUDA")
@every
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_on_cuda(name: str, dtype: str) -> None:
    """As on the CPU, finite where a row has no demonstration (B2)."""
    encoder = encoder_of(encoder_type=name, forward_dtype=dtype).train(False)
    inputs, labels, mask = demonstrations()
    mask[1] = False
    expected = encoder(inputs, labels, mask).context.detach()
    encoder.cuda()
    output = encoder(inputs.cuda(), labels.cuda(), mask.cuda())
    assert output.context.dtype == expected.dtype
    assert_close(output.context.cpu(), expected, 1e-3 if dtype == "float32" else 0.1)
    output.context.float().square().sum().backward()
    for parameter_name, parameter in encoder.named_parameters():
        assert parameter.grad is None or bool(parameter.grad.isfinite().all()), parameter_name
