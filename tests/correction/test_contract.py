"""What every correction of conf/correction promises."""

import dataclasses
import math
from functools import cache

import pytest
import torch
from diffusers import DDPMScheduler

from ptq_diffusion.correction import (
    Chain,
    Fingerprint,
    FittedCorrection,
    NoiseStatistics,
    PairedBatch,
    PathEvidence,
    Reads,
    fit_moments,
)
from ptq_diffusion.sampler import DDIM
from tests.correction.presets import CORRECTIONS

STEPPING_BACK = {"stepbaq"}
FROM_MOMENTS = [name for name, correction in CORRECTIONS.items() if correction.reads is Reads.MOMENTS]
SHAPE = (3, 4, 5)

every_correction = pytest.mark.parametrize("name", CORRECTIONS)
every_table = pytest.mark.parametrize(
    "steps",
    [
        DDIM(4, eta, {}).table(DDPMScheduler(prediction_type=kind, clip_sample=clip).config)
        for eta, kind, clip in [(1.0, "epsilon", False), (0.5, "v_prediction", True), (0.0, "sample", True)]
    ],
    ids=["eta 1, epsilon", "eta 0.5, v, clipped", "eta 0, x0, clipped"],
)


@cache
def tensors(step, noise=1.0, count=30):
    """m, q and x_t; the quantized output is shrunk, shifted and noisy."""
    m, r, x = torch.randn(3, count, *SHAPE, generator=torch.Generator().manual_seed(step.i))
    m = 0.5 * m + 0.8 * x + torch.tensor([0.3, -0.2, 0.0]).view(3, 1, 1)
    return m, m + noise * (torch.tensor([0.02, -0.03, 0.05]).view(3, 1, 1) - 0.07 * m + 0.05 * r), x


def features(q):
    """What the output layer sees, from which q comes but for its rounding."""
    return torch.cat([q, 1 - q[:, :1], q.square()], dim=1)


def made(name, steps, noise=1.0):
    """A fit made anew."""
    correction = CORRECTIONS[name]
    if correction.reads is not Reads.MOMENTS:
        return FittedCorrection(steps, [correction.fit_step(batches(step, noise), step) for step in steps])
    return fit_moments(correction, statistics(steps, noise), steps)


fitted = cache(made)


@cache
def statistics(steps, noise=1.0):
    return NoiseStatistics.of(
        Fingerprint("network", steps.fingerprint(), SHAPE), (tensors(step, noise) for step in steps), first=0
    )


def batches(step, noise):
    m, q, x = tensors(step, noise)
    return PathEvidence(
        [
            PairedBatch(first, q[part], x[part], features(q[part]), m[part], x[part], m[part])
            for first, part in ((0, slice(7)), (7, slice(7, None)))
        ]
    )


@every_correction
@every_table
def test_without_noise_nothing_changes_bit_for_bit(name, steps):
    found = fitted(name, steps, noise=0.0)
    assert list(found.steps) == list(steps)
    for step in found.steps:
        m, q, x = tensors(step, noise=0.0)
        assert torch.equal(m, q)
        assert torch.equal(found.output(q, x, features(q), step).view(torch.int32), q.view(torch.int32))
        assert found.sigma(step) == step.sigma


@pytest.mark.parametrize("name", FROM_MOMENTS)
@every_table
def test_another_table_is_refused(name, steps):
    measured = statistics(steps)
    correction = CORRECTIONS[name]
    for other in (steps[:-1], steps.with_steps([*steps, steps[-1]]), steps[:0]):
        with pytest.raises(ValueError, match=f"expected statistics of all {len(other)} steps, got {len(steps)}"):
            fit_moments(correction, measured, other)
    with pytest.raises(ValueError, match="same steps"):
        clipped = tuple(dataclasses.replace(step, clip=2.0) for step in steps)
        fit_moments(correction, measured, dataclasses.replace(steps, clip=2.0, steps=clipped))


@every_correction
@every_table
@pytest.mark.parametrize("noise", [0.0, 1.0, 5.0])
def test_reports_describe_every_step_in_numbers(name, steps, noise):
    correction = fitted(name, steps, noise)
    report = correction.report()
    assert [found.t for found in report] == [step.t for step in steps]
    for found, step in zip(report, steps, strict=True):
        # What has a default is measured by the stage, test_diagnostics.py.
        values = {f.name: getattr(found, f.name) for f in dataclasses.fields(found) if f.default is dataclasses.MISSING}
        assert (values.pop("budget") is None) == (step.sigma == 0)
        # Without noise its ratio to the signal is infinite, and nothing else is.
        assert math.isinf(values.pop("snr_q")) == (noise == 0)
        assert all(math.isfinite(value) for value in values.values())
        assert found.snr_f == step.snr
        assert found.sigma == step.sigma and found.sigma_used == correction.sigma(step)
        assert found.variance >= 0 and found.bias >= 0 and found.r2 <= 1
        assert found.budget is None or found.budget >= 0


@every_correction
@every_table
def test_outputs_keep_shape_and_precision_and_belong_to_their_sample(name, steps):
    found = fitted(name, steps)
    for step in found.steps:
        _, q, x = tensors(step)
        for dtype in (torch.float32, torch.float64):
            given = q.to(dtype), x.to(dtype), features(q).to(dtype)
            output = found.output(*given, step)
            assert output.shape == q.shape and output.dtype == dtype
            alone = found.output(*(tensor[4:5] for tensor in given), step)
            assert torch.allclose(alone, output[4:5], rtol=0, atol=1e-5)
        assert 0 <= found.sigma(step) < math.inf


@every_correction
@every_table
def test_the_table_differs_from_the_samplers_in_coefficients_only(name, steps):
    """Steps back, to noisier times, are StepbaQ's alone."""
    for own, given in zip(fitted(name, steps).steps, steps, strict=True):
        assert (own.i, own.clip) == (given.i, given.clip)
        if name in STEPPING_BACK:
            assert own.t >= given.t and own.abar_t <= given.abar_t and own.sigma <= given.sigma
        else:
            assert (own.t, own.abar_t, own.sigma) == (given.t, given.abar_t, given.sigma)


@every_correction
@every_table
def test_operations_are_declared_before_the_fit(name, steps):
    """At most so many, and exactly where no step is left as it is."""
    correction, found = CORRECTIONS[name], fitted(name, steps)
    additions = correction.additions(found.steps, SHAPE, 1)
    assert additions.evaluations == found.evaluations
    assert found.macs(SHAPE) <= additions.macs
    links = correction.links.values() if isinstance(correction, Chain) else [correction]
    repairs = sum(link.additions(found.steps, SHAPE, 1).macs > 0 for link in links)
    if {len(one.repairs) for one in found.corrections} == {repairs}:
        assert found.macs(SHAPE) == additions.macs


@every_correction
@every_table
def test_fitting_is_a_function_of_its_arguments(name, steps):
    first, second = fitted(name, steps), made(name, steps)
    assert list(first.report()) == list(second.report())
    for step in steps:
        _, q, x = tensors(step)
        before = q.clone()
        assert torch.equal(first.output(q, x, features(q), step), second.output(q, x, features(q), step))
        assert torch.equal(q, before)


@every_correction
@every_table
def test_the_error_does_not_grow_where_most_of_it_is_correlated(name, steps):
    """On the samples that it was fitted to, the mean squared error to the float output."""
    found = fitted(name, steps)
    for step in steps:
        m, q, x = tensors(step)
        error, before = ((output - m).square().mean() for output in (found.output(q, x, features(q), step), q))
        assert error <= before * (1 + 1e-6)


@every_correction
@every_table
def test_a_saved_correction_is_the_same_bit_for_bit(name, steps, tmp_path):
    found = fitted(name, steps)
    found.save(tmp_path)
    loaded = FittedCorrection.load(tmp_path)
    assert list(loaded.steps) == list(found.steps) and list(loaded.report()) == list(found.report())
    assert [own.estimates for own in loaded.corrections] == [own.estimates for own in found.corrections]
    for step in steps:
        _, q, x = tensors(step)
        assert torch.equal(loaded.output(q, x, features(q), step), found.output(q, x, features(q), step))
        assert loaded.sigma(step) == found.sigma(step)
