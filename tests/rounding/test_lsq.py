"""Learned scales of activations: where they start, their gradients, and whole networks block by block."""

from functools import partial

import pytest
import torch

from ptq_diffusion.model.plan import BitwidthPlan, LayerBits
from ptq_diffusion.network import InputObservations, quantize
from ptq_diffusion.network.step_settings import LayerSettings
from ptq_diffusion.numeric.grid import Grid
from ptq_diffusion.quantizer import (
    WHOLE,
    AffineQuantizer,
    EqualGroups,
    Log2Quantizer,
    MinMax,
    PerInputChannel,
    PerSkip,
    Static,
)
from ptq_diffusion.quantizer.form import Dynamic, Log2
from ptq_diffusion.quantizer.input_granularity import PerParts
from ptq_diffusion.rounding import LSQ, ScaleReconstruction, Subject, UniformSteps
from ptq_diffusion.rounding.calls import CallFiles
from ptq_diffusion.rounding.lsq import LearnedSettings
from ptq_diffusion.rounding.scales import is_learnable
from tests.rounding.problems import draw
from tests.rounding.test_networks import STEPS, WEIGHT, Batches, network

RULE = LSQ(UniformSteps(), 10, 0.05, 2, 4)
FORMS = {"one": (WHOLE, 1), "parts": (Static(PerParts(2, 1)), 2), "channels": (Static(PerInputChannel(1)), 5)}


def settings_of(form, grids, symmetric, bits=(4,), equalisation=None):
    """Settings whose grids cover about half of the numbers that `draw` gives."""
    rows = (len(bits),) if form == WHOLE else (len(bits), grids)
    scale = torch.linspace(0.08, 0.12, len(bits) * (1 if form == WHOLE else grids)).reshape(rows)
    zero_point = torch.full(rows, 0 if symmetric else 6, dtype=torch.int32)
    bits = torch.tensor(bits, dtype=torch.int16)
    return LayerSettings(bits, scale, zero_point, torch.zeros_like(bits), symmetric, None, None, form, equalisation)


@pytest.mark.parametrize("symmetric", [True, False])
@pytest.mark.parametrize(("form", "grids"), FORMS.values(), ids=FORMS)
def test_learned_scales_start_at_those_of_the_search_with_the_gradients_of_the_paper(form, grids, symmetric):
    x, factors = draw(3, 5, 2, 2), draw(5, 1, 1, seed=4).abs() + 0.5
    settings = settings_of(form, grids, symmetric, equalisation=factors)
    learned = LearnedSettings(settings, [0])
    x_hat = learned(x, 0)
    assert torch.equal(x_hat, settings(x, 0)) and torch.equal(learned.scales(), settings.scale)
    slope = draw(*x.shape, seed=5)
    (x_hat * slope).sum().backward()
    # Eq. 3 and section 2.2 of the paper, number by number; v is ln s.
    grid, numbers = Grid(4, symmetric), x / factors
    places = form.granularity.spread(torch.arange(grids), x.shape).expand(x.shape)
    scale, zero_point = (part.reshape(-1)[places] for part in (settings.scale, settings.zero_point))
    position, low, high = numbers / scale, grid.low - zero_point, grid.high - zero_point
    rounded = position.round()
    by_scale = torch.where(rounded < low, low, torch.where(rounded > high, high, rounded - position))
    terms = slope * factors * by_scale * scale
    sizes = places[0].flatten().bincount(minlength=grids)
    sums = torch.stack([terms[places == place].sum() for place in range(grids)])
    torch.testing.assert_close(learned.v.grad[0], sums / (sizes * grid.high).sqrt(), rtol=1e-4, atol=1e-5)


def test_settings_that_are_learned_carry_all_that_they_were_made_of():
    x, shift = draw(3, 5, 2, 2), draw(1, 5, 1, 1, seed=6)
    gain, offset = draw(1, 2, seed=7), draw(1, 2, seed=8)
    fields = settings_of(WHOLE, 1, False, equalisation=draw(5, 1, 1, seed=4).abs() + 0.5).fields()
    settings = LayerSettings(**fields | {"shift": shift, "gain": gain, "offset": offset})
    learned = LearnedSettings(settings, [0])
    assert torch.equal(learned(x, 0), settings(x, 0))
    assert not torch.equal(learned(x, 0), LayerSettings(**fields)(x, 0))
    assert all(torch.equal(*pair) for pair in zip(learned.channels(0), (gain[0], offset[0]), strict=True))
    for other in (settings.at(0), settings.with_scale(settings.scale), settings.with_equalisation(None)):
        names = set(fields) - {"equalisation"}
        assert all(
            other.fields()[name] is settings.fields()[name]
            or torch.equal(other.fields()[name], settings.fields()[name])
            for name in names
        )


def test_steps_of_a_group_share_a_scale_at_each_bitwidth_and_float_steps_have_none():
    settings = settings_of(WHOLE, 1, False, bits=(4, 4, 8, 8, 32))
    learned = LearnedSettings(settings, [0, 0, 0, 1, 1])
    with torch.no_grad():
        learned.v += torch.arange(len(learned.v))[:, None].float()
    ratios = (learned.scales() / settings.scale).log()
    torch.testing.assert_close(ratios, torch.tensor([0.0, 0, 1, 2, 0]))
    x = draw(2, 3, 2, 2)
    assert torch.equal(learned(x, 4), x)


def reconstruction(denoiser, folder, activation, bits=4, groups=None, softmax=None):
    """The scales of a network whose activations all have few bits, those of attention's products too."""
    observations = InputObservations(denoiser.sites(), activation, groups, len(STEPS), softmax)
    for i, x_t, condition in Batches(denoiser, seed=1):
        with observations.observing(denoiser.network, i):
            denoiser.predict(x_t, STEPS[i], condition)
    if groups is not None:
        observations.divide(groups)
    by_site = {site.name: LayerBits(8 if site.weighted else bits, bits) for site in denoiser.sites()}
    plan = BitwidthPlan.by_step([by_site] * len(STEPS))
    states = Batches(denoiser, 1, 6)
    subject = Subject(denoiser, quantize(denoiser, plan, observations, WEIGHT), WEIGHT, STEPS, states, states)
    return ScaleReconstruction(subject, RULE, observations.groups, folder)


def activation(granularity):
    return lambda bits: AffineQuantizer(bits, False, granularity, MinMax(), 64)


@pytest.mark.parametrize(("name", "groups"), [("pixels", EqualGroups(2, [])), ("dit", None)], ids=["pixels", "dit"])
def test_no_block_has_a_greater_error_than_with_the_scales_of_the_search_and_most_have_a_smaller(
    name, groups, tmp_path
):
    work = reconstruction(network(name), tmp_path / "learning", activation(PerSkip()), groups=groups)
    before = work.quantized.settings
    smaller, operands = [], []
    for part in work.parts:
        with CallFiles.within(tmp_path / "judging") as calls:
            work.collect(part, calls)
            searched = work.error(part, calls)
            scales = work.learned(part)
            work.install(scales)
            learned = work.error(part, calls)
        assert learned <= searched and scales.keys() == set(part.layers)
        smaller.append(learned < searched)
        operands += part.layers
    assert sum(smaller) > len(smaller) / 2
    # Every operand is learned once, those of attention's products too, and nothing but scales has changed.
    assert sorted(operands) == sorted(before) and any(operand.endswith(".p") for operand in operands)
    after = work.quantized.settings
    for operand, settings in before.items():
        assert torch.equal(settings.zero_point, after[operand].zero_point)
        assert settings.scale.shape == after[operand].scale.shape
        assert settings.form == after[operand].form


def test_scales_that_came_out_worse_are_those_of_the_search(tmp_path, monkeypatch):
    work = reconstruction(network("pixels"), tmp_path, activation(PerSkip()))

    def ruin(self, part, calls, learned, searched):
        for settings in learned.values():
            torch.nn.init.constant_(settings.v, 3.0)

    monkeypatch.setattr(ScaleReconstruction, "_descend", ruin)
    settings = work.quantized.settings
    assert all(torch.equal(scale, settings[name].scale) for name, scale in work.learned(work.parts[0]).items())


def test_operands_that_have_no_scale_are_in_no_part_and_a_network_without_any_is_refused(tmp_path):
    denoiser = network("pixels")
    work = reconstruction(denoiser, tmp_path, activation(PerSkip()), softmax=Log2Quantizer)
    operands = {operand for part in work.parts for operand in part.layers}
    rest = {operand for operand in work.quantized.settings if operand.endswith(".p")}
    assert rest and operands == work.quantized.settings.keys() - rest
    with pytest.raises(ValueError, match=r"expected activations on static grids, .* set activation_scales=searched"):
        assert reconstruction(denoiser, tmp_path, activation(PerSkip()), bits=32).parts
    dynamic = partial(settings_of, symmetric=False, grids=1)
    assert not is_learnable(dynamic(Dynamic(WHOLE.granularity))) and not is_learnable(dynamic(Log2()))
