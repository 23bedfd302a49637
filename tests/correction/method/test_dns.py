"""DNS and Q-Drift: the noise of the schedule, residual included; their limits, bounds and refusals."""

import pytest
import torch
from diffusers import DDPMScheduler, FlowMatchEulerDiscreteScheduler

from ptq_diffusion.correction import DNS, Fingerprint, NoiseStatistics, StepMoments, fit_moments
from ptq_diffusion.correction.method.dns import _with_drift, _with_room
from ptq_diffusion.sampler import DDIM, DDPM, DPMSolver, Euler, EulerAncestral, FlowEuler, Process
from tests.correction.planted import SHAPE, planted

CONFIG = dict(DDPMScheduler(clip_sample=False).config)
FLOW = dict(FlowMatchEulerDiscreteScheduler().config)
TABLES = {
    "ddim, eta 0": DDIM(8, 0.0).table(CONFIG),
    "ddim, eta 0.5, v": DDIM(8, 0.5).table(CONFIG | {"prediction_type": "v_prediction"}),
    "euler, x_0": Euler(8).table(CONFIG | {"prediction_type": "sample"}),
    "euler_ancestral": EulerAncestral(8).table(CONFIG),
    "flow_euler": FlowEuler(8).table(FLOW),
}
every_table = pytest.mark.parametrize("steps", TABLES.values(), ids=TABLES)


def fitted(steps, v=0.01, k=-0.1, **options):
    moments = [StepMoments.of(*planted(step, k=k, v=v)) for step in steps]
    return fit_moments(DNS(**options), NoiseStatistics(Fingerprint("n", steps.fingerprint(), SHAPE), moments), steps)


def noise_left(step, direction, variance, prediction):
    """The variance behind a step of what is left of epsilon and of the residual, without the fresh noise."""
    *_, e_m = Process(step.signal, step.noise, prediction).coefficients()
    return direction**2 + (step.c_0[0] * step.p_m + direction * e_m) ** 2 * variance


@every_table
@pytest.mark.parametrize("variance", [1e-4, 1e-2, 0.3])
def test_the_schedules_noise_is_left_where_that_can_be(steps, variance):
    for step in steps[:-1]:
        found = _with_room(step, variance, steps.prediction)
        left = noise_left(step, found.direction, variance, steps.prediction)
        *_, e_m = Process(step.signal, step.noise, steps.prediction).coefficients()
        excess = (step.c_0[0] * step.p_m) ** 2 - e_m**2 * step.direction**2
        if excess <= 0 or variance <= step.direction**2 / excess:
            assert left == pytest.approx(step.direction**2, rel=1e-9)
        else:
            # No coefficient leaves less than the one that is taken.
            near = (found.direction * by for by in (0.99, 1.01))
            assert left > step.direction**2 and all(
                noise_left(step, other, step.direction**2 / excess, steps.prediction) >= step.direction**2
                for other in near
            )
        assert (found.sigma, found.c_0, found.t, found.signal) == (step.sigma, step.c_0, step.t, step.signal)


def test_the_gain_of_epsilon_is_the_root_of_the_quadratic():
    for step in TABLES["ddim, eta 0"][3:-2]:
        c, v = step.c_0[0] * step.noise / step.signal, 0.01
        expected = (-c + (c**2 - (1 + v) * (c**2 - step.direction**2)) ** 0.5) / (1 + v)
        found = _with_room(step, v, "epsilon")
        assert found.gain == pytest.approx(expected, rel=1e-9) and found.carry == pytest.approx(step.carry, rel=1e-12)


@pytest.mark.parametrize("kind", ["epsilon", "v_prediction", "sample"])
def test_small_steps_of_the_exact_rule_are_the_first_order(kind):
    """The difference of both is of the square of the step."""
    gaps = []
    for count in (100, 200, 400):
        steps = DDIM(count, 0.0).table(CONFIG | {"prediction_type": kind})
        step = min(steps, key=lambda step: abs(step.t - 600))
        exact, first = (rule(step, 1e-3, kind).direction - step.direction for rule in (_with_room, _with_drift))
        assert exact < 0 and first < 0
        gaps.append(abs(exact / first - 1))
    assert gaps == sorted(gaps, reverse=True) and gaps[-1] < gaps[0] / 2 and gaps[-1] < 0.05


@every_table
@pytest.mark.parametrize("rule", ["exact", "first_order"])
def test_the_last_step_and_a_residual_of_nothing_change_nothing(steps, rule):
    found = fitted(steps, rule=rule)
    assert found.steps[-1] == steps[-1] and all(a != b for a, b in zip(found.steps[:-1], steps[:-1], strict=True))
    assert [one.sigma for one in found.corrections] == [step.sigma for step in steps]
    without = fitted(steps, v=0.0, k=0.0, rule=rule)
    for own, step in zip(without.steps, steps, strict=True):
        assert own.c_m == pytest.approx(step.c_m, rel=1e-6) and own.c_x == pytest.approx(step.c_x, rel=1e-6)


def test_the_final_variance_of_gaussian_data_is_kept():
    """x_s of an exact epsilon with planted noise has the variance of the schedule, where DDIM's has more."""
    step, v, count = TABLES["ddim, eta 0"][4], 0.02, 400_000
    x_0, epsilon, r = torch.randn(3, count, generator=torch.Generator().manual_seed(0)).double()
    x_t, q = step.signal * x_0 + step.noise * epsilon, epsilon + v**0.5 * r
    found = _with_room(step, v, "epsilon")
    expected = step.c_0[0] ** 2 + step.direction**2
    assert float(found.mean(x_t, q).var()) == pytest.approx(expected, rel=0.004)
    assert float(step.mean(x_t, q).var()) > 1.005 * expected


def test_terms_are_those_of_ptqd_and_may_be_left_out():
    steps = TABLES["ddim, eta 0"]
    for one in fitted(steps, rule="first_order", correlated=False, bias="off").corrections:
        assert one.repairs == () and one.residual is None
    for one in fitted(steps).corrections:
        assert float(one.repairs[0].k) == pytest.approx(-0.1, abs=0.02)


@pytest.mark.parametrize("sampler", [DDPM(5), DPMSolver(5)], ids=["ddpm", "dpm_solver"])
def test_a_sampler_of_another_form_is_refused(sampler):
    with pytest.raises(ValueError, match="expected a sampler of DDIM.s form.*sampler=ddim"):
        DNS().check(sampler.table(CONFIG))


def test_another_rule_is_refused():
    with pytest.raises(ValueError, match="expected rule to be exact or first_order, got 'bisection'"):
        DNS("bisection")
