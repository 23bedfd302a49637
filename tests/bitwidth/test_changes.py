"""Second moments of changes by layers and steps: identities of how they add up."""

from functools import reduce

import pytest
import torch

from ptq_diffusion.bitwidth.changes import Changes, rising_weights

LAYERS, STEPS, BITS, SAMPLES = 5, 4, 2, 2000


def independent(seed=0):
    generator = torch.Generator().manual_seed(seed)
    scale = 1 + torch.arange(STEPS)[:, None, None].double()
    return scale * torch.randn(LAYERS, STEPS, BITS, SAMPLES, generator=generator, dtype=torch.float64)


def test_the_moments_of_parts_are_those_of_the_whole():
    whole = independent()
    merged = reduce(Changes.merge, map(Changes.of, whole.split(300, dim=-1)))
    assert torch.allclose(merged.squares, Changes.of(whole).squares)
    assert torch.allclose(merged.products, Changes.of(whole).products)


def test_the_shares_of_all_steps_are_the_square_of_their_sum():
    """Where no two changes undo each other; layers are taken as uncorrelated."""
    changes = independent().abs()
    together = Changes.of(changes).together().sum((0, 1))
    assert torch.allclose(together, changes.sum(1).square().sum((0, 2)))


def test_steps_that_make_the_same_change_have_the_coherence_of_their_number():
    same = independent()[:, :1].expand(-1, STEPS, -1, -1)
    assert torch.allclose(Changes.of(same).coherence, torch.full((STEPS, BITS), STEPS).double())


def test_independent_steps_have_a_coherence_near_1():
    coherence = Changes.of(independent()).coherence
    assert (coherence >= 1).all() and coherence == pytest.approx(torch.ones(STEPS, BITS).numpy(), abs=0.15)


def test_few_samples_of_independent_steps_of_unequal_size_are_hardly_taken_for_alike():
    """Noise of both signs in the products of small and large steps cancels in their sum."""
    generator = torch.Generator().manual_seed(5)
    scale = torch.logspace(0, 1, 20, dtype=torch.float64)[:, None, None]
    changes = scale * torch.randn(77, 20, BITS, 64, generator=generator, dtype=torch.float64)
    assert Changes.of(changes).coherence.mean() < 1.3


def test_changes_that_undo_each_other_count_as_independent_and_nothing_as_nothing():
    changes = independent()
    changes[:, 1], changes[:, 2:] = -changes[:, 0], 0
    moments = Changes.of(changes)
    assert torch.equal(moments.coherence, torch.ones(STEPS, BITS).double())
    assert torch.equal(moments.together(), moments.squares) and (moments.together()[:, 2:] == 0).all()


@pytest.mark.parametrize("first", [1.0, 0.28])
def test_weights_rise_by_equal_factors_to_1(first):
    weights = rising_weights(STEPS, first)
    assert weights[0] == pytest.approx(first) and weights[-1] == 1
    assert torch.allclose(weights[1:] / weights[:-1], torch.tensor(first).double() ** -(1 / (STEPS - 1)), atol=0)
    assert rising_weights(1, first).tolist() == [1]
