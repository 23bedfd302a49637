"""Grids that lie a part of a step apart: each gives the nearest of its values, and together they are one finer grid."""

import pytest
import torch

from ptq_diffusion.numeric.grid import Grid
from ptq_diffusion.numeric.phases import doubled, finer_bits, phase_at, phases_at, phases_of, require_phases

CASES = [(bits, phases) for bits in range(2, 6) for phases in (1, 2, 4, 8) if phases_of(bits, phases) == phases]


@pytest.mark.parametrize("symmetric", [True, False])
@pytest.mark.parametrize(("bits", "phases"), CASES)
def test_a_finer_integer_tells_the_nearest_of_every_grid(bits, phases, symmetric):
    grid, fine = Grid(bits, symmetric), Grid(finer_bits(bits, phases), symmetric)
    # No number is a tie between two integers, which rounding to even and down would part.
    u = torch.linspace(grid.low - 2, grid.high + 2, 9973, dtype=torch.float64) + 2**0.5 / 1e4
    m = (u * phases).round().clamp(fine.low, fine.high).int()
    total = torch.zeros_like(m)
    for phase in range(phases):
        offset = 0.5 - (phase + 0.5) / phases
        numbers = doubled(m, torch.tensor(phase, dtype=torch.int32), phases, grid.high)
        nearest = (u - offset).round().clamp(grid.low, grid.high) + offset
        assert torch.equal(numbers, (2 * phases * nearest).int())
        assert numbers.abs().max() <= 127, "8 bits hold them"
        total += numbers
    inside = m <= phases * grid.high
    assert torch.equal(total[inside], 2 * phases * m[inside]), "their mean is the finer value"


@pytest.mark.parametrize("phases", [1, 2, 4, 8])
def test_steps_take_every_phase_and_their_offsets_cancel_in_pairs(phases):
    order = [phase_at(i, phases) for i in range(3 * phases)]
    assert order == order[:phases] * 3 and sorted(order[:phases]) == [*range(phases)]
    if phases > 1:
        assert {first + second for first, second in zip(order[::2], order[1::2], strict=True)} == {phases - 1}


@pytest.mark.parametrize("phases", [1, 2, 4, 8])
def test_every_weight_takes_all_phases_and_so_do_its_neighbours_at_a_step(phases):
    table = torch.stack([phases_at(i, phases, (16, 8, 3, 3)).squeeze() for i in range(phases)])
    assert table.shape == (phases, 16, 8)
    for dimension in range(3):
        runs = table.unfold(dimension, phases, 1).sort(-1).values
        assert (runs == torch.arange(phases)).all()


def test_wide_integers_have_one_phase_and_odd_numbers_of_them_are_refused():
    assert [phases_of(bits, 8) for bits in range(2, 9)] == [8, 8, 4, 2, 1, 1, 1]
    assert all(phases_of(bits, 1) == 1 for bits in range(2, 9))
    for odd in (0, 3, 16):
        with pytest.raises(ValueError, match=f"1, 2, 4 or 8 phases .* got {odd}"):
            require_phases(odd)
