"""The same numbers by torchmetrics, which stand beside ours: ours have errors and are what reports show."""

from collections.abc import Mapping

import torch
from torch import Tensor, nn
from torchmetrics.functional.image import peak_signal_noise_ratio
from torchmetrics.image.fid import FrechetInceptionDistance

from ptq_diffusion.metric.distance.frechet import FeatureMoments
from ptq_diffusion.metric.distance.psnr import CAP


class Incumbents:
    """FID and PSNR of one variant as torchmetrics computes them, batch by batch.

    SSIM has no counterpart here, for torchmetrics computes ours. KID and the classifier score have none, for
    torchmetrics takes random subsets of the images there; the tests compare them where all images are one subset.

    Args:
        width: the number of features.
        real: of the real images; None where the float images stand in their place.
    """

    def __init__(self, width: int, real: FeatureMoments | None) -> None:
        # One process judges all images; the other ranks of a command would be waited for in vain.
        self._fid = FrechetInceptionDistance(_Described(width), sync_on_compute=False)
        self._ratios: list[Tensor] = []
        self._reference_is_float = real is None
        if real is not None:
            _set_real(self._fid, real)

    def update(self, vectors: Tensor, full_precision: Tensor, ratios: Tensor) -> None:
        """Take in a batch.

        Args:
            vectors: features of the images, (N, D) on the CPU.
            full_precision: those of the float images of the same noise.
            ratios: the `image_ratios` of the images to the float ones, (N,).
        """
        self._fid.update(vectors, real=False)
        if self._reference_is_float:
            self._fid.update(full_precision, real=True)
        self._ratios.append(ratios)

    def compute(self) -> Mapping[str, float]:
        """The numbers of all batches; the ratio of equal images counts as `CAP`, as in ours."""
        ratios = torch.cat(self._ratios).clamp(max=CAP)
        return {"fid": self._fid.compute().item(), "psnr_to_fp": ratios.mean().item()}


def image_ratios(images: Tensor, float_images: Tensor) -> Tensor:
    """The PSNR of every image to the float image of the same noise, by torchmetrics, (N,) on the CPU.

    Args:
        images: (N, C, H, W) uint8.
        float_images: the same shape.
    """
    pair = images.cpu().float() / 255, float_images.cpu().float() / 255
    return peak_signal_noise_ratio(*pair, data_range=1.0, reduction="none", dim=(1, 2, 3))


class _Described(nn.Module):
    """The feature network in a place where the features are there already, (N, D) to the same."""

    def __init__(self, num_features: int) -> None:
        super().__init__()
        self.num_features = num_features

    def forward(self, vectors: Tensor) -> Tensor:
        return vectors


def _set_real(fid: FrechetInceptionDistance, real: FeatureMoments) -> None:
    """Make the sums of torchmetrics those of as many images with these moments."""
    squares = (real.count - 1) * real.covariance + real.count * torch.outer(real.mean, real.mean)
    fid.real_features_sum = real.count * real.mean
    fid.real_features_cov_sum = squares
    fid.real_features_num_samples = torch.tensor(real.count)
