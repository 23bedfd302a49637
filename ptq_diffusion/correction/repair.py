"""What a fitted correction does with the output at one step: m~ from q, x_t and the output layer's input."""

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import ClassVar

import torch
from torch import Tensor
from torch.nn import functional as F

from ptq_diffusion.numeric.spectrum import cosine_transform, inverse_cosine_transform, radial_bands


class Repair(ABC):
    """An estimate of the float output at one step. Its fields are tensors, saved by their names."""

    kind: ClassVar[str]

    @abstractmethod
    def output(self, q: Tensor, x_t: Tensor, features: Tensor) -> Tensor:
        """m~, (B, C, H, W).

        Args:
            q: the quantized network's output, (B, C, H, W).
            x_t: the state that it was asked about, (B, C, H, W).
            features: the input of its output layer after that layer's activation quantizer, (B, F, H, W).
        """

    @property
    @abstractmethod
    def needs_features(self) -> bool:
        """Whether m~ depends on the features; otherwise any tensor may stand for them."""

    @abstractmethod
    def macs(self, shape: tuple[int, ...]) -> int:
        """Multiplications for one image of shape (C, H, W), those that fold into the output layer left out."""

    def nothing(self) -> "Repair":
        """The one of the same shapes that leaves the output as it is."""
        return type(self)(**{name: torch.zeros_like(tensor) for name, tensor in self.tensors().items()})

    def tensors(self) -> Mapping[str, Tensor]:
        """Its coefficients by name."""
        return {field.name: getattr(self, field.name).contiguous() for field in fields(self)}  # type: ignore[arg-type]


@dataclass(frozen=True)
class Affine(Repair):
    """m~ = (q - mu) / (1 + k), the same at every pixel: PTQD's form.

    Args:
        k: () float64.
        bias: mu, (C,).
    """

    kind: ClassVar[str] = "affine"
    k: Tensor
    bias: Tensor

    def output(self, q: Tensor, x_t: Tensor, features: Tensor) -> Tensor:  # noqa: ARG002
        return (q - self.bias.to(q)[:, None, None]) / (1 + float(self.k))

    @property
    def needs_features(self) -> bool:
        return False

    def macs(self, shape: tuple[int, ...]) -> int:
        return shape[0] * shape[1] * shape[2]


@dataclass(frozen=True)
class Filter(Repair):
    """m~ = q + K_q * q + K_x * x_t + R * h + c, where * is a convolution that keeps the size.

    q and x_t are reflected at the border, h is padded with zeros as in the output layer, into which R and c fold. An
    empty kernel, of shape (C, 0, 1, 1), takes no part.

    Args:
        on_q: K_q, (C, C, k, k).
        on_x: K_x, (C, C, k, k).
        on_features: R, (C, F, k, k).
        offset: c, (C,).
    """

    kind: ClassVar[str] = "filter"
    on_q: Tensor
    on_x: Tensor
    on_features: Tensor
    offset: Tensor

    def output(self, q: Tensor, x_t: Tensor, features: Tensor) -> Tensor:
        m = q + self.offset.to(q)[:, None, None]
        for kernel, source, mode in (
            (self.on_q, q, "reflect"),
            (self.on_x, x_t, "reflect"),
            (self.on_features, features, "constant"),
        ):
            if kernel.numel() > 0:
                m += convolved(source, kernel.to(q), mode)
        return m

    @property
    def needs_features(self) -> bool:
        return self.on_features.numel() > 0

    def macs(self, shape: tuple[int, ...]) -> int:
        return (self.on_q.numel() + self.on_x.numel()) * shape[1] * shape[2]


@dataclass(frozen=True)
class FilterInt8(Repair):
    """A `Filter` whose R is stored in 8 bits, R = scale * integers, one scale for each output channel.

    Args:
        on_q: K_q, (C, C, k, k).
        on_x: K_x, (C, C, k, k).
        integers: (C, F, k, k) int8.
        scale: (C,) float64.
        offset: c, (C,).
    """

    kind: ClassVar[str] = "filter_int8"
    on_q: Tensor
    on_x: Tensor
    integers: Tensor
    scale: Tensor
    offset: Tensor

    @property
    def filter(self) -> Filter:
        """The same with R in float64."""
        return Filter(self.on_q, self.on_x, self.integers * self.scale[:, None, None, None], self.offset)

    def output(self, q: Tensor, x_t: Tensor, features: Tensor) -> Tensor:
        return self.filter.output(q, x_t, features)

    @property
    def needs_features(self) -> bool:
        return self.integers.numel() > 0

    def macs(self, shape: tuple[int, ...]) -> int:
        return (self.on_q.numel() + self.on_x.numel()) * shape[1] * shape[2]


@dataclass(frozen=True)
class Spectral(Repair):
    """m~(w) = A_w q(w) + B_w x_t(w) + c, band by band in the cosine transform.

    Args:
        on_q: A, (bands, C, C).
        on_x: B, (bands, C, C).
        offset: c, (C,), which moves the mean of every channel.
    """

    kind: ClassVar[str] = "spectral"
    on_q: Tensor
    on_x: Tensor
    offset: Tensor

    def output(self, q: Tensor, x_t: Tensor, features: Tensor) -> Tensor:  # noqa: ARG002
        bands = radial_bands(*q.shape[-2:], RINGS).to(q.device)
        matrices, spectrum = torch.cat([self.on_q, self.on_x], dim=2), cosine_transform(torch.cat([q, x_t], dim=1))
        return inverse_cosine_transform(banded(matrices.to(q), bands, spectrum)) + self.offset.to(q)[:, None, None]

    def nothing(self) -> "Spectral":
        eye = torch.eye(len(self.offset), dtype=self.on_q.dtype).expand_as(self.on_q)
        return Spectral(eye, torch.zeros_like(self.on_x), torch.zeros_like(self.offset))

    @property
    def needs_features(self) -> bool:
        return False

    def macs(self, shape: tuple[int, ...]) -> int:
        channels, height, width = shape
        transforms = 3 * channels * height * width * (height + width)
        return transforms + 2 * channels**2 * height * width


RINGS = 16
"""How many rings of frequencies a spectral repair tells apart; radial_bands leaves out those that a size lacks."""


def banded(matrices: Tensor, bands: Tensor, spectrum: Tensor) -> Tensor:
    """Every coefficient's channels times the matrix of its band: (bands, O, I) and (B, I, H, W) to (B, O, H, W).

    One channel after the other, as planes: matrices so small cost more than they compute.
    """
    planes = matrices[bands].permute(3, 2, 0, 1).contiguous()
    found = planes[0] * spectrum[:, :1]
    for plane, channel in zip(planes[1:], spectrum[:, 1:].split(1, dim=1), strict=True):
        found.addcmul_(plane, channel)
    return found


def convolved(x: Tensor, kernel: Tensor, mode: str) -> Tensor:
    """A convolution that keeps the size: (B, I, H, W) and (O, I, k, k) to (B, O, H, W).

    A kernel of one pixel is a matrix product, which torch computes several times faster than this convolution.
    """
    side = kernel.shape[-1]
    if side == 1:
        return (kernel.flatten(1) @ x.flatten(2)).unflatten(2, x.shape[2:])
    if mode == "constant":
        return F.conv2d(x, kernel, padding=side // 2)
    return F.conv2d(padded(x, side, mode), kernel)


def padded(x: Tensor, side: int, mode: str) -> Tensor:
    """(B, C, H, W) with side // 2 pixels more at every edge, so that a convolution keeps the size."""
    return x if side == 1 else F.pad(x, (side // 2,) * 4, mode=mode)


def patches(x: Tensor, side: int, mode: str) -> Tensor:
    """The side x side neighbourhood of every pixel: (B, C, H, W) to (C side^2, B H W), in the order of kernels."""
    around = padded(x, side, mode).unfold(2, side, 1).unfold(3, side, 1)
    return around.permute(1, 4, 5, 0, 2, 3).reshape(x.shape[1] * side**2, -1)
