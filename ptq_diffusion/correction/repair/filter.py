"""Repairs that convolve the output, the state and the input of the output layer, with R in float or in 8 bits."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor
from torch.nn import functional as F

from ptq_diffusion.correction.repair.repair import Repair


@dataclass(frozen=True)
class Filter(Repair):
    """m~ = q + K_q * q + K_x * x_t + R * h + c, where * is a convolution that keeps the size.

    q and x_t are reflected at the border, h is padded with zeros as in the output layer, into which R and c fold. An
    empty kernel, of shape (C, 0, 1, 1), takes no part.

    Where h is of tokens, each of a patch of p x p pixels, all of it is of patches: C stands for their C p^2 numbers,
    and m~ is put together of them.

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

    def output(self, q: Tensor, x_t: Tensor, features: Tensor | None) -> Tensor:
        patch = math.isqrt(len(self.offset) // q.shape[1])
        q, x_t = F.pixel_unshuffle(q, patch), F.pixel_unshuffle(x_t, patch)
        m = q + self.offset.to(q)[:, None, None]
        for kernel, source, mode in (
            (self.on_q, q, "reflect"),
            (self.on_x, x_t, "reflect"),
            (self.on_features, features, "constant"),
        ):
            if kernel.numel() > 0:
                assert source is not None, "a filter of features is given them"
                m += convolved(source, kernel.to(q), mode)
        return F.pixel_shuffle(m, patch)

    @property
    def needs_features(self) -> bool:
        return self.on_features.numel() > 0

    def macs(self, shape: tuple[int, ...]) -> int:
        sides = (kernel.shape[-1] if kernel.numel() else 0 for kernel in (self.on_q, self.on_x))
        return self.macs_of(shape, len(self.offset), tuple(sides))

    @staticmethod
    def macs_of(shape: tuple[int, ...], channels: int, sides: Sequence[int]) -> int:
        """The multiplications of any filter of an image of shape (C, H, W).

        Args:
            shape: of the image.
            channels: of its patches, C p^2.
            sides: of K_q and K_x, in patches; 0 of one that takes no part.
        """
        return sum(channels * side**2 for side in sides) * shape[0] * shape[1] * shape[2]


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
        """The equal `Filter` with R in float64."""
        return Filter(self.on_q, self.on_x, self.integers * self.scale[:, None, None, None], self.offset)

    def output(self, q: Tensor, x_t: Tensor, features: Tensor | None) -> Tensor:
        return self.filter.output(q, x_t, features)

    @property
    def needs_features(self) -> bool:
        return self.integers.numel() > 0

    def macs(self, shape: tuple[int, ...]) -> int:
        return self.filter.macs(shape)


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
