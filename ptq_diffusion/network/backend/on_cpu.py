"""Products of 8-bit integers on the CPU, by oneDNN."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial

import torch
from torch import Tensor

from ptq_diffusion.network.backend import onednn
from ptq_diffusion.network.backend.input_codes import InputCodes
from ptq_diffusion.network.backend.products import Geometry, Operands, Product, Products
from ptq_diffusion.network.integers import QuantizedWeight


class OnCpu(Products):
    """Unsigned codes of the input times signed integers of the weight, in oneDNN's instructions."""

    def require(self, device: torch.device) -> None:  # noqa: ARG002
        onednn.exact_integers()

    def product(self, operands: Operands) -> Product:
        sums: list[Sums] = operands.packed.once(
            "sums", [operands.weight], lambda: [Sums.of(part) for part in signed_parts(operands.weight)]
        )
        codes, at = InputCodes(operands.numbers), operands.geometry
        scales = [
            onednn.Scales(operands.numbers.scale, codes.zero, operands.scale.contiguous(), bias)
            for bias in (operands.bias, *[None] * (len(sums) - 1))
        ]
        # oneDNN sums the weights once more at every call where z is told; a border costs less.
        if at is not None and all(part.small(codes) for part in sums):
            scales = [each.without_zero(part.total) for each, part in zip(scales, sums, strict=True)]
            codes, at = replace(codes, border=(at.padding[0], at.padding[1])), replace(at, padding=(0, 0))
        return OneDnnProduct(operands, codes, scales, at)


@dataclass(frozen=True)
class OneDnnProduct:
    """The product of a layer at one step.

    Args:
        operands: of the layer.
        codes: of the input.
        scales: of the first part of the weight with the bias, gains and offsets included, then of the others, if any.
        geometry: of a convolution of the codes; None of a linear layer.
    """

    operands: Operands
    codes: InputCodes
    scales: Sequence[onednn.Scales]
    geometry: Geometry | None

    def __call__(self, x: Tensor) -> Tensor:
        codes = self.codes(x)
        # The best order of a convolution's weight depends on the size of its input.
        key = self.codes.border, None if self.geometry is None else codes.shape[2:]
        weights = self.operands.packed.once(
            key,
            [self.operands.weight],
            lambda: [self._packed(part, codes) for part in signed_parts(self.operands.weight)],
        )
        first, *others = map(partial(self._multiplied, codes), weights, self.scales)
        for other in others:
            first.add_(other)
        return first

    def _packed(self, part: Tensor, codes: Tensor) -> Tensor:
        if self.geometry is None:
            return onednn.packed_linear(part)
        return onednn.packed_convolution(part, self.geometry, codes.shape)

    def _multiplied(self, codes: Tensor, weight: Tensor, scales: onednn.Scales) -> Tensor:
        if self.geometry is None:
            return onednn.linear(codes, weight, scales)
        return onednn.convolution(codes, weight, scales, self.geometry)


@dataclass(frozen=True)
class Sums:
    """Sums over the integers of one part of a weight by output channel.

    Args:
        total: sum of n, (O,) float64.
        power: sum of n^2, (O,) float64.
    """

    total: Tensor
    power: Tensor

    @classmethod
    def of(cls, part: Tensor) -> "Sums":
        """The sums of a part, (O, ...) int8."""
        rows = part.flatten(1).double()
        return cls(rows.sum(1), rows.square().sum(1))

    def small(self, codes: InputCodes) -> bool:
        """Whether z sum n is within a few deviations of sum u n over random codes: taking it off costs no digit."""
        return bool(((codes.zero * self.total).abs() <= 2 * codes.highest * self.power.sqrt()).all())


def signed_parts(weight: QuantizedWeight) -> Sequence[Tensor]:
    """The integers n - z of a weight as int8 parts that add up to them and whose products are exact on this machine.

    Most weights have one part. Weights of 8 bits have two on a processor without 8-bit products. Affine grids far off
    their middle have two, on such a processor up to four.
    """
    low, high = onednn.exact_integers()
    parts, rest = list[Tensor](), weight.centred()
    while not parts or rest.any():
        parts.append(rest.clamp(low, high))
        rest = rest - parts[-1]
    return [part.to(torch.int8) for part in parts]
