"""Moments of the noise do not depend on how samples arrive, and belong to one network, table and shape."""

import dataclasses
from functools import reduce

import pytest
import torch
from diffusers import DDPMScheduler
from safetensors.torch import save_file

from ptq_diffusion.correction import Fingerprint, NoiseStatistics, StepMoments
from ptq_diffusion.sampler import DDIM

COUNT, CHANNELS = 40, 3
STEPS = DDIM(4, 1.0, {}).table(DDPMScheduler(clip_sample=False).config)
OWNER = Fingerprint("0123456789abcdef", STEPS.fingerprint(), (CHANNELS, 4, 5))


def tensors(step, count=COUNT):
    """m, q and x_t with offsets, correlated."""
    draw = torch.Generator().manual_seed(step)
    m, r, x = torch.randn(3, count, CHANNELS, 4, 5, generator=draw)
    m = m * torch.tensor([1.0, 0.1, 3.0]).view(3, 1, 1) + torch.tensor([0.5, -2.0, 0.0]).view(3, 1, 1)
    return m, 0.9 * m + 0.2 * r + 0.05 * x + 0.1, 0.5 * x + m


def measured(part=slice(None)):
    moments = [StepMoments.of(*(tensor[part] for tensor in tensors(step.i))) for step in STEPS]
    return NoiseStatistics(OWNER, moments)


@pytest.mark.parametrize("sizes", [[1] * COUNT, [7] * 5 + [5], [39, 1], [20, 20]], ids=len)
def test_merging_any_split_equals_the_whole(sizes):
    ends = torch.tensor(sizes).cumsum(0).tolist()
    parts = [measured(slice(end - size, end)) for end, size in zip(ends, sizes, strict=True)]
    for whole, found in zip(measured().steps, reduce(NoiseStatistics.merge, parts).steps, strict=True):
        assert found.joint.count == whole.joint.count == COUNT * 20
        assert torch.allclose(found.joint.mean, whole.joint.mean, rtol=1e-12, atol=1e-14)
        assert torch.allclose(found.joint.scatter, whole.joint.scatter, rtol=1e-12, atol=1e-10)
        assert torch.allclose(found.per_sample, whole.per_sample, rtol=1e-12)
        assert found.pooled() == pytest.approx(whole.pooled(), rel=1e-12)


def test_moments_are_what_they_say():
    """By hand, in float64; centred per channel and pooled over channels, samples and pixels."""
    m, q, x = (tensor.double() for tensor in tensors(2))
    noise = (tensors(2)[1] - tensors(2)[0]).double()
    found = StepMoments.of(*tensors(2))
    centred_noise, centred_m = (t - t.mean((0, 2, 3), keepdim=True) for t in (noise, m))
    expected = [(a * b).mean() for a, b in ((centred_noise,) * 2, (centred_noise, centred_m), (centred_m,) * 2)]
    assert found.pooled() == pytest.approx([float(value) for value in expected], rel=1e-10)
    assert found.channels == CHANNELS
    assert torch.allclose(found.mean_m, m.mean((0, 2, 3)), rtol=1e-12)
    assert torch.allclose(found.mean_noise, noise.mean((0, 2, 3)), rtol=1e-12)
    assert found.snr == pytest.approx(float(m.square().mean() / noise.square().mean()), rel=1e-10)
    joint = torch.cat([m, noise, x], 1).permute(1, 0, 2, 3).flatten(1)
    assert torch.allclose(found.joint.covariance, joint.cov(correction=0), rtol=1e-9, atol=1e-12)
    flat, flat_m = noise.flatten(1), m.flatten(1)
    of_samples = [flat.var(1, correction=0), flat_m.var(1, correction=0)]
    across = ((flat - flat.mean(1, keepdim=True)) * (flat_m - flat_m.mean(1, keepdim=True))).mean(1)
    assert torch.allclose(found.per_sample, torch.stack([of_samples[0], across, of_samples[1]], 1), rtol=1e-10)


def test_moments_centred_by_one_mean():
    """All channels flattened into one line, as a regression would see them that knows no channels."""
    m, q, _ = tensors(2)
    noise, m = (tensor.double().flatten() for tensor in (q - m, m))
    expected = torch.stack([noise, m]).cov(correction=0)
    found = StepMoments.of(*tensors(2)).pooled_globally()
    assert found == pytest.approx([float(expected[at]) for at in ((0, 0), (0, 1), (1, 1))], rel=1e-10)


def test_without_noise_the_signal_is_infinitely_stronger():
    m, _, x = tensors(0)
    assert StepMoments.of(m, m, x).snr == float("inf")


def test_files_are_bit_exact(tmp_path):
    statistics = measured()
    statistics.save(tmp_path / "noise.safetensors")
    loaded = NoiseStatistics.load(tmp_path / "noise.safetensors")
    assert loaded.fingerprint == OWNER
    ours, theirs = loaded.tensors(), statistics.tensors()
    assert len(loaded.steps) == len(STEPS) and ours.keys() == theirs.keys()
    for name, tensor in ours.items():
        assert tensor.dtype == theirs[name].dtype and torch.equal(tensor, theirs[name])
    for a, b in zip(loaded.steps, statistics.steps, strict=True):
        assert a.joint.count == b.joint.count and a.pooled() == b.pooled()


def test_more_than_ten_steps_come_back_in_order():
    """Names sort as text, 10 before 2; steps do not."""
    moments = [StepMoments.of(*(tensor + i for tensor in tensors(0, 2))) for i in range(12)]
    named = NoiseStatistics(OWNER, moments).tensors()
    shuffled = {name: named[name] for name in sorted(named)}
    for found, given in zip(NoiseStatistics.of_tensors(OWNER, shuffled).steps, moments, strict=True):
        assert torch.equal(found.joint.mean, given.joint.mean)


CLIPPED = DDIM(4, 1.0, {}).table(DDPMScheduler(clip_sample=True).config)
OTHERS = {
    "network": dataclasses.replace(OWNER, network="fedcba9876543210"),
    "steps": dataclasses.replace(OWNER, steps=CLIPPED.fingerprint()),
    "shape": dataclasses.replace(OWNER, shape=(CHANNELS, 8, 5)),
}


@pytest.mark.parametrize("field", [field.name for field in dataclasses.fields(Fingerprint)])
def test_statistics_refuse_to_serve_another_owner(field, tmp_path):
    """Another network, another table (here: clipping alone) or another resolution; the message names it."""
    statistics, other = measured(), OTHERS[field]
    statistics.require(OWNER)
    statistics.save(tmp_path / "noise.safetensors")
    for own in (statistics, NoiseStatistics.load(tmp_path / "noise.safetensors")):
        with pytest.raises(ValueError, match=f"expected noise statistics of the same {field}: .*measure them again"):
            own.require(other)
    if field == "steps":
        statistics.require_table(STEPS)
        with pytest.raises(ValueError, match="same steps"):
            statistics.require_table(CLIPPED)
    with pytest.raises(ValueError, match=f"same {field}"):
        statistics.merge(NoiseStatistics(other, statistics.steps))


def test_a_file_of_something_else_is_refused(tmp_path):
    save_file(measured().tensors(), tmp_path / "bare.safetensors")
    with pytest.raises(ValueError, match="no fingerprint"):
        NoiseStatistics.load(tmp_path / "bare.safetensors")


@pytest.mark.parametrize("broken", [0, 1, 2], ids=["m", "q", "x_t"])
def test_noise_that_is_not_finite_is_refused(broken):
    given = list(tensors(0))
    given[broken][3, 1, 2, 2] = torch.nan
    with pytest.raises(ValueError, match="check the network"):
        StepMoments.of(*given)
