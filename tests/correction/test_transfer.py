"""A correction on another table: the same on its own, exact where coefficients are linear in log-SNR, refused else."""

import dataclasses
import math

import pytest
import torch
from diffusers import DDPMScheduler

from ptq_diffusion.correction import (
    PTQD,
    Fingerprint,
    FittedCorrection,
    NoiseStatistics,
    PairedBatch,
    PathEvidence,
    Reads,
    Regression,
    StepCorrection,
    StepMoments,
    StepReport,
    fit_moments,
)
from ptq_diffusion.correction.noise.residual import Residual
from ptq_diffusion.correction.repair.affine import Affine
from ptq_diffusion.correction.repair.filter import Filter
from ptq_diffusion.correction.repair.spectral import Spectral
from ptq_diffusion.correction.transfer import interpolated
from ptq_diffusion.model import GaussianDenoiser
from ptq_diffusion.numeric.seed import generator
from ptq_diffusion.numeric.spectrum import RINGS, radial_bands
from ptq_diffusion.sampler import DDIM, DDPM
from tests.correction.presets import CORRECTIONS, FILES

CONFIG = DDPMScheduler(clip_sample=False).config
SHAPE = (3, 4, 5)


def table(steps, eta=1.0, **options):
    return DDIM(steps, eta, {}).table(CONFIG | options)


def fitted(name, steps):
    return fitted_by(CORRECTIONS[name], steps)


def fitted_by(correction, steps):
    batches = []
    for step in steps:
        m, r, x = torch.randn(3, 30, *SHAPE, generator=torch.Generator().manual_seed(step.i))
        m = m + x
        batches.append(PairedBatch(0, 0.93 * m + 0.05 * r, x, torch.cat([x * r, r], dim=1), m, x, m))
    if correction.reads is not Reads.MOMENTS:
        return FittedCorrection(
            steps, [correction.fit_step(PathEvidence([b]), s) for b, s in zip(batches, steps, strict=True)]
        )
    owner = Fingerprint("network", steps.fingerprint(), SHAPE)
    return fit_moments(correction, NoiseStatistics.of(owner, ((b.m, b.q, b.x_t) for b in batches), first=0), steps)


def saved(correction, folder):
    folder.mkdir()
    correction.save(folder)
    return {path.name: path.read_bytes() for path in folder.iterdir()}


@pytest.mark.parametrize("eta", [0.0, 1.0])
@pytest.mark.parametrize("name", CORRECTIONS)
def test_on_its_own_table_it_is_itself_bit_for_bit(name, eta, tmp_path):
    """But for one that samples with a table that it made itself, which is refused on every table."""
    own = table(6, eta)
    found = fitted(name, own)
    if list(found.steps) != list(own):
        with pytest.raises(ValueError, match=r"a table of its own.*noise\.steps=null"):
            interpolated(found, own, own)
        return
    again = interpolated(found, own, table(6, eta))
    assert saved(found, tmp_path / "a") == saved(again, tmp_path / "b")


@pytest.mark.parametrize("eta", [0.0, 1.0])
@pytest.mark.parametrize("name", CORRECTIONS)
def test_what_is_not_refused_before_it_is_fitted_is_carried(name, eta):
    """And nothing else is."""
    own, new = table(6, eta), table(5, eta)
    try:
        CORRECTIONS[name].check_carried(own)
    except ValueError:
        with pytest.raises(ValueError, match=r"noise\.steps=null"):
            interpolated(fitted(name, own), own, new)
    else:
        found = fitted(name, own)
        for step, one in zip(own, found.corrections, strict=True):
            assert one.sigma == one.residual.sigma(step)
        carried = interpolated(found, own, new)
        assert carried.steps == new
        # Another step lies before each step of the new table than before those of which it is made.
        assert {report.step_correlation for report in carried.report()} == {None}


def test_where_one_of_two_steps_absorbs_half_of_the_residual_is_absorbed_half_way():
    step, ends = table(6)[3], (Residual(0.01, absorbed=0), Residual(0.03, absorbed=1))
    assert [ends[0].lerp(ends[1], weight) for weight in (0, 1)] == list(ends)
    assert ends[0].lerp(ends[1], 0.5).sigma(step) ** 2 == pytest.approx(step.sigma**2 - step.gain**2 * 0.02 / 2)
    assert Residual(0.03, absorbed=-1).sigma(step) > step.sigma == ends[0].sigma(step) > ends[1].sigma(step)


def test_a_noise_scale_of_its_own_table_is_refused():
    own, options = table(6), {name: value for name, value in FILES["readout"].items() if name != "_target_"}
    ruled = Regression(**options | {"variance": "rule"})
    with pytest.raises(ValueError, match=r"variance=original, or fit on .* noise\.steps=null"):
        interpolated(fitted_by(ruled, own), own, table(5))


def line(step, *shape):
    """Linear in log-SNR, another slope for every entry."""
    count = math.prod(shape)
    slope = torch.arange(1, count + 1, dtype=torch.float64).reshape(shape) / count / 50
    return 0.01 + slope * math.log(max(step.snr, 1e-9))


BANDS = int(radial_bands(8, 8, RINGS).max()) + 1
KINDS = {
    "affine": lambda step: (Affine(line(step), line(step, 3)),),
    "filter": lambda step: (
        Filter(line(step, 3, 3, 3, 3), line(step, 3, 3, 1, 1), line(step, 3, 0, 1, 1), line(step, 3)),
    ),
    "spectral": lambda step: (Spectral(line(step, BANDS, 3, 3), line(step, BANDS, 3, 3), line(step, 3)),),
    "two": lambda step: (
        Affine(line(step), line(step, 3)),
        Spectral(line(step, BANDS, 3, 3), line(step, BANDS, 3, 3), line(step, 3)),
    ),
    "none": lambda step: (),
}


def planted(kind, steps):
    """sigma' of PTQD's rule with k and what is left on a line."""
    found = []
    for step in steps:
        k = float(line(step))
        residual = Residual(0.01 + k / 10, absorbed=1)
        absorbed = step.gain**2 * residual.variance
        budget = absorbed / step.sigma**2 if step.sigma > 0 else None
        sigma = max(step.sigma**2 - absorbed, 0.0) ** 0.5
        report = StepReport(step.t, k, 0.1, residual.variance, step.sigma, sigma, 0.5, budget, 9.0, step.snr)
        found.append(StepCorrection(KINDS[kind](step), sigma, report, residual=residual))
    return FittedCorrection(steps, found)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(("own", "wanted"), [(50, 20), (50, 100), (20, 50)])
@pytest.mark.parametrize("sampler", [lambda n: table(n), lambda n: table(n, 0.0), lambda n: DDPM(n, {}).table(CONFIG)])
def test_what_is_linear_in_log_snr_is_exact(kind, own, wanted, sampler):
    given, steps = sampler(own), sampler(wanted)
    found, expected = interpolated(planted(kind, given), given, steps), planted(kind, steps)
    assert found.steps == steps
    for step, ours, theirs in zip(steps, found.corrections, expected.corrections, strict=True):
        if step.t > given[0].t:
            earliest = dataclasses.replace(step, signal=given[0].signal, noise=given[0].noise)
            theirs = planted(kind, steps.with_steps([earliest])).corrections[0]
        for a, b in zip(ours.repairs, theirs.repairs, strict=True):
            assert all(torch.allclose(t, b.tensors()[name], rtol=1e-9, atol=1e-12) for name, t in a.tensors().items())
        assert ours.sigma == pytest.approx(theirs.sigma, rel=1e-9)
        assert ours.report.k == pytest.approx(theirs.report.k)
        assert (ours.report.t, ours.report.sigma, ours.report.snr_f) == (step.t, step.sigma, step.snr)
        assert ours.report.budget == (None if step.sigma == 0 else pytest.approx(theirs.report.budget))


def test_coefficients_that_are_smooth_are_recovered_from_noise():
    """On the Gaussian toy: k, mu and v planted as functions of log-SNR, measured at 50 steps, used at 20."""
    model, steps = GaussianDenoiser((2, 4, 4), mean=0.4, std=0.5), table(50)
    k = lambda step: 0.1 * math.tanh(math.log(step.snr) / 4)  # noqa: E731
    v = lambda step: 0.02 + 0.01 * k(step)  # noqa: E731
    moments = []
    for step in steps:
        x, r = torch.randn(2, 2000, 2, 4, 4, generator=generator("toy", step.i)).double()
        m = model.predict(x, step).m
        moments.append(StepMoments.of(m, (1 + k(step)) * m + 0.05 + v(step) ** 0.5 * r, x))
    options = {name: value for name, value in FILES["ptqd"].items() if name != "_target_"}
    statistics = NoiseStatistics(Fingerprint("toy", steps.fingerprint(), (2, 4, 4)), moments)
    found = interpolated(fit_moments(PTQD(**options), statistics, steps), steps, table(20))
    for own, step in zip(found.corrections, found.steps, strict=True):
        assert own.report.k == pytest.approx(k(step), abs=0.01)
        assert own.report.variance == pytest.approx(v(step), rel=0.03)
        assert own.repairs[0].bias.tolist() == pytest.approx([0.05, 0.05], abs=0.01)
        left = step.sigma**2 - step.gain**2 * v(step) / (1 + k(step)) ** 2
        assert own.sigma**2 == pytest.approx(max(left, 0), abs=0.03 * step.gain**2 * v(step))


REFUSED = {
    "another clip": (table(20, clip_sample=True), r"another clip \(1.0 in place of None\)"),
    "another prediction": (table(20, prediction_type="v_prediction"), "another prediction"),
    "another sampler": (DDPM(20, {}).table(CONFIG), "another sampler"),
    "no noise": (table(20, 0.0), "another noise of the sampler"),
    "times beyond": (table(20, timestep_spacing="trailing"), "one spacing beyond .* raise noise.steps"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_another_kind_of_table_is_refused(name):
    steps, message = REFUSED[name]
    own = table(5) if name == "times beyond" else table(50)
    own = own[2:] if name == "times beyond" else own
    with pytest.raises(ValueError, match=message):
        interpolated(planted("affine", own), own, steps)


def test_a_step_without_signal_is_infinitely_far():
    """Steps near it have the coefficients of the first step that has a signal; without one, its own or the first's."""
    zero = {"prediction_type": "v_prediction", "rescale_betas_zero_snr": True, "timestep_spacing": "trailing"}
    given, to = planted("affine", table(10, **zero)), table(40, **zero)
    assert to[0].snr == given.steps[0].snr == 0
    found = interpolated(given, given.steps, to)
    biases = [correction.repairs[0].bias for correction in found.corrections[:4]]
    expected = [given.corrections[i].repairs[0].bias for i in (0, 1, 1, 1)]
    assert all(torch.equal(bias, own) for bias, own in zip(biases, expected, strict=True))
    without = interpolated(planted("affine", to[1:]), to[1:], to).corrections
    assert torch.equal(without[0].repairs[0].bias, without[1].repairs[0].bias)


@pytest.mark.parametrize("kind", ["affine", "filter", "spectral", "two"])
def test_a_step_that_was_left_out_is_one_that_does_nothing(kind):
    """Half-way between a repair and none lies half of it."""
    given, to = planted(kind, table(50)), table(40)
    for kept in range(len(given.corrections[0].repairs)):
        gaps = [
            own if i % 2 else dataclasses.replace(own, repairs=own.repairs[:kept])
            for i, own in enumerate(given.corrections)
        ]
        full = [
            dataclasses.replace(own, repairs=(*own.repairs[:kept], *(r.identity_like() for r in own.repairs[kept:])))
            if i % 2 == 0
            else own
            for i, own in enumerate(given.corrections)
        ]
        ours, theirs = (
            interpolated(FittedCorrection(given.steps, f), given.steps, to).corrections for f in (gaps, full)
        )
        q, x = torch.randn(2, 2, 3, 8, 8, generator=torch.Generator().manual_seed(0)).double()
        for own, other in zip(ours, theirs, strict=True):
            assert torch.allclose(own.output(q, x, q), other.output(q, x, q), atol=1e-9)


@pytest.mark.parametrize("kind", ["affine", "filter", "spectral"])
def test_nothing_leaves_the_output(kind):
    (repair,) = KINDS[kind](table(6)[2])
    q, x = torch.randn(2, 2, 3, 8, 8, generator=torch.Generator().manual_seed(0)).double()
    assert torch.allclose(repair.identity_like().output(q, x, q), q, atol=1e-12)
    assert not torch.allclose(repair.output(q, x, q), q, atol=1e-3)


def test_between_one_repair_and_another_lies_half_of_each():
    """As where gates leave out the regression at one step and the matching at the next."""
    given, to = planted("two", table(50)), table(40)
    alone = [
        dataclasses.replace(own, repairs=own.repairs[i % 2 : i % 2 + 1]) for i, own in enumerate(given.corrections)
    ]
    filled = [
        dataclasses.replace(
            own, repairs=tuple(r if j == i % 2 else r.identity_like() for j, r in enumerate(own.repairs))
        )
        for i, own in enumerate(given.corrections)
    ]
    ours, theirs = (
        interpolated(FittedCorrection(given.steps, f), given.steps, to).corrections for f in (alone, filled)
    )
    q, x = torch.randn(2, 2, 3, 8, 8, generator=torch.Generator().manual_seed(0)).double()
    for own, other in zip(ours, theirs, strict=True):
        assert torch.allclose(own.output(q, x, q), other.output(q, x, q), atol=1e-9)


def test_neighbours_that_are_repaired_in_different_orders_are_refused():
    given = planted("two", table(50))
    mixed = [dataclasses.replace(own, repairs=own.repairs[:: 1 - i % 2 * 2]) for i, own in enumerate(given.corrections)]
    with pytest.raises(ValueError, match="repaired in one order.*noise.steps=null"):
        interpolated(FittedCorrection(given.steps, mixed), given.steps, table(40))


def test_what_estimates_on_the_way_is_not_carried():
    own, new = table(50), table(20)
    with pytest.raises(ValueError, match=r"qncd has none.*noise\.steps=null"):
        CORRECTIONS["qncd"].check_carried(own)
    with pytest.raises(ValueError, match=r"estimates on the way.*noise\.steps=null"):
        interpolated(fitted("qncd", own), own, new)


def test_between_steps_nothing_is_said_of_the_correlation_with_the_step_before():
    """Of another table the step before is another one."""
    given = planted("affine", table(50))
    told = [
        dataclasses.replace(own, report=dataclasses.replace(own.report, step_correlation=0.5, kurtosis=0.5))
        for own in given.corrections
    ]
    steps = table(20)
    found = interpolated(FittedCorrection(given.steps, told), given.steps, steps).report()
    shared = {step.t for step in given.steps} & {step.t for step in steps}
    between = [report for report in found if report.t not in shared]
    assert between and {report.step_correlation for report in between} == {None}
    assert {report.kurtosis for report in found} == {0.5}
