"""A quantized network comes back bit for bit from a folder that constructs nothing but itself."""

import math

import pytest
import torch

from ptq_diffusion.engine.factory import construct
from ptq_diffusion.model import DiffusersDenoiser, GaussianDenoiser
from ptq_diffusion.model.plan import BitwidthPlan, LayerBits
from ptq_diffusion.network import CurrentStep, QuantizedDenoiser, Rescaling, load_quantized, quantize, save_quantized
from ptq_diffusion.network.saving import FILES
from ptq_diffusion.quantizer import PerChannel, PerGroup, PerTensor
from tests.network.networks import (
    ACTIVATION,
    FLOAT,
    WEIGHT,
    by_step,
    constant,
    maker,
    named_tensors,
    observed,
    outputs,
    quantized,
    without_hooks,
)
from tests.quantizer.presets import OF_INPUTS, OF_WEIGHTS, STATIC

BITS = LayerBits(4, 6)
CHANGING = [LayerBits(4, 3), LayerBits(8, 32), LayerBits(32, 8)]


def assert_comes_back(network, folder, steps=1):
    save_quantized(network, folder)
    assert sorted(path.name for path in folder.iterdir()) == sorted(FILES)
    again = load_quantized(folder)
    ours, theirs = named_tensors(network.network), named_tensors(again.network)
    assert ours.keys() == theirs.keys()
    for name, tensor in ours.items():
        assert tensor.dtype == theirs[name].dtype and torch.equal(tensor, theirs[name]), name
    assert again.fingerprint() == network.fingerprint()
    assert again.plan == network.plan and again.sites() == network.sites() and again.shape == network.shape
    assert again.attention_macs() == network.attention_macs()
    assert again.scheduler_config == network.scheduler_config
    for i in range(steps):
        assert torch.equal(outputs(again, i), outputs(network, i))
    assert not again.network.training and without_hooks(again)
    return again


# What is stored of an operand does not depend on the other's quantizer: each with some other.
COUNT = max(len(OF_WEIGHTS), len(OF_INPUTS))
PAIRS = [(OF_WEIGHTS[i % len(OF_WEIGHTS)], OF_INPUTS[i % len(OF_INPUTS)]) for i in range(COUNT)]


@pytest.mark.parametrize(("weight", "activation"), PAIRS)
def test_a_network_comes_back_bit_for_bit(denoiser, composed, tmp_path, weight, activation):
    """Some operands of it in float."""
    chosen = {"weight": weight, "activation": activation}
    searched = [operand for operand, name in chosen.items() if name in STATIC]
    quick = [f"range_search@quantizer.{operand}.range_search=min_max" for operand in searched]
    cfg = composed(*(f"+quantizer@quantizer.{operand}={name}" for operand, name in chosen.items()), *quick)
    made = {operand: construct(node) for operand, node in cfg.quantizer.items()}
    exceptions = {"conv_in": LayerBits(32, 8), "conv_out": LayerBits(8, 32), "time_embedding.linear_1": FLOAT}
    assert_comes_back(quantized(denoiser, BITS, **made, **exceptions), tmp_path)


ATTENTION = "mid_block.attentions.0"
EXCEPTIONS = {
    "all": {},
    "all but one": {"conv_in": LayerBits(8, 8)},
    "attention too": {f"{ATTENTION}.qk": LayerBits(8, 6), f"{ATTENTION}.pv": LayerBits(32, 8)},
}


@pytest.mark.parametrize("exceptions", EXCEPTIONS.values(), ids=EXCEPTIONS)
def test_a_network_whose_bits_change_comes_back_bit_for_bit(denoiser, tmp_path, exceptions):
    plan = by_step(denoiser, CHANGING, **exceptions)
    again = assert_comes_back(quantize(denoiser, plan, observed(denoiser), WEIGHT), tmp_path, steps=3)
    with pytest.raises(ValueError, match="a step of a table of 3"):
        outputs(again, 3)


def test_a_float_network_comes_back_bit_for_bit(denoiser, tmp_path):
    again = assert_comes_back(quantized(denoiser, FLOAT), tmp_path)
    assert torch.equal(outputs(again), outputs(denoiser))


def test_a_loaded_network_is_saved_as_the_same_files(origin, saved, tmp_path):
    save_quantized(load_quantized(saved), tmp_path)
    for name in FILES:
        assert (tmp_path / name).read_bytes() == (saved / name).read_bytes()


def test_rescaled_layers_belong_to_a_correction(origin, tmp_path):
    ones = {"time_embedding.linear_1": Rescaling(torch.full((32,), 2.0), torch.zeros(32))}
    for network in (origin.rescaled([ones]), origin.at(0, ones)):
        with pytest.raises(ValueError, match=r"such as time_embedding.linear_1; save the network that `rescaled` was"):
            save_quantized(network, tmp_path)
    assert not list(tmp_path.iterdir())


class OfNoClass(GaussianDenoiser):
    """A denoiser around any network."""

    def __init__(self, around):
        super().__init__((1, 2, 2), 0.0, 1.0)
        self.around = around

    @property
    def network(self):
        return self.around


def test_a_network_of_no_diffusers_class_is_refused(origin, tmp_path):
    other = QuantizedDenoiser(OfNoClass(origin.network), origin.sites(), 0, origin.plan, CurrentStep())
    with pytest.raises(TypeError, match="expected a quantized network of diffusers, got a OfNoClass"):
        save_quantized(other, tmp_path)


# Size.


def test_files_take_the_bytes_of_the_bits(tmp_path):
    """Of the bundled model at W4A8: its bits, float parameters and scales, and five percent for all names."""
    model = DiffusersDenoiser.from_folder("bundled:cifar10_ddpm")
    last = {"conv_in": LayerBits(8, 8), "conv_out": LayerBits(8, 8)}
    plan = constant(model, LayerBits(4, 8), **last)

    class Ready:
        """Observations of which only the form counts."""

        steps = 1

        def groups(self, _):
            return (0,)

        def quantizer(self, _, bits, group):  # noqa: ARG002
            quantizer = ACTIVATION(bits)
            quantizer.observe(torch.linspace(-1, 1, 64))
            quantizer.freeze()
            return quantizer

        def equalisation(self, _):
            return None

    save_quantized(quantize(model, plan, Ready(), maker(True, PerChannel())), tmp_path)
    counted = 0
    for name, parameter in model.network.named_parameters():
        site, _, field = name.rpartition(".")
        if field == "weight" and site in plan.weight:
            counted += math.ceil(parameter.numel() * plan[site].weight / 8) + 4 * parameter.shape[0]
        else:
            counted += 4 * parameter.numel()
    size = sum((tmp_path / name).stat().st_size for name in FILES)
    assert counted < size <= 1.05 * counted


# Fingerprints.


def test_every_stored_tensor_is_in_the_fingerprint(origin):
    base, seen = origin.fingerprint(), set()
    tensors = named_tensors(origin.network)
    assert len([name for name in tensors if name.endswith("settings.zero_point")]) == len(origin.layers())
    for tensor in tensors.values():
        first = tensor.view(-1)[0].clone()
        tensor.view(-1)[0] += 1
        seen.add(origin.fingerprint())
        tensor.view(-1)[0] = first
    assert len(seen - {base}) == len(tensors)
    assert origin.fingerprint() == base


def test_fingerprints_tell_networks_apart(denoiser, origin):
    def made(plan, weight=WEIGHT, activation=ACTIVATION):
        return quantize(denoiser, plan, observed(denoiser, activation), weight).fingerprint()

    plan = constant(denoiser, BITS)
    assert made(plan) == origin.fingerprint()
    assert made(BitwidthPlan(plan.weight, plan.activation, {"note": 1.0})) == origin.fingerprint()
    steps = BitwidthPlan({name: 2 * bits for name, bits in plan.weight.items()}, plan.activation)
    fingerprints = [
        denoiser.fingerprint(),
        origin.fingerprint(),
        made(constant(denoiser, FLOAT)),
        made(constant(denoiser, LayerBits(4, 8))),
        made(constant(denoiser, LayerBits(8, 6))),
        made(plan, weight=ACTIVATION),
        made(plan, weight=maker(True, PerGroup(3))),
        made(plan, weight=maker(True, PerGroup(4))),
        made(plan, activation=maker(True, PerTensor())),
        made(steps),
        made(by_step(denoiser, [BITS, LayerBits(4, 8)])),
        made(by_step(denoiser, [LayerBits(4, 8), BITS])),
    ]
    assert len(set(fingerprints)) == len(fingerprints)
