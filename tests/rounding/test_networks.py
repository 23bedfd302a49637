"""Roundings of whole networks of every family, with other bits at every step."""

from functools import cache, partial

import pytest
import torch

from ptq_diffusion.model.plan import BitwidthPlan, LayerBits
from ptq_diffusion.network import InputObservations, quantize
from ptq_diffusion.network.rescaling import Rescaling, Spread
from ptq_diffusion.quantizer import AffineQuantizer, MinMax, PerChannel, PerTensor
from ptq_diffusion.rounding import (
    BRECQ,
    GPTQ,
    BlockReconstruction,
    Descent,
    Inputs,
    LayerReconstruction,
    Subject,
    UniformSteps,
)
from ptq_diffusion.rounding.block_errors import rescaled
from ptq_diffusion.rounding.blocks import SoftWeight
from ptq_diffusion.rounding.calls import Call, CallFiles
from tests.model.networks import NETWORKS, condition_of, denoiser_of, states_of
from tests.network.networks import FLOAT
from tests.steps import at

STEPS = (at(900, 0), at(20, 1))
# Calls of a block, each the step and the number of states
CROWDED = [[(0, 3), (1, 3), (0, 2), (1, 2)], [(0, 5), (1, 1)], [(0, 4), (0, 4), (1, 2)]]
INPUTS = Inputs("float", "weight", False, UniformSteps(), 64)
BLOCKWISE = BRECQ("float", UniformSteps(), Descent(60, 0.1, 3.0), 2, 8)


def whole_range(symmetric):
    """From a bitwidth to a quantizer that is made in no time."""
    return lambda bits: AffineQuantizer(bits, symmetric, PerChannel() if symmetric else PerTensor(), MinMax(), 64)


WEIGHT, ACTIVATION = whole_range(symmetric=True), whole_range(symmetric=False)


@cache
def network(name):
    return denoiser_of(name)


def batches(denoiser, seed, rows):
    """States of both steps, other ones for every seed, and a condition of as many rows."""
    condition, shape = condition_of(denoiser), states_of(denoiser).shape
    some = None if condition is None else condition.rows([row % len(condition) for row in range(rows)])
    for step in STEPS:
        draw = torch.Generator().manual_seed(10 * seed + step.i)
        yield step.i, torch.randn(rows, *shape[1:], generator=draw), some


class Batches:
    """States that can be gone through again."""

    def __init__(self, denoiser, seed, rows=2):
        self.again = partial(batches, denoiser, seed, rows)

    def __iter__(self):
        return self.again()


def quantized_of(denoiser, plan):
    observations = InputObservations(denoiser.sites(), ACTIVATION)
    with observations.observing(denoiser.network):
        for i, x_t, condition in Batches(denoiser, seed=1):
            denoiser.predict(x_t, STEPS[i], condition)
    return quantize(denoiser, plan, observations, WEIGHT)


def plan_of(denoiser, *rows):
    """The plan whose step i gives all layers the bits rows[i]; attention's products are float."""
    sites = denoiser.sites()
    return BitwidthPlan.by_step([{site.name: bits if site.weighted else FLOAT for site in sites} for bits in rows])


def reconstruction(kind, rounding, denoiser, plan, *more, rows=2):
    quantized = quantized_of(denoiser, plan)
    states = Batches(denoiser, 1, rows)
    return kind(Subject(denoiser, quantized, WEIGHT, STEPS, states, states), rounding, *more)


def finished(work):
    """The integers of all parts, which are installed on the way."""
    integers = {}
    for part in work.parts:
        rounded = work.rounded(part)
        work.install(rounded)
        integers |= rounded
    return integers


def held_out_errors(judge, quantized, folder):
    """The error of every part of a network, on states and inputs that no rounding saw."""
    judge.quantized, errors = quantized, {}
    for part in judge.parts:
        with CallFiles.within(folder) as calls:
            judge.collect(part, calls)
            errors[part.name] = judge.error(part, calls)
    return errors


@pytest.mark.parametrize("kind", ["error feedback", "blocks"])
@pytest.mark.parametrize("name", ["pixels", "dit"])
def test_blocks_have_a_smaller_error_than_nearest_on_states_that_they_did_not_see(name, kind, tmp_path):
    denoiser = network(name)
    plan = plan_of(denoiser, LayerBits(3, 8), LayerBits(4, 8))
    if kind == "blocks":
        work = reconstruction(BlockReconstruction, BLOCKWISE, denoiser, plan, tmp_path / "learning", rows=12)
    else:
        work = reconstruction(LayerReconstruction, GPTQ(INPUTS), denoiser, plan, rows=12)
    integers = finished(work)
    # Both copies of every weight have integers of their own.
    assert {bits for _, bits in integers} == {3, 4} and len(integers) == 2 * len(work.quantized.layers())
    judge = reconstruction(BlockReconstruction, BLOCKWISE, denoiser, plan, tmp_path / "judging")
    judge.states = Batches(denoiser, seed=2, rows=12)
    nearest = judge.quantized
    before, after = (held_out_errors(judge, quantized, tmp_path / "judging") for quantized in (nearest, work.quantized))
    blocks = set(denoiser.blocks()) & before.keys()
    better = {block for block in blocks if after[block] < before[block]}
    assert len(better) >= 0.8 * len(blocks) > 0, blocks - better
    assert sum(after[block] for block in blocks) < sum(before[block] for block in blocks)


@pytest.mark.parametrize("after", [2.0, float("nan")])
def test_a_block_that_came_out_with_no_smaller_error_keeps_nearest(after, tmp_path, monkeypatch):
    denoiser = network("pixels")
    plan = plan_of(denoiser, LayerBits(3, 8), LayerBits(3, 8))
    work = reconstruction(BlockReconstruction, BLOCKWISE, denoiser, plan, tmp_path, rows=2)
    errors = iter((1.0, after))
    monkeypatch.setattr(BlockReconstruction, "error", lambda *_: next(errors))
    monkeypatch.setattr(BlockReconstruction, "_learned", lambda self, part, *_: ruined(self, part))
    for (name, bits), integers in work.rounded(work.parts[0]).items():
        assert torch.equal(integers, work.quantizer(name, bits).to_integers(work.float_weight(name)))


def ruined(work, part):
    """Integers that are all rounded down."""
    soft = {copy: work._soft(*copy) for copy in work.copies(part)}
    for undecided in soft.values():
        torch.nn.init.constant_(undecided.v, -9.0)
    return soft


KNOWING = BRECQ("float", UniformSteps(), Descent(60, 0.1, 3.0), 2, 8, rescaled=True)


def test_a_rounding_that_knows_of_the_correction_leaves_a_smaller_error_behind_it_than_one_that_does_not(tmp_path):
    """On the states of both, whose blocks read what the float network gives, so that none depends on another."""
    denoiser = network("pixels")
    plan = plan_of(denoiser, LayerBits(3, 8), LayerBits(3, 8))
    judge, *works = (
        reconstruction(BlockReconstruction, rounding, denoiser, plan, tmp_path / place, rows=6)
        for rounding, place in ((KNOWING, "judging"), (BLOCKWISE, "plain"), (KNOWING, "knowing"))
    )
    errors = []
    for part in (part for part in judge.parts if part.name in denoiser.blocks()):
        with CallFiles.within(tmp_path / "judging") as calls:
            judge.collect(part, calls)
            errors.append([judge.error(part, calls)])
            for work in works:
                judge.install(work.rounded(part))
                errors[-1].append(judge.error(part, calls))
    assert len(errors) > 3 and all(knowing <= nearest for nearest, _, knowing in errors)
    assert sum(knowing for *_, knowing in errors) < sum(plain for _, plain, _ in errors)


@pytest.mark.parametrize("shape", [(6, 5, 3, 3), (6, 4, 5), (6, 5)], ids=str)
def test_a_rescaled_output_is_that_of_the_correction_and_has_a_gradient(shape):
    draw = torch.Generator().manual_seed(0)
    target, output = (torch.randn(shape, generator=draw) for _ in range(2))
    channels = 1 if len(shape) == 4 else -1
    # The first channel is constant, the second varies far less than it is to.
    constant, faint = output.movedim(channels, 0)[0], output.movedim(channels, 0)[1]
    constant.fill_(3.0)
    faint.mul_(1e-3)
    expected = Rescaling.between(Spread.of(output, channels), Spread.of(target, channels)).of(output, channels)
    result = rescaled(output.requires_grad_(), target)
    torch.testing.assert_close(result, expected)
    (result - target).square().sum().backward()
    assert bool(output.grad.isfinite().all()) and bool(output.grad.any())


@pytest.mark.parametrize(
    "crowded", [[(0, 3), (1, 3), (0, 2), (1, 2)], [(0, 5), (1, 1)], [(0, 4), (0, 4), (1, 2)]], ids=str
)
def test_each_state_of_a_calibration_set_counts_by_the_weight_of_its_step_alone(crowded, tmp_path):
    """A call is as likely as another, and its error is a mean over its rows."""
    denoiser = network("pixels")
    work = reconstruction(BlockReconstruction, BLOCKWISE, denoiser, plan_of(denoiser, LayerBits(4, 8)), tmp_path)
    work.step_weights = torch.tensor([0.25, 0.75], dtype=torch.float64)
    with CallFiles.within(tmp_path / "calls") as calls:
        for i, rows in crowded:
            calls.append(Call.of(i, ((), {}), [torch.zeros(rows, 1)], ()))
        shares = work.shares(calls)
    states = [sum(rows for j, rows in crowded if j == i) for i in range(2)]
    counts = [sum(j == i for j, _ in crowded) for i in range(2)]
    of_a_state = [float(shares[i]) * counts[i] / states[i] for i in range(2)]
    assert of_a_state[1] / of_a_state[0] == pytest.approx(3)
    if states[0] == states[1]:
        assert torch.equal(shares, work.step_weights), "bit for bit"


@pytest.mark.parametrize("bits", [(4,), (4, 3)], ids=["one setting", "settings by step"])
def test_calls_that_share_a_forward_have_the_gradient_of_each_by_itself(bits, tmp_path):
    denoiser = network("pixels")
    plan = plan_of(denoiser, *(LayerBits(one, 8) for one in bits))
    work = reconstruction(BlockReconstruction, BLOCKWISE, denoiser, plan, tmp_path)
    part = next(part for part in work.parts if len(part.layers) > 1)
    forwards, gradients = [], []
    with CallFiles.within(tmp_path / "calls") as calls:
        work.collect(part, calls)
        drawn = next(work.draws(calls, (4, 2), torch.Generator().manual_seed(0)))
        assert {call.i for _, call in drawn} == {0, 1}, "of both steps"
        weights = {copy: SoftWeight(work._soft(*copy), copy[1]) for copy in work.copies(part)}
        block = work.quantized.network.get_submodule(part.name)
        with work._computing(weights), block.register_forward_hook(lambda *_: forwards.append(1)):
            for groups in ([drawn], [[one] for one in drawn]):
                for weight in weights.values():
                    weight.renew()
                for group in groups:
                    work.add_gradient(part, group, 1.0)
                gradients.append([weight.gradient for weight in weights.values()])
    assert len(forwards) == len(bits) + len(drawn)
    for together, alone in zip(*gradients, strict=True):
        assert together.any()
        torch.testing.assert_close(together, alone, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("name", NETWORKS)
def test_every_family_is_rounded_along_its_quantized_path_each_layer_once(name):
    denoiser = network(name)
    rounding = GPTQ(Inputs("quantized", "output", True, UniformSteps(), 4))
    work = reconstruction(LayerReconstruction, rounding, denoiser, plan_of(denoiser, LayerBits(3, 8)))
    layers = [layer for part in work.parts for layer in part.layers]
    called = [site.name for site in denoiser.sites() if site.weighted]
    assert sorted(layers) == sorted(set(called)) and len(work.parts) < len(layers), "blocks are parts"
    integers = finished(work)
    stored = {copy: work.quantized.layer(copy[0]).weights[0] for copy in integers}
    assert all(
        torch.equal(work.quantizer(*copy).from_integers(integers[copy]), weight.values())
        for copy, weight in stored.items()
    )


def test_blocks_without_quantized_weights_are_no_parts_and_a_plan_without_any_is_refused():
    denoiser = network("pixels")
    first, *others = (block for block in denoiser.blocks())
    plan = plan_of(denoiser, LayerBits(4, 8))
    free = {name: (32,) for name in plan.weight if name.startswith(first)}
    work = reconstruction(
        LayerReconstruction, GPTQ(INPUTS), denoiser, BitwidthPlan(plan.weight | free, plan.activation)
    )
    names = {layer for part in work.parts for layer in part.layers}
    assert names and not names & free.keys() and any(name.startswith(tuple(others)) for name in names)
    work = reconstruction(LayerReconstruction, GPTQ(INPUTS), denoiser, plan_of(denoiser, LayerBits(32, 8)))
    with pytest.raises(ValueError, match=r"leaves all of them float; set rounding=nearest"):
        assert work.parts


def test_no_states_are_refused():
    denoiser = network("pixels")
    work = reconstruction(LayerReconstruction, GPTQ(INPUTS), denoiser, plan_of(denoiser, LayerBits(4, 8)))
    work.states = []
    with pytest.raises(ValueError, match=r"expected states of float sampling to round on, got none"):
        assert work.parts


def test_a_float_network_in_place_of_the_quantized_one_gives_the_same_moments_of_both_paths():
    """Where nothing is quantized before a layer, the path does not matter, and there is nothing to make up for."""
    denoiser = network("pixels")
    plan = plan_of(denoiser, LayerBits(8, 32))
    last = denoiser.sites()[0].name
    float_elsewhere = BitwidthPlan({name: (8 if name == last else 32,) for name in plan.weight}, plan.activation)
    for target in ("weight", "output"):
        moments = [
            reconstruction(
                LayerReconstruction,
                GPTQ(Inputs(path, target, False, UniformSteps(), 4)),
                denoiser,
                float_elsewhere,
            )
            for path in ("float", "quantized")
        ]
        first, second = (work.moments(work.parts[0])[last, 8] for work in moments)
        assert torch.equal(first.second, second.second)
        if target == "output":
            assert not first.difference.any() and not second.difference.any()
