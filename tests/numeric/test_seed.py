"""Noise belongs to a sample: its batch, its place and the process change nothing."""

import os
import subprocess
import sys

import pytest
import torch

from ptq_diffusion.numeric.seed import SampleNoise, derive_seed, generator

SHAPE = (2, 3, 4)


def drawn(seed, indices, times=3):
    noise = SampleNoise(seed, indices, SHAPE)
    return torch.stack([noise.draw() for _ in range(times)], dim=1)  # (B, times, C, H, W)


def test_noise_of_a_sample_does_not_depend_on_its_batch():
    whole = drawn(5, range(8))
    assert whole.shape == (8, 3, *SHAPE)
    for indices in ([0], [7], [3, 4], [6, 1, 3], list(range(7, -1, -1)), [2, 2]):
        assert torch.equal(drawn(5, indices), whole[indices])


def test_every_sample_seed_and_draw_has_its_own_noise():
    noise = torch.cat([drawn(seed, range(5)) for seed in (0, 1, 10)]).flatten(0, 1)
    assert len(noise.flatten(1).unique(dim=0)) == 3 * 5 * 3


def test_purposes_share_no_noise_though_they_share_seeds():
    draws = [SampleNoise(0, range(4), SHAPE, purpose).draw() for purpose in ("images", "calibration")]
    assert len(torch.cat(draws).flatten(1).unique(dim=0)) == 8


def test_noise_is_standard_normal_and_uncorrelated_between_neighbours():
    noise = drawn(3, range(3000), times=2).double().flatten(2)
    values = noise.numel()
    assert abs(noise.mean()) < 4 / values**0.5
    assert abs(noise.var() - 1) < 4 * (2 / values) ** 0.5
    for a, b in [(noise[:-1], noise[1:]), (noise[:, 0], noise[:, 1]), (drawn(4, range(3000), 2).flatten(2), noise)]:
        assert abs((a * b).mean()) < 4 / a.numel() ** 0.5


def test_noise_does_not_touch_the_global_generator():
    before = torch.random.get_rng_state()
    drawn(0, range(3))
    assert torch.equal(torch.random.get_rng_state(), before)


def test_seeds_are_the_same_in_every_process():
    code = "from ptq_diffusion.numeric.seed import derive_seed; print(derive_seed('sample', 3, 14), derive_seed(0))"
    environment = os.environ | {"PYTHONHASHSEED": "123", "PYTHONPATH": os.pathsep.join(sys.path)}
    run = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True)
    assert [int(seed) for seed in run.stdout.split()] == [derive_seed("sample", 3, 14), derive_seed(0)]


def test_seeds_tell_parts_and_their_order_apart():
    parts = [(1, 23), (12, 3), (1, 2, 3), (123,), ("1", 2), (2, 1), ("sample", 0, 1), ("sample", 1, 0), ("image", 0, 1)]
    seeds = {derive_seed(*part) for part in parts}
    assert len(seeds) == len(parts)
    assert all(0 <= seed < 2**63 for seed in seeds)


@pytest.mark.parametrize("parts", [(0,), ("sample", 1, 2)])
def test_a_generator_starts_from_its_derived_seed(parts):
    assert generator(*parts).initial_seed() == derive_seed(*parts)
