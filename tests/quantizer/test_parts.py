"""An input split into two parts is quantized as the concatenation of both, each by a quantizer of its own."""

import itertools

import pytest
import torch

from ptq_diffusion.quantizer import AffineQuantizer, LpSearch, MinMax, PerParts, PerSkip, PerTensor, described_form

X = torch.randn(3, 7, 4, 4, generator=torch.Generator().manual_seed(0))
X[:, 2:] *= 30
CASES = list(itertools.product((2, 4, 8), (True, False), (1, 2, 6), (1, -1), (MinMax(), LpSearch(2, 16))))


def frozen(bits, symmetric, granularity, search, *parts):
    quantizer = AffineQuantizer(bits, symmetric, granularity, search, 256)
    for part in parts:
        quantizer.observe(part)
    quantizer.freeze()
    return quantizer


@pytest.mark.parametrize(("bits", "symmetric", "first", "axis", "search"), CASES)
def test_a_split_is_the_concatenation_of_its_parts(bits, symmetric, first, axis, search):
    x = X.movedim(1, axis)
    whole = frozen(bits, symmetric, PerParts(first, axis), search, x, 2 * x)
    pieces = [part for part in (x.narrow(axis, 0, first), x.narrow(axis, first, 7 - first))]
    quantizers = [frozen(bits, symmetric, PerTensor(), search, piece, 2 * piece) for piece in pieces]
    expected = torch.cat([quantizer(piece) for quantizer, piece in zip(quantizers, pieces, strict=True)], dim=axis)
    assert torch.equal(whole(x), expected) and whole.scale.shape == (2,)
    assert torch.equal(whole.from_integers(whole.to_integers(x)), expected)
    form = described_form(whole.form.description())
    assert torch.equal(form.fake_quantized(x, whole.grid, whole.scale, whole.zero_point), expected)


def test_two_grids_serve_parts_of_different_size_better():
    errors = [
        float((frozen(4, False, granularity, LpSearch(2, 40), X)(X) - X)[:, :2].square().mean())
        for granularity in (PerParts(2, 1), PerTensor())
    ]
    assert errors[0] < errors[1] / 10


def test_only_layers_that_read_a_skip_have_two():
    assert PerSkip().of_input(1, None) == PerTensor() and PerSkip().of_input(-1, 4) == PerParts(4, -1)
    with pytest.raises(ValueError, match=r"more than 7 channels, got one of \(3, 7, 4, 4\)"):
        frozen(4, False, PerParts(7, 1), MinMax(), X)
