"""Products of 8-bit integers on a CUDA GPU.

Legend: i, whole numbers of an input in which zero is 0; n, integers of a weight. y = s_x s_w[o] sum i n + b[o].
Matrix products are of int8, summed in 32-bit integers. Convolutions, of which torch has none in int8 there, multiply
whole numbers in float32, all of which TensorFloat-32 holds too, as its 11 bits hold those up to 2048; sums are float32.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache, partial

import torch
from torch import Tensor
from torch.nn import functional

from ptq_diffusion.network.backend.input_codes import whole_numbers
from ptq_diffusion.network.backend.products import (
    HIGHEST,
    LOWEST,
    MISSING,
    Operands,
    Product,
    Products,
    signed_parts,
)
from ptq_diffusion.network.backend.sums import Sums

ROWS, MULTIPLE = 17, 8
"""The fewest rows of an int8 product, and the number whose multiples its other sizes are, as cuBLAS takes them."""


class OnCuda(Products):
    """Int8 matrix products of linear layers and 1x1 convolutions, products of whole numbers in float32 otherwise."""

    def require(self, device: torch.device) -> None:
        if complaint := _complaint(device):
            raise RuntimeError(
                f"expected torch._int_mm to multiply 8-bit integers exactly on {device}, {complaint} (torch "
                f"{torch.__version__}); set backend=simulated"
            )

    def product(self, operands: Operands) -> Product:
        at = operands.geometry
        if at is not None and not _is_pointwise(operands):
            return partial(_convolved, operands, _whole_weight(operands))
        if any(size % MULTIPLE for size in operands.weight.shape[:2]):
            return partial(_convolved if at else _multiplied, operands, _whole_weight(operands))
        return MatrixProduct.of(operands)


def _is_pointwise(operands: Operands) -> bool:
    """Whether a convolution is a linear layer of pixels."""
    at, kernel = operands.geometry, operands.weight.shape[2:]
    return at is not None and all(k == 1 for k in kernel) and not any(at.padding) and at.groups == 1


def _whole_weight(operands: Operands) -> Tensor:
    weight: Tensor = operands.packed.once("whole", [operands.weight], operands.weight.centred)
    return weight


def _convolved(operands: Operands, weight: Tensor, x: Tensor) -> Tensor:
    at = operands.geometry
    assert at is not None
    whole = whole_numbers(x, operands.numbers)
    sums = functional.conv2d(whole, weight, None, at.stride, at.padding, at.dilation, at.groups)
    return scaled(sums, operands, (-1, 1, 1))


def _multiplied(operands: Operands, weight: Tensor, x: Tensor) -> Tensor:
    return scaled(functional.linear(whole_numbers(x, operands.numbers), weight), operands, (-1,))


def scaled(sums: Tensor, operands: Operands, across: tuple[int, ...]) -> Tensor:
    """s sum + b in float32.

    Args:
        sums: of integers, float32 or int32.
        operands: hold s and b.
        across: the shape in which these broadcast against the sums.
    """
    scale = operands.output_scale.view(across)
    if operands.bias is None:
        return sums * scale
    return torch.addcmul(operands.bias.view(across), sums, scale)


@dataclass(frozen=True)
class MatrixProduct:
    """The int8 product of a linear layer, or of a 1x1 convolution as one of pixels.

    Args:
        operands: of the layer, whose bias holds -s d sum n where `excess` does not.
        distance: d, which is added to whole numbers of the input so that they are those of int8.
        columns: parts of the weight, (I, O) int8, that add up to it.
        excess: d sum n, (O,) int32, which is taken off the sums; None where the bias holds it.
        few: the product of fewer rows than torch multiplies in int8.
    """

    operands: Operands
    distance: int
    columns: Sequence[Tensor]
    excess: Tensor | None
    few: Product

    @classmethod
    def of(cls, operands: Operands) -> "MatrixProduct":
        """The product of operands whose sizes torch multiplies in int8."""
        weight, packed, numbers = operands.weight, operands.packed, operands.numbers
        sums: Sums = packed.once("sums", [weight], lambda: Sums.of(weight.centred()))
        columns: list[Tensor] = packed.once(
            "columns", [weight], lambda: [part.flatten(1).t() for part in signed_parts(weight)]
        )
        fits = numbers.low >= LOWEST and numbers.high <= HIGHEST
        distance = 0 if fits else LOWEST - numbers.low
        excess: Tensor | None = (distance * sums.total).int()
        few = partial(_multiplied if operands.geometry is None else _convolved, operands, _whole_weight(operands))
        if sums.small(distance, numbers.high - numbers.low):
            operands, excess = operands.without(distance * sums.total), None
        return cls(operands, distance, columns, excess, few)

    def __call__(self, x: Tensor) -> Tensor:
        pixels, at = x, self.operands.geometry
        if at is not None:
            pixels = x[:, :, :: at.stride[0], :: at.stride[1]]
        if pixels.numel() // self.operands.weight.shape[1] < ROWS:
            return self.few(x)
        codes = whole_numbers(pixels, self.operands.numbers)
        codes = (codes.add_(self.distance) if self.distance else codes).to(torch.int8)
        codes = codes if at is None else codes.permute(0, 2, 3, 1)
        y = scaled(self._sums(codes.reshape(-1, codes.shape[-1])), self.operands, (-1,))
        y = y.view(*codes.shape[:-1], -1)
        return y if at is None else y.permute(0, 3, 1, 2)

    def _sums(self, rows: Tensor) -> Tensor:
        first, *others = (torch._int_mm(rows, columns) for columns in self.columns)
        for other in others:
            first += other
        return first if self.excess is None else first.sub_(self.excess)


@cache
def _complaint(device: torch.device) -> str:
    """The complaint about products on a device; empty where they are right."""
    try:
        matrices, convolutions = _tried_matrices(device), _tried_convolution(device)
    except MISSING as error:
        return f"got {type(error).__name__}: {' '.join(str(error).split())[:200]}"
    difference = max(matrices, convolutions)
    return f"got sums that are off by up to {difference:g} of the largest" if difference else ""


def _tried_matrices(device: torch.device) -> float:
    rows = torch.full((32, 64), HIGHEST, dtype=torch.int8)
    rows[:, ::2] = LOWEST
    columns = rows.flip(1)[:16].contiguous().t()
    return _difference(torch._int_mm(rows.to(device), columns.to(device)), rows.long() @ columns.long())


def _tried_convolution(device: torch.device) -> float:
    """Sums of the largest whole numbers, which are below 2^24."""
    whole, weight = torch.full((2, 32, 6, 6), 255.0), torch.full((16, 32, 3, 3), -128.0)
    whole[:, ::2], weight[1::2] = -128.0, 127.0
    sums = functional.conv2d(whole.to(device), weight.to(device), padding=1)
    return _difference(sums, functional.conv2d(whole.double(), weight.double(), padding=1))


def _difference(sums: Tensor, expected: Tensor) -> float:
    return float((sums.cpu().double() - expected.double()).abs().max() / expected.double().abs().max())
