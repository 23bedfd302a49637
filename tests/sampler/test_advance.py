"""The one update: bit for bit the formula, with earlier predictions of x_0 where a table has coefficients of them."""

import dataclasses
import json

import pytest
import torch
from diffusers import DDPMScheduler

from ptq_diffusion.numeric.seed import SampleNoise
from ptq_diffusion.sampler import DDIM, DDPM, State, Step, Table, sample
from ptq_diffusion.sampler.dynamic_shift import DynamicShift

SHAPE = (2, 4, 4)
SAMPLERS = {"ddim, eta 0": DDIM(7, 0.0, {}), "ddim, eta 0.5": DDIM(7, 0.5, {}), "ddpm": DDPM(7, {})}


def draw(seed, dtype=torch.float32):
    return torch.randn(3, *SHAPE, generator=torch.Generator().manual_seed(seed)).to(dtype)


@pytest.mark.parametrize("sampler", SAMPLERS.values(), ids=SAMPLERS)
@pytest.mark.parametrize("prediction", ["epsilon", "v_prediction", "sample"])
@pytest.mark.parametrize("clip", [True, False])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_it_is_the_formula_bit_for_bit_and_one_step_keeps_no_past(sampler, prediction, clip, dtype):
    table = sampler.table(json.loads(DDPMScheduler(prediction_type=prediction, clip_sample=clip).to_json_string()))
    x, m, z = (draw(seed, dtype) for seed in range(3))
    for step in table:
        for sigma in (step.sigma, 0.3):
            x_0 = step.p_x * x + step.p_m * m
            x_0 = x_0.clamp(-1, 1) if clip else x_0
            (c_0,) = step.c_0
            mean = step.c_x * x + step.c_m * m + c_0 * x_0
            state = step.advance(State(x, ()), m, sigma, z)
            assert torch.equal(state.x, mean + sigma * z) and torch.equal(step.mean(x, m), mean)
            assert state.past == ()


def step_of(i, t, c_0, **options):
    """A network that says x_0, times 10, of which nothing is clipped unless asked."""
    coefficients = {"c_x": 0.5, "c_m": 0.25, "p_x": 0.0, "p_m": 0.1, "sigma": 2.0, "clip": None}
    others = {"input_scale": 1.0, "signal": 0.6, "noise": 0.8, "direction": None}
    return Step(i=i, t=t, c_0=c_0, **coefficients | others | options)


TWO = Table("two", "sample", None, 3.0, (step_of(0, 9, (1.0, 0.0)), step_of(1, 5, (2.0, -4.0)), step_of(2, 1, (1.0,))))
"""Three steps: the first reads its own prediction, the second that of the first too, the third its own again."""


def test_a_case_by_hand():
    """x_T = 3 z; m = 10, 20, 40, so that x_0 is 1, 2, 4."""
    one = torch.ones(1, 1, 1, 1)
    state = TWO.start(one)
    assert state.x == 3 and state.past == ()
    state = TWO[0].advance(state, 10 * one, 2.0, one)
    assert state.x == 0.5 * 3 + 0.25 * 10 + 1 * 1 + 2 == 7 and [x.item() for x in state.past] == [1]
    state = TWO[1].advance(state, 20 * one, 2.0, -one)
    assert state.x == 0.5 * 7 + 0.25 * 20 + 2 * 2 - 4 * 1 - 2 == 6.5 and [x.item() for x in state.past] == [2]
    state = TWO[2].advance(state, 40 * one, 0.0, one)
    assert state.x == 0.5 * 6.5 + 0.25 * 40 + 4 == 17.25 and state.past == ()


def test_the_loop_hands_on_what_later_steps_read():
    noise, outputs = SampleNoise(0, range(3), SHAPE), {step.t: draw(step.i + 10) for step in TWO}
    visits = list(sample(lambda x, step: outputs[step.t] + x, TWO, SampleNoise(0, range(3), SHAPE)))
    x, before = 3 * noise.draw(), 0.0
    for visit, step in zip(visits, TWO, strict=True):
        m = outputs[step.t] + x
        x_0 = 0.1 * m
        earlier = sum(c * before for c in step.c_0[1:])
        assert torch.equal(visit.x_t, x) and torch.equal(visit.m, m)
        x = 0.5 * x + 0.25 * m + step.c_0[0] * x_0 + earlier + 2.0 * noise.draw()
        assert torch.allclose(visit.x_s, x, atol=1e-5)
        x, before = visit.x_s, x_0
    assert len(visits) == 3


def test_a_past_prediction_is_the_clipped_one():
    first, second = (step_of(i, 9 - i, c_0, clip=0.5) for i, c_0 in enumerate([(1.0, 0.0), (0.0, 1.0)]))
    one = torch.ones(1, 1, 1, 1)
    state = second.advance(first.advance(State(one, ()), 70 * one, 0.0, one), 0 * one, 0.0, one)
    assert state.x == 0.5 * (0.5 + 0.25 * 70 + 0.5) + 0.5


def test_three_predictions_are_read_in_their_order():
    one = torch.ones(1, 1, 1, 1)
    steps = [step_of(i, 9 - i, (1.0, 0.0, 0.0)[: 3 - (i == 9)], c_x=0.0, c_m=0.0) for i in range(2)]
    state = State(one, ())
    for step, value in zip(steps, (10, 20), strict=True):
        state = step.advance(state, value * one, 0.0, one)
    assert [x.item() for x in state.past] == [2, 1]
    last = step_of(2, 7, (1.0, 10.0, 100.0), c_x=0.0, c_m=0.0)
    assert last.advance(state, 30 * one, 0.0, one).x == 3 + 10 * 2 + 100 * 1
    assert torch.equal(last.mean(one, 30 * one, state.past), 123 * one)


def test_a_step_in_the_middle_says_that_it_has_no_past():
    x = draw(0)
    for read in (lambda: TWO[1].mean(x, x), lambda: TWO[1].advance(State(x, ()), x, 0.0, x)):
        with pytest.raises(
            ValueError, match=r"expected 1 earlier predictions of x_0 at step 1 \(t = 5\), got 0; begin"
        ):
            read()


def test_gains_are_derivatives_of_the_mean():
    """By differences: without a clip the step is affine."""
    x, m, past = draw(0, torch.float64), draw(1, torch.float64), (draw(2, torch.float64),)
    for step in TWO:
        assert torch.allclose(step.mean(x, m + 1, past) - step.mean(x, m, past), torch.tensor(step.gain).double())
        assert torch.allclose(step.mean(x + 1, m, past) - step.mean(x, m, past), torch.tensor(step.carry).double())


def test_a_table_of_several_predictions_is_the_same_after_json():
    assert Table.from_json(json.loads(json.dumps(TWO.to_json()))) == TWO


def test_states_are_values():
    with pytest.raises(dataclasses.FrozenInstanceError):
        State(None, ()).x = 0


def test_a_damaged_shift_is_refused():
    data = dataclasses.replace(TWO, dynamic_shift=DynamicShift(0.7, 256, 4096, 0.5, 1.15)).to_json()
    assert Table.from_json(data).to_json() == data
    data["dynamic_shift"]["max_image_seq_len"] = 256
    with pytest.raises(
        ValueError, match="max_image_seq_len above its base_image_seq_len, 256, got 256; make the table"
    ):
        Table.from_json(data)
