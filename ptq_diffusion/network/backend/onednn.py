"""Products of unsigned 8-bit inputs and signed 8-bit weights by oneDNN, as torch brings it.

Legend: u, codes of an input, uint8; z, the code of zero; n, integers of a weight, int8; s, scales. y = s_x s_w[o]
(sum (u - z) n) + b[o], with the sum in 32-bit integers and padding of z. The operators are no public interface of
torch, so `exact_integers` tries them against sums that are known. A weight has no zero point here: oneDNN takes one and
computes something else.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cache
from typing import Any

import torch
from torch import Tensor

from ptq_diffusion.network.backend.products import MISSING, Geometry

PLAIN: Sequence[Any] = (1.0, 0, torch.float32, "none", [], "")
"""The last arguments of a product: scale and zero point of no output grid, the output's type, no operation behind."""
CODES = 256
"""The number of codes of 8 bits."""
ALL, HALF = (-128, 127), (-64, 64)
"""The integers of int8, and those of which a sum of two products with a code is one of 16 bits."""


def packed_convolution(integers: Tensor, at: Geometry, shape: Sequence[int]) -> Tensor:
    """The integers (O, I, k, k) of a convolution in the order that oneDNN reads them in; of no use elsewhere.

    Other sizes of the input than those of `shape`, (B, I, H, W), may take several times longer, another B does not.
    """
    geometry = (at.stride, at.padding, at.dilation, at.groups)
    return torch.ops.onednn.qconv_prepack(integers, torch.ones(1), 1.0, 0, *geometry, shape)


def packed_linear(integers: Tensor) -> Tensor:
    """The integers (O, I) of a linear layer in the order that oneDNN reads them in; of no use elsewhere."""
    return torch.ops.onednn.qlinear_prepack(integers, None)


@dataclass(frozen=True)
class Scales:
    """The numbers by which sums of integers become those of a layer's output.

    Args:
        input: s_x.
        zero: z.
        weight: s_w, (O,) float32.
        bias: b, (O,) float32, or None.
    """

    input: float
    zero: int
    weight: Tensor
    bias: Tensor | None

    def without_zero(self, total: Tensor) -> "Scales":
        """Scales of sum u n, without z, whose bias is b - s_x s_w z sum n.

        Args:
            total: sum n by output channel, (O,) float64.
        """
        shift = self.input * self.zero * self.weight.double() * total
        bias = -shift if self.bias is None else self.bias.double() - shift
        return replace(self, zero=0, bias=bias.float())


def convolution(codes: Tensor, weight: Tensor, scales: Scales, at: Geometry) -> Tensor:
    """y, (B, O, H', W') float32 whose channels are innermost in memory, of codes (B, I, H, W) and a packed weight."""
    geometry = (at.stride, at.padding, at.dilation, at.groups)
    operands = (codes, scales.input, scales.zero, weight, scales.weight, _no_zero_point(), scales.bias)
    return torch.ops.onednn.qconv_pointwise(*operands, *geometry, *PLAIN)


def linear(codes: Tensor, weight: Tensor, scales: Scales) -> Tensor:
    """y, (..., O) float32, of codes (..., I) and a packed weight."""
    operands = (codes, scales.input, scales.zero, weight, scales.weight, _no_zero_point(), scales.bias)
    return torch.ops.onednn.qlinear_pointwise(*operands, *PLAIN)


@cache
def _no_zero_point() -> Tensor:
    return torch.zeros(1, dtype=torch.int32)


def exact_integers() -> tuple[int, int]:
    """The smallest and the largest integer of a weight whose products are exact here, tried on the largest sums.

    They are those of int8 but on processors without instructions for such products (AVX512-VNNI, AVX-VNNI, AMX), where
    oneDNN adds two of them in 16 bits and cuts off what is larger: there they are half as large.

    Raises:
        RuntimeError: torch lacks an operator, or it computes something else here.
    """
    if not any(_complaint(trial, *ALL) for trial in TRIALS.values()):
        return ALL
    for name, trial in TRIALS.items():
        if complaint := _complaint(trial, *HALF):
            raise RuntimeError(
                f"expected torch.ops.onednn.{name} to multiply 8-bit integers exactly, {complaint} (torch "
                f"{torch.__version__}, {torch.backends.cpu.get_cpu_capability()}); set backend=simulated"
            )
    return HALF


def cuts_off_sums() -> bool:
    """Whether this processor is known to cut off sums of products of 8-bit integers; False where torch cannot tell."""
    try:
        return exact_integers() == HALF
    except RuntimeError:
        return False


@cache
def _complaint(trial: Callable[[int, int], tuple[Tensor, Tensor]], low: int, high: int) -> str:
    """The complaint about a trial with integers of a weight from `low` to `high`; empty of one that is right."""
    try:
        y, expected = trial(low, high)
    except MISSING as error:
        return f"got {type(error).__name__}: {' '.join(str(error).split())[:200]}"
    return "" if torch.equal(y, expected) else f"got sums that are off by up to {float((y - expected).abs().max()):g}"


def _operands(low: int, high: int, *shape: int) -> tuple[Tensor, Tensor]:
    """Extreme codes and integers of weights, of 32 inputs each: the sums are whole numbers below 2^24."""
    codes = torch.full(shape, CODES - 1, dtype=torch.uint8)
    codes[..., ::4] = 0
    weight = torch.full((16, 32, *[3] * (len(shape) - 2)), low, dtype=torch.int8)
    weight[1::2] = high
    return codes, weight


def _tried_convolution(low: int, high: int) -> tuple[Tensor, Tensor]:
    codes, weight = _operands(low, high, 1, 32, 6, 6)
    at, bias, weight = Geometry((2, 2), (1, 1), (1, 1), 2), torch.ones(16), weight[:, :16].contiguous()
    y = convolution(codes, packed_convolution(weight, at, codes.shape), Scales(1.0, 7, torch.ones(16), bias), at)
    return y, torch.nn.functional.conv2d(codes.float() - 7, weight.float(), bias, at.stride, at.padding, 1, at.groups)


def _tried_linear(low: int, high: int) -> tuple[Tensor, Tensor]:
    codes, weight = _operands(low, high, 3, 32)
    y = linear(codes, packed_linear(weight), Scales(1.0, 7, torch.ones(16), torch.ones(16)))
    return y, torch.nn.functional.linear(codes.float() - 7, weight.float(), torch.ones(16))


TRIALS = {"qconv_pointwise": _tried_convolution, "qlinear_pointwise": _tried_linear}
"""The trials by the names of their operators."""
