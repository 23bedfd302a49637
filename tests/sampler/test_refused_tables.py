"""Steps, options and models that a sampler has no table for are refused with what to set."""

import pytest

from ptq_diffusion.sampler import DDIM, DPMSolver, FlowEuler
from tests.sampler.schedules import SAMPLERS, configured, ddpm_config
from tests.sampler.schedules import config_of as config_for


@pytest.mark.parametrize("name", ["ddim", "ddpm", "euler", "euler_ancestral"])
def test_rounding_of_diffusers_that_adds_a_step_is_refused(name):
    """61 trailing steps of 1000 become 62, the last at t = -1."""
    with pytest.raises(ValueError, match="expected 61 times between 999 and 0, diffusers gives 62"):
        configured(name, steps=61).table(ddpm_config(timestep_spacing="trailing"))


@pytest.mark.parametrize("name", SAMPLERS)
def test_numbers_of_steps_that_make_no_sense_are_refused(name):
    for steps in (0, -3):
        with pytest.raises(ValueError, match="at least one step"):
            configured(name, steps=steps)
    with pytest.raises(ValueError, match="1001"):
        configured(name, steps=1001).table(config_for(name))


@pytest.mark.parametrize("name", ["ddim", "ddpm"])
def test_more_steps_than_times_and_times_beyond_the_last_are_refused(name):
    with pytest.raises(ValueError, match="sampler.steps of at most 1000, the times of the training, got 1001"):
        configured(name, steps=1001).table(ddpm_config())
    with pytest.raises(ValueError, match="expected 1000 times between 999 and 0, diffusers gives 1000, 1000 to 1"):
        configured(name, steps=1000).table(ddpm_config(timestep_spacing="leading", steps_offset=1))


def test_times_that_are_too_many_for_the_noise_to_fall_are_refused():
    """Exponential sigmas down from sigma_min are level."""
    with pytest.raises(ValueError, match=r"expected noise that falls at each of 5 steps, diffusers gives .*; take"):
        configured("euler", steps=5, scheduler={"use_karras_sigmas": True, "sigma_max": 0.1, "sigma_min": 0.1}).table(
            ddpm_config()
        )


def test_options_that_say_two_things_are_refused():
    for option, remedy in (("solver_order", "order"), ("algorithm_type", "sde")):
        with pytest.raises(ValueError, match=f"without {option}, .*; set sampler.{remedy}"):
            DPMSolver(5, scheduler={option: 1})
    with pytest.raises(ValueError, match="expected order to be 1 or 2, got 3"):
        DPMSolver(5, 3)
    flow = config_for("flow_euler", use_dynamic_shifting=True)
    with pytest.raises(ValueError, match="how many tokens its states are"):
        FlowEuler(5).table(flow)
    with pytest.raises(ValueError, match="with one shift, got one with use_dynamic_shifting; set sampler=flow_euler"):
        DPMSolver(5).table(flow)
    with pytest.raises(ValueError, match="expected use_flow_sigmas with prediction_type=flow_prediction"):
        DPMSolver(5, scheduler={"use_flow_sigmas": True}).table(ddpm_config())
    with pytest.raises(ValueError, match="expected the scheduler of a model of flow matching, .* got that of DDPM"):
        FlowEuler(5).table(ddpm_config())


@pytest.mark.parametrize("name", sorted(set(SAMPLERS) - {"flow_euler", "dpm_solver"}))
def test_a_model_of_flow_matching_names_its_sampler(name):
    with pytest.raises(ValueError, match="FlowMatchEulerDiscreteScheduler, of flow matching; set sampler=flow_euler"):
        configured(name).table(config_for("flow_euler"))


@pytest.mark.parametrize("eta", [-0.1, 1.1])
def test_eta_out_of_range_is_refused(eta):
    with pytest.raises(ValueError, match=r"expected eta in \[0, 1\]"):
        DDIM(20, eta, {})
