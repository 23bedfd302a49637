"""The damage that sampling backwards predicts is exact for a linear network, and falls with the bits."""

from dataclasses import replace

import pytest
import torch
from diffusers import DDPMScheduler
from torch import nn

from ptq_diffusion.model import Denoiser, DiffusersDenoiser, Kind, Output, Role, Site
from ptq_diffusion.model.plan import BitwidthPlan, LayerBits
from ptq_diffusion.network import InputGrid, InputObservations, Rescaling, Spread, quantize, watching
from ptq_diffusion.network.damage import LayerChange, recording, step_adjoint
from ptq_diffusion.numeric.grid import Grid
from ptq_diffusion.numeric.seed import SampleNoise
from ptq_diffusion.quantizer import AffineQuantizer, LpSearch, PerTensor
from ptq_diffusion.sampler import DDIM, DPMSolver, State, sample
from tests.network.networks import ACTIVATION, WEIGHT, without_hooks
from tests.steps import at

NAMES, SHAPE, BATCH, SEARCH = ("first", "middle", "last"), (2, 4, 3), 3, LpSearch(2, 16)


class Layers(nn.Module):
    """Three layers one after the other; `middle` may be called twice."""

    def __init__(self, middle_calls=1):
        super().__init__()
        torch.manual_seed(0)
        self.first, self.middle, self.last = nn.Conv2d(2, 4, 3, padding=1), nn.Linear(3, 3), nn.Conv2d(4, 2, 1)
        self.middle_calls = middle_calls

    def forward(self, x):
        x = self.first(x)
        for _ in range(self.middle_calls):
            # Channels of a linear layer are its last dimension.
            x = self.middle(x)
        return self.last(x)


class Linear(Denoiser):
    """A network without anything that is not linear, at every time the same."""

    def __init__(self, network=None):
        super().__init__()
        self.layers, self.shape = network or Layers().requires_grad_(False), SHAPE
        self.scheduler_config = dict(DDPMScheduler(clip_sample=False).config)

    @property
    def network(self):
        return self.layers

    def predict(self, x_t, step, condition=None):
        return Output(self.layers(x_t))

    def sites(self):
        kinds = (Kind.CONV2D, Kind.LINEAR, Kind.CONV2D)
        weights = (tuple(self.layers.get_submodule(name).weight.shape) for name in NAMES)
        rows = zip(NAMES, kinds, (Role.FIRST, Role.INNER, Role.LAST), weights, strict=True)
        return [Site(name, kind, role, 1, weight) for name, kind, role, weight in rows]

    def attention_macs(self):
        return 0

    def with_network(self, network):
        return Linear(network)


@pytest.fixture(scope="module", params=[DDIM(3, 1.0, {}), DPMSolver(3, 2, True)], ids=["ddim", "multistep"])
def walk(request):
    """The model, its table and the visits of its sampling."""
    model = Linear()
    table = request.param.table(model.scheduler_config)
    visits = list(sample(lambda x, step: model.predict(x, step).m, table, noise()))
    return model, table, visits


def noise():
    return SampleNoise(0, range(BATCH), SHAPE)


def own_quantizer(bits):
    return AffineQuantizer(bits, False, PerTensor(), SEARCH, 1024)


def with_bits(model, bits):
    """The quantized copy with so many bits of weights."""
    observations = InputObservations(model.sites(), ACTIVATION)
    with observations.observing(model.network):
        model.predict(torch.randn(8, *SHAPE, generator=torch.Generator().manual_seed(1)), at(1.0))
    plan = BitwidthPlan.constant(dict.fromkeys(NAMES, LayerBits(bits, 8)))
    return quantize(model, plan, observations, WEIGHT)


def basis():
    """Directions of x_0 that are orthonormal in every sample."""
    size = torch.Size(SHAPE).numel()
    return torch.eye(size).view(size, 1, *SHAPE).expand(size, BATCH, *SHAPE)


def backwards(walk, v):
    """The adjoints of every step, by step."""
    model, table, visits = walk
    found, adjoint = {}, State(v, ())
    for step in reversed(table):
        found[step.i] = step_adjoint(model, NAMES, visits[step.i].x_t, step, adjoint)
        adjoint = found[step.i].state
    return found


def change_of_x_0(walk, name, i, change):
    """By brute force: sampling once more, with the output of one layer at one step changed."""
    model, table, visits = walk

    def predict(x, step):
        if step.i != i:
            return model.predict(x, step).m
        with watching(model.network, [name], lambda _, output: change(output)):
            return model.predict(x, step).m

    *_, last = sample(predict, table, noise())
    return last.x_s - visits[-1].x_s


def corrected(y_hat, y, channels):
    """What `Rescaled` leaves of a layer that is quantized alone."""
    return Rescaling.between(Spread.of(y_hat, channels), Spread.of(y, channels)).of(y_hat, channels)


@pytest.mark.parametrize("i", range(3))
@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("operand", ["weight", "input"])
def test_the_damage_is_the_squared_change_of_x_0(walk, name, i, operand):
    """In every direction, and summed over an orthonormal basis."""
    model = walk[0]
    layer, grid = with_bits(model, 3).layer(name), Grid(3, False)
    float_weight, few_bits = model.network.get_parameter(f"{name}.weight"), layer.operands(i)[0]

    def damage(v):
        adjoint = backwards(walk, v)[i]
        own = LayerChange(layer, float_weight, adjoint.calls[name], adjoint.gradients[name], BATCH)
        changes = own.of_weight(few_bits) if operand == "weight" else own.of_input(own_quantizer(3))
        return float(changes.square().sum())

    x = backwards(walk, basis()[0])[i].calls[name].x

    def quantized(y):
        if operand == "weight":
            return corrected(layer.compute(x, few_bits, layer.bias), y, layer.channels)
        x_hat = InputGrid.of(x, grid, SEARCH).numbers(grid).fake_quantized(x)
        return corrected(layer.compute(x_hat, float_weight, layer.bias), y, layer.channels)

    change = change_of_x_0(walk, name, i, quantized).double()
    exact = [float((v * change).flatten(1).sum(1).square().sum()) for v in basis()]
    assert max(exact) > 0
    damages = [damage(v) for v in basis()]
    assert damages == pytest.approx(exact, rel=1e-3, abs=1e-3 * max(exact))
    assert sum(damages) == pytest.approx(float(change.square().sum()), rel=1e-3)


@pytest.mark.parametrize("name", NAMES)
def test_the_damage_falls_with_the_bits(walk, name):
    """Summed over all directions; in one of them an error may be small by chance."""
    model, offered = walk[0], (2, 4, 6, 8)
    layers = [with_bits(model, bits).layer(name) for bits in offered]
    float_weight = model.network.get_parameter(f"{name}.weight")
    weights, inputs = torch.zeros(2, len(offered), dtype=torch.float64)
    for v in basis():
        for adjoint in backwards(walk, v).values():
            damage = LayerChange(layers[0], float_weight, adjoint.calls[name], adjoint.gradients[name], BATCH)
            changes = [damage.of_weight(layer.operands(0)[0]) for layer in layers]
            weights += torch.stack(changes).square().sum(1)
            inputs += torch.stack([damage.of_input(own_quantizer(bits)) for bits in offered]).square().sum(1)
    for damages in (weights, inputs):
        assert (damages.diff() < 0).all() and damages[0] > 100 * damages[-1] > 0


def test_a_float_weight_does_no_damage(walk):
    adjoint, layer = backwards(walk, basis()[0])[1], with_bits(walk[0], 4).layer("middle")
    weight = walk[0].network.middle.weight
    damage = LayerChange(layer, weight, adjoint.calls["middle"], adjoint.gradients["middle"], BATCH)
    small, large = (damage.of_weight(some).square().sum() for some in (weight, layer.operands(0)[0]))
    assert small < 1e-6 * large


def test_a_step_backwards_leaves_the_network_and_its_output_as_they_were(walk):
    """Also within inference mode, in which chunks are worked on."""
    model, table, visits = walk
    x_t, v = visits[1].x_t, basis()[3]
    before, m = model.fingerprint(), model.predict(x_t, table[1]).m
    outside = step_adjoint(model, NAMES, x_t, table[1], State(v, ()))
    with torch.inference_mode():
        inside = step_adjoint(model, NAMES, x_t.clone(), table[1], State(v.clone(), ()))
    assert torch.equal(inside.state.x, outside.state.x)
    assert torch.equal(outside.calls["last"].y, m)
    assert without_hooks(model.network) and model.fingerprint() == before
    assert not any(parameter.requires_grad for parameter in model.parameters())


def test_a_layer_called_twice_is_refused():
    model = Linear(Layers(middle_calls=2).requires_grad_(False))
    step = DDIM(3, 1.0, {}).table(model.scheduler_config)[0]
    with pytest.raises(ValueError, match="computes every layer once, this one computes middle twice"):
        step_adjoint(model, NAMES, torch.zeros(BATCH, *SHAPE), step, State(basis()[0], ()))
    assert without_hooks(model.network)


def test_predictions_that_are_handed_on_twice_have_both_gradients(walk):
    """x_s reads the prediction before with 0.5; the next state reads it a second time, with gradient 3."""
    model, table, _ = walk
    one, step = basis()[0], replace(table[0], c_0=(1.0, 0.5, 0.25))
    adjoint = step_adjoint(model, NAMES, torch.zeros(BATCH, *SHAPE), step, State(one, (2 * one, 3 * one)))
    assert torch.equal(adjoint.state.past[0], 3.5 * one) and torch.equal(adjoint.state.past[1], 0.25 * one)


def test_what_the_output_does_not_depend_on_has_no_gradient(tiny_model_folder):
    """Of a step that takes nothing of the network's output, and in a network of diffusers."""
    model = DiffusersDenoiser.from_folder(str(tiny_model_folder()))
    step = DDIM(3, 1.0, {"clip_sample": False}).table(model.scheduler_config)[1]
    names = [site.name for site in model.sites() if site.weighted]
    x_t, v = torch.randn(2, 2, *model.shape, generator=torch.Generator().manual_seed(0))
    adjoint = step_adjoint(model, names, x_t, step, State(v, ()))
    assert list(adjoint.gradients) == list(adjoint.calls) and set(adjoint.calls) == set(names)
    assert all(gradient.any() for gradient in adjoint.gradients.values())
    unread = step_adjoint(model, names, x_t, replace(step, c_m=0.0, p_m=0.0), State(v, ()))
    assert not any(gradient.any() for gradient in unread.gradients.values())
    assert torch.allclose(unread.state.x, step.carry * v)


def test_hooks_are_gone_after_an_error(walk):
    network = walk[0].network
    with pytest.raises(RuntimeError, match="on the way"), recording(network, NAMES, {}):
        raise RuntimeError("on the way")
    with pytest.raises(AttributeError), recording(network, [*NAMES, "nowhere"], {}):
        pass
    assert without_hooks(network)
