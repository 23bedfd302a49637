"""Rows of guidance that are quantized by their difference."""

import pytest
import torch
from torch import nn

from ptq_diffusion.network import Differences, InputGrid, Rescaling
from ptq_diffusion.network.differences import by_difference, numbers_of_difference
from ptq_diffusion.network.layer_settings import LayerSettings
from ptq_diffusion.numeric.grid import Grid
from ptq_diffusion.quantizer import LpSearch

GRID, SEARCH = Grid(4, symmetric=False), LpSearch(2.0, 20)


def rows(distance, seed=0):
    """Pairs of rows (2 B, I), those of the null condition first, which differ by so much."""
    random = torch.Generator().manual_seed(seed)
    conditional = torch.randn(32, 6, generator=random)
    return torch.cat([conditional + distance * torch.randn(32, 6, generator=random), conditional])


def guided(scale):
    return lambda pairs: (1 - scale) * pairs.chunk(2)[0] + scale * pairs.chunk(2)[1]


def grid_of(x, scale=3.0):
    """The grid of an input by itself, and with differences where they pay."""
    plain = InputGrid.of(x, GRID, SEARCH)
    return plain, plain.with_difference(x, GRID, SEARCH, guided(scale))


def settings(*grids):
    one = LayerSettings(*(torch.tensor([number]) for number in (4, 1.0, 0, 0)), symmetric=False)
    one = LayerSettings(**(one.fields() | {"bits": one.bits.short(), "zero_point": one.zero_point.int()}))
    return one.rescaled([Rescaling(torch.ones(3), torch.zeros(3), grid) for grid in grids])


@pytest.mark.parametrize("scale", [1.5, 3.0, 7.0])
def test_the_guided_error_is_that_of_one_row_and_of_the_difference_once_less_than_the_scale(scale):
    x, plain = rows(0.1), InputGrid.of(rows(0.1), GRID, SEARCH)
    null, conditional = x.chunk(2)
    numbers = numbers_of_difference(torch.tensor([0.02]), GRID)
    found = by_difference(x, lambda part: plain.fake_quantized(part, GRID), numbers)
    of_row = plain.fake_quantized(conditional, GRID) - conditional
    of_difference = numbers.fake_quantized(null - conditional) - (null - conditional)
    torch.testing.assert_close(guided(scale)(found - x), of_row - (scale - 1) * of_difference, atol=1e-5, rtol=0)


@pytest.mark.parametrize("scale", [1.5, 3.0, 7.0])
@pytest.mark.parametrize("distance", [0.0, 0.01, 0.1, 0.5, 2.0])
def test_differences_are_taken_where_they_leave_less_error_in_the_guided_input(scale, distance):
    x = rows(distance)
    plain, found = grid_of(x, scale)
    errors = [guided(scale)(grid.fake_quantized(x, GRID) - x).square().mean() for grid in (found, plain)]
    assert errors[0] < errors[1] if found.difference is not None else found is plain
    if distance == 0.1:
        assert errors[0] < errors[1] / (1.5 if scale < 3 else 3), "errors of rows that hardly differ are amplified"
    if distance == 0:
        assert found is plain, "rows that are alike have no difference to quantize"
        rounded = x * (1 + 2e-7 * torch.rand(x.shape, generator=torch.Generator().manual_seed(0)))
        plain, found = grid_of(rounded, scale)
        assert found is plain, "nor those that float32 rounds apart"


def test_differences_that_are_wider_than_the_rows_are_not_taken():
    null, conditional = rows(0.3).chunk(2)
    plain, found = grid_of(torch.cat([-null, conditional]), scale=7)
    assert found is plain


def test_settings_quantize_pairs_as_the_grid_does_and_refuse_single_rows():
    x = rows(0.1)
    plain, found = grid_of(x)
    both = settings(found, plain)
    assert torch.equal(both(x, 0, paired=True), found.fake_quantized(x, GRID))
    assert torch.equal(both(x, 1, paired=True), plain.fake_quantized(x, GRID))
    assert torch.equal(both(x, 1), plain.fake_quantized(x, GRID))
    with pytest.raises(ValueError, match="pairs of guidance, .* at step 0, got single rows"):
        both(x, 0)
    assert torch.equal(both.at(0)(x, 5, paired=True), both(x, 0, paired=True))
    kept = both.rescaled([Rescaling(torch.ones(3), torch.zeros(3)), None])
    assert torch.equal(kept(x, 0, paired=True), both(x, 0, paired=True))
    assert settings(plain, plain).difference is None


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_settings_quantize_pairs_as_the_grid_does_behind_factors_and_around_a_shift(dtype):
    factors, shift = torch.linspace(0.5, 2, 6), torch.linspace(-0.3, 0.3, 6)
    x = rows(0.1).to(dtype)
    equalised = x.float() / factors
    found = InputGrid.of(equalised, GRID, SEARCH, shift).with_difference(equalised, GRID, SEARCH, guided(3.0))
    assert found.difference is not None
    expected = (found.fake_quantized(equalised, GRID) * factors).to(dtype)
    torch.testing.assert_close(settings(found).with_equalisation(factors)(x, 0, paired=True), expected)


def test_what_is_computed_once_for_all_images_has_no_pairs():
    x = rows(0.1)
    plain, found = grid_of(x)
    assert found.difference is not None
    assert Differences(SEARCH, guided(3.0), len(x)).added(plain, x, GRID).difference == found.difference
    assert Differences(SEARCH, guided(3.0), 2 * len(x)).added(plain, x, GRID) is plain
    with pytest.raises(ValueError, match="got single rows"):
        settings(found)(x[:5], 0, paired=True)


def test_the_product_with_a_row_is_that_with_the_other_and_that_with_the_difference():
    x = rows(0.1)
    _, found = grid_of(x)
    layer = nn.Linear(6, 3)
    null, conditional = found.fake_quantized(x, GRID).chunk(2)
    difference = numbers_of_difference(found.difference, GRID).fake_quantized(x[:32] - x[32:])
    expected = layer(conditional) + difference @ layer.weight.T
    torch.testing.assert_close(layer(null), expected, atol=1e-5, rtol=1e-5)
    steps = difference / found.difference
    assert torch.equal(steps, steps.round()), "differences lie on a grid"
    assert -8 <= steps.min() and steps.max() <= 7, "of as many bits as the rows"


def test_a_scale_of_differences_is_kept_and_carried_between_steps():
    _, found = grid_of(rows(0.1))
    plain, other = grid_of(rows(0.2, seed=1))
    first, second, without = (Rescaling(torch.ones(3), torch.zeros(3), grid) for grid in (found, other, plain))
    assert Rescaling.of_tensors(first.tensors()).input_grid.difference == found.difference
    assert first.lerp(second, 0.5).input_grid.difference == (found.difference + other.difference) / 2
    assert first.lerp(without, 0.25).has_difference and not first.lerp(without, 0.75).has_difference
    for odd in (first.tensors() | {"difference": torch.ones(2)}, {**first.tensors(), "scale": torch.ones(3)}):
        with pytest.raises(ValueError, match="the scale of a difference or without"):
            Rescaling.of_tensors(odd)


@pytest.mark.parametrize("field", ["gain", "offset", "scale", "zero_point", "difference"])
def test_broken_numbers_are_refused_by_their_name(field):
    _, found = grid_of(rows(0.1))
    tensors = Rescaling(torch.ones(3), torch.zeros(3), found).tensors()
    odd = [tensors[field].double(), tensors[field] * torch.nan]
    odd += [-tensors[field], 0 * tensors[field]] if field in ("scale", "difference") else []
    for tensor in odd:
        with pytest.raises(ValueError, match=f"expected finite .*numbers in torch.* of {field}, got"):
            Rescaling.of_tensors(tensors | {field: tensor})
