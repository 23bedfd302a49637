"""Grids hold 2^bits integers, and bitwidths that make no sense are refused where they are named."""

import pytest

from ptq_diffusion.model.plan import BitwidthPlan, LayerBits
from ptq_diffusion.numeric.grid import FLOAT_BITS, Grid


@pytest.mark.parametrize("symmetric", [True, False])
@pytest.mark.parametrize("bits", range(2, 9))
def test_a_grid_holds_all_its_integers_and_zero(bits, symmetric):
    grid = Grid(bits, symmetric)
    assert len(range(grid.low, grid.high + 1)) == 2**bits
    assert grid.low <= 0 <= grid.high
    assert grid.low == -grid.high - 1 if symmetric else grid.low == 0


@pytest.mark.parametrize("bits", [-1, 0, 1, 9, 16, FLOAT_BITS])
def test_a_grid_refuses_other_bits(bits):
    with pytest.raises(ValueError, match=f"expected 2 to 8 bits .* got {bits}"):
        Grid(bits, True)


@pytest.mark.parametrize("bits", [*range(2, 9), FLOAT_BITS])
def test_a_layer_takes_the_bits_of_grids_and_float(bits):
    assert LayerBits(bits, 8).weight == LayerBits(8, bits).activation == bits


@pytest.mark.parametrize("bits", [-8, 0, 1, 9, 16, 31, 33, 4.5])
def test_a_layer_refuses_other_bits_and_names_the_operand(bits):
    with pytest.raises(ValueError, match=f"expected weight bits .* got {bits}"):
        LayerBits(bits, 8)
    with pytest.raises(ValueError, match=f"expected activation bits .* got {bits}"):
        LayerBits(8, bits)


def test_a_plan_knows_its_sites_only():
    plan = BitwidthPlan.constant({"a": LayerBits(4, 8)})
    assert plan["a"] == LayerBits(4, 8)
    with pytest.raises(KeyError, match="no site 'b'"):
        plan["b"]
