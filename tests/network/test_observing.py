"""Inputs are observed once for all bitwidths, without a trace in the network."""

from collections import defaultdict
from dataclasses import replace

import pytest
import torch
from safetensors.torch import load_file, save_file

from ptq_diffusion.engine.factory import construct
from ptq_diffusion.main import CONF
from ptq_diffusion.model import DiffusersDenoiser
from ptq_diffusion.model.plan import LayerBits
from ptq_diffusion.model.site import products_by_attention
from ptq_diffusion.network import InputObservations, quantize, watching
from ptq_diffusion.network.attention import watching_operands
from ptq_diffusion.quantizer import PerTensor
from tests.network.networks import ACTIVATION, WEIGHT, constant, maker, observed, outputs, states, without_hooks
from tests.steps import at

PER_TENSOR = sorted(path.stem for path in (CONF / "quantizer").glob("*per_tensor.yaml"))


@pytest.fixture(scope="module")
def denoiser(tiny_model_folder):
    return DiffusersDenoiser.from_folder(str(tiny_model_folder()))


@pytest.fixture(scope="module")
def observations(denoiser):
    return observed(denoiser)


def test_observing_changes_no_output_and_leaves_no_hook(denoiser):
    observations, expected = InputObservations(denoiser.sites(), ACTIVATION), outputs(denoiser)
    with observations.observing(denoiser.network):
        assert torch.equal(outputs(denoiser), expected)
        assert not without_hooks(denoiser.network)
    assert without_hooks(denoiser.network)


def test_hooks_are_gone_after_an_exception(denoiser, observations):
    nowhere = replace(denoiser.sites()[0], name="nowhere")
    larger = InputObservations([*denoiser.sites(), nowhere], ACTIVATION)
    with pytest.raises(AttributeError), larger.observing(denoiser.network):
        pass
    assert without_hooks(denoiser.network)
    with pytest.raises(KeyboardInterrupt), observations.observing(denoiser.network):
        raise KeyboardInterrupt
    assert without_hooks(denoiser.network)
    with pytest.raises(ValueError, match="NaN or infinity"), observations.observing(denoiser.network):
        denoiser.predict(torch.full_like(states(denoiser), torch.nan), at(1.0))
    assert without_hooks(denoiser.network)


def test_hooks_of_those_that_watch_are_gone_after_an_exception(denoiser):
    seen = []
    with pytest.raises(RuntimeError, match="on the way"), watching(denoiser.network, ["conv_in"], lambda *_: fail()):
        denoiser.predict(states(denoiser), at(1.0))
    with watching(denoiser.network, ["conv_in"], lambda name, output: seen.append((name, output.shape[1]))):
        denoiser.predict(states(denoiser), at(1.0))
    assert seen == [("conv_in", 8)] and without_hooks(denoiser.network)


def test_outputs_of_the_softmax_are_the_same_in_parts(denoiser):
    """They have the square of the tokens, for which a batch as a whole may have no room."""
    whole, parts = shown(denoiser, None), shown(denoiser, 1)
    assert all(torch.equal(torch.cat(parts[name]), torch.cat(tensors)) for name, tensors in whole.items())
    assert all(len(part) == 1 for name, tensors in parts.items() if name.endswith(".p") for part in tensors)
    assert all(len(tensor) > 1 for name, tensors in whole.items() if name.endswith(".p") for tensor in tensors)


def shown(denoiser, at_once):
    """What is shown of every operand of attention's products, call by call."""
    tensors = defaultdict(list)

    def see(name, operand):
        tensors[name].append(operand)

    with watching_operands(denoiser.network, list(products_by_attention(denoiser.sites())), see, at_once):
        outputs(denoiser)
    return tensors


def fail():
    raise RuntimeError("on the way")


def test_what_is_returned_takes_the_place_of_an_output(denoiser):
    expected = outputs(denoiser)
    with watching(denoiser.network, ["conv_out"], lambda _, output: 2 * output):
        assert torch.equal(outputs(denoiser), 2 * expected)
    assert torch.equal(outputs(denoiser), expected)


@pytest.mark.parametrize("name", PER_TENSOR)
@pytest.mark.parametrize("bits", range(2, 9))
def test_observing_once_equals_observing_with_those_bits(denoiser, composed, name, bits):
    """For every quantizer that an activation can have, and every layer."""
    make = construct(composed(f"+quantizer@made={name}").made)
    sites = denoiser.sites()[:4]
    shared, own = InputObservations(sites, make), {site.name: make(bits) for site in sites}
    hooks = [
        denoiser.network.get_submodule(site).register_forward_pre_hook(lambda _, x, q=q: q.observe(x[0]))
        for site, q in own.items()
    ]
    with shared.observing(denoiser.network):
        for t in (20.0, 900.0):
            denoiser.predict(states(denoiser), at(t))
    for hook in hooks:
        hook.remove()
    for site, quantizer in own.items():
        quantizer.freeze()
        found = shared.quantizer(site, bits)
        assert found.grid == quantizer.grid and found.grid.bits == bits
        assert torch.equal(found.scale, quantizer.scale) and torch.equal(found.zero_point, quantizer.zero_point)


def test_asking_for_one_bitwidth_changes_no_other(observations):
    before = observations.quantizer("conv_out", 4)
    observations.quantizer("conv_out", 8)
    after = observations.quantizer("conv_out", 4)
    assert torch.equal(before.scale, after.scale) and torch.equal(before.zero_point, after.zero_point)


@pytest.mark.parametrize("symmetric", [True, False])
def test_observations_come_back_bit_for_bit(denoiser, tmp_path, symmetric):
    make = maker(symmetric, PerTensor())
    origin, heir = observed(denoiser, make), InputObservations(denoiser.sites(), make)
    origin.save(tmp_path / "inputs")
    heir.restore(tmp_path / "inputs")
    for bits in (LayerBits(4, 3), LayerBits(4, 8)):
        plan = constant(denoiser, bits)
        networks = [quantize(denoiser, plan, each, WEIGHT) for each in (origin, heir)]
        assert networks[0].fingerprint() == networks[1].fingerprint()
        assert torch.equal(*map(outputs, networks))
    heir.save(tmp_path / "again")
    assert (tmp_path / "again").read_bytes() == (tmp_path / "inputs").read_bytes()


def test_what_was_restored_can_be_observed_further(denoiser, tmp_path):
    """Statistics of all that was seen, in whatever parts."""
    origin, heir = observed(denoiser), InputObservations(denoiser.sites(), ACTIVATION)
    origin.save(tmp_path / "inputs")
    heir.restore(tmp_path / "inputs")
    files = []
    for observations in (origin, heir):
        with observations.observing(denoiser.network):
            denoiser.predict(3 * states(denoiser), at(100.0))
        observations.save(tmp_path / "more")
        files.append((tmp_path / "more").read_bytes())
    assert files[0] == files[1] != (tmp_path / "inputs").read_bytes()


def test_a_layer_that_saw_nothing_is_named(denoiser):
    with pytest.raises(RuntimeError, match="conv_in: nothing was observed"):
        InputObservations(denoiser.sites(), ACTIVATION).quantizer("conv_in", 8)


def test_an_activation_has_one_grid(denoiser):
    with pytest.raises(ValueError, match=r"quantizer of activations, got one with PerChannel\(axis=0\)"):
        InputObservations(denoiser.sites(), WEIGHT)


def without_exponents(tensors):
    return {name: tensor for name, tensor in tensors.items() if not name.endswith("exponent")}


def of_one_more(tensors):
    return tensors | {"nowhere/counts": torch.zeros(1)}


def of_one_less(tensors):
    return {name: tensor for name, tensor in tensors.items() if not name.startswith("conv_out/")}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (of_one_more, "another network: only one of both has nowhere"),
        (of_one_less, "another network: only one of both has conv_out"),
        (without_exponents, "expected histograms .* calibrate again"),
    ],
)
def test_another_file_is_refused(denoiser, observations, tmp_path, change, message):
    observations.save(tmp_path / "inputs")
    save_file(change(load_file(tmp_path / "inputs")), tmp_path / "other")
    with pytest.raises(ValueError, match=message):
        InputObservations(denoiser.sites(), ACTIVATION).restore(tmp_path / "other")


def test_a_broken_file_is_refused(denoiser, observations, tmp_path):
    observations.save(tmp_path / "inputs")
    (tmp_path / "inputs").write_bytes((tmp_path / "inputs").read_bytes()[:-1])
    with pytest.raises(ValueError, match="a broken file .* calibrate again"):
        InputObservations(denoiser.sites(), ACTIVATION).restore(tmp_path / "inputs")
