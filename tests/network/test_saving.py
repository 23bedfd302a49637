"""Quantizers come back bit for bit, zero points too; and only to the network and plan that they belong to."""

import itertools
import json

import pytest
import torch
from diffusers import UNet2DModel
from ptq_diffusion.network.quantizers import network_fingerprint
from safetensors.torch import load_file, save_file

from ptq_diffusion.engine.factory import construct
from ptq_diffusion.main import CONF
from ptq_diffusion.model import DiffusersDenoiser
from ptq_diffusion.model.plan import BitwidthPlan, LayerBits
from ptq_diffusion.network import NetworkQuantizers, load_quantized, observing, quantize, save_quantized
from ptq_diffusion.quantizer import AffineQuantizer, LpSearch, State
from tests.steps import at

BITS = LayerBits(4, 6)


def quantizer(symmetric, per_channel):
    return lambda bits: AffineQuantizer(bits, symmetric, per_channel, LpSearch(2, 16), 1024)


PER_CHANNEL, PER_TENSOR = quantizer(True, True), quantizer(False, False)


def fresh(denoiser, bits=BITS, weight=PER_CHANNEL, activation=PER_TENSOR, **exceptions):
    sites = denoiser.sites()
    plan = BitwidthPlan.constant({site.name: exceptions.get(site.name, bits) for site in sites})
    return NetworkQuantizers(sites, plan, weight, activation)


def states(denoiser):
    return torch.randn(2, *denoiser.shape, generator=torch.Generator().manual_seed(0))


def calibrated(denoiser, **options):
    quantizers = fresh(denoiser, **options)
    quantizers.observe_weights(denoiser.network)
    with observing(denoiser.network, quantizers):
        denoiser.predict(states(denoiser), at(300.0))
    quantizers.freeze()
    return quantizers


@pytest.fixture(scope="module")
def denoiser(tiny_model_folder):
    return DiffusersDenoiser.from_folder(str(tiny_model_folder()))


@pytest.fixture(scope="module")
def origin(denoiser):
    return calibrated(denoiser)


@pytest.fixture
def saved(origin, tmp_path):
    origin.save(tmp_path / "quantizers.safetensors")
    return tmp_path / "quantizers.safetensors"


@pytest.mark.parametrize("weight", [PER_CHANNEL, PER_TENSOR])
def test_restored_quantizers_are_bit_exact(denoiser, tmp_path, weight):
    origin, heir = calibrated(denoiser, weight=weight), fresh(denoiser, weight=weight)
    origin.save(tmp_path / "q")
    heir.restore(tmp_path / "q")
    ours, theirs = heir.tensors(), origin.tensors()
    assert ours.keys() == theirs.keys()
    for name, tensor in ours.items():
        assert tensor.dtype == theirs[name].dtype and torch.equal(tensor, theirs[name])
    assert any(tensor.any() for name, tensor in ours.items() if name.endswith("activation/zero_point"))
    for layer in heir.layers.values():
        assert layer.weight.state is layer.activation.state is State.FROZEN
    networks = [quantize(denoiser.network, quantizers) for quantizers in (origin, heir)]
    assert network_fingerprint(networks[0]) == network_fingerprint(networks[1])
    outputs = [denoiser.with_network(network).predict(states(denoiser), at(40.0)).m for network in networks]
    assert torch.equal(*outputs)


def test_restored_quantizers_are_frozen(denoiser, saved):
    heir = fresh(denoiser)
    heir.restore(saved)
    with pytest.raises(RuntimeError, match="observing"):
        heir.freeze()
    with pytest.raises(RuntimeError, match="observing"):
        heir.restore(saved)


def test_a_plan_with_float_operands_is_restored(denoiser, tmp_path):
    exceptions = {
        "conv_in": LayerBits(32, 8),
        "conv_out": LayerBits(8, 32),
        "time_embedding.linear_1": LayerBits(32, 32),
    }
    calibrated(denoiser, **exceptions).save(tmp_path / "q")
    heir = fresh(denoiser, **exceptions)
    heir.restore(tmp_path / "q")
    assert heir.layers["conv_in"].weight is heir.layers["conv_out"].activation is None


@pytest.mark.parametrize(
    ("options", "odd"),
    [
        ({"bits": LayerBits(5, 6)}, "conv_in/weight"),
        ({"bits": LayerBits(4, 8)}, "conv_in/activation"),
        ({"bits": LayerBits(4, 32)}, "conv_in/activation"),
        ({"conv_out": LayerBits(8, 6)}, "conv_out/weight"),
        ({"weight": quantizer(True, False)}, "conv_in/weight"),
        ({"weight": quantizer(False, True)}, "conv_in/weight"),
        ({"activation": quantizer(True, False)}, "conv_in/activation"),
    ],
    ids=["weight bits", "activation bits", "float", "one layer", "granularity", "weight grid", "activation grid"],
)
def test_another_plan_is_refused(denoiser, saved, options, odd):
    heir = fresh(denoiser, **options)
    with pytest.raises(ValueError, match=f"another network or plan: .*{odd}|another network or plan: {odd}"):
        heir.restore(saved)
    assert {layer.weight.state for layer in heir.layers.values()} == {State.OBSERVING}


def test_another_network_is_refused(tiny_model_folder, saved):
    other = DiffusersDenoiser.from_folder(str(tiny_model_folder(channels=1)))
    with pytest.raises(
        ValueError, match=r"conv_in/activation is .* of \(8, 3, 3, 3\) there and .* of \(8, 1, 3, 3\) here"
    ):
        fresh(other).restore(saved)


def test_another_file_is_refused(denoiser, saved, tmp_path):
    save_file(load_file(saved), tmp_path / "bare")
    with pytest.raises(ValueError, match="another network or plan"):
        fresh(denoiser).restore(tmp_path / "bare")


def test_every_scale_zero_point_and_weight_is_in_the_fingerprint(denoiser, origin):
    network = quantize(denoiser.network, origin)
    base = network_fingerprint(network)
    assert base == network_fingerprint(quantize(denoiser.network, calibrated(denoiser)))
    seen = {base}
    tensors = dict(network.named_parameters()) | dict(network.named_buffers())
    assert len([name for name in tensors if name.endswith("zero_point")]) == len(origin.layers)
    for tensor in tensors.values():
        first = tensor.view(-1)[0].clone()
        tensor.view(-1)[0] += 1
        seen.add(network_fingerprint(network))
        tensor.view(-1)[0] = first
    assert len(seen) == len(tensors) + 1
    assert network_fingerprint(network) == base


def test_fingerprints_tell_networks_apart(denoiser):
    fingerprints = {
        network_fingerprint(network)
        for network in [
            denoiser.network,
            quantize(denoiser.network, calibrated(denoiser, bits=LayerBits(32, 32))),
            quantize(denoiser.network, calibrated(denoiser, bits=LayerBits(4, 8))),
            quantize(denoiser.network, calibrated(denoiser, bits=LayerBits(8, 4))),
            quantize(denoiser.network, calibrated(denoiser, weight=PER_TENSOR)),
        ]
    }
    # A float plan computes the float network and shares its fingerprint.
    assert len(fingerprints) == 4


PRESETS = sorted(path.stem for path in (CONF / "quantizer").glob("*.yaml"))
PAIRS = list(itertools.product(PRESETS, [name for name in PRESETS if "per_channel" not in name]))


@pytest.mark.parametrize(("weight", "activation"), PAIRS)
def test_a_network_saved_as_a_folder_comes_back_bit_for_bit(denoiser, composed, tmp_path, weight, activation):
    chosen = {"weight": weight, "activation": activation}
    quick = [f"range_search@quantizer.{operand}.range_search=min_max" for operand in chosen]
    cfg = composed(*(f"+quantizer@quantizer.{operand}={name}" for operand, name in chosen.items()), *quick)
    made = {operand: construct(node) for operand, node in cfg.quantizer.items()}
    origin = calibrated(denoiser, conv_in=LayerBits(32, 8), conv_out=LayerBits(8, 32), **made)
    network = quantize(denoiser.network, origin)
    save_quantized(denoiser.with_network(network), origin, tmp_path)
    model, quantizers = load_quantized(tmp_path)
    again = quantize(model.network, quantizers)
    assert network_fingerprint(again) == network_fingerprint(network) != network_fingerprint(denoiser.network)
    outputs = [denoiser.with_network(each).predict(states(denoiser), at(40.0)).m for each in (network, again)]
    assert torch.equal(*outputs)
    stock = UNet2DModel.from_pretrained(tmp_path / "model", subfolder="unet").state_dict()
    assert all(torch.equal(tensor, network.state_dict()[name]) for name, tensor in stock.items())
    assert model.scheduler_config == denoiser.scheduler_config


def test_a_float_network_is_saved_without_quantizers(denoiser, tmp_path):
    origin = calibrated(denoiser, bits=LayerBits(32, 32))
    save_quantized(denoiser.with_network(quantize(denoiser.network, origin)), origin, tmp_path)
    model, quantizers = load_quantized(tmp_path)
    assert network_fingerprint(quantize(model.network, quantizers)) == network_fingerprint(denoiser.network)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"weight": {"kind": "LpSearch", "p": 2, "candidates": 4}}, "got 'LpSearch'"),
        ({"weight": {"kind": "Quantizer"}}, "got 'Quantizer'"),
        ({"activation": {"kind": "torch.load", "f": "x"}}, "got 'torch.load'"),
        ({"activation": {"kind": "__builtins__"}}, "got '__builtins__'"),
        ({"weight": {"kind": "AffineQuantizer", "symmetric": True}}, "TypeError"),
        ({"weight": {"kind": "AffineQuantizer", "symmetric": True, "per_channel": True, "path": "x"}}, "TypeError"),
        ({"weight": {"kind": "AffineQuantizer", "symmetric": False, "per_channel": True}}, "another network or plan"),
        ({"weight": None}, "4 bits to have a quantizer"),
        ({"weight": "AffineQuantizer"}, "ValueError"),
        ({"bits": {"conv_in": [4, 6]}}, "KeyError"),
        ({"bits": []}, "AttributeError"),
    ],
)
def test_a_folder_constructs_nothing_but_its_own_quantizers(denoiser, origin, tmp_path, changes, message):
    save_quantized(denoiser.with_network(quantize(denoiser.network, origin)), origin, tmp_path)
    settings = json.loads((tmp_path / "quantizers.json").read_text())
    (tmp_path / "quantizers.json").write_text(json.dumps(settings | changes))
    with pytest.raises(ValueError, match=message):
        load_quantized(tmp_path)
