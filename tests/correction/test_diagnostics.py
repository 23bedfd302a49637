"""Diagnostics of the residual equal what two passes over it give, whatever the split, and find what was planted."""

import dataclasses
import math
from functools import reduce

import pytest
import torch
from diffusers import DDPMScheduler

from ptq_diffusion.correction import (
    Fingerprint,
    NoiseStatistics,
    PairedBatch,
    PathBatch,
    PathEvidence,
    Reads,
    Regression,
    fit_moments,
)
from ptq_diffusion.correction.diagnostics import fit_diagnosed, fit_step_diagnosed
from ptq_diffusion.correction.noise.higher_moments import GROUPS, reliability
from ptq_diffusion.sampler import DDIM
from tests.correction.batches import split
from tests.correction.presets import CORRECTIONS

SHAPE, COUNT = (3, 6, 5), 40
STEPS = DDIM(4, 1.0, {}).table(DDPMScheduler(clip_sample=False).config)
OWNER = Fingerprint("network", STEPS.fingerprint(), SHAPE)
MEASURED = {"r2_held_out", "reliability", "skewness", "kurtosis", "neighbour_correlation", "step_correlation"}
FROM_MOMENTS = [name for name, correction in CORRECTIONS.items() if correction.reads is Reads.MOMENTS]
ALONG_PATHS = [name for name in CORRECTIONS if name not in FROM_MOMENTS]


def residual(kind, step, count=COUNT, shape=SHAPE):
    draw = torch.Generator().manual_seed(0 if kind == "the same at every step" else step.i)
    white = torch.randn(count, *shape, generator=draw)
    if kind == "smooth":
        return (white + white.roll(1, -1) + white.roll(1, -2) + white.roll((1, 1), (-1, -2))) / 2
    if kind == "heavy":
        return white.sign() * torch.empty_like(white).exponential_(generator=draw) / 2**0.5
    if kind == "skewed":
        return torch.empty_like(white).exponential_(generator=draw) - 1
    return white


def tensors(step, kind="white", k=-0.07, noise=0.2, count=COUNT, shape=SHAPE):
    """m, q and x_t."""
    m, x = torch.randn(2, count, *shape, generator=torch.Generator().manual_seed(100 + step.i))
    m = 0.5 * m + 0.8 * x + torch.tensor([0.3, -0.2, 0.0]).view(3, 1, 1)
    offset = torch.tensor([0.02, -0.03, 0.05]).view(3, 1, 1)
    return m, m + offset + k * m + noise * residual(kind, step, count, shape), x


def statistics(part=slice(0, None), **noise):
    seen = (tuple(tensor[part] for tensor in tensors(step, **noise)) for step in STEPS)
    return NoiseStatistics.of(OWNER, seen, part.start)


def report(name="ptqd", **noise):
    return fit_diagnosed(CORRECTIONS[name], statistics(**noise), STEPS).report()


def batches(step, sizes=(13, 1, 26), **noise):
    m, q, x = tensors(step, **noise)
    ends = torch.tensor(sizes).cumsum(0).tolist()
    parts = [slice(end - size, end) for end, size in zip(ends, sizes, strict=True)]
    features = torch.cat([q, q.square()], dim=1)
    return [PairedBatch(p.start, q[p], x[p], features[p], m[p], x[p], m[p]) for p in parts]


def walked(name, sizes=(13, 1, 26), **noise):
    """The reports of a path correction fitted step by step."""
    before, found = None, []
    for step in STEPS:
        seen = batches(step, sizes, **noise)
        found.append(fit_step_diagnosed(CORRECTIONS[name], PathEvidence(seen), step, before))
        before = (seen, found[-1])
    return [own.report for own in found]


def test_the_held_out_share_is_told_from_images_that_the_fit_has_not_seen():
    """Of seven asked, too few to be matched, only with the others of the same half."""
    step, matched = STEPS[2], CORRECTIONS["matched"]
    asked, others = split(batches(step, k=-0.5), 7)
    found = fit_step_diagnosed(matched, PathEvidence(asked, others), step, None).report.r2_held_out
    halves = [[batch.half(parity) for batch in part] for part in (asked, others) for parity in (0, 1)]
    even, odd, rest = halves[0], halves[1], [batch for batch in halves[2] if len(batch.q)]
    repairs = matched.fit_step(PathEvidence(even, rest), step).repairs
    left, power = (
        sum(float((of - batch.m).square().sum()) for of, batch in zip(outputs, odd, strict=True))
        for outputs in ([batch.repaired(repairs) for batch in odd], [batch.q for batch in odd])
    )
    assert repairs and found == pytest.approx(1 - left / power)


def by_hand(r, before):
    """In float64, from the whole residual of a step and of the one before."""
    centred, of_before = (t.double() - t.double().mean((0, 2, 3), keepdim=True) for t in (r, before))
    variance = centred.square().mean()
    pairs = (centred[..., 1:] * centred[..., :-1], centred[..., 1:, :] * centred[..., :-1, :])
    return {
        "skewness": centred.pow(3).mean() / variance**1.5,
        "kurtosis": centred.pow(4).mean() / variance**2 - 3,
        "neighbour_correlation": torch.stack([pair.mean() for pair in pairs]).mean() / variance,
        "step_correlation": (centred * of_before).mean() / (variance * of_before.square().mean()).sqrt(),
    }


@pytest.mark.parametrize("kind", ["white", "smooth", "heavy", "skewed", "the same at every step"])
@pytest.mark.parametrize("name", FROM_MOMENTS)
def test_streamed_diagnostics_of_moments_equal_two_passes(name, kind):
    found = report(name, kind=kind)
    left = []
    for step, own in zip(STEPS, fit_moments(CORRECTIONS[name], statistics(kind=kind), STEPS).corrections, strict=True):
        m, q, x = (tensor.double() for tensor in tensors(step, kind))
        q = m + (tensors(step, kind)[1] - tensors(step, kind)[0]).double()
        left.append(own.output(q, x, x) - m)
    for i, own in enumerate(found):
        for field, expected in by_hand(left[i], left[max(i - 1, 0)]).items():
            if i or field != "step_correlation":
                assert getattr(own, field) == pytest.approx(float(expected), rel=1e-9, abs=1e-10)
    assert found[0].step_correlation is None


@pytest.mark.parametrize("name", ALONG_PATHS)
def test_diagnostics_along_paths_equal_two_passes(name):
    found = walked(name)
    left = []
    for step in STEPS:
        own = CORRECTIONS[name].fit_step(PathEvidence(batches(step)), step)
        left.append(torch.cat([batch.repaired(own.repairs) - batch.m for batch in batches(step)]))
    for i, own in enumerate(found):
        for field, expected in by_hand(left[i], left[max(i - 1, 0)]).items():
            if i or field != "step_correlation":
                assert getattr(own, field) == pytest.approx(float(expected), rel=1e-6, abs=1e-7)
    assert found[0].step_correlation is None


JUDGED_ON_HALVES = {"ptqd_gated"}
"""Their fit holds images out itself, of which half of the images has none."""


@pytest.mark.parametrize("name", CORRECTIONS)
def test_diagnostics_change_nothing_that_was_there(name):
    if name in FROM_MOMENTS:
        plain, found = fit_moments(CORRECTIONS[name], statistics(), STEPS).report(), report(name)
    else:
        plain = [CORRECTIONS[name].fit_step(PathEvidence(batches(step)), step).report for step in STEPS]
        found = walked(name)
    bare, expected = ([dataclasses.replace(own, **dict.fromkeys(MEASURED)) for own in of] for of in (found, plain))
    assert bare == expected
    measured = [dataclasses.asdict(own) for own in found[1:]]
    known = MEASURED - {"r2_held_out"} if name in JUDGED_ON_HALVES else MEASURED
    assert all(math.isfinite(own[field]) for own in measured for field in known)


@pytest.mark.parametrize("sizes", [[1] * COUNT, [7] * 5 + [5], [39, 1], [20, 20]], ids=len)
def test_no_diagnostic_depends_on_the_split_or_the_order(sizes):
    ends = torch.tensor(sizes).cumsum(0).tolist()
    parts = [statistics(slice(end - size, end)) for end, size in zip(ends, sizes, strict=True)]
    for order in (parts, parts[::-1]):
        found = fit_diagnosed(CORRECTIONS["ptqd"], reduce(NoiseStatistics.merge, order), STEPS).report()
        for own, whole in zip(found, report(), strict=True):
            for field in MEASURED - {"step_correlation"} if own is found[0] else MEASURED:
                assert getattr(own, field) == pytest.approx(getattr(whole, field), rel=1e-9, abs=1e-11)


@pytest.mark.parametrize("name", ["tac", "wiener"])
def test_along_paths_too_images_are_told_apart_by_their_index(name):
    for own, whole in zip(walked(name), walked(name, sizes=(COUNT,)), strict=True):
        assert (own.r2_held_out, own.reliability) == pytest.approx((whole.r2_held_out, whole.reliability), rel=1e-5)


def test_files_keep_them_bit_for_bit(tmp_path):
    given = statistics()
    given.save(tmp_path / "noise.safetensors")
    loaded = NoiseStatistics.load(tmp_path / "noise.safetensors")
    ours, theirs = given.tensors(), loaded.tensors()
    assert ours.keys() == theirs.keys() and all(torch.equal(tensor, theirs[name]) for name, tensor in ours.items())
    assert list(fit_diagnosed(CORRECTIONS["ptqd"], loaded, STEPS).report()) == list(report())


def test_what_was_planted_is_found():
    many = {"count": 1500, "shape": (3, 4, 5)}
    white, smooth, heavy, skewed, same = (
        report(kind=kind, **many)[2] for kind in ("white", "smooth", "heavy", "skewed", "the same at every step")
    )
    assert [white.skewness, white.kurtosis, white.neighbour_correlation, white.step_correlation] == pytest.approx(
        [0, 0, 0, 0], abs=0.06
    )
    assert smooth.neighbour_correlation == pytest.approx(0.5, abs=0.02)
    assert (heavy.kurtosis, heavy.skewness) == pytest.approx((3, 0), abs=0.4)
    assert (skewed.kurtosis, skewed.skewness) == pytest.approx((6, 2), abs=0.8)
    assert same.step_correlation == pytest.approx(1, abs=0.01)


def test_r2_held_out_is_that_of_a_fit_on_even_images_on_odd_ones():
    found = report()
    for i, step in enumerate(STEPS):
        m, q, _ = (tensor.double() for tensor in tensors(step))
        noise = (tensors(step)[1] - tensors(step)[0]).double()
        own = fit_moments(CORRECTIONS["ptqd"], NoiseStatistics(OWNER, statistics().even), STEPS).corrections[i]
        left = noise - float(own.repairs[0].k) * m - own.repairs[0].bias[:, None, None]
        expected = 1 - left[1::2].square().mean() / noise[1::2].square().mean()
        assert found[i].r2_held_out == pytest.approx(float(expected), rel=1e-9)


def test_r2_held_out_of_a_regression_is_of_each_half_from_the_other():
    one_ridge = Regression(3, 1, 0, [0.1], "original", "float")
    for step in STEPS:
        left = power = 0.0
        for parity in (0, 1):
            (seen,), (unseen,) = ([b.half(p) for b in batches(step, (COUNT,))] for p in (parity, 1 - parity))
            repaired = unseen.repaired(one_ridge.fit_step(PathEvidence([seen]), step).repairs)
            left += float((repaired - unseen.m).double().square().sum())
            power += float((unseen.q - unseen.m).double().square().sum())
        found = one_ridge.fit_step(PathEvidence(batches(step)), step)
        assert found.repairs and found.report.r2_held_out == pytest.approx(1 - left / power, rel=1e-5)


@pytest.mark.parametrize("name", ["ptqd", "d2dpm", "readout", "tac"])
def test_few_images_explain_less_of_others_than_of_themselves_and_many_as_much(name):
    gaps = []
    for count in (12, 600):
        noise = {"count": count, "noise": 0.5}
        found = report(name, **noise) if name in FROM_MOMENTS else walked(name, (count,), **noise)
        gaps.append(sum(own.r2 - own.r2_held_out for own in found) / len(found))
    assert gaps[0] > 2 * abs(gaps[1]) and abs(gaps[1]) < 0.01


def test_k_is_reliable_where_groups_agree_and_not_where_it_is_nothing_but_error():
    sure = [own.reliability for own in report(k=-0.3, noise=0.05)]
    unsure = [own.reliability for own in report(k=0.0, noise=1.0)]
    assert min(sure) > 0.999 and sum(unsure) / len(unsure) < 0.7
    assert all(0 <= value <= 1 for value in sure + unsure)


def test_reliability_is_the_share_of_k_that_is_no_sampling_error():
    """Over many draws of group coefficients around a known k with a known error."""
    k, error, draws = 0.05, 0.1, 4000
    drawn = k + error * torch.randn(draws, GROUPS, generator=torch.Generator().manual_seed(0)).double()
    sums = torch.zeros(draws, GROUPS, 1, 5, 5, dtype=torch.float64)
    sums[..., 0, 0], sums[..., 0, 2], sums[..., 1, 1] = 1, 1, drawn[..., None]
    found = torch.tensor([reliability(of_draw) for of_draw in sums])
    mean = drawn.mean(1)
    expected = ((drawn.sum(1) ** 2 - (drawn**2).sum(1)) / (GROUPS * (GROUPS - 1))).mean()
    assert float(expected) == pytest.approx(k**2, abs=3 * 0.01 / draws**0.5)
    assert float((found * mean.square()).mean()) >= float(expected)
    assert found.min() == 0 and found.max() <= 1


@pytest.mark.parametrize("name", ["ptqd", "matched"])
def test_without_noise_there_is_no_residual_to_speak_of(name):
    silent = {"k": 0.0, "noise": 0.0}
    clean = {step.i: tensors(step, **silent)[0] for step in STEPS}
    if name == "ptqd":
        seen = ((clean[step.i], clean[step.i], clean[step.i]) for step in STEPS)
        found = fit_diagnosed(CORRECTIONS[name], NoiseStatistics.of(OWNER, seen, 0), STEPS).report()
    else:
        m = clean[1]
        found = [
            fit_step_diagnosed(
                CORRECTIONS[name], PathEvidence([PairedBatch(0, m, m, m, m, m, m)]), STEPS[1], None
            ).report
        ]
    for own in found:
        assert own.r2_held_out == 1
        assert {getattr(own, field) for field in MEASURED - {"r2_held_out"}} == {None}


@pytest.mark.parametrize("name", ["ptqd", "tac"])
def test_one_image_has_no_half(name):
    found = report(name, count=1) if name == "ptqd" else walked(name, (1,), count=1)
    assert {(own.r2_held_out, own.reliability) for own in found} == {(None, None)}
    assert all(math.isfinite(own.kurtosis) for own in found)


@pytest.mark.parametrize("cut", [1, 2, 5])
def test_halves_of_halves_do_not_depend_on_the_batches(cut):
    q = torch.arange(11.0).view(-1, 1, 1, 1)
    whole = PathBatch(0, q, q, q, q, q)
    parts = [PathBatch(first, *[q[first : first + cut]] * 5) for first in range(0, 11, cut)]
    for parity in (0, 1):
        for again in (0, 1):
            found = torch.cat([part.half(parity).half(again).q for part in parts])
            assert torch.equal(found, q[parity::2][again::2])
            assert torch.equal(whole.half(parity).half(again).q, found)


def test_what_rounding_leaves_is_not_described():
    """q = 0.9 m up to the last bit of float32."""
    seen = ((m, 0.9 * m, x) for m, _, x in map(tensors, STEPS))
    found = fit_diagnosed(CORRECTIONS["ptqd"], NoiseStatistics.of(OWNER, seen, 0), STEPS).report()
    assert [(own.skewness, own.kurtosis) for own in found] == [(None, None)] * len(STEPS)
