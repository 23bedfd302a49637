"""Random codes of layers whose products are timed on a GPU."""

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

REFERENCE = 2
"""Samples whose sums are compared with those of float64."""


@dataclass(frozen=True)
class Shape:
    """The shape of a layer: k x k convolution of channels from `inputs` to `outputs` on side x side.

    A linear layer has k = 0 and side^2 tokens.
    """

    network: str
    inputs: int
    outputs: int
    k: int
    side: int

    @property
    def name(self) -> str:
        kind = f"{self.k}x{self.k}" if self.k else "linear"
        return f"{self.network} {kind} {self.inputs}->{self.outputs} side {self.side}"


class Operands:
    """Random codes of an input, -128 to 127 about a zero of -28, and of a weight.

    Attributes:
        x: float32 input, (B, I, side, side) or (B, side^2, I).
        codes: whole numbers (u - z) of x in float32, from -100 to 155.
        weight: whole numbers, (O, I, k, k) or (O, I) float32.
        scale: (O,) float32.
        bias: (O,) float32.
    """

    LOW, HIGH, ZERO = -100, 155, -28
    INPUT_SCALE = 0.03

    def __init__(self, shape: Shape, batch: int, device: torch.device) -> None:
        generator = torch.Generator(device).manual_seed(0)
        kernel = (shape.k, shape.k) if shape.k else ()
        place = (shape.inputs, shape.side, shape.side) if shape.k else (shape.side**2, shape.inputs)
        self.shape, self.device, self.batch = shape, device, batch
        self.x = 1.2 * torch.randn(batch, *place, generator=generator, device=device) + 0.8
        self.codes = self.rounded(self.x)
        size = (shape.outputs, shape.inputs, *kernel)
        self.weight = torch.randint(-127, 128, size, generator=generator, device=device).float()
        self.scale = torch.rand(shape.outputs, generator=generator, device=device) / 1000
        self.bias = torch.randn(shape.outputs, generator=generator, device=device)

    def rounded(self, x: Tensor) -> Tensor:
        return (x * (1 / self.INPUT_SCALE)).round_().clamp_(self.LOW, self.HIGH)

    def operation(self, x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
        if self.shape.k:
            return functional.conv2d(x, weight, bias, padding=self.shape.k // 2)
        return functional.linear(x, weight, bias)

    def reference(self) -> Tensor:
        return self.operation(self.codes[:REFERENCE].double(), self.weight.double())

    def patches(self, codes: Tensor, zero: int = 0) -> Tensor:
        """Rows of the product with `columns`: (B side^2, k k I) of codes (B, I, side, side), channels innermost."""
        k = self.shape.k
        if not k:
            return codes.reshape(-1, codes.shape[-1])
        rows = codes.permute(0, 2, 3, 1)
        if k > 1:
            rows = functional.pad(rows, (0, 0, k // 2, k // 2, k // 2, k // 2), value=zero)
            rows = rows.unfold(1, k, 1).unfold(2, k, 1).permute(0, 1, 2, 4, 5, 3)
        return rows.reshape(-1, k * k * self.shape.inputs)

    def columns(self) -> Tensor:
        """The weight as (k k I, O), its memory by output channel."""
        rows = self.weight.permute(0, 2, 3, 1).reshape(len(self.weight), -1) if self.shape.k else self.weight
        return rows.t()

    def folded(self, product: Tensor) -> Tensor:
        """The product's rows as the layer's output."""
        if not self.shape.k:
            return product.view(self.batch, -1, self.shape.outputs)
        return product.view(self.batch, self.shape.side, self.shape.side, -1).permute(0, 3, 1, 2)
