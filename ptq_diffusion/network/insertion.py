"""Build the quantized copy of a float network by a bitwidth plan."""

import copy
from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor, nn

from ptq_diffusion.model import Denoiser
from ptq_diffusion.model.plan import BitwidthPlan
from ptq_diffusion.model.site import Site
from ptq_diffusion.network.attention import install, quantized_attentions
from ptq_diffusion.network.integers import FloatWeight, QuantizedWeight, StoredWeight
from ptq_diffusion.network.layer import CurrentStep, QuantizedLayer, quantized_layer
from ptq_diffusion.network.observing import InputObservations
from ptq_diffusion.network.quantized import QuantizedDenoiser
from ptq_diffusion.network.step_settings import ROWS, LayerSettings
from ptq_diffusion.numeric.grid import FLOAT_BITS
from ptq_diffusion.quantizer import AffineQuantizer, Quantizer

Integers = Mapping[tuple[str, int], Tensor]
"""Integers of weights by the layer's name and the bits of the copy, each of the weight's shape."""


def quantize(
    model: Denoiser,
    plan: BitwidthPlan,
    observations: InputObservations,
    weight: Callable[[int], Quantizer],
    integers: Integers | None = None,
) -> QuantizedDenoiser:
    """A quantized copy of a float denoiser; the original stays as it is.

    Args:
        model: the float denoiser.
        plan: bits of every site at every step.
        observations: of the inputs of its layers and of attention's operands.
        weight: from a bitwidth to a fresh quantizer of a weight.
        integers: of weights that a rounding has chosen; all others are rounded to nearest.

    Raises:
        ValueError: the plan is of another network, or a layer cannot be quantized.
    """
    rounded = integers or {}
    sites = model.sites()
    plan.require(sites, plan.steps)
    current = CurrentStep()

    def replacement(name: str, layer: nn.Module) -> QuantizedLayer:
        float_weight = layer.get_parameter("weight").detach()
        copies = [_stored(float_weight, bits, weight, rounded.get((name, bits))) for bits in plan.weight_copies(name)]
        bias = None if layer.bias is None else layer.get_parameter("bias").detach().clone()
        return quantized_layer(layer, copies, bias, layer_settings(plan, name, observations), current)

    network = model.network
    names = [site.name for site in sites if site.weighted]
    network_copy = with_layers(network, {name: replacement(name, network.get_submodule(name)) for name in names})
    for name, products in quantized_attentions(sites, plan).items():
        install(network_copy, name, operand_settings(plan, products, observations), current)
    denoiser = model.with_network(network_copy)
    return QuantizedDenoiser(denoiser, sites, model.attention_macs(), plan, current)


def with_layers(network: nn.Module, layers: Mapping[str, QuantizedLayer]) -> nn.Module:
    """A copy of a network with other modules in the places of some layers; all other tensors are copied.

    The layers that are replaced are not copied before.
    """
    replacements = {id(network.get_submodule(name)): layer for name, layer in layers.items()}
    return copy.deepcopy(network, dict(replacements)).eval().requires_grad_(False)


def layer_settings(plan: BitwidthPlan, site: str, observations: InputObservations) -> LayerSettings:
    """The settings of one layer: a row for every step of the plan, which is one where nothing ever changes."""
    copies = plan.weight_copies(site)
    places = [copies.index(bits) for bits in plan.weight[site]]
    return _settings(site, plan.activation[site], places, plan.steps, observations)


def operand_settings(
    plan: BitwidthPlan, products: Sequence[Site], observations: InputObservations
) -> dict[str, LayerSettings]:
    """The settings of the operands of attention's products, by their names."""
    pairs = ((site.operands, (plan.activation[site.name], plan.weight[site.name])) for site in products)
    series = (pair for operands, bits in pairs for pair in zip(operands, bits, strict=True))
    return {operand: _settings(operand, bits, [0], plan.steps, observations) for operand, bits in series}


def _settings(
    operand: str, bits: Sequence[int], places: Sequence[int], steps: int, observations: InputObservations
) -> LayerSettings:
    """Settings from an operand's bits and the places of the weight's copies, one for all steps or one for each."""
    quantizers = {b: observations.quantizer(operand, b) for b in sorted(set(bits) - {FLOAT_BITS})}
    grids = {b: _grid(quantizer) for b, quantizer in quantizers.items()}
    unused = torch.ones(1), torch.zeros(1, dtype=torch.int32)
    scale, zero_point = zip(*(grids.get(b, unused) for b in bits), strict=True)
    symmetric = any(q.grid.symmetric for q in quantizers.values() if isinstance(q, AffineQuantizer))
    bits_row, copy_row = (torch.tensor(numbers, dtype=torch.int16) for numbers in (bits, places))
    columns = (bits_row, torch.cat(scale), torch.cat(zero_point), copy_row)
    by_step = dict(zip(ROWS, (column.expand(steps).clone() for column in columns), strict=True))
    return LayerSettings(**by_step, symmetric=symmetric)


def _grid(quantizer: Quantizer) -> tuple[Tensor, Tensor]:
    if not isinstance(quantizer, AffineQuantizer):
        raise TypeError(f"expected an AffineQuantizer of an input, got {type(quantizer).__name__}")
    return quantizer.scale, quantizer.zero_point


def weight_quantizer(weight: Tensor, bits: int, make: Callable[[int], Quantizer]) -> Quantizer:
    """The frozen quantizer of a weight at so many bits; `make` gives a fresh one."""
    quantizer = make(bits)
    quantizer.observe(weight)
    quantizer.freeze()
    return quantizer


def _stored(weight: Tensor, bits: int, make: Callable[[int], Quantizer], integers: Tensor | None) -> StoredWeight:
    if bits == FLOAT_BITS:
        return FloatWeight(weight.clone())
    quantizer = weight_quantizer(weight, bits, make)
    return (
        QuantizedWeight.of(weight, quantizer) if integers is None else QuantizedWeight.of_integers(integers, quantizer)
    )
