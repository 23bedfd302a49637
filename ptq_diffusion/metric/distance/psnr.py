"""PSNR to float: peak signal-to-noise ratio of images to their counterparts from the same noise."""

import math

import torch
from torch import Tensor

from ptq_diffusion.metric.metric import Likeness

FLOOR = (1 / 255) ** 2 / 12
CAP = -10 * math.log10(FLOOR)


class PSNRToFloat(Likeness):
    """The mean peak signal-to-noise ratio of each image to its float image, in dB; more is better."""

    name = "psnr_to_fp"

    def of_pairs(self, images: Tensor, full_precision: Tensor) -> Tensor:
        return psnr(images, full_precision)


def psnr(images: Tensor, reference: Tensor) -> Tensor:
    """The ratio of each image to its own reference, 10 log10(1 / mean squared error), in dB.

    Equal images would have an infinite ratio, and one of them an infinite mean. So the squared error counts as at
    least that of rounding to bytes, (1 / 255)^2 / 12, and no ratio exceeds `CAP` = 58.92 dB: errors below it cannot be
    seen in an 8-bit image on average. Below the cap nothing is changed.

    Args:
        images: (N, C, H, W), in [0, 1], or uint8, which is divided by 255.
        reference: the same shape; row i comes from the same noise.

    Returns:
        (N,) float64, in dB, on the CPU.

    Raises:
        ValueError: the shapes differ or are not four-dimensional.
    """
    if images.shape != reference.shape or images.ndim != 4:
        raise ValueError(
            f"expected two equal shapes (N, C, H, W), got {tuple(images.shape)} and {tuple(reference.shape)}"
        )
    error = (_unit(images) - _unit(reference)).square().mean((1, 2, 3))
    return -10 * error.clamp(min=FLOOR).log10()


def _unit(images: Tensor) -> Tensor:
    # Not every accelerator knows float64.
    rows = images.cpu().double()
    return rows / 255 if images.dtype == torch.uint8 else rows
