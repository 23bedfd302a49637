"""Every correction under every sampler: fitted, saved and in a stock pipeline, or refused by name."""

import itertools
import json
import math

import pytest
import torch
from diffusers import DDPMPipeline, DDPMScheduler, FlowMatchEulerDiscreteScheduler

from ptq_diffusion.correction import (
    PTQD,
    CorrectedNetwork,
    CorrectedScheduler,
    FittedCorrection,
    MomentEvidence,
    PairedBatch,
    PathEvidence,
    PathPTQD,
    StepMoments,
)
from ptq_diffusion.correction.fitted import StepCorrection, absorbing
from ptq_diffusion.correction.noise.residual import Residual
from ptq_diffusion.correction.step_report import StepReport
from ptq_diffusion.correction.transfer import interpolated
from ptq_diffusion.model import GaussianDenoiser
from ptq_diffusion.numeric.seed import generator
from ptq_diffusion.sampler import LCM, DPMSolver, Euler, EulerAncestral, FlowEuler
from tests.correction.pipelines import (
    BATCH,
    OURS,
    SEED,
    WITH_NETWORK,
    assert_equal,
    fitted,
    our_states,
    pipeline_states,
)
from tests.correction.presets import CORRECTIONS

LINSPACE = json.loads(DDPMScheduler(timestep_spacing="linspace").to_json_string())
FLOW = json.loads(FlowMatchEulerDiscreteScheduler(shift=2.0).to_json_string())
TABLES = {
    "euler": Euler(**OURS).table(LINSPACE),
    "euler_ancestral": EulerAncestral(**OURS).table(LINSPACE | {"prediction_type": "v_prediction"}),
    "dpm_solver": DPMSolver(**OURS, sde=True).table(LINSPACE),
    "dpm_solver, ode": DPMSolver(**OURS).table(LINSPACE),
    "lcm": LCM(**OURS).table(LINSPACE | {"clip_sample": True}),
    "flow_euler": FlowEuler(**OURS).table(FLOW),
}
MORE = {
    "euler": Euler(5).table(LINSPACE),
    "euler_ancestral": EulerAncestral(5).table(LINSPACE | {"prediction_type": "v_prediction"}),
    "dpm_solver": DPMSolver(5, sde=True).table(LINSPACE),
    "dpm_solver, ode": DPMSolver(5).table(LINSPACE),
    "lcm": LCM(5).table(LINSPACE | {"clip_sample": True}),
    "flow_euler": FlowEuler(5).table(FLOW),
}
"""The same samplers with more steps."""
REFUSED = {
    "ptqd_release": ({"dpm_solver", "dpm_solver, ode", "lcm"}, "direction=reduced needs a DDIM sampler"),
    "stepbaq": ({"dpm_solver", "dpm_solver, ode", "lcm", "flow_euler"}, "DDIM.s form|flow matching"),
    **dict.fromkeys(
        ("dns", "q_drift"), ({"dpm_solver", "dpm_solver, ode", "lcm"}, "expected a sampler of DDIM.s form")
    ),
    "d2dpm_stochastic": ({"dpm_solver", "dpm_solver, ode"}, "expected a one-step sampler with the stochastic D2-DPM"),
}
"""Corrections whose mathematics does not hold under some samplers, and how they say so."""
CHEAP = [name for name in sorted(CORRECTIONS) if not name.startswith("rescaled")]
"""Without rescaled layers, which know nothing of the sampler and take their time."""
every_sampler = pytest.mark.parametrize("sampler", TABLES)


def serves(name, sampler):
    return sampler not in REFUSED.get(name, ((), ""))[0]


@pytest.mark.parametrize(
    ("name", "sampler"),
    [
        (name, sampler)
        for name, sampler in itertools.product(sorted(CORRECTIONS.keys() - WITH_NETWORK), TABLES)
        # Rescaled layers know nothing of the sampler, and take their time.
        if not name.startswith("rescaled") or sampler == "dpm_solver"
    ],
)
def test_a_saved_pipeline_draws_our_images_bit_for_bit(name, sampler, pair, tmp_path):
    """A DDPMPipeline, which scales no state itself."""
    table = TABLES[sampler]
    if not serves(name, sampler):
        with pytest.raises(ValueError, match=REFUSED[name][1]):
            CORRECTIONS[name].check(table)
        return
    CORRECTIONS[name].check(table)
    correction = fitted(name, table, pair)
    correction.save(tmp_path)
    loaded = FittedCorrection.load(tmp_path)
    assert loaded.steps == correction.steps
    pipe = DDPMPipeline(CorrectedNetwork(pair[1], loaded), CorrectedScheduler(loaded.without_repairs()))
    assert_equal(our_states(pair, correction), pipeline_states(pipe))


@pytest.mark.parametrize("name", sorted(WITH_NETWORK))
@every_sampler
def test_a_correction_that_asks_twice_draws_too(name, sampler, pair):
    assert our_states(pair, fitted(name, TABLES[sampler], pair))[0].isfinite().all()


@torch.no_grad()
def scaled_states(unet, scheduler, x, streams):
    """The loop of a pipeline that scales what its network sees, as those of latents do."""
    scheduler.set_timesteps(OURS["steps"])
    x, seen = x * scheduler.init_noise_sigma, []
    for t in scheduler.timesteps:
        seen.append(x)
        q = unet(scheduler.scale_model_input(x, t), t).sample
        x = scheduler.step(q, t, x, streams).prev_sample
    return torch.stack(seen)


@every_sampler
def test_a_scheduler_alone_serves_a_pipeline_that_scales(sampler, pair):
    """The pipeline's own network, and the correction in its scheduler."""
    correction = fitted("ptqd", TABLES[sampler], pair)
    streams = [generator("images", SEED, index) for index in range(BATCH)]
    x = torch.stack([torch.randn(pair[0].shape, generator=stream) for stream in streams])
    scheduler = CorrectedScheduler(correction)
    states = scaled_states(pair[1].network, scheduler, x, streams)
    assert torch.equal(states, our_states(pair, correction)[0])
    if correction.steps[0].input_scale != 1:
        with pytest.raises(ValueError, match="expected a pipeline that scales the network.s input.*goal=export"):
            pipeline_states(DDPMPipeline(pair[1].network, scheduler))
    assert (correction.steps[0].input_scale != 1) is sampler.startswith("euler")


@pytest.mark.parametrize("name", ["ptqd", "readout"])
@every_sampler
def test_a_correction_of_more_steps_is_carried_to_fewer(name, sampler, pair):
    own, other = fitted(name, MORE[sampler], pair), fitted(name, TABLES[sampler], pair)
    carried = interpolated(own, MORE[sampler], TABLES[sampler])
    assert carried.steps == TABLES[sampler]
    for mine, theirs, step in zip(carried.corrections, other.corrections, carried.steps, strict=True):
        # Both of white noise: the same noise but for the draw.
        assert mine.report.k == pytest.approx(theirs.report.k, abs=0.1)
        assert math.isfinite(mine.sigma) and (name == "ptqd" or mine.sigma == step.sigma)
        assert mine.sigma == 0 or step.sigma > 0


@pytest.mark.parametrize("name", CHEAP)
@every_sampler
def test_every_correction_is_carried_under_every_sampler_or_says_why_not(name, sampler, pair):
    if not serves(name, sampler):
        return
    correction, own, new = CORRECTIONS[name], MORE[sampler], TABLES[sampler]
    try:
        correction.check_carried(own)
    except ValueError as error:
        assert "noise.steps=null" in str(error)
        return
    found = fitted(name, own, pair)
    carried = interpolated(found, own, new)
    assert carried.steps == new and len(carried.corrections) == len(new)
    assert our_states(pair, carried)[0].isfinite().all()
    again = interpolated(found, own, own)
    assert [one.sigma for one in again.corrections] == [one.sigma for one in found.corrections]


def test_a_step_of_noise_alone_has_no_direction_to_reduce():
    steps = FlowEuler(5, {"stochastic_sampling": True}).table(FLOW)
    with pytest.raises(ValueError, match="got 0 beside fresh noise .* set correction.direction=original"):
        PTQD(direction="reduced").check(steps)


def test_a_residual_of_nothing_still_answers_to_the_error_of_the_step_before():
    """Where q is m at a step, a multistep sampler's sigma' is what PTQD's is."""
    x, m = torch.randn(2, 32, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    m = m + 0.8 * x
    step, batch = TABLES["dpm_solver"][1], PairedBatch(0, m, x, m, m, x, m, past=(x,), float_past=(x,))
    along = PathPTQD(PTQD(), images=None).fit_step(PathEvidence([batch]), step).residual
    known = PTQD().fit_step(MomentEvidence(StepMoments.of(m, m, x)), step).residual
    assert along.variance == known.variance == 0 and along.slope == pytest.approx(known.slope) and known.slope > 0.5


@pytest.mark.parametrize("sde", [True, False], ids=["sde", "ode"])
def test_the_noise_of_a_multistep_sampler_makes_room_for_residuals_that_it_meets_twice(sde):
    """States of Gaussian data keep their variance, which the rule of one step misses; an ODE stays one."""
    model, v, count = GaussianDenoiser((1, 1, 1), 0.0, 0.5), 0.004, 400_000
    table = DPMSolver(8, 2, sde).table(dict(model.scheduler_config))
    slopes = [float(model.predict(torch.ones(()).double(), step).m) for step in table]
    residuals = [Residual(v, absorbed=1, slope=slope) for slope in slopes]
    single = [one.sigma(step) for one, step in zip(residuals, table, strict=True)]
    reports = [StepReport(step.t, 0.0, 0.0, v, step.sigma, step.sigma, 1.0, None, 1.0, step.snr) for step in table]
    rows = zip(single, reports, residuals, strict=True)
    corrections = absorbing([StepCorrection((), sigma, report, residual=one) for sigma, report, one in rows], table)
    ours = [one.sigma for one in corrections]

    def variances(sigmas, noise):
        draw = torch.Generator().manual_seed(0)
        state, found = table.start(torch.randn(count, 1, 1, 1, generator=draw).double()), []
        for step, sigma in zip(table, sigmas, strict=True):
            r, z = torch.randn(2, count, 1, 1, 1, generator=draw).double()
            state = step.advance(state, model.predict(state.x, step).m + noise * v**0.5 * r, sigma, z)
            found.append(float(state.x.var()))
        return torch.tensor(found[:-1])

    exact = variances([step.sigma for step in table], 0.0)
    misses = [(variances(sigmas, 1.0) / exact - 1).abs().max() for sigmas in (ours, single)]
    if sde:
        assert misses[0] < 0.01 and misses[1] > 3 * misses[0]
    else:
        assert ours == single == [0.0] * len(table)
