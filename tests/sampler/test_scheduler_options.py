"""Options of schedulers: what is reproduced, taken from the model or replaced, and what is refused."""

import inspect
import json

import diffusers
import numpy as np
import pytest
import torch
from diffusers import DDIMScheduler, DDPMScheduler, FlowMatchEulerDiscreteScheduler, ScoreSdeVeScheduler

from ptq_diffusion.sampler import DDIM, DDPM, scheduler_options
from ptq_diffusion.sampler.scheduler_values import EXPECTED, NOT_READ, require_values
from tests.sampler.schedules import KINDS
from tests.sampler.schedules import config_of as config_for
from tests.sampler.schedules import configured as sampler_of

SAMPLERS = {
    "ddim": lambda steps=20, scheduler=(): DDIM(steps, 1.0, dict(scheduler)),
    "ddpm": lambda steps=20, scheduler=(): DDPM(steps, dict(scheduler)),
}
every_sampler = pytest.mark.parametrize("name", SAMPLERS)


def configured(name, **options):
    return SAMPLERS[name](**options)


def config_of(kind=DDPMScheduler, **options):
    """As in scheduler_config.json."""
    return json.loads(kind(**({"clip_sample": False} if kind is DDPMScheduler else {}) | options).to_json_string())


@every_sampler
@pytest.mark.parametrize(
    ("options", "remedy"),
    [
        ({"thresholding": True}, "thresholding=false"),
        ({"prediction_type": "flow"}, "expected prediction_type epsilon, v_prediction, sample or flow_prediction"),
        (
            {"rescale_betas_zero_snr": True, "timestep_spacing": "trailing"},
            "set .sampler.scheduler.rescale_betas_zero_snr=false",
        ),
        ({"steps_offset": 60}, "steps_offset"),
    ],
    ids=["thresholding", "prediction", "zero terminal signal", "offset"],
)
def test_options_that_are_not_reproduced_are_refused(name, options, remedy):
    with pytest.raises(ValueError, match=remedy):
        configured(name, steps=20).table(config_of() | options)


@pytest.mark.parametrize("variance", ["learned", "fixed_large_log"])
def test_variances_that_are_not_reproduced_are_refused(variance):
    with pytest.raises(ValueError, match=f"got '{variance}'; set .sampler.scheduler.variance_type"):
        DDPM(20, {}).table(config_of(variance_type=variance))
    assert DDPM(20, {"variance_type": "fixed_small"}).table(config_of(variance_type=variance))
    assert DDIM(20, 1.0, {}).table(config_of(variance_type=variance)) == DDIM(20, 1.0, {}).table(config_of())


@every_sampler
@pytest.mark.parametrize("kind", [ScoreSdeVeScheduler, FlowMatchEulerDiscreteScheduler])
def test_schedulers_of_another_process_are_refused(name, kind):
    with pytest.raises(ValueError, match=f"with a beta_schedule, .*{kind.__name__}"):
        configured(name).table(json.loads(kind().to_json_string()))


@every_sampler
def test_options_that_no_scheduler_has_are_refused(name):
    with pytest.raises(ValueError, match="got timestep_spacin"):
        configured(name, scheduler={"timestep_spacin": "trailing"}).table(config_of())


OTHERS = {
    "PNDMScheduler": {"ddim": {"clip_sample"}, "ddpm": {"clip_sample", "variance_type"}},
    "EulerDiscreteScheduler": {"ddim": {"clip_sample", "set_alpha_to_one"}, "ddpm": {"clip_sample", "variance_type"}},
    "DPMSolverMultistepScheduler": {"ddim": {"clip_sample", "set_alpha_to_one"}, "ddpm": {"clip_sample"}},
    "UniPCMultistepScheduler": {
        "ddim": {"clip_sample", "set_alpha_to_one"},
        "ddpm": {"clip_sample", "variance_type"},
    },
    "LCMScheduler": {"ddim": set(), "ddpm": {"variance_type"}},
}
GIVEN = {"clip_sample": False, "set_alpha_to_one": True, "variance_type": "fixed_small"}


@every_sampler
@pytest.mark.parametrize("kind", OTHERS)
def test_what_a_scheduler_of_another_kind_does_not_say_is_asked_for(name, kind):
    config, missing = config_of(getattr(diffusers, kind), timestep_spacing="leading"), OTHERS[kind][name]
    sure = {key: GIVEN[key] for key in missing} | ({"variance_type": "fixed_small"} if name == "ddpm" else {})
    if missing:
        with pytest.raises(ValueError, match=f"says its {', '.join(sorted(missing))}, got .* {kind}") as refused:
            configured(name).table(config)
        for key in missing:
            assert f"+sampler.scheduler.{key}={str(GIVEN[key]).lower()}" in str(refused.value)
            with pytest.raises(ValueError, match=f"says its {key}, "):
                configured(name, scheduler={other: value for other, value in sure.items() if other != key}).table(
                    config
                )
    ours = {key: config[key] for key in ("beta_start", "beta_end", "beta_schedule")} | {"clip_sample": False}
    expected = configured(name).table(config_of(**ours))
    table = configured(name, scheduler=sure).table(config)
    if kind != "PNDMScheduler" or name != "ddim":  # PNDM ends at the first time of the training, as it says.
        assert table == expected
    assert table[:-1] == expected[:-1]


@every_sampler
@pytest.mark.parametrize(
    "key", ["clip_sample", "beta_start", "beta_schedule", "prediction_type", "timestep_spacing", "steps_offset"]
)
def test_a_file_of_another_kind_may_leave_out_the_defaults_of_its_class(name, key):
    """LCMScheduler's are others: a scaled linear schedule, and no clipping."""
    full = config_of(diffusers.LCMScheduler)
    config = {one: value for one, value in full.items() if one != key}
    sampler = configured(name, scheduler={"variance_type": "fixed_small"} if name == "ddpm" else {})
    assert sampler.table(config) == sampler.table(full)
    with pytest.raises(ValueError, match="with a beta_schedule" if key == "beta_schedule" else f"says its .*{key}"):
        sampler.table(config | {"_class_name": "MyScheduler"})


def test_the_file_of_stable_diffusion_is_taken_and_its_defaults_are_said_once(caplog):
    config = {"_class_name": "PNDMScheduler", "beta_start": 0.00085, "beta_end": 0.012, "set_alpha_to_one": False}
    config |= {"beta_schedule": "scaled_linear", "clip_sample": False, "steps_offset": 1}
    scheduler_options._say_taken.cache_clear()
    with caplog.at_level("INFO"):
        tables = [DDIM(20, 0.0, {}).table(config) for _ in range(2)]
    full = {"num_train_timesteps": 1000, "prediction_type": "epsilon", "timestep_spacing": "leading"}
    assert tables == [DDIM(20, 0.0, {}).table(config | full)] * 2
    assert caplog.messages == ["defaults of PNDMScheduler: " + ", ".join(f"{k}={value}" for k, value in full.items())]


@every_sampler
@pytest.mark.parametrize("kind", [DDPMScheduler, DDIMScheduler, diffusers.DDIMParallelScheduler])
def test_a_file_of_ddpm_or_ddim_may_leave_out_its_defaults(name, kind):
    full = config_of(kind, clip_sample=True)
    expected = configured(name).table(full)
    for key in [*full, None]:
        config = {"_class_name": kind.__name__} if key is None else {k: v for k, v in full.items() if k != key}
        if key != "_class_name":
            assert configured(name).table(config) == expected
    assert configured(name).table(dict(DDPMScheduler().config)) == expected


def test_a_configuration_without_its_class_says_all_of_it():
    live = dict(diffusers.PNDMScheduler().config)
    with pytest.raises(ValueError, match="says its clip_sample, got"):
        DDIM(20, 1.0, {}).table(live)
    with pytest.raises(ValueError, match="says its variance_type, got"):
        DDPM(20, {}).table(dict(DDIMScheduler().config))


WRONG = {
    "clip_sample": ["yes", None, 1, 0, [True], "false"],
    "thresholding": ["no", 0, None],
    "rescale_betas_zero_snr": ["yes", 1, None],
    "clip_sample_range": [None, 0, -1, "1", True, float("nan"), float("inf"), 10**400, [1]],
    "steps_offset": ["1", 1.0, True, None, -1, 1000, 10**30, [1]],
    "num_train_timesteps": ["1000", 1000.0, True, 0, -1, None, 10**12],
    "beta_start": ["0.1", True, None, float("nan"), [0.1], 10**400, 0.0, -0.1],
    "beta_end": ["0.1", True, None, float("inf"), {}, 0.0, 1.5],
    "beta_schedule": [3, None, ["linear"]],
    "trained_betas": ["none", 3, ["a", "b"], [True, False], [[0.1]], [0.001] * 50, [0.001] * 1001, []],
    "prediction_type": [3, None, ["epsilon"]],
    "timestep_spacing": [3, None, ["leading"]],
}


@every_sampler
@pytest.mark.parametrize(("key", "value"), [(key, value) for key, values in WRONG.items() for value in values])
def test_values_of_another_type_or_out_of_range_are_refused_in_one_line(name, key, value):
    config = config_of(clip_sample=True)
    for table in (
        lambda: configured(name).table(config | {key: value}),
        lambda: configured(name, scheduler={key: value}).table(config),
    ):
        with pytest.raises(ValueError, match=f"expected .*{key}.* got ") as refused:
            table()
        assert "\n" not in str(refused.value) and len(str(refused.value)) < 300


@pytest.mark.parametrize("name", KINDS)
def test_every_option_of_a_scheduler_has_expected_values_which_its_default_fits(name):
    parameters = dict(inspect.signature(KINDS[name].__init__).parameters)
    del parameters["self"]
    assert parameters.keys() <= EXPECTED.keys() | NOT_READ | {"clip_sample_range"}
    for key in parameters.keys() & EXPECTED.keys():
        assert EXPECTED[key].fits(parameters[key].default), key


VALUES = [None, True, False, 0, -1, 2, 0.5, 1e-12, 1e29, 1e31, float("nan"), float("inf"), 10**400, "yes", [1], {}]


@pytest.mark.parametrize("name", KINDS)
def test_an_option_of_any_value_is_taken_or_refused_in_one_line(name):
    kind, config = type(sampler_of(name)), config_for(name) | {"num_train_timesteps": 60, "image_seq_len": 64}
    known = inspect.signature(KINDS[name].__init__).parameters.keys() & EXPECTED.keys()
    for key in known - {"solver_order", "algorithm_type"}:
        dynamic = {"use_dynamic_shifting": True} if name == "flow_euler" and "_s" in key else {}
        karras = {"use_karras_sigmas": True} if key.startswith("sigma_") else {}
        for value in VALUES:
            options = dynamic | karras | {key: value}
            if EXPECTED[key].fits(value):
                try:
                    assert kind(steps=3, scheduler=options).table(config)
                    continue
                except ValueError as error:
                    message = str(error)
            else:
                with pytest.raises(ValueError, match=f"expected {key} of the scheduler to be ") as refused:
                    require_values({key: value})
                message = str(refused.value)
            assert message.startswith("expected ") and "\n" not in message and len(message) < 500, (options, message)


def test_other_noise_levels_than_those_of_flow_matching_are_refused():
    with pytest.raises(ValueError, match="use_karras_sigmas of the scheduler to be false of a model of flow matching"):
        sampler_of("dpm_solver", steps=3, scheduler={"use_karras_sigmas": True}).table(config_for("flow_euler"))


@pytest.mark.parametrize(
    ("name", "options", "remedy"),
    [
        ("ddim", {"set_alpha_to_one": "no"}, "set_alpha_to_one of the scheduler to be true or false, got 'no'"),
        ("lcm", {"original_inference_steps": 0}, "a whole number from 1"),
        ("lcm", {"original_inference_steps": 1001}, "at most num_train_timesteps, 1000, got 1001"),
        ("lcm", {"timestep_scaling": None}, "a number above 0, got None"),
        ("euler", {"use_karras_sigmas": True, "sigma_min": "foo"}, "sigma_min of the scheduler to be a number above 0"),
        ("dpm_solver", {"lambda_min_clipped": "foo"}, "a number or -inf, got 'foo'"),
        ("dpm_solver", {"euler_at_final": "yes"}, "true or false, got 'yes'"),
        ("dpm_solver", {"lower_order_final": None}, "true or false, got None"),
        ("flow_euler", {"use_dynamic_shifting": True, "max_shift": None}, "a number where use_dynamic_shifting is"),
        ("flow_euler", {"use_dynamic_shifting": True, "max_image_seq_len": 256}, "above base_image_seq_len, 256"),
        ("flow_euler", {"shift_terminal": 1.0}, "from 0 to below 1, or null"),
    ],
    ids=str,
)
def test_a_value_that_only_one_sampler_reads_is_checked_too(name, options, remedy):
    with pytest.raises(ValueError, match=remedy):
        sampler_of(name, scheduler=options).table(config_for(name))


@every_sampler
def test_a_range_that_is_not_used_may_be_none(name):
    config = config_of() | {"clip_sample_range": None}
    assert configured(name).table(config) == configured(name).table(config_of())


@every_sampler
@pytest.mark.parametrize("pack", [list, tuple, np.array])
def test_betas_themselves_take_the_place_of_a_schedule(name, pack):
    betas = DDPMScheduler().betas.tolist()
    assert configured(name).table(config_of() | {"trained_betas": pack(betas)}) == configured(name).table(config_of())


@every_sampler
@pytest.mark.parametrize(
    "betas",
    [
        [0.1, 1.0, 0.1, 0.1],
        [0.1, -0.05, 0.1, 0.1],
        [0.0, 0.1, 0.1, 0.1],
        [0.1, 2.0, 2.0, 0.1],
        [0.1, 0.1, 0.1, 2.0],
    ],
    ids=["no signal before the end", "noise that falls", "no noise", "negative", "negative at the end"],
)
def test_betas_of_no_process_are_refused(name, betas):
    config = config_of(prediction_type="sample") | {"trained_betas": betas, "num_train_timesteps": 4}
    with pytest.raises(ValueError, match="betas that give 0 <= abar_t < 1, falling"):
        configured(name, steps=4).table(config)


@every_sampler
def test_a_time_that_adds_no_noise_is_a_process_too(name):
    config = config_of() | {"trained_betas": [0.1, 0.0, 0.1, 0.1], "num_train_timesteps": 4}
    signals = [step.signal for step in reversed(configured(name, steps=4).table(config))]
    assert signals[0] == signals[1] > signals[2] > signals[3]


@pytest.mark.parametrize("schedule", ["sigmoid", "laplace"])
@pytest.mark.parametrize("prediction", ["epsilon", "v_prediction", "sample"])
def test_ddim_takes_the_betas_of_a_schedule_that_ddpm_alone_knows(schedule, prediction):
    scheduler = DDPMScheduler(beta_schedule=schedule, prediction_type=prediction, clip_sample=False)
    config = json.loads(scheduler.to_json_string())
    table = DDIM(20, 1.0, {}).table(config)
    x, m = torch.randn(2, 3, 1, 4, 4, generator=torch.Generator().manual_seed(0)).double()
    for step, other in zip(table, DDPM(20, {}).table(config), strict=True):
        assert step.signal == other.signal == float(scheduler.alphas_cumprod[step.t]) ** 0.5
        assert torch.allclose(step.mean(x, m), other.mean(x, m), rtol=1e-9, atol=1e-9)
        assert step.sigma == pytest.approx(other.sigma, rel=1e-9)
    assert table == DDIM(20, 1.0, {"beta_schedule": schedule}).table(config_of(prediction_type=prediction))


def test_a_zero_terminal_signal_is_made_of_such_betas_once():
    scheduler = DDPMScheduler(beta_schedule="sigmoid", rescale_betas_zero_snr=True, prediction_type="sample")
    table = DDIM(20, 0.0, {"timestep_spacing": "trailing"}).table(json.loads(scheduler.to_json_string()))
    assert [step.signal for step in table] == [float(scheduler.alphas_cumprod[step.t]) ** 0.5 for step in table]
    assert table[0].signal == 0
