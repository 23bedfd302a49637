"""Repair of the output in the cosine transform, one matrix for each band of frequencies."""

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from ptq_diffusion.correction.repair.repair import Repair
from ptq_diffusion.numeric.spectrum import RINGS, cosine_transform, inverse_cosine_transform, radial_bands


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

    def output(self, q: Tensor, x_t: Tensor, features: Tensor | None) -> Tensor:  # noqa: ARG002
        bands = radial_bands(*q.shape[-2:], RINGS).to(q.device)
        matrices, spectrum = torch.cat([self.on_q, self.on_x], dim=2), cosine_transform(torch.cat([q, x_t], dim=1))
        return inverse_cosine_transform(banded(matrices.to(q), bands, spectrum)) + self.offset.to(q)[:, None, None]

    def identity_like(self) -> "Spectral":
        eye = torch.eye(len(self.offset), dtype=self.on_q.dtype).expand_as(self.on_q)
        return Spectral(eye, torch.zeros_like(self.on_x), torch.zeros_like(self.offset))

    @property
    def needs_features(self) -> bool:
        return False

    def macs(self, shape: tuple[int, ...]) -> int:
        return self.macs_of(shape)

    @staticmethod
    def macs_of(shape: tuple[int, ...]) -> int:
        """The multiplications of any spectral repair of an image of shape (C, H, W)."""
        channels, height, width = shape
        transforms = 3 * channels * height * width * (height + width)
        return transforms + 2 * channels**2 * height * width


def banded(matrices: Tensor, bands: Tensor, spectrum: Tensor) -> Tensor:
    """Every coefficient's channels times the matrix of its band: (bands, O, I) and (B, I, H, W) to (B, O, H, W).

    One channel after the other, as planes: matrices so small cost more than they compute.
    """
    planes = matrices[bands].permute(3, 2, 0, 1).contiguous()
    output = planes[0] * spectrum[:, :1]
    for plane, channel in zip(planes[1:], spectrum[:, 1:].split(1, dim=1), strict=True):
        output.addcmul_(plane, channel)
    return output
