"""What matching gives back, what it aims at, and what it costs."""

from dataclasses import replace

import pytest
import torch
from diffusers import DDPMScheduler
from torch.utils.flop_counter import FlopCounterMode

from ptq_diffusion.correction import Matched, PairedBatch, PathEvidence
from ptq_diffusion.correction.repair.matching import Spectrum, distance, match
from ptq_diffusion.sampler import DDIM
from tests.correction.batches import split
from tests.correction.filtered import COUNT, SHAPE, STEP, batches, contradicting, correct, fitted, method, planted


@pytest.mark.parametrize("noise", [0.1, 0.3, 1.0])
def test_matching_gives_back_the_spectrum_that_least_squares_takes(noise):
    tensors = planted(noise, count=400)
    m, _, x, _ = tensors
    plain, matched = (correct(fitted(tensors, matching=matching), tensors) for matching in (False, True))
    target = Spectrum.of(m, x).power
    assert plain.var() < m.var()
    assert close_to(Spectrum.of(matched, x).power, target) and not close_to(Spectrum.of(plain, x).power, target)
    assert matched.mean((0, 2, 3)).tolist() == pytest.approx(m.mean((0, 2, 3)).tolist(), abs=1e-9)


def close_to(found, expected):
    """Within 2 % of the largest entry of every band: the shrinkage towards white noise is 0.1 % before its gain."""
    return bool(((found - expected).abs().amax((1, 2)) < 0.02 * expected.abs().amax((1, 2))).all())


@pytest.mark.parametrize("noise", [0.1, 0.3, 1.0])
def test_what_matching_costs_is_less_than_the_error_itself(noise):
    """The optimal transport of a best estimate costs at most the variance that it lacks."""
    tensors = planted(noise)
    plain, matched = (
        float((correct(fitted(tensors, matching=matching), tensors) - tensors[0]).square().mean())
        for matching in (False, True)
    )
    assert matched < 2 * plain


def test_matching_aims_at_float_sampling_where_the_path_has_left_it():
    m, q, x, features = planted()
    drifted = [
        PairedBatch(b.first, b.q, b.x_t, b.features, 2 * b.m + 1, 0.5 * b.x_t, b.m)
        for b in batches((m, q, x, features))
    ]
    found = method(matching=True, path="corrected").fit_step(PathEvidence(drifted), STEP)
    output = found.output(q, x, features)
    assert torch.allclose(output.mean((0, 2, 3)), (2 * m + 1).mean((0, 2, 3)), atol=1e-9)
    on_half = Spectrum.of(2 * m + 1, 0.5 * x)
    rest = Spectrum.of(output, x).rest
    assert close_to(rest, on_half.rest)
    assert torch.allclose(Spectrum.of(output, x).linear, on_half.linear, rtol=1e-2, atol=1e-2)


def test_the_last_step_gives_images_their_spectrum_where_all_others_leave_a_drift_of_the_states():
    m, q, x, features = planted(count=400)
    path = [replace(b, x_t=0.5 * b.x_t, float_m=2 * b.m + 1) for b in batches((m, q, x, features))]
    aim = Spectrum.of(STEP.mean(x, 2 * m + 1), x)
    found = {
        (rule, is_last): Matched(path="float", images=None, last_step=rule).fit_step(
            PathEvidence(path, is_last=is_last), STEP
        )
        for rule in ("output", "image")
        for is_last in (False, True)
    }
    images = {key: STEP.mean(0.5 * x, fit.output(q, 0.5 * x, features)) for key, fit in found.items()}
    channels = SHAPE[0]
    for key, image in images.items():
        spectrum = Spectrum.of(image, x)
        reached = close_to(spectrum.power[:, :channels, :channels], aim.power[:, :channels, :channels])
        assert reached == (key == ("image", True))
        if reached:
            torch.testing.assert_close(spectrum.mean[:channels], aim.mean[:channels])
    assert torch.equal(images["image", False], images["output", True])


def test_a_drift_behind_an_exact_output_is_taken_out_of_the_image():
    m, _, x, features = planted(count=400)
    path = [replace(b, x_t=0.5 * b.x_t) for b in batches((m, m, x, features))]
    found = {
        rule: Matched(path="float", images=None, last_step=rule).fit_step(PathEvidence(path, is_last=True), STEP)
        for rule in ("output", "image")
    }
    assert found["output"].repairs == ()
    moved = Spectrum.of(STEP.mean(0.5 * x, found["image"].output(m, 0.5 * x, features)), x)
    channels = SHAPE[0]
    aim = Spectrum.of(STEP.mean(x, m), x).power
    assert close_to(moved.power[:, :channels, :channels], aim[:, :channels, :channels])


def test_an_image_that_reads_earlier_outputs_or_is_carried_is_not_matched():
    matching = Matched(last_step="image")
    with pytest.raises(ValueError, match="earlier predictions of x_0; set last_step=output"):
        matching.check([STEP, replace(STEP, c_0=(0.5, 0.5))])
    matching.check([replace(STEP, c_0=(0.5, 0.5)), STEP])
    with pytest.raises(ValueError, match="a map of one table's last step"):
        matching.check_carried([STEP])


def test_spectra_do_not_depend_on_the_split():
    m, _, x, _ = planted()
    whole = Spectrum.of(m, x)
    merged = Spectrum.of(m[:7], x[:7]).merge(Spectrum.of(m[7:], x[7:]))
    assert merged.count == whole.count
    assert torch.allclose(merged.mean, whole.mean) and torch.allclose(merged.power, whole.power)


@pytest.mark.parametrize("asked", [20, 33, 77, COUNT])
def test_matching_needs_no_float_output_on_the_path_and_is_of_all_images(asked):
    matching = Matched("original", "corrected", None)
    tensors = planted()
    whole = matching.fit_step(PathEvidence(batches(tensors)), STEP)
    first, rest = split(batches(tensors), asked)
    assert [sum(len(b.q) for b in part) for part in (first, rest)] == [asked, COUNT - asked]
    part = matching.fit_step(PathEvidence(first, rest), STEP)
    for own, other in zip(whole.repairs[0].tensors().values(), part.repairs[0].tensors().values(), strict=True):
        assert torch.allclose(own, other, rtol=1e-9, atol=1e-12)


def test_matching_that_the_other_half_refutes_is_left_out():
    options = {"on_q": 0, "on_x": 0, "matching": True}
    assert fitted(contradicting(0.5, 2.0), **options).repairs == ()
    assert [repair.kind for repair in fitted(contradicting(0.5, 0.5), **options).repairs] == ["spectral"]


def test_matching_that_makes_no_difference_is_left_out():
    """At a step whose next state does not depend on the output, all maps are level."""
    silent = replace(STEP, c_m=-STEP.c_0[0] * STEP.p_m)
    assert silent.gain == 0
    evidence = PathEvidence(batches(contradicting(0.5, 0.5)))
    assert method(on_q=0, on_x=0, matching=True).fit_step(evidence, silent).repairs == ()


@pytest.mark.parametrize("eta", [0.0, 1.0])
def test_the_next_state_of_a_spectrum_is_the_spectrum_of_the_next_states(eta):
    m, _, x, _ = planted()
    for step in DDIM(5, eta, {}).table(DDPMScheduler(clip_sample=False).config):
        mean, covariances = Spectrum.of(m, x).next_state(step)
        expected = Spectrum.of(step.mean(x, m), x)
        channels = SHAPE[0]
        torch.testing.assert_close(mean, expected.mean[:channels])
        torch.testing.assert_close(covariances, expected.power[:, :channels, :channels])


def test_the_multiplications_of_a_spectral_repair_are_those_of_its_transforms_and_matrices():
    """torch counts those of the transforms, which are matrix products; the others are two numbers for each output."""
    m, q, x, features = planted(count=40)
    (repair,) = fitted((m, q, x, features), on_q=0, on_x=0, matching=True).repairs
    with FlopCounterMode(display=False) as counted:
        repair.output(q[:1], x[:1], features[:1])
    channels, height, width = SHAPE
    assert repair.macs(SHAPE) == counted.get_total_flops() / 2 + 2 * channels**2 * height * width


def test_the_distance_is_that_of_gaussians_per_pixel():
    """One channel, a band of one coefficient and one of three: sum of (sqrt s - sqrt t)^2, and the means'."""
    sizes = torch.tensor([1, 3])
    source, target = (
        Spectrum(50, torch.tensor(mean).double(), torch.stack([torch.diag(torch.tensor(p)) for p in power]), sizes)
        for mean, power in (
            ([0.5, 0.0], [[1.0, 2.0], [4.0, 0.5]]),
            ([0.2, 0.1], [[3.0, 2.0], [1.0, 0.7]]),
        )
    )
    source, target = (replace(own, power=own.power.double()) for own in (source, target))
    b, a = STEP.gain, STEP.carry
    deviations = [[(b**2 * m + a**2 * x) ** 0.5 for m, x in rows] for rows in (((1, 2), (4, 0.5)), ((3, 2), (1, 0.7)))]
    gaps = [(s - t) ** 2 for s, t in zip(*deviations, strict=True)]
    expected = (b * 0.3 - a * 0.1) ** 2 + (gaps[0] + 3 * gaps[1]) / 4
    assert distance(source, target, STEP) == pytest.approx(expected)
    assert distance(source, source, STEP) == pytest.approx(0, abs=1e-9)


def test_a_channel_that_says_nothing_is_not_blown_up():
    """Its rest has a millionth of the variance that it should have, which calls for a gain of 1,000."""
    m, _, x, _ = planted()
    estimate = m.clone()
    estimate[:, 0] = 1e-3 * m[:, 0]
    found = match(Spectrum.of(estimate, x), Spectrum.of(m, x))
    assert 1 < float(found.on_q.abs().max()) < 40


def test_the_regression_on_the_state_does_not_depend_on_where_it_lies_in_memory():
    m, _, x, _ = planted()
    spectrum = Spectrum.of(m, x)
    expected = spectrum.linear
    for offset in range(8):
        memory = torch.empty(spectrum.power.numel() + 8, dtype=torch.float64)
        power = memory[offset : offset + spectrum.power.numel()].view(spectrum.power.shape).copy_(spectrum.power)
        assert torch.equal(replace(spectrum, power=power).linear, expected)


def test_a_state_that_does_not_vary_predicts_nothing():
    m, _, x, _ = planted()
    x[:, 1] = 0.5
    spectrum = Spectrum.of(m, x)
    assert torch.isfinite(spectrum.linear).all() and not spectrum.linear[:, :, 1].any()
    across = spectrum.power[:, :2, 2:] - spectrum.linear @ spectrum.power[:, 2:, 2:]
    assert torch.allclose(across, torch.zeros_like(across), atol=1e-9)
