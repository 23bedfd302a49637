"""Settings by step: a plan that changes equals the constant plan of each step, and rescalings leave their network."""

import itertools

import pytest
import torch

from ptq_diffusion.model import DiffusersDenoiser
from ptq_diffusion.model.plan import LayerBits
from ptq_diffusion.network import InputGrid, LayerSettings, Rescaling, StepSettings, quantize
from tests.network.networks import FLOAT, WEIGHT, by_step, constant, named_tensors, observed, outputs, states
from tests.steps import at

ACTIVATIONS = [LayerBits(4, 3), LayerBits(4, 8), LayerBits(4, 32), LayerBits(4, 3)]
WEIGHTS = [LayerBits(8, 6), LayerBits(2, 6), LayerBits(32, 6), LayerBits(8, 6)]
BOTH = [LayerBits(3, 8), LayerBits(8, 2), FLOAT]


@pytest.fixture(scope="module")
def denoiser(tiny_model_folder):
    return DiffusersDenoiser.from_folder(str(tiny_model_folder()))


@pytest.fixture(scope="module")
def observations(denoiser):
    return observed(denoiser)


@pytest.fixture(scope="module")
def w4a6(denoiser, observations):
    return quantize(denoiser, constant(denoiser, LayerBits(4, 6)), observations, WEIGHT)


@pytest.fixture(scope="module")
def changing(denoiser, observations):
    """Of three steps, with the first layer the same at all."""
    return quantize(denoiser, by_step(denoiser, BOTH, conv_in=LayerBits(8, 8)), observations, WEIGHT)


# Bits by step.


@pytest.mark.parametrize("table", [ACTIVATIONS, WEIGHTS, BOTH], ids=["activations", "weights", "both"])
def test_every_step_equals_the_constant_plan_of_that_step(denoiser, observations, table):
    """In any order of steps, and with a layer that never changes."""
    exceptions = {"conv_in": LayerBits(8, 8)}
    network = quantize(denoiser, by_step(denoiser, table, **exceptions), observations, WEIGHT)
    for i in (*reversed(range(len(table))), 0):
        alone = quantize(denoiser, constant(denoiser, table[i], **exceptions), observations, WEIGHT)
        assert torch.equal(outputs(network, i), outputs(alone))


def test_a_weight_is_stored_once_for_each_of_its_bits(denoiser, observations, changing):
    network = quantize(denoiser, by_step(denoiser, WEIGHTS), observations, WEIGHT)
    for layer in network.layers().values():
        assert [weight.bits for weight in layer.weights] == [2, 8, 32]
        assert [layer.settings.weight_copy(i) for i in range(4)] == [1, 0, 2, 1]
    assert len(changing.layer("conv_in").weights) == 1


@pytest.mark.parametrize("i", [-1, 3, 100])
def test_asking_beyond_the_table_is_refused(denoiser, changing, i):
    with pytest.raises(ValueError, match=f"expected a step of a table of 3, .* got {i}"):
        changing.predict(states(denoiser), at(500.0, i))


def test_a_plan_that_never_changes_serves_any_table(w4a6):
    assert torch.equal(outputs(w4a6, 0), outputs(w4a6, 731))


# Rescalings.


def drawn(network, seed, grids=True):
    """A rescaling of every inner layer that changes what it says; of half of them the grid too."""
    stream, found = torch.Generator().manual_seed(seed), {}
    for place, (name, layer) in enumerate(network.inner_layers().items()):
        count = layer.weights[0].shape[0]
        gain, offset = (torch.rand(count, generator=stream) for _ in range(2))
        scale = layer.settings.scale[:1] * (1 + 0.2 * seed)
        grid = InputGrid(scale, layer.settings.zero_point[:1]) if grids and place % 2 else None
        found[name] = Rescaling(0.8 + 0.4 * gain, 0.1 * offset - 0.05, grid)
    return found


def identities(network):
    return {name: own.identity_like() for name, own in drawn(network, 0).items()}


def snapshot(network):
    return {name: (tensor.data_ptr(), tensor.clone()) for name, tensor in named_tensors(network).items()}


def assert_untouched(network, before):
    after = named_tensors(network)
    assert after.keys() == before.keys()
    for name, (place, tensor) in before.items():
        assert after[name].data_ptr() == place and torch.equal(after[name], tensor), name


def heirs(network):
    """Each way to the same integers under other settings."""
    rows = [drawn(network, seed) for seed in range(3)]
    return {
        "rescaled": network.rescaled(rows),
        "at": network.at(1, rows[1]),
        "with_settings": network.with_settings(network.settings.rescaled(rows)),
    }


@pytest.mark.parametrize("way", ["rescaled", "at", "with_settings"])
def test_other_settings_leave_the_network_as_it_is_and_share_its_weights(w4a6, way):
    before, expected = snapshot(w4a6), outputs(w4a6)
    heir = heirs(w4a6)[way]
    assert not torch.equal(outputs(heir, 1), expected)
    assert_untouched(w4a6, before)
    assert torch.equal(outputs(w4a6), expected)
    shared = {name: t for name, t in named_tensors(heir).items() if ".settings." not in name}
    assert len(shared) > 50
    for name, tensor in shared.items():
        assert tensor.data_ptr() == before[name][0], name
    assert heir.plan is w4a6.plan and heir.sites() == w4a6.sites() and heir.shape == w4a6.shape


def test_the_step_of_one_is_not_the_step_of_the_other(changing, denoiser):
    """Networks that share weights are asked in turns."""
    heir = changing.rescaled([drawn(changing, 0, grids=False)] * 3)
    expected = [outputs(each, i) for i, each in itertools.product((0, 1), (changing, heir))]
    changing.predict(states(denoiser), at(20.0, 2))
    found = [outputs(each, i) for i, each in itertools.product((0, 1), (changing, heir))]
    assert all(map(torch.equal, expected, found))


def test_one_network_is_rescaled_step_by_step(w4a6):
    """The rescalings of a step, and of no other."""
    rows = [drawn(w4a6, 1), {}, drawn(w4a6, 2)]
    network = w4a6.rescaled(rows)
    assert torch.equal(outputs(network, 1), outputs(w4a6))
    for i in (0, 2):
        assert torch.equal(outputs(network, i), outputs(w4a6.at(i, rows[i]), i))
    assert not torch.equal(outputs(network, 0), outputs(network, 2))


def test_steps_that_are_given_nothing_keep_the_rescalings_that_they_have(w4a6):
    rows = [drawn(w4a6, 1), drawn(w4a6, 2)]
    once = w4a6.rescaled(rows)
    again = once.rescaled([{}, rows[0]])
    assert torch.equal(outputs(again, 0), outputs(once, 0))
    assert torch.equal(outputs(again, 1), outputs(once, 0))


def test_at_a_step_equals_the_whole_table_there(changing):
    rows = [drawn(changing, seed, grids=False) for seed in range(3)]
    whole = changing.rescaled(rows)
    for i, row in enumerate(rows):
        assert torch.equal(outputs(changing.at(i, row), i), outputs(whole, i))


def test_rows_that_change_nothing_give_the_same_bits(w4a6, changing):
    assert torch.equal(outputs(w4a6.rescaled([identities(w4a6)] * 2), 1), outputs(w4a6))
    for i in range(3):
        rows = [identities(changing)] * 3
        assert torch.equal(outputs(changing.rescaled(rows), i), outputs(changing, i))
        assert torch.equal(outputs(changing.at(i, rows[i]), i), outputs(changing, i))
        assert torch.equal(outputs(changing.with_settings(changing.settings), i), outputs(changing, i))
        assert torch.equal(outputs(changing.with_settings(changing.settings.at(i))), outputs(changing, i))


def test_nothing_to_rescale_is_the_network_itself(w4a6):
    assert w4a6.rescaled([]) is w4a6.rescaled([{}, {}]) is w4a6.at(0, {}) is w4a6


def test_gains_and_offsets_fold_into_scales_and_biases(w4a6):
    """As the rescaling of the output says, but for the last bits; and exactly as other scales and biases would."""
    use = drawn(w4a6, 1, grids=False)
    network = w4a6.at(0, use)
    for name, layer in w4a6.inner_layers().items():
        rescaled, (weight, bias) = network.layer(name), layer.operands(0)
        gain = use[name].gain
        assert torch.equal(rescaled.operands(0)[0], layer.weights[0].values(gain))
        plain = torch.zeros_like(gain) if bias is None else bias
        assert torch.equal(rescaled.operands(0)[1], plain * gain + use[name].offset)
        x = torch.randn(2, weight.shape[1], *[7] * (weight.ndim - 2), generator=torch.Generator().manual_seed(3))
        expected = use[name].of(layer(x), layer.channels)
        assert torch.allclose(rescaled(x), expected, rtol=1e-4, atol=1e-5 * float(expected.abs().max()))


def test_input_grids_take_the_place_of_those_that_were_observed(w4a6):
    name, layer = next(iter(w4a6.inner_layers().items()))
    grid = InputGrid(torch.tensor([0.5]), torch.tensor([3], dtype=torch.int32))
    use = Rescaling(torch.ones(len(layer.bias)), torch.zeros(len(layer.bias)), grid)
    x = torch.linspace(-9, 9, 1000)
    settings = w4a6.rescaled([{}, {name: use}]).layer(name).settings
    assert torch.equal(settings(x, 0), layer.settings(x, 0))
    assert torch.equal(settings(x, 1), grid.numbers(layer.settings.grid(0)).fake_quantized(x))
    assert not torch.equal(settings(x, 1), settings(x, 0))


def test_rescalings_of_another_network_are_refused(w4a6, changing):
    ones = Rescaling(torch.ones(3), torch.zeros(3))
    with pytest.raises(ValueError, match="nowhere of 3 output channels.*got no such layer; fit it for this network"):
        w4a6.rescaled([{"nowhere": ones}])
    with pytest.raises(ValueError, match="conv_in of 3 output channels.*got one of 8; fit it"):
        w4a6.at(0, {"conv_in": ones})
    with pytest.raises(ValueError, match="rescalings of 3 steps, which the settings have, got 2"):
        changing.rescaled([identities(changing)] * 2)
    grid = InputGrid(torch.tensor([0.5]), torch.tensor([1], dtype=torch.int32))
    use = {"conv_in": Rescaling(torch.ones(8), torch.zeros(8), grid)}
    assert changing.at(0, use) is not changing
    with pytest.raises(ValueError, match="expected conv_out to quantize its input.* got a float input; fit it"):
        changing.at(2, {"conv_out": Rescaling(torch.ones(3), torch.zeros(3), grid)})


# The table as tensors.


def test_settings_come_back_from_their_tensors(changing):
    settings = changing.settings
    symmetric = {name: layer.symmetric for name, layer in settings.items()}
    again = StepSettings.of_tensors(settings.tensors(), symmetric, {})
    x = torch.linspace(-3, 3, 500)
    assert list(again) == list(settings)
    for name, layer in settings.items():
        for i in range(3):
            assert torch.equal(again[name](x, i), layer(x, i))
            assert again[name].weight_copy(i) == layer.weight_copy(i) and again[name].grid(i) == layer.grid(i)


@pytest.mark.parametrize(
    ("name", "change", "message"),
    [
        ("bits", lambda t: t.int(), "bits of torch.int16, got torch.int32"),
        ("scale", lambda t: t.double(), "scale of torch.float32"),
        ("scale", lambda t: -t, "positive scales"),
        ("scale", lambda t: t * torch.nan, "positive scales"),
        ("zero_point", lambda t: t.float(), "zero_point of torch.int32"),
        ("copy", lambda t: t[:1], "settings of .* layers at every step"),
        ("bits", lambda t: torch.full_like(t, 9), "2 to 8 bits"),
    ],
)
def test_tensors_that_are_no_settings_are_refused(changing, name, change, message):
    tensors = changing.settings.tensors()
    symmetric = dict.fromkeys(changing.settings, False)
    with pytest.raises(ValueError, match=message):
        StepSettings.of_tensors({**tensors, name: change(tensors[name])}, symmetric, {})
    with pytest.raises(ValueError, match=f"settings of {len(symmetric) - 1} layers"):
        StepSettings.of_tensors(tensors, dict(list(symmetric.items())[1:]), {})


def test_one_row_is_every_step():
    row = [torch.tensor([b]).to(kind) for b, kind in ((4, torch.int16), (0.5, torch.float32), (3, torch.int32))]
    settings = LayerSettings(*row, torch.zeros(1, dtype=torch.int16), False)
    assert [settings.row(i) for i in (0, 5)] == [0, 0] and len(settings) == len(settings.at(9)) == 1
