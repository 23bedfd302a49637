"""SSIM to float: structural similarity of images to their counterparts from the same noise."""

import torch
from torch import Tensor
from torchmetrics.functional.image import structural_similarity_index_measure

from ptq_diffusion.metric.metric import Likeness

BATCH = 256


class SSIMToFloat(Likeness):
    """The mean structural similarity of each image to its float image; more is better."""

    name = "ssim_to_fp"

    def of_pairs(self, images: Tensor, full_precision: Tensor) -> Tensor:
        return ssim(images, full_precision)


def ssim(images: Tensor, reference: Tensor) -> Tensor:
    """The similarity of each image to its own reference, at most 1 (Wang et al., IEEE Trans. Image Process. 2004).

    The mean of (2 mu_x mu_y + C1)(2 sigma_xy + C2) / ((mu_x^2 + mu_y^2 + C1)(sigma_x^2 + sigma_y^2 + C2)) over all
    pixels and channels, with C1 = 0.01^2 and C2 = 0.03^2, moments under a Gaussian window of 11 x 11 pixels and
    standard deviation 1.5, and images reflected at their borders, as torchmetrics takes it.

    Args:
        images: (N, C, H, W) uint8, with H, W >= 6, half a window.
        reference: the same shape; row i comes from the same noise.

    Returns:
        (N,) float64, on the CPU.

    Raises:
        ValueError: the shapes differ, are not four-dimensional or smaller than half a window, or are not bytes.
    """
    if images.shape != reference.shape or images.ndim != 4 or min(images.shape[2:]) < 6:
        raise ValueError(
            f"expected two equal shapes (N, C, H >= 6, W >= 6), got {tuple(images.shape)} and {tuple(reference.shape)}"
        )
    if images.dtype != torch.uint8 or reference.dtype != torch.uint8:
        raise ValueError(f"expected uint8 images, got {images.dtype} and {reference.dtype}")
    pairs = zip(images.split(BATCH), reference.split(BATCH), strict=True)
    return torch.cat([_of_batch(a.float() / 255, b.float() / 255) for a, b in pairs]).cpu().double()


def _of_batch(images: Tensor, reference: Tensor) -> Tensor:
    similarity = structural_similarity_index_measure(images, reference, sigma=1.5, reduction="none", data_range=1.0)
    assert isinstance(similarity, Tensor)  # a pair only where the whole map is asked for
    return similarity
