"""Affine repair of the output, the same map at every pixel, as in PTQD."""

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from ptq_diffusion.correction.repair.repair import Repair


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

    def output(self, q: Tensor, x_t: Tensor, features: Tensor | None) -> Tensor:  # noqa: ARG002
        return (q - self.bias.to(q)[:, None, None]) / (1 + float(self.k))

    @property
    def needs_features(self) -> bool:
        return False

    def macs(self, shape: tuple[int, ...]) -> int:
        return self.macs_of(shape)

    @staticmethod
    def macs_of(shape: tuple[int, ...]) -> int:
        """The multiplications of any affine repair of an image of shape (C, H, W)."""
        return shape[0] * shape[1] * shape[2]
