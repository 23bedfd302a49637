"""What regression removes and leaves, and that it is what its docstring says."""

import pytest
import torch
from diffusers import DDPMScheduler
from torch.nn import functional as F

from ptq_diffusion.correction import FittedCorrection, Matched, PairedBatch, PathBatch, PathEvidence, Regression
from ptq_diffusion.correction.repair.filter import Filter
from ptq_diffusion.correction.transfer import interpolated
from ptq_diffusion.sampler import DDIM
from tests.correction.batches import fields_of, split
from tests.correction.filtered import OPTIONS, SHAPE, STEP, batches, contradicting, correct, fitted, planted


def test_noise_that_is_a_filter_of_the_state_is_removed_and_one_pixel_does_not_see_it():
    tensors = planted(noise=0.0)
    wide = correct(fitted(tensors, on_q=0, on_x=3), tensors)
    assert torch.allclose(wide, tensors[0], atol=1e-9)
    narrow = correct(fitted(tensors, on_q=1, on_x=1), tensors)
    assert (narrow - tensors[0]).square().mean() > 0.01


@pytest.mark.parametrize("sides", [(1, 1, 0), (3, 1, 0), (3, 5, 0), (1, 1, 3), (0, 0, 1)])
def test_the_residual_is_uncorrelated_with_every_regressor(sides):
    tensors = planted()
    m, q, x, features = tensors
    options = dict(zip(("on_q", "on_x", "on_features"), sides, strict=True))
    residual = m - correct(fitted(tensors, **options, ridges=[1e-12]), tensors)
    assert residual.mean((0, 2, 3)).abs().max() < 1e-9
    for source, side in zip((q, x, features), sides, strict=True):
        if side:
            across = torch.einsum("bchw,bdhw->cd", residual, source - source.mean((0, 2, 3), keepdim=True))
            assert across.abs().max() / residual.numel() < 1e-9


def test_more_to_look_at_never_fits_worse_and_held_out_images_gain_too():
    sides = [(1, 1, 0), (3, 1, 0), (3, 3, 0), (3, 3, 1), (3, 3, 3)]
    train, test = planted(), planted(seed=1)
    errors = []
    for on_q, on_x, on_features in sides:
        found = fitted(train, on_q=on_q, on_x=on_x, on_features=on_features, ridges=[1e-10])
        errors.append([float((correct(found, t) - t[0]).square().mean()) for t in (train, test)])
    within = [error for error, _ in errors]
    assert all(b <= a * (1 + 1e-6) for a, b in zip(within, within[1:], strict=False))
    before = float((test[1] - test[0]).square().mean())
    assert errors[2][1] < errors[0][1] < before


def test_the_readout_folds_into_the_output_layer():
    """R and c added to the layer's own weight and bias give the same as beside it."""
    tensors = planted()
    _, q, x, features = tensors
    weight = torch.randn(SHAPE[0], features.shape[1], 3, 3, generator=torch.Generator().manual_seed(5)).double()
    q = F.conv2d(features, weight, padding=1)
    (repair,) = fitted((tensors[0], q, x, features), on_q=0, on_x=0, on_features=3, ridges=[0.01]).repairs
    folded = F.conv2d(features, weight + repair.on_features, repair.offset, padding=1)
    assert torch.allclose(repair.output(q, x, features), folded, atol=1e-12)


@pytest.mark.parametrize("sides", [(1, 1, 3), (0, 0, 3), (3, 1, 1)])
def test_a_readout_in_eight_bits_costs_little_and_is_an_eighth_of_the_bytes(sides):
    tensors = planted()
    options = dict(zip(("on_q", "on_x", "on_features"), sides, strict=True)) | {"ridges": [1e-6]}
    full, rounded = (fitted(tensors, **options, readout_bits=bits) for bits in (32, 8))
    (own,), (other,) = full.repairs, rounded.repairs
    assert other.integers.dtype == torch.int8 and other.integers.abs().amax((1, 2, 3)).tolist() == [127] * SHAPE[0]
    assert other.integers.numel() * 8 == own.on_features.numel() * own.on_features.element_size()
    assert (other.filter.on_features - own.on_features).abs().max() <= other.scale.max() * 0.5 * (1 + 1e-9)
    errors = [float((correct(found, tensors) - tensors[0]).square().mean()) for found in (full, rounded)]
    assert errors[0] * (1 - 1e-9) <= errors[1] < 1.01 * errors[0]
    residual = correct(rounded, tensors) - tensors[0]
    assert residual.mean((0, 2, 3)).abs().max() < 1e-9, "c is fitted anew"


def test_eight_bits_of_no_readout_are_refused():
    with pytest.raises(ValueError, match="a readout to store in 8 bits"):
        Regression(**OPTIONS | {"readout_bits": 8})


def test_a_readout_in_eight_bits_is_saved_bit_for_bit_and_not_interpolated(tmp_path):
    tensors, steps = planted(), DDIM(8, 1.0, {}).table(DDPMScheduler(clip_sample=False).config)
    readout = Regression(**OPTIONS | {"on_features": 3, "readout_bits": 8})
    rows = [readout.fit_step(PathEvidence(batches(planted(seed=step.i))), step) for step in steps]
    found = FittedCorrection(steps, rows)
    found.save(tmp_path)
    loaded = FittedCorrection.load(tmp_path)
    assert loaded.size == found.size and loaded.needs_features
    for own, other in zip(found.corrections, loaded.corrections, strict=True):
        assert torch.equal(correct(own, tensors), correct(other, tensors))
    with pytest.raises(ValueError, match="readout_bits=32"):
        interpolated(found, steps, DDIM(5, 1.0, {}).table(DDPMScheduler(clip_sample=False).config))


def test_a_filter_of_nothing_leaves_the_output():
    empty = torch.zeros(2, 0, 1, 1).double()
    _, q, x, features = planted()
    assert torch.equal(Filter(empty, empty, empty, torch.zeros(2)).output(q, x, features), q)


@pytest.mark.parametrize("eta", [0.0, 1.0])
def test_the_variance_rule_adds_what_the_estimate_lacks(eta):
    step = DDIM(8, eta, {}).table(DDPMScheduler(clip_sample=False).config)[3]
    tensors = planted(noise=1.0)
    m, _, x, _ = tensors
    found = Regression(**OPTIONS | {"variance": "rule"}).fit_step(PathEvidence(batches(tensors)), step)
    spread = [step.mean(x, output).var((0, 2, 3), correction=0).mean() for output in (correct(found, tensors), m)]
    expected = step.sigma**2 - float(spread[0] - spread[1]) if eta else 0.0
    assert found.sigma**2 == pytest.approx(max(expected, 0.0), rel=1e-9)
    assert (found.sigma > step.sigma) == (eta > 0)


def test_the_split_into_even_and_odd_images_does_not_depend_on_the_batches():
    m, q, x, features = planted(count=30)
    one = [PairedBatch(0, q, x, features, m, x, m)]
    many = [PairedBatch(i, *(t[i : i + 3] for t in (q, x, features, m, x, m))) for i in range(0, 30, 3)]
    regression = Regression(**OPTIONS | {"ridges": [1e-3, 1e-1]})
    a, b = (regression.fit_step(PathEvidence(parts), STEP).output(q, x, features) for parts in (one, many))
    assert torch.allclose(a, b, atol=1e-10)


def test_a_regression_is_of_the_images_that_were_asked_about_alone():
    regression = Regression(**OPTIONS | {"ridges": [1e-3, 1e-1], "path": "corrected"})
    first, rest = split(batches(planted()), 60)
    own = regression.fit_step(PathEvidence(first), STEP)
    for beside in (rest, [PathBatch(b.first, *(100 * t for t in fields_of(b))) for b in rest]):
        other = regression.fit_step(PathEvidence(first, beside), STEP)
        assert other.report == own.report
        for a, b in zip(own.repairs[0].tensors().values(), other.repairs[0].tensors().values(), strict=True):
            assert torch.equal(a, b)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"path": "corrected", "images": 1}, "expected at least 2 images.*got 1; raise correction.images"),
        ({"on_q": 2}, "expected on_q to be 0 or an odd side"),
        ({"on_x": -1}, "expected on_x to be 0 or an odd side"),
        ({"images": 64}, "expected images with path=corrected only.*got 64; set correction.images=null"),
        ({"on_features": 3}, "expected readout_bits to be 8 or 32, got None; set correction.readout_bits=32"),
        ({"on_q": 0, "on_x": 0}, "expected a regressor"),
        ({"ridges": []}, "expected a regressor, and finite ridges"),
        ({"ridges": [-1.0]}, "ridges of at least 0"),
        ({"variance": "pooled"}, "expected variance to be original or rule"),
        ({"path": "quantized"}, "expected path to be float or corrected, got 'quantized'"),
    ],
)
def test_options_that_make_no_sense_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        Regression(**OPTIONS | options)


def test_a_chunk_of_one_image_counts_and_one_image_in_all_is_refused():
    m, q, x, features = planted(count=9)
    parts = [slice(0, 8), slice(8, 9)]
    chunks = [PairedBatch(p.start, q[p], x[p], features[p], m[p], x[p], m[p]) for p in parts]
    whole = [PairedBatch(0, q, x, features, m, x, m)]
    regression = Regression(**OPTIONS | {"ridges": [1e-3]})
    a, b = (regression.fit_step(PathEvidence(batches), STEP).output(q, x, features) for batches in (chunks, whole))
    assert torch.allclose(a, b, atol=1e-10)
    with pytest.raises(ValueError, match="at least 2 images to choose a ridge"):
        regression.fit_step(PathEvidence(chunks[1:]), STEP)
    with pytest.raises(
        ValueError, match="expected at least 10 images to match the spectrum of 2 channels, half of them .* got 1"
    ):
        Matched("original", "float", None).fit_step(PathEvidence(chunks[1:]), STEP)


def test_a_regression_that_the_other_half_refutes_is_left_out():
    refuted = fitted(contradicting(0.8, 1.25), on_x=0)
    assert refuted.repairs == () and refuted.report.r2_held_out <= 0
    agreed = fitted(contradicting(0.8, 0.8), on_x=0)
    assert [repair.kind for repair in agreed.repairs] == ["filter"] and agreed.report.r2_held_out > 0.99


def test_the_bias_that_is_reported_is_what_k_leaves_of_the_mean_error():
    m, _, x, features = planted()
    m = m + 3.0  # so that k E[m] is no small part of E[D]
    mu = torch.tensor([0.3, -0.4], dtype=torch.float64)
    q = 0.8 * m + mu[:, None, None]
    report = fitted((m, q, x, features)).report
    assert report.k == pytest.approx(-0.2, abs=1e-9)
    assert report.bias == pytest.approx(float(mu.square().mean().sqrt()), abs=1e-9)
