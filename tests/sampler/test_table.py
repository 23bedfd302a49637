"""Identities of the table, over every sampler of conf/sampler."""

import dataclasses
import itertools
import json
import math

import pytest
import torch
from diffusers import DDPMScheduler

from ptq_diffusion.sampler import DDIM, DDPM, Step, Table
from tests.sampler.schedules import CLIPPED, KINDS, SAMPLERS, configured, ddpm_config
from tests.sampler.schedules import config_of as config_for

PREDICTIONS = ["epsilon", "v_prediction", "sample"]

every_sampler = pytest.mark.parametrize("name", SAMPLERS)
every_sampler_of_betas = pytest.mark.parametrize("name", [name for name in SAMPLERS if name != "flow_euler"])


def test_every_sampler_has_a_scheduler_of_diffusers_beside_it():
    assert KINDS.keys() == set(SAMPLERS)


def states(seed=0):
    """x_t and epsilon in float64."""
    return torch.randn(2, 3, 1, 4, 4, generator=torch.Generator().manual_seed(seed)).double()


@every_sampler_of_betas
@pytest.mark.parametrize("clip", [True, False])
@pytest.mark.parametrize("spacing", ["leading", "trailing", "linspace"])
def test_three_parameterizations_of_one_prediction_give_one_step(name, clip, spacing):
    tables = [
        configured(name).table(ddpm_config(prediction_type=kind, clip_sample=clip, timestep_spacing=spacing))
        for kind in PREDICTIONS
    ]
    x, epsilon = states()
    for of_epsilon, of_v, of_sample in zip(*tables, strict=True):
        # The first row may scale x_T = z.
        size = (of_epsilon.signal**2 + of_epsilon.noise**2) ** 0.5
        signal, noise = of_epsilon.signal / size, of_epsilon.noise / size
        x_0, past = (x / size - noise * epsilon) / signal, [torch.ones_like(x)]
        expected = of_epsilon.mean(x, epsilon, past)
        for step, m in ((of_v, signal * epsilon - noise * x_0), (of_sample, x_0)):
            assert torch.allclose(step.mean(x, m, past), expected, rtol=1e-9, atol=1e-9 * float(x_0.abs().max()))
            assert step.sigma == of_epsilon.sigma
        # One error of x_0 is one error of x_s, whatever the parameterization: b is its multiple.
        assert of_epsilon.gain == pytest.approx(-noise / signal * of_sample.gain, rel=1e-6, abs=1e-12)
        assert of_v.gain == pytest.approx(-noise * of_sample.gain, rel=1e-6, abs=1e-12)


@pytest.mark.parametrize("prediction", PREDICTIONS)
@pytest.mark.parametrize(("count", "offset"), [(1, 0), (5, 0), (7, 0), (20, 1), (50, 0), (1000, 0)])
def test_ddim_with_all_its_noise_is_ddpm(prediction, count, offset):
    config = ddpm_config(prediction_type=prediction, steps_offset=offset, variance_type="fixed_small")
    x, m = states()
    for ddim, ddpm in zip(DDIM(count, 1.0, {}).table(config), DDPM(count, {}).table(config), strict=True):
        assert ddim.t == ddpm.t
        assert torch.allclose(ddim.mean(x, m), ddpm.mean(x, m), rtol=1e-9, atol=1e-9)
        assert ddim.sigma == pytest.approx(ddpm.sigma, rel=1e-9)
        assert ddim.gain == pytest.approx(ddpm.gain, rel=1e-7, abs=1e-9)


@pytest.mark.parametrize("count", [5, 20])
def test_the_gains_of_the_method(count):
    """The table in method.md, for a step from t to s, with alpha_t = abar_t / abar_s."""
    abar = DDPMScheduler().alphas_cumprod.double()
    stride = 1000 // count
    for eta, kind in itertools.product((0.0, 0.5, 1.0), PREDICTIONS):
        for step in DDIM(count, eta, {}).table(ddpm_config(prediction_type=kind)):
            at = abar[step.t]
            a_s = abar[step.t - stride] if step.t >= stride else torch.tensor(1.0).double()
            base = (1 - a_s - step.sigma**2).clamp(min=0).sqrt() - (a_s * (1 - at) / at).sqrt()
            factor = {"epsilon": 1.0, "v_prediction": at.sqrt(), "sample": -(at / (1 - at)).sqrt()}[kind]
            assert step.gain == pytest.approx(float(factor * base), rel=1e-9)
            assert step.sigma**2 == pytest.approx(float(eta**2 * (1 - a_s) / (1 - at) * (1 - at / a_s)), rel=1e-9)
    for step in DDPM(count, {}).table(ddpm_config()):
        at = abar[step.t]
        alpha = at / abar[step.t - stride] if step.t >= stride else at
        assert step.gain == pytest.approx(float(-(1 - alpha) / (alpha.sqrt() * (1 - at).sqrt())), rel=1e-9)


@every_sampler
def test_without_noise_there_is_none(name):
    """The last step adds none, those before all or none, and eta = 0 adds none at all."""
    steps = configured(name).table(config_for(name))
    assert steps[-1].sigma == 0 and len({step.sigma > 0 for step in steps[:-1]}) == 1
    assert all(step.sigma == 0 for step in DDIM(20, 0.0, {}).table(ddpm_config()))


def test_eta_scales_the_noise_and_leaves_less_for_the_direction():
    none, half, full = (DDIM(20, eta, {}).table(ddpm_config()) for eta in (0.0, 0.5, 1.0))
    for a, b, c in zip(none, half, full, strict=True):
        assert b.sigma == pytest.approx(c.sigma / 2)
        assert a.direction**2 == pytest.approx(b.direction**2 + b.sigma**2) == c.direction**2 + c.sigma**2


@every_sampler
def test_clipping_acts_on_x_0_alone(name):
    x, m = states()
    if name not in CLIPPED:
        assert {step.clip for step in configured(name).table(config_for(name) | {"clip_sample": True})} == {None}
        return
    clipped, free = (configured(name).table(ddpm_config(clip_sample=clip)) for clip in (True, False))
    for a, b in zip(clipped, free, strict=True):
        assert a.predict_x_0(x, m).abs().max() <= 1
        assert torch.equal(a.predict_x_0(x, m), b.predict_x_0(x, m).clamp(-1, 1))
        assert torch.equal(a.mean(x, m), b.c_x * x + b.c_m * m + b.c_0[0] * b.predict_x_0(x, m).clamp(-1, 1))


@pytest.mark.parametrize("kind", PREDICTIONS)
def test_another_direction_keeps_all_but_the_coefficient_of_epsilon(kind):
    x, epsilon = states()
    for step in DDIM(20, 1.0, {}).table(ddpm_config(prediction_type=kind)):
        assert step.with_direction_of(step.sigma) == step
        signal, noise = step.abar_t**0.5, (1 - step.abar_t) ** 0.5
        x_0 = (x - noise * epsilon) / signal
        m = {"epsilon": epsilon, "v_prediction": signal * epsilon - noise * x_0, "sample": x_0}[kind]
        for sigma in (0.0, step.sigma / 2):
            other = step.with_direction_of(sigma)
            # 1 - abar_s is what direction and noise share.
            expected = (step.direction**2 + step.sigma**2 - sigma**2) ** 0.5 if step.direction else 0.0
            assert other.direction == pytest.approx(expected)
            assert other.sigma == step.sigma
            moved = other.mean(x, m) - step.mean(x, m)
            scale = 1e-8 * float(x_0.abs().max())
            assert torch.allclose(moved, (expected - step.direction) * epsilon, rtol=1e-8, atol=scale)


def test_a_sampler_without_direction_says_so():
    for step in DDPM(5, {}).table(ddpm_config()):
        with pytest.raises(ValueError, match="sampler=ddim"):
            step.with_direction_of(0.0)


@every_sampler
def test_fingerprints_tell_tables_apart(name):
    sampler, config = configured(name), config_for(name)
    base = sampler.table(config)
    assert base == configured(name).table(config)
    assert base.fingerprint() == configured(name).table(config).fingerprint()
    clipped = {"clip_sample": True}
    changes = [clipped, clipped | {"clip_sample_range": 2.0}] if name in CLIPPED else []
    if name == "flow_euler":
        changes += [{"shift": 3.0}, {"use_karras_sigmas": True}, {"linear_sigmas": True}]
    else:
        changes += [{"prediction_type": "sample"}, {"beta_schedule": "squaredcos_cap_v2"}]
    if name not in ("flow_euler", "lcm"):
        changes.append({"timestep_spacing": "trailing"})
    others = [sampler.table(config | change) for change in changes]
    others += [configured(name, steps=3).table(config), base[:-1]]
    assert len({base.fingerprint(), *(other.fingerprint() for other in others)}) == len(others) + 1
    assert len({DDIM(20, eta, {}).table(ddpm_config()).fingerprint() for eta in (0.0, 0.5, 1.0)}) == 3


def other_value(value):
    """A value of the same type that is not this one."""
    return {str: f"{value}!", tuple: (*value, 0.5)}[type(value)] if isinstance(value, str | tuple) else (value or 0) + 1


@pytest.mark.parametrize("name", [f.name for f in dataclasses.fields(Step) if f.name != "clip"])
@pytest.mark.parametrize("place", [0, -1])
def test_a_step_that_differs_in_anything_makes_another_table(name, place):
    base = DDIM(5, 0.5, {}).table(ddpm_config())
    steps = list(base)
    steps[place] = dataclasses.replace(steps[place], **{name: other_value(getattr(steps[place], name))})
    assert base.with_steps(steps) != base and base.with_steps(steps).fingerprint() != base.fingerprint()


@pytest.mark.parametrize("name", ["sampler", "prediction", "init_scale"])
def test_a_property_of_the_table_that_differs_makes_another(name):
    base = DDIM(5, 0.5, {}).table(ddpm_config())
    other = dataclasses.replace(base, **{name: other_value(getattr(base, name))})
    assert other != base and other.fingerprint() != base.fingerprint()


def test_equal_tables_have_one_fingerprint_however_their_times_are_written():
    base = DDIM(5, 0.5, {}).table(ddpm_config())
    floats = base.with_steps(dataclasses.replace(step, t=float(step.t)) for step in base)
    assert floats == base and floats.fingerprint() == base.fingerprint()


@pytest.mark.parametrize(
    ("name", "prediction"),
    [*itertools.product(sorted(set(SAMPLERS) - {"flow_euler"}), PREDICTIONS), ("flow_euler", "flow_prediction")],
)
@pytest.mark.parametrize("clip", [True, False])
def test_a_table_is_the_same_after_json(name, clip, prediction):
    said = {"clip_sample": clip, "prediction_type": prediction}
    table = configured(name).table(config_for(name) | said)
    again = Table.from_json(json.loads(json.dumps(table.to_json())))
    assert again == table and again.fingerprint() == table.fingerprint() and hash(again) == hash(table)
    assert [type(step.t) for step in again] == [type(step.t) for step in table]
    assert (table.sampler, table.prediction, table.clip) == (
        name,
        prediction,
        1.0 if clip and name in CLIPPED else None,
    )


BROKEN = {
    "no table": lambda table: [],
    "nothing": lambda table: None,
    "another version": lambda table: table | {"format": 1},
    "no version": lambda table: {key: value for key, value in table.items() if key != "format"},
    "no steps": lambda table: {key: value for key, value in table.items() if key != "steps"},
    "an unknown field": lambda table: table | {"colour": 1},
    "steps that are a word": lambda table: table | {"steps": "steps"},
    "a step that is a number": lambda table: table | {"steps": [3]},
    "a prediction that is a number": lambda table: table | {"prediction": 3},
    "a shift that is a number": lambda table: table | {"dynamic_shift": 1.0},
    "a shift without a line": lambda table: table | {"dynamic_shift": {"mu": 1.0}},
    "a scale that is a word": lambda table: table | {"init_scale": "1"},
    "a scale that is true": lambda table: table | {"init_scale": True},
    "a clip unlike the steps'": lambda table: table | {"clip": 0.5},
    **{
        f"{name} = {value!r:.20}": lambda table, name=name, value=value: (
            table | {"steps": [*table["steps"][:1], table["steps"][1] | {name: value}]}
        )
        for name, value in [
            ("i", 1.0),
            ("t", "1"),
            ("c_x", None),
            ("c_0", 1.0),
            ("c_0", []),
            ("c_0", ["1"]),
            ("sigma", math.inf),
            ("sigma", math.nan),
            ("sigma", 10**400),
            ("signal", True),
            ("direction", "x"),
            ("colour", 1),
        ]
    },
}


@pytest.mark.parametrize("broken", BROKEN.values(), ids=BROKEN)
def test_json_that_is_no_table_is_refused_in_one_line(broken):
    table = json.loads(json.dumps(DDIM(5, 0.5, {}).table(ddpm_config()).to_json()))
    with pytest.raises(ValueError, match="^expected .*(make|replace)") as refused:
        Table.from_json(broken(table))
    assert "\n" not in str(refused.value)


@every_sampler
def test_a_table_is_the_sequence_of_its_steps(name):
    table = configured(name, steps=5).table(config_for(name))
    assert list(table) == list(table.steps) == [table[i] for i in range(5)] and len(table) == 5
    assert table[1:3] == table.with_steps(table.steps[1:3]) and table.with_steps(table) == table
    for step in table:
        assert table.at(step.t) is table.at(float(step.t)) is step
    times = [step.t for step in table]
    with pytest.raises(ValueError, match=f"one of {', '.join(map(str, times))}, got 501.5"):
        table.at(501.5)
    with pytest.raises(ValueError, match=f"whose times differ, got {times[0]}, {times[0]}"):
        table.with_steps([table[0], table[0]]).with_distinct_times()


def test_fractional_times_are_found_as_tensors_hold_them():
    table = DDIM(2, 0.5, {}).table(ddpm_config())
    table = table.with_steps([dataclasses.replace(table[0], t=500.1), table[1]])
    assert table.at(torch.tensor(500.1).item()) is table[0] and torch.tensor(500.1).item() != 500.1


def test_a_table_whose_steps_clip_otherwise_is_refused():
    table = DDIM(2, 0.5, {}).table(ddpm_config())
    with pytest.raises(ValueError, match=r"all clip x_0 to 1.0, got None at t = 500"):
        dataclasses.replace(table, clip=1.0)


@every_sampler
@pytest.mark.parametrize("spacing", ["leading", "linspace"])
def test_x_t_is_standard_normal_noise_that_the_first_row_scales(name, spacing):
    """To the noise alone, without the variance of a signal, where Euler's schedulers of diffusers begin so."""
    table = configured(name).table(config_for(name) | {"timestep_spacing": spacing})
    scaled = name.startswith("euler") and spacing == "linspace"
    assert table.init_scale == 1 and (table[0].input_scale < 1) is scaled
    assert table[0].noise == pytest.approx(1) if scaled else table[0].input_scale == 1
    assert {step.input_scale for step in table[1:]} == {1}
    assert {len(step.c_0) for step in table} <= ({1, 2} if name == "dpm_solver" else {1})
