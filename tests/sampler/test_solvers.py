"""Whole trajectories of Euler, DPM-Solver++, LCM and flow matching equal those of diffusers' schedulers."""

import itertools
import json
import math

import pytest
import torch
from diffusers import DPMSolverMultistepScheduler, FlowMatchEulerDiscreteScheduler

from ptq_diffusion.sampler import LCM, DPMSolver, Euler, EulerAncestral, FlowEuler, Process
from tests.sampler.schedules import KINDS, SCALED, assert_equal_states, config_of, diffusers_states, our_states

SOLVERS = {
    "euler": (Euler, {}),
    "euler_ancestral": (EulerAncestral, {}),
    "dpm_solver, order 1": (DPMSolver, {"order": 1, "sde": False}),
    "dpm_solver, order 2": (DPMSolver, {"order": 2, "sde": False}),
    "dpm_solver, order 1, sde": (DPMSolver, {"order": 1, "sde": True}),
    "dpm_solver, order 2, sde": (DPMSolver, {"order": 2, "sde": True}),
    "lcm": (LCM, {}),
}
"""Constructors, and their options beside steps and scheduler."""
PREDICTIONS = ["epsilon", "v_prediction", "sample"]
SIGMAS = ["use_karras_sigmas", "use_exponential_sigmas", "use_beta_sigmas"]
OPTIONS = {
    "leading": {"steps_offset": 1},
    "linspace": {"timestep_spacing": "linspace"},
    "trailing": {"timestep_spacing": "trailing"},
    "cosine": {"beta_schedule": "squaredcos_cap_v2"},
    "scaled linear": {"beta_schedule": "scaled_linear", "beta_start": 0.00085, "beta_end": 0.012},
    "betas": {"trained_betas": torch.linspace(0.001, 0.02, 1000).tolist()},
    "zero terminal signal": {"timestep_spacing": "trailing", "rescale_betas_zero_snr": True},
}
OWN_OPTIONS = {
    "euler": [{name: True} for name in SIGMAS]
    + [{"final_sigmas_type": "sigma_min"}, {"interpolation_type": "log_linear"}, {"timestep_type": "continuous"}],
    "dpm_solver": [{name: True} for name in [*SIGMAS, "use_lu_lambdas"]]
    + [{"final_sigmas_type": "sigma_min"}, {"solver_type": "heun"}, {"euler_at_final": True}],
    "lcm": [{"clip_sample": True}, {"original_inference_steps": 40}, {"timestep_scaling": 3.0}],
}
"""Options that only some schedulers have."""
TOLERANCE = 2e-5
"""Of float32, in which diffusers keeps coefficients and states."""
every_solver_of_diffusers = pytest.mark.parametrize(
    ("name", "prediction"),
    # Euler ancestral of networks that predict x_0 is missing in diffusers.
    [pair for pair in itertools.product(SOLVERS, PREDICTIONS) if pair != ("euler_ancestral", "sample")],
)


def tables(name, config, count, options=None):
    """Our table and diffusers' scheduler of one configuration."""
    make, own = SOLVERS[name]
    kind = KINDS[name.partition(",")[0]]
    theirs = {}
    if kind is DPMSolverMultistepScheduler:
        algorithm = "sde-dpmsolver++" if own["sde"] else "dpmsolver++"
        theirs = {"solver_order": own["order"], "algorithm_type": algorithm}
    table = make(steps=count, scheduler=options or {}, **own).table(config)
    return table, kind.from_config(config, **(options or {}) | theirs)


def assert_equals_diffusers(name, config, counts, options=None):
    for count in counts:
        table, scheduler = tables(name, config, count, options)
        theirs = diffusers_states(scheduler, count, scaled=name in SCALED)
        assert [step.t for step in table] == scheduler.timesteps.tolist()
        assert_equal_states(our_states(table), theirs, TOLERANCE)


@every_solver_of_diffusers
@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)
def test_a_trajectory(name, prediction, options):
    if (name, prediction) == ("lcm", "epsilon") and "rescale_betas_zero_snr" in options:
        with pytest.raises(ValueError, match="which says nothing of x_0 where it is 0"):
            tables(name, config_of(name, prediction_type=prediction, **options), 4)
        return
    config = config_of(name, prediction_type=prediction, **options)
    assert_equals_diffusers(name, config, (4, 20))


@pytest.mark.parametrize(
    ("name", "options"),
    [
        pytest.param(name, options, id=f"{name}-{next(iter(options))}")
        for name in SOLVERS
        for options in OWN_OPTIONS.get(name.partition(",")[0], [])
    ],
)
def test_a_trajectory_with_options_of_its_own(name, options):
    """Fifteen steps and more end otherwise than fewer."""
    prediction = "v_prediction" if "timestep_type" in options else "epsilon"
    assert_equals_diffusers(name, config_of(name, prediction_type=prediction), (3, 14, 15), options)


FLOWS = {
    "plain": {},
    "shift": {"shift": 3.0},
    "dynamic": {"use_dynamic_shifting": True},
    "linear dynamic": {"use_dynamic_shifting": True, "time_shift_type": "linear"},
    "terminal": {"shift_terminal": 0.1},
    "stochastic": {"stochastic_sampling": True, "shift": 2.0},
    **{name: {name: True} for name in SIGMAS},
}


def mu_of(tokens):
    """As pipelines of Flux and SD3 compute it, from 0.5 at 256 tokens to 1.15 at 4096."""
    return 0.5 + (tokens - 256) * (1.15 - 0.5) / (4096 - 256)


@pytest.mark.parametrize("options", FLOWS.values(), ids=FLOWS)
@pytest.mark.parametrize("linear", [True, False])
def test_a_trajectory_of_flow_matching(options, linear):
    config, tokens = config_of("flow_euler", **options), 1024
    for count in (2, 4, 20):
        asked = {"sigmas": torch.linspace(1, 1 / count, count, dtype=torch.float64).tolist()} if linear else {}
        if options.get("use_dynamic_shifting"):
            asked["mu"] = mu_of(tokens)
        scheduler = FlowMatchEulerDiscreteScheduler.from_config(config)
        facts = {"image_seq_len": tokens, "linear_sigmas": linear}
        table = FlowEuler(count, {}).table(config | facts)
        theirs = diffusers_states(scheduler, count, **asked)
        assert [step.t for step in table] == scheduler.timesteps.tolist()
        assert_equal_states(our_states(table), theirs, TOLERANCE)


@pytest.mark.parametrize("name", [name for name in SOLVERS if name.startswith("dpm_solver")])
@pytest.mark.parametrize("shift", [1.0, 3.0])
def test_dpm_solver_of_flow_matching(name, shift):
    """From its own scheduler's configuration, as Sana's, and from that of Euler's method."""
    flow = {"prediction_type": "flow_prediction", "use_flow_sigmas": True, "flow_shift": shift}
    own = json.loads(DPMSolverMultistepScheduler(**flow).to_json_string())
    assert_equals_diffusers(name, own, (4, 20))
    make, options = SOLVERS[name]
    assert make(steps=20, **options).table(config_of("flow_euler", shift=shift)) == make(steps=20, **options).table(own)
    assert FlowEuler(20).table(own) == FlowEuler(20).table(config_of("flow_euler", shift=shift))


@every_solver_of_diffusers
def test_gains_are_derivatives_of_diffusers_step(name, prediction):
    """By differences of the second step, affine in m, x_t and the earlier x_0."""
    table, scheduler = tables(name, config_of(name, prediction_type=prediction), 8)
    generator = torch.Generator().manual_seed(0)
    x, m = torch.randn(2, 1, 1, 4, 4, generator=generator)

    def second(first_m, x_t, second_m):
        scheduler.set_timesteps(8)
        for i, (output, state) in enumerate(((first_m, x), (second_m, x_t))):
            # Schedulers that scale the network's input are given the state before that.
            size = (1 + float(scheduler.sigmas[i]) ** 2) ** 0.5 if name in SCALED else 1.0
            scheduler.is_scale_input_called = True
            noise = torch.Generator().manual_seed(1)
            x_s = scheduler.step(output, scheduler.timesteps[i], size * state, generator=noise).prev_sample
        return x_s / ((1 + float(scheduler.sigmas[2]) ** 2) ** 0.5 if name in SCALED else 1.0)

    step, base = table[1], second(m, x, m)
    earlier = table[0].p_m * step.c_0[1] if len(step.c_0) > 1 else 0.0
    for changed, expected in (
        (second(m, x, m + 1), step.gain),
        (second(m, x + 1, m), step.carry),
        (second(m + 1, x, m), earlier),
    ):
        assert torch.allclose(changed - base, torch.tensor(expected), rtol=1e-3, atol=1e-4)


def test_the_gains_of_the_method():
    """For epsilon, of Euler ancestral, the first-order SDE and flow matching."""
    count = 10
    euler, scheduler = tables("euler_ancestral", config_of("euler"), count)
    scheduler.set_timesteps(count)
    for step, sigma_t, sigma_s in zip(
        euler, scheduler.sigmas[:-1].double(), scheduler.sigmas[1:].double(), strict=True
    ):
        up = (sigma_s**2 * (sigma_t**2 - sigma_s**2) / sigma_t**2) ** 0.5
        size = (1 + sigma_s**2) ** 0.5
        assert step.gain * size == pytest.approx(float((sigma_s**2 - up**2) ** 0.5 - sigma_t), rel=1e-6)
        assert step.sigma * size == pytest.approx(float(up), rel=1e-6)
    sde = DPMSolver(count, 1, True).table(config_of("dpm_solver"))
    for step, after in zip(sde[:-1], sde[1:], strict=True):
        h = math.log(after.signal / after.noise) - math.log(step.signal / step.noise)
        assert step.gain == pytest.approx(-step.noise / step.signal * after.signal * (1 - math.exp(-2 * h)), rel=1e-9)
        assert step.sigma**2 == pytest.approx(after.noise**2 * (1 - math.exp(-2 * h)), rel=1e-9)
    for step in FlowEuler(count).table(config_of("flow_euler")):
        assert step.gain == pytest.approx(-0.1 if step.i < 9 else -step.noise, abs=2e-2) and step.sigma == 0


def test_a_second_order_table_reads_the_prediction_before():
    table = DPMSolver(20).table(config_of("dpm_solver"))
    assert [len(step.c_0) for step in table] == [2] * 19 + [1]
    assert table[0].c_0[1] == 0 and all(step.c_0[1] < 0 for step in table[1:-1])
    # A prediction that does not change is a step of first order.
    for step, first in zip(table, DPMSolver(20, 1).table(config_of("dpm_solver")), strict=True):
        assert sum(step.c_0) == pytest.approx(first.c_0[0], rel=1e-12)


def test_where_a_flow_is_not_on_its_straight_path_it_is_refused():
    with pytest.raises(ValueError, match="signal \\+ noise = 1 of a model of flow matching"):
        Process.of_abar(0.5, "flow_prediction").coefficients()


@pytest.mark.parametrize("solver", ["midpoint", "heun"])
def test_a_last_step_that_ends_where_it_begins_is_one(solver):
    """Karras' levels down to sigma_min end in it twice; diffusers divides 0 by 0 there."""
    scheduler = {"solver_type": solver, "use_karras_sigmas": True, "final_sigmas_type": "sigma_min"}
    table = DPMSolver(20, 2, False, scheduler).table(config_of("dpm_solver", **OPTIONS["linspace"]))
    x = torch.randn(1, 1, 4, 4, generator=torch.Generator().manual_seed(0)).double()
    assert torch.allclose(table[-1].mean(x, 0.3 * x, [0.5 * x]), x)
