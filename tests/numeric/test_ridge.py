"""Ridge regression from moments equals least squares on the rows, and is judged on rows that it did not see."""

import pytest
import torch

from ptq_diffusion.numeric.moments import Moments
from ptq_diffusion.numeric.ridge import LinearMap, held_out_ridge, mean_squared_error, ridge

INPUTS, OUTPUTS = 4, 2


def rows(count=500, seed=0, noise=0.1):
    """z of unequal scales and means, and y linear in z but for noise."""
    draw = torch.Generator().manual_seed(seed)
    z = torch.randn(count, INPUTS, generator=draw).double() * torch.tensor([1.0, 10.0, 0.1, 1.0]) + 3
    slope = torch.randn(INPUTS, OUTPUTS, generator=torch.Generator().manual_seed(9)).double()
    return z, z @ slope + 0.5 + noise * torch.randn(count, OUTPUTS, generator=draw)


def moments(z, y):
    return Moments.of(torch.cat([z, y], dim=1))


def test_without_a_ridge_it_is_least_squares():
    z, y = rows()
    found = ridge(moments(z, y), INPUTS, 0.0)
    design = torch.cat([z, torch.ones(len(z), 1).double()], dim=1)
    expected = torch.linalg.lstsq(design, y).solution
    assert torch.allclose(torch.cat([found.slope, found.intercept[None]]), expected, rtol=1e-8, atol=1e-10)
    residual = y - z @ found.slope - found.intercept
    assert residual.mean(0).abs().max() < 1e-9
    assert ((z - z.mean(0)).T @ residual / len(z)).abs().max() < 1e-9


def test_the_error_is_that_of_the_rows():
    fitted, other = moments(*rows()), rows(seed=1)
    found = ridge(fitted, INPUTS, 0.01)
    expected = (other[1] - other[0] @ found.slope - found.intercept).square().sum(1).mean()
    assert mean_squared_error(found, moments(*other)) == pytest.approx(float(expected), rel=1e-9)


@pytest.mark.parametrize("scale", [1e-3, 1.0, 1e3])
def test_the_ridge_shrinks_towards_nothing_whatever_the_unit_of_an_input(scale):
    z, y = rows()
    strengths = [0.0, 0.1, 1.0, 10.0, 1e6]
    maps = [ridge(moments(z * scale, y), INPUTS, strength) for strength in strengths]
    errors = [mean_squared_error(found, moments(z * scale, y)) for found in maps]
    assert errors == sorted(errors)
    same = [ridge(moments(z, y), INPUTS, strength) for strength in strengths]
    assert all(torch.allclose(a.slope * scale, b.slope, rtol=1e-6) for a, b in zip(maps, same, strict=True))
    assert maps[-1].slope.abs().max() * scale < 1e-4


def test_the_ridge_is_the_best_on_held_out_rows_and_noise_wants_more_of_it():
    strengths = [1e-6, 1e-2, 1.0, 100.0]
    chosen = []
    for noise in (0.01, 300.0):
        halves = moments(*rows(30, 0, noise)), moments(*rows(30, 1, noise))
        found = held_out_ridge(*halves, INPUTS, strengths)
        errors = {
            strength: sum(mean_squared_error(ridge(a, INPUTS, strength), b) for a, b in (halves, halves[::-1]))
            for strength in strengths
        }
        assert found.strength == min(errors, key=errors.get)
        zero = LinearMap(torch.zeros(INPUTS, OUTPUTS).double(), torch.zeros(OUTPUTS).double())
        assert found.r2 == pytest.approx(1 - min(errors.values()) / sum(mean_squared_error(zero, h) for h in halves))
        chosen.append(found.strength)
    assert chosen[0] < chosen[1]


def test_collinear_inputs_need_a_ridge_and_constant_ones_take_no_part():
    z, y = rows()
    twice = torch.cat([z, z[:, :1]], dim=1)
    with pytest.raises(ValueError, match="not collinear.*raise the ridge"):
        ridge(moments(twice, y), INPUTS + 1, 0.0)
    found = held_out_ridge(moments(twice[::2], y[::2]), moments(twice[1::2], y[1::2]), INPUTS + 1, [0.0, 1e-4])
    assert found.strength == 1e-4
    with pytest.raises(ValueError, match="expected a ridge that makes the regression well posed"):
        held_out_ridge(moments(twice, y), moments(twice, y), INPUTS + 1, [0.0])
    constant = torch.cat([z, torch.full_like(z[:, :1], 7.0)], dim=1)
    with_constant, without = ridge(moments(constant, y), INPUTS + 1, 0.1), ridge(moments(z, y), INPUTS, 0.1)
    assert torch.allclose(with_constant.slope[:INPUTS], without.slope) and (with_constant.slope[INPUTS] == 0).all()
