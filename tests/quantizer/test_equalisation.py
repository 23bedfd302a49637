"""Factors of channels: what each rule makes alike, and a quantizer whose grids meet a tensor times factors."""

import pytest
import torch

from ptq_diffusion.quantizer import (
    AffineQuantizer,
    LpSearch,
    MinMax,
    NoEqualisation,
    PerChannel,
    PerGroup,
    PerTensor,
    PowersOfTwo,
    SmoothQuant,
)

RULES = [NoEqualisation(), *(kind(alpha) for kind in (SmoothQuant, PowersOfTwo) for alpha in (0.0, 0.5, 1.0))]
GRANULARITIES = [PerTensor(), PerChannel(), PerChannel(1), PerGroup(4)]


def maxima(seed, count=9):
    draw = torch.Generator().manual_seed(seed)
    return torch.rand(count, generator=draw) * 10.0 ** torch.randint(-3, 4, (count,), generator=draw)


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: f"{type(rule).__name__} {getattr(rule, 'alpha', '')}")
def test_factors_are_positive_and_those_of_a_channel_without_range_are_one(rule):
    inputs, weights = maxima(0), maxima(1)
    inputs[2] = weights[3] = 0
    # The factor of one of both is a number that float32 has no reciprocal of.
    inputs[4] = weights[5] = 1e-42
    factors = rule.factors(inputs, weights)
    assert factors.dtype == torch.float32 and factors.isfinite().all() and (factors > 0).all()
    assert (1 / factors).isfinite().all()
    assert factors[2] == factors[3] == 1
    assert rule.equalises == (not torch.equal(factors, torch.ones(9)))


def test_alpha_says_which_side_is_made_alike():
    inputs, weights = maxima(0), maxima(1)
    for alpha, sides in ((1, [inputs]), (0, [weights]), (0.5, [inputs, weights])):
        factors = SmoothQuant(alpha).factors(inputs, weights)
        shares = inputs / factors, weights * factors
        if len(sides) == 2:
            torch.testing.assert_close(*shares)
        else:
            side = shares[0] if sides[0] is inputs else shares[1]
            torch.testing.assert_close(side, torch.ones(9))


def test_powers_of_two_are_the_nearest():
    inputs, weights = maxima(0), maxima(1)
    exponents = PowersOfTwo().factors(inputs, weights).log2()
    assert torch.equal(exponents, exponents.round())
    assert ((exponents - SmoothQuant().factors(inputs, weights).log2()).abs() <= 0.5 + 1e-6).all()


@pytest.mark.parametrize("alpha", [-0.1, 1.1])
def test_a_share_outside_of_0_to_1_is_refused(alpha):
    with pytest.raises(ValueError, match=f"an alpha of 0 to 1, .* got {alpha}"):
        SmoothQuant(alpha)


def frozen(granularity, symmetric, search, x, factors=None):
    quantizer = AffineQuantizer(4, symmetric, granularity, search, 64)
    if factors is not None:
        quantizer.equalised(factors)
    quantizer.observe(x)
    quantizer.freeze()
    return quantizer


@pytest.mark.parametrize("granularity", GRANULARITIES, ids=str)
@pytest.mark.parametrize("symmetric", [False, True])
def test_a_quantizer_with_factors_is_that_of_the_product_over_them(granularity, symmetric):
    """Exactly so of powers of two, and bit for bit the one without where all are 1."""
    x = torch.randn(6, 9, 3, 3, generator=torch.Generator().manual_seed(0))
    factors, search = torch.exp2(torch.arange(-4.0, 5.0)).view(9, 1, 1), LpSearch(2.0, 8)
    quantizer, other = (
        frozen(granularity, symmetric, search, x, factors),
        frozen(granularity, symmetric, search, x * factors),
    )
    assert torch.equal(quantizer.to_integers(x), other.to_integers(x * factors))
    assert torch.equal(quantizer(x), other(x * factors) / factors)
    assert torch.equal(quantizer(x), quantizer.from_integers(quantizer.to_integers(x)))
    ones, plain = (
        frozen(granularity, symmetric, MinMax(), x, torch.ones(9, 1, 1)),
        frozen(granularity, symmetric, MinMax(), x),
    )
    assert torch.equal(ones(x), plain(x)) and torch.equal(ones.to_integers(x), plain.to_integers(x))
