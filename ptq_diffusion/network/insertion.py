"""Build the quantized copy of a float network by a bitwidth plan."""

import copy
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from ptq_diffusion.model import Denoiser
from ptq_diffusion.model.plan import BitwidthPlan
from ptq_diffusion.model.site import Site
from ptq_diffusion.network.attention import install, quantized_attentions
from ptq_diffusion.network.embedding import quantized_tables
from ptq_diffusion.network.equalising import against_weight
from ptq_diffusion.network.integers import FloatWeight, QuantizedWeight, StoredWeight, require_of_weights
from ptq_diffusion.network.layer import CurrentStep, QuantizedLayer, quantized_layer
from ptq_diffusion.network.layer_settings import ROWS, LayerSettings, rows_of
from ptq_diffusion.network.low_rank import LowRankWeight, quantizer_of_layer
from ptq_diffusion.network.observing import InputObservations
from ptq_diffusion.network.quantized import QuantizedDenoiser
from ptq_diffusion.numeric.grid import FLOAT_BITS
from ptq_diffusion.quantizer import WHOLE, AffineQuantizer, LowRankQuantizer, Quantizer

Integers = Mapping[tuple[str, int], Tensor]
"""Integers of weights by the layer's name and the bits of the copy, each of the weight's shape."""


def quantize(
    model: Denoiser,
    plan: BitwidthPlan,
    observations: InputObservations,
    weight: Callable[[int], Quantizer],
    integers: Integers | None = None,
    rank: int = 0,
    table_bits: int = FLOAT_BITS,
) -> QuantizedDenoiser:
    """A quantized copy of a float denoiser; the original stays as it is.

    Args:
        model: the float denoiser.
        plan: bits of every site at every step.
        observations: of the inputs of its layers and of attention's operands.
        weight: from a bitwidth to a fresh quantizer of a weight.
        integers: of weights that a rounding has chosen; all others are rounded to nearest. None beside a rank.
        rank: of the part of every inner layer's weight that stays in 16 bits; 0 for none.
        table_bits: of its tables of embeddings; 32 leaves them in float.

    Raises:
        ValueError: the plan is of another network, a layer or a table cannot be quantized, or integers meet a rank.
    """
    sites = model.sites()
    plan.require(sites, plan.steps)
    _require_steps(plan, observations)
    current, weights = CurrentStep(), _Weights(weight, rank, integers or {})

    def replacement(site: Site, layer: nn.Module) -> QuantizedLayer:
        settings = layer_settings(plan, site.name, observations)
        copies = weights.copies(site, layer, plan.weight_copies(site.name), settings.equalisation)
        bias = None if layer.bias is None else layer.get_parameter("bias").detach().clone()
        return quantized_layer(layer, copies, bias, settings, current)

    network = model.network
    layers = {site.name: replacement(site, network.get_submodule(site.name)) for site in sites if site.weighted}
    network_copy = with_layers(network, {**layers, **quantized_tables(network, table_bits, weight)})
    for name, products in quantized_attentions(sites, plan).items():
        install(network_copy, name, operand_settings(plan, products, observations), current)
    return QuantizedDenoiser(model.with_network(network_copy), sites, model.attention_macs(), plan, current)


def with_layers(network: nn.Module, layers: Mapping[str, nn.Module]) -> nn.Module:
    """A copy of a network with other modules in the places of some layers; all other tensors are copied.

    The layers that are replaced are not copied before.
    """
    replacements = {id(network.get_submodule(name)): layer for name, layer in layers.items()}
    return copy.deepcopy(network, dict(replacements)).eval().requires_grad_(False)


def layer_settings(plan: BitwidthPlan, site: str, observations: InputObservations) -> LayerSettings:
    """The settings of one layer: a row for every step of the plan, which is one where nothing ever changes.

    An input that is float at every step is not equalised.
    """
    copies, bits = plan.weight_copies(site), plan.activation[site]
    places = [copies.index(weight_bits) for weight_bits in plan.weight[site]]
    equalisation = None if set(bits) == {FLOAT_BITS} else observations.equalisation(site)
    return _settings(site, bits, places, max(plan.steps, observations.steps), observations, equalisation)


def operand_settings(
    plan: BitwidthPlan, products: Sequence[Site], observations: InputObservations
) -> dict[str, LayerSettings]:
    """The settings of the operands of attention's products, by their names."""
    pairs = ((site.operands, (plan.activation[site.name], plan.weight[site.name])) for site in products)
    series = (pair for operands, bits in pairs for pair in zip(operands, bits, strict=True))
    steps = max(plan.steps, observations.steps)
    return {operand: _settings(operand, bits, [0], steps, observations) for operand, bits in series}


def _settings(
    operand: str,
    bits: Sequence[int],
    places: Sequence[int],
    steps: int,
    observations: InputObservations,
    equalisation: Tensor | None = None,
) -> LayerSettings:
    """Settings from an operand's bits and the places of the weight's copies, one for all steps or one for each."""
    groups = observations.groups(operand)
    every = range(max(len(bits), len(groups)))
    cases = list(zip(_each(bits, every), _each(groups, every), strict=True))
    quantizers = {case: observations.quantizer(operand, *case) for case in sorted(set(cases)) if case[0] != FLOAT_BITS}
    form = next((quantizer.form for quantizer in quantizers.values()), WHOLE)
    grids = {case: (quantizer.scale, quantizer.zero_point) for case, quantizer in quantizers.items()}
    like = next(iter(grids.values()), (torch.ones(1), torch.zeros(1, dtype=torch.int32)))
    unused = torch.ones_like(like[0]), torch.zeros_like(like[1])
    # (S, G), or (S,) of a single static grid, which alone is a number for whoever computes with integers.
    scale, zero_point = (torch.stack(rows) for rows in zip(*(grids.get(case, unused) for case in cases), strict=True))
    if form == WHOLE:
        scale, zero_point = scale[:, 0], zero_point[:, 0]
    symmetric = any(quantizer.grid.symmetric for quantizer in quantizers.values())
    bits_row, copy_row = (torch.tensor(numbers, dtype=torch.int16) for numbers in (bits, places))
    columns = (bits_row, scale, zero_point, copy_row)
    by_step = dict(zip(ROWS, (rows_of(column, steps).clone() for column in columns), strict=True))
    return LayerSettings(**by_step, symmetric=symmetric, form=form, equalisation=equalisation)


def _each(numbers: Sequence[int], every: range) -> Sequence[int]:
    """A number of every step, from one for all or one for each."""
    return [numbers[0] if len(numbers) == 1 else numbers[i] for i in every]


def _require_steps(plan: BitwidthPlan, observations: InputObservations) -> None:
    """Refuse ranges by step of another table than bits by step."""
    if plan.steps != 1 and observations.steps not in (1, plan.steps):
        raise ValueError(
            f"expected ranges of the {plan.steps} steps that the plan has bits for, got those of {observations.steps}; "
            "calibrate for the same table"
        )


def weight_quantizer(
    weight: Tensor, bits: int, make: Callable[[int], Quantizer], equalisation: Tensor | None
) -> AffineQuantizer:
    """The frozen quantizer of a weight at so many bits.

    Args:
        weight: (O, ...).
        bits: of its numbers.
        make: from a bitwidth to a fresh quantizer.
        equalisation: the factors of its layer's input channels, by which it is multiplied; None is 1.

    Raises:
        TypeError: a kind of quantizer whose integers cannot be stored yet.
        ValueError: a granularity that is not of weights.
    """
    quantizer = make(bits)
    require_of_weights(quantizer)
    assert isinstance(quantizer, AffineQuantizer)
    if equalisation is not None:
        quantizer.equalised(against_weight(equalisation.to(weight.device), weight.shape))
    quantizer.observe(weight)
    quantizer.freeze()
    return quantizer


@dataclass(frozen=True)
class _Weights:
    """The weights of a network as they are stored.

    Args:
        make: from a bitwidth to a fresh quantizer.
        rank: of the part of inner layers' weights in 16 bits.
        integers: that a rounding has chosen.

    Raises:
        ValueError: there are integers beside a rank.
    """

    make: Callable[[int], Quantizer]
    rank: int
    integers: Integers

    def __post_init__(self) -> None:
        if self.integers and self.rank:
            raise ValueError(
                f"expected integers of whole weights, got some beside parts of rank {self.rank}, without which they "
                "were chosen; leave out the integers or the rank"
            )

    def copies(
        self, site: Site, layer: nn.Module, bits: Sequence[int], equalisation: Tensor | None
    ) -> list[StoredWeight]:
        """The copies of a layer's weight at some bitwidths."""
        weight, make = layer.get_parameter("weight").detach(), quantizer_of_layer(self.make, self.rank, site, layer)

        def stored(copy_bits: int) -> StoredWeight:
            if copy_bits == FLOAT_BITS:
                return FloatWeight(weight.clone())
            frozen = weight_quantizer(weight, copy_bits, make, equalisation)
            if isinstance(frozen, LowRankQuantizer):
                return LowRankWeight.of(weight, frozen)
            integers = self.integers.get((site.name, copy_bits))
            return (
                QuantizedWeight.of(weight, frozen)
                if integers is None
                else QuantizedWeight.of_integers(integers, frozen)
            )

        return [stored(copy_bits) for copy_bits in bits]
