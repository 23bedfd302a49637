"""A dynamic quantizer is, for each image, the static one that has seen only it."""

import itertools

import pytest
import torch

from ptq_diffusion.engine.factory import construct
from ptq_diffusion.quantizer import (
    WHOLE,
    AffineQuantizer,
    DynamicQuantizer,
    MinMax,
    PerChannel,
    PerInputChannel,
    PerParts,
    PerTensor,
    PerToken,
    described_form,
)
from tests.quantizer.presets import DYNAMIC, NODES

# Images of very different scale, one of them nothing but zeros.
X = torch.randn(4, 6, 5, 3, generator=torch.Generator().manual_seed(0)) * torch.tensor([1.0, 50.0, 0.01, 0.0]).view(
    4, 1, 1, 1
)
CASES = list(itertools.product([PerTensor(), PerToken(1), PerToken(-1), PerInputChannel()], (True, False), (2, 4, 8)))
every = pytest.mark.parametrize(("granularity", "symmetric", "bits"), CASES)


def frozen(granularity, symmetric, bits):
    quantizer = DynamicQuantizer(bits, symmetric, granularity)
    quantizer.observe(1000 * X)  # Leaves no trace.
    quantizer.freeze()
    return quantizer


@every
def test_no_image_depends_on_its_neighbours(granularity, symmetric, bits):
    quantizer = frozen(granularity, symmetric, bits)
    alone = torch.cat([quantizer(image) for image in X.split(1)])
    assert torch.equal(quantizer(X), alone)
    assert torch.equal(quantizer(X.flip(0)), alone.flip(0))


@every
def test_an_image_is_quantized_as_by_the_static_quantizer_that_saw_only_it(granularity, symmetric, bits):
    quantizer = frozen(granularity, symmetric, bits)
    if isinstance(granularity, PerToken):
        tokens = X.movedim(granularity.axis, -1).flatten(0, 2)
        expected = torch.stack([static(PerTensor(), symmetric, bits, token[None])(token[None])[0] for token in tokens])
        shape = (4, 6, 5, 3) if granularity.axis < 0 else (4, 5, 3, 6)
        expected = expected.view(shape).movedim(-1, granularity.axis)
    else:
        expected = torch.cat([static(granularity, symmetric, bits, image)(image) for image in X.split(1)])
    assert torch.equal(quantizer(X), expected)


def static(granularity, symmetric, bits, x):
    quantizer = AffineQuantizer(bits, symmetric, granularity, MinMax(), 64)
    quantizer.observe(x)
    quantizer.freeze()
    return quantizer


@every
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
def test_the_quantizer_of_fixed_grids_is_itself_in_every_dtype(granularity, symmetric, bits, dtype):
    quantizer, x = frozen(granularity, symmetric, bits), X.to(dtype)
    fixed = quantizer.at(x)
    integers = quantizer.to_integers(x)
    assert quantizer(x).dtype == dtype and torch.equal(quantizer(x), fixed.from_integers(integers).to(dtype))
    assert fixed.grid.low <= integers.min() and integers.max() <= fixed.grid.high
    again = fixed(quantizer(x.float()))
    assert torch.equal(again, quantizer(x.float()))
    step = fixed.spread(x)[0].float()
    # An affine grid's ends shift by up to half a step, when its zero point is rounded.
    assert ((quantizer(x.float()) - x.float()).abs() <= step * (0.501 if symmetric else 1.001)).all()


@every
def test_a_gradient_passes_where_nothing_is_clamped(granularity, symmetric, bits):
    x = X.clone().requires_grad_()
    quantizer = frozen(granularity, symmetric, bits)
    quantized = quantizer(x)
    assert torch.equal(quantized, quantizer(X))
    quantized.sum().backward()
    fixed = quantizer.at(X)
    scale, zero_point = fixed.spread(X)
    unclamped = (X / scale).round() + zero_point
    inside = (unclamped >= fixed.grid.low) & (unclamped <= fixed.grid.high)
    assert torch.allclose(x.grad, inside.float(), rtol=1e-6, atol=0) and inside.float().mean() > 0.9


def test_finer_groups_and_more_bits_have_smaller_errors():
    error = lambda *case: (frozen(*case)(X) - X).square().mean().item()  # noqa: E731
    for bits in (2, 4, 8):
        assert error(PerToken(), False, bits) < error(PerTensor(), False, bits)
    assert error(PerToken(), False, 8) < error(PerToken(), False, 4) < error(PerToken(), False, 2)
    whole = static(PerTensor(), False, 4, X)
    assert error(PerTensor(), False, 4) < (whole(X) - X).square().mean()


@pytest.mark.parametrize("name", DYNAMIC)
def test_presets_find_channels_where_a_layer_has_them(name):
    quantizer = construct(NODES[name])(4).of_input(-1)
    assert described_form(quantizer.form.description()) == quantizer.form != WHOLE
    quantizer.freeze()
    tokens = X.flatten(2)
    assert torch.equal(quantizer(tokens)[1:2], quantizer(tokens[1:2]))
    if "token" in name:
        assert torch.equal(quantizer(tokens)[:, 2:4], quantizer(tokens[:, 2:4]))


def test_refusals():
    with pytest.raises(ValueError, match=r"found beforehand, got PerToken.*dynamic_per_token"):
        AffineQuantizer(4, True, PerToken(), MinMax(), 64)
    quantizer = DynamicQuantizer(4, True, PerTensor())
    with pytest.raises(RuntimeError, match="expected a quantizer that is frozen"):
        quantizer(X)
    with pytest.raises(ValueError, match="expected no observations for a dynamic quantizer, got counts"):
        quantizer.observed({"counts": torch.zeros(8)})
    quantizer.observed(quantizer.observation())
    quantizer.freeze()
    with pytest.raises(RuntimeError, match=r"integers of fixed grids.*ask at\(x\)"):
        quantizer.from_integers(torch.zeros(2).int())


@pytest.mark.parametrize(
    ("granularity", "message"),
    [
        (PerChannel(), "granularity of inputs, got PerChannel"),
        (
            PerParts(1, 1),
            "cannot split skip connections, got PerParts.*; choose PerTensor, PerToken or PerInputChannel",
        ),
    ],
)
def test_granularities_without_groups_within_an_image_are_refused(granularity, message):
    quantizer = DynamicQuantizer(4, True, granularity)
    quantizer.freeze()
    with pytest.raises(ValueError, match=message):
        quantizer(X)
