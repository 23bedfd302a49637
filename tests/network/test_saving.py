"""A quantized network comes back bit for bit from a folder that constructs nothing but itself."""

import itertools
import json
import math

import pytest
import torch
from safetensors.torch import load_file, save_file

from ptq_diffusion.engine.factory import construct
from ptq_diffusion.main import CONF
from ptq_diffusion.model import DiffusersDenoiser, GaussianDenoiser
from ptq_diffusion.model.plan import BitwidthPlan, LayerBits
from ptq_diffusion.network import CurrentStep, QuantizedDenoiser, Rescaling, load_quantized, quantize, save_quantized
from ptq_diffusion.network.saving import DESCRIPTION, FILES, TENSORS
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

BITS = LayerBits(4, 6)
CHANGING = [LayerBits(4, 3), LayerBits(8, 32), LayerBits(32, 8)]


@pytest.fixture(scope="module")
def denoiser(tiny_model_folder):
    return DiffusersDenoiser.from_folder(str(tiny_model_folder()))


@pytest.fixture(scope="module")
def origin(denoiser):
    return quantized(denoiser, BITS)


@pytest.fixture(scope="module")
def saved(origin, tmp_path_factory):
    folder = tmp_path_factory.mktemp("saved")
    save_quantized(origin, folder)
    return folder


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


PRESETS = sorted(path.stem for path in (CONF / "quantizer").glob("*.yaml"))
PAIRS = list(itertools.product(PRESETS, [name for name in PRESETS if "per_channel" not in name]))


@pytest.mark.parametrize(("weight", "activation"), PAIRS)
def test_a_network_comes_back_bit_for_bit(denoiser, composed, tmp_path, weight, activation):
    """Some operands of it in float."""
    chosen = {"weight": weight, "activation": activation}
    quick = [f"range_search@quantizer.{operand}.range_search=min_max" for operand in chosen]
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

        def quantizer(self, _, bits):
            quantizer = ACTIVATION(bits)
            quantizer.observe(torch.linspace(-1, 1, 64))
            quantizer.freeze()
            return quantizer

    save_quantized(quantize(model, plan, Ready(), maker(True, True)), tmp_path)
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
        made(plan, activation=maker(True, False)),
        made(steps),
        made(by_step(denoiser, [BITS, LayerBits(4, 8)])),
        made(by_step(denoiser, [LayerBits(4, 8), BITS])),
    ]
    assert len(set(fingerprints)) == len(fingerprints)


# What is refused.


def rewritten(saved, folder, describe=lambda description: None, store=lambda tensors: tensors):
    """A copy of the folder with another description and other tensors."""
    description = json.loads((saved / DESCRIPTION).read_text())
    description = describe(description) or description
    (folder / DESCRIPTION).write_text(json.dumps(description))
    tensors = {name: tensor.clone() for name, tensor in load_file(saved / TENSORS).items()}
    save_file(store(tensors), folder / TENSORS)
    return folder


def test_a_folder_rewritten_as_it_is_loads(saved, tmp_path, origin):
    def sort(description):
        return json.loads(json.dumps(description, sort_keys=True))

    assert load_quantized(rewritten(saved, tmp_path, sort)).fingerprint() == origin.fingerprint()


def put(*path, value):
    def describe(description):
        at = description
        for key in path[:-1]:
            at = at[key]
        at[path[-1]] = value

    return describe


def drop(*path):
    def describe(description):
        at = description
        for key in path[:-1]:
            at = at[key]
        del at[path[-1]]

    return describe


DESCRIPTIONS = {
    "another version": (put("version", value=2), "version 2 in place of 4"),
    "no version": (drop("version"), "KeyError: 'version'"),
    "a list": (lambda _: [1], "TypeError"),
    "another class": (put("family", value="torch.load"), "KeyError: 'torch.load'"),
    "a class of diffusers": (put("family", value="DiffusionPipeline"), "KeyError: 'DiffusionPipeline'"),
    "no class": (put("family", value=None), "KeyError"),
    "a class that is a list": (put("family", value=["UNet2DModel"]), "TypeError"),
    "blocks that are none": (put("network", "down_block_types", value=["os.system", "os.system"]), "os.system"),
    "labels": (put("network", "num_class_embeds", value=10), "counterpart"),
    "no size": (put("network", "sample_size", value=None), "sample_size"),
    "a wider network": (put("network", "block_out_channels", value=[8, 24]), "ValueError"),
    "more layers": (put("network", "layers_per_block", value=2), "sites"),
    "a network that is text": (put("network", value="unet"), "TypeError: .* of a network, got str"),
    "a plan that is a list": (put("plan", value=[]), "bitwidth plan"),
    "a plan of other weights": (put("plan", "weight", "conv_in", value=[5]), "bytes"),
    "a plan of other inputs": (put("plan", "activation", "conv_in", value=[8]), "the plan's bits, conv_in has others"),
    "a plan of more steps": (put("plan", "activation", "conv_in", value=[6, 8]), "ValueError: .*conv_in"),
    "a plan without a layer": (drop("plan", "activation", "conv_in"), "same sites"),
    "a plan of no bits": (put("plan", "weight", "conv_in", value=[1]), "2 to 8"),
    "no kinds of grids": (drop("symmetric", 0), "settings of .* layers at every step"),
    "kinds of another layer": (put("symmetric", 0, value=["nowhere", False, [True]]), "KeyError: 'conv_in'"),
    "another grid of a weight": (put("symmetric", 0, value=["conv_in", False, [False]]), "zero_point"),
    "a weight more": (put("symmetric", 0, value=["conv_in", False, [True, True]]), "ValueError"),
    "no weight": (put("symmetric", 0, value=["conv_in", False, []]), "ValueError"),
    "one kind for both": (put("symmetric", 0, value=["conv_in", True]), "ValueError"),
    "a layer twice": (put("symmetric", 1, value=["conv_in", False, [True]]), "settings of .* layers at every step"),
    "a scheduler that is text": (put("scheduler", value="ddpm"), "TypeError: .* of a scheduler, got str"),
}


@pytest.mark.parametrize(("describe", "message"), DESCRIPTIONS.values(), ids=DESCRIPTIONS)
def test_a_description_of_something_else_is_refused(saved, tmp_path, describe, message):
    with pytest.raises(ValueError, match=rf"expected a quantized network of version 4 in .*({message})"):
        load_quantized(rewritten(saved, tmp_path, describe))


def without(name):
    return lambda tensors: {key: tensor for key, tensor in tensors.items() if key != name}


def replaced(name, change):
    return lambda tensors: tensors | {name: change(tensors[name])}


STORED = {
    "no bits": (without("settings/bits"), "bits"),
    "a layer less": (replaced("settings/scale", lambda t: t[:, 1:].contiguous()), "at every step"),
    "steps more": (lambda t: t | {k: v.repeat(2, 1) for k, v in t.items() if "settings" in k}, "the plan's bits"),
    "other bits": (replaced("settings/bits", lambda t: t + 1), "the plan's bits, conv_in has others"),
    "bits of no grid": (replaced("settings/bits", lambda t: 0 * t), "2 to 8"),
    "a weight that is not there": (replaced("settings/copy", lambda t: t + 1), "the plan.s bits"),
    "a scale of nothing": (replaced("settings/scale", lambda t: 0 * t), "positive scales"),
    "scales in another type": (replaced("settings/scale", lambda t: t.double()), "torch.float64"),
    "no weight": (without("weight/conv_in/0/packed"), "packed"),
    "fewer bytes": (replaced("weight/conv_in/0/packed", lambda t: t[:-1]), "bytes"),
    "bytes that are numbers": (replaced("weight/conv_in/0/packed", lambda t: t.float()), "bytes"),
    "fewer scales": (replaced("weight/conv_in/0/scale", lambda t: t[:-1]), "output channels"),
    "no bias": (without("bias/conv_in"), "bias/conv_in"),
    "a longer bias": (replaced("bias/conv_in", lambda t: t.repeat(2)), "bias of 8 numbers at conv_in"),
    "no normalization": (without("other/conv_norm_out.weight"), "conv_norm_out.weight"),
    "another normalization": (replaced("other/conv_norm_out.weight", lambda t: t[:-1]), "conv_norm_out.weight"),
    "a parameter more": (lambda t: t | {"other/nowhere": torch.ones(1)}, "nowhere has no counterpart"),
    "a weight twice": (lambda t: t | {"other/conv_in.weight": torch.ones(8, 3, 3, 3)}, "conv_in.weight"),
    "a tensor that nothing reads": (lambda t: t | {"nowhere": torch.ones(1)}, "nothing reads nowhere"),
    "a copy that nothing reads": (lambda t: t | {"weight/conv_in/1/packed": torch.ones(1)}, "nothing reads weight"),
    "nothing": (lambda _: {}, "KeyError"),
}


@pytest.mark.parametrize(("store", "message"), STORED.values(), ids=STORED)
def test_tensors_of_something_else_are_refused(saved, tmp_path, store, message):
    with pytest.raises(ValueError, match=rf"(?s)expected a quantized network of version 4 in .*({message})"):
        load_quantized(rewritten(saved, tmp_path, store=store))


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize("content", [b"", b"{", b"\xff\xfe", b'{"version": 1}', b"[" * 100_000])
def test_broken_files_are_refused(saved, tmp_path, name, content):
    rewritten(saved, tmp_path)
    (tmp_path / name).write_bytes(content)
    with pytest.raises(ValueError, match="got other or broken files"):
        load_quantized(tmp_path)


@pytest.mark.parametrize("name", FILES)
def test_a_missing_file_is_named(saved, tmp_path, name):
    rewritten(saved, tmp_path)
    (tmp_path / name).unlink()
    with pytest.raises(FileNotFoundError, match=f"expected {name} in"):
        load_quantized(tmp_path)
