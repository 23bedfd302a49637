"""Products of 8-bit integers on a CUDA GPU.

Legend: i, whole numbers of an input in which zero is 0; n, integers of a weight. y = s_x s_w[o] sum i n + b[o].
Both are of magnitudes below 256, which bfloat16 holds exactly, as TensorFloat-32 holds all up to 2048. Their products
are exact, and so are their sums in float32 up to 2^24. Matrix products of int8, `torch._int_mm`, are as exact and no
faster (experiments/backends).
"""

from collections.abc import Callable
from functools import cache, partial

import torch
from torch import Tensor
from torch.nn import functional

from ptq_diffusion.network.backend.input_codes import whole_numbers
from ptq_diffusion.network.backend.products import MISSING, Operands, Product, Products

Multiply = Callable[[Tensor, Tensor], Tensor]
"""The product of matrices (R, I) and (I, O) of bfloat16 in float32."""
INEXACT = 1e-6
"""The share of the largest sum by which one may be off."""


def multiplied_into_float32(rows: Tensor, columns: Tensor) -> Tensor:
    """The product of matrices (R, I) and (I, O) of bfloat16 in float32, which torch has on CUDA alone."""
    return torch.mm(rows, columns, out_dtype=torch.float32)


class OnCuda(Products):
    """Linear layers multiply whole numbers in bfloat16, convolutions in float32; sums of both are float32.

    torch computes convolutions of float32 in TensorFloat-32 unless `torch.backends.cudnn.allow_tf32` is off.

    Args:
        multiply: multiplies matrices.
    """

    def __init__(self, multiply: Multiply = multiplied_into_float32) -> None:
        self.multiply = multiply

    def require(self, device: torch.device) -> None:
        if complaint := _complaint(device, self.multiply):
            raise RuntimeError(
                f"expected torch to multiply 8-bit integers exactly on {device}, {complaint} (torch "
                f"{torch.__version__}); set backend=simulated"
            )

    def product(self, operands: Operands) -> Product:
        scale = operands.numbers.scale * operands.scale
        if operands.geometry is not None:
            return partial(_convolution, operands, scale)
        return partial(_linear, operands, scale, self.multiply)


def _convolution(operands: Operands, scale: Tensor, x: Tensor) -> Tensor:
    at = operands.geometry
    assert at is not None
    weight = operands.packed.once("float32", [operands.weight], operands.weight.centred)
    whole = whole_numbers(x, operands.numbers)
    sums = functional.conv2d(whole, weight, None, at.stride, at.padding, at.dilation, at.groups)
    return _scaled(sums, scale, operands.bias, (-1, 1, 1))


def _linear(operands: Operands, scale: Tensor, multiply: Multiply, x: Tensor) -> Tensor:
    columns = operands.packed.once("bfloat16", [operands.weight], lambda: operands.weight.centred().bfloat16().t())
    rows = whole_numbers(x, operands.numbers).bfloat16().reshape(-1, x.shape[-1])
    return _scaled(multiply(rows, columns), scale, operands.bias, (-1,)).view(*x.shape[:-1], -1)


def _scaled(sums: Tensor, scale: Tensor, bias: Tensor | None, across: tuple[int, ...]) -> Tensor:
    """s_x s_w sum + b, whose channels are along the one dimension of `across` that is not 1."""
    return sums * scale.view(across) if bias is None else torch.addcmul(bias.view(across), sums, scale.view(across))


@cache
def _complaint(device: torch.device, multiply: Multiply) -> str:
    """The complaint about products on a device; empty where they are right."""
    try:
        difference = max(_tried_linear(device, multiply), _tried_convolution(device))
    except MISSING as error:
        return f"got {type(error).__name__}: {' '.join(str(error).split())[:200]}"
    return f"got sums that are off by up to {difference:g} of the largest" if difference > INEXACT else ""


def _tried_linear(device: torch.device, multiply: Multiply) -> float:
    rows, weight = _extremes(32, 64), _extremes(16, 64).flip(1)
    sums = multiply(rows.bfloat16().to(device), weight.bfloat16().to(device).t())
    return _difference(sums, rows.double() @ weight.double().t())


def _tried_convolution(device: torch.device) -> float:
    whole, weight = _extremes(2, 6, 6, 32).permute(0, 3, 1, 2), _extremes(16, 3, 3, 32).flip(3).permute(0, 3, 1, 2)
    sums = functional.conv2d(whole.to(device), weight.to(device), padding=1)
    return _difference(sums, functional.conv2d(whole.double(), weight.double(), padding=1))


def _extremes(*shape: int) -> Tensor:
    """Whole numbers of the greatest magnitude, odd, and even ones; sums of their products are below 2^24."""
    numbers = torch.full(shape, 255.0)
    numbers[..., ::3] = -254.0
    return numbers


def _difference(sums: Tensor, expected: Tensor) -> float:
    return float((sums.cpu().double() - expected).abs().max() / expected.abs().max())
