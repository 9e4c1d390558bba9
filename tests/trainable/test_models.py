"""Models by contract: every encoder, and the initialisation that arms share.

Shape legend: B rows, K demonstration slots, S cells, P prefix tokens, L = P + S, D width.
"""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F

from tests.trainable.small_models import (
    ALL,
    CELLS,
    ROWS,
    assert_close,
    demonstrations,
    encoder_of,
    every_encoder,
    fields,
    model_config,
)
from trainable.config import ENCODER_TYPES, VARIATIONAL_ENCODERS
from trainable.errors import ConfigError
from trainable.models import ENCODERS, build_model
from trainable.random import torch_generator


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
