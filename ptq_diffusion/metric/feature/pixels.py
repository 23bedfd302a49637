"""Averaged pixels: a feature space without a network, for images that no classifier was trained on."""

import torch
from torch import Tensor
from torch.nn import functional as F

from ptq_diffusion.metric.feature.feature import FeatureExtractor, Features


class Pixels(FeatureExtractor):
    """The pixels of images averaged down to a small square, for any number of channels.

    It sees colour and layout and nothing finer; use it where no better extractor fits. It has no spatial features of
    an earlier layer and no classes, so sFID and the classifier score are None.

    Args:
        channels: of the images.
        size: pixels a side that are left; the features are channels x size x size.

    Raises:
        ValueError: no channel or pixel.
    """

    name = "pixels"

    def __init__(self, channels: int = 3, size: int = 4) -> None:
        super().__init__()
        if channels < 1 or size < 1:
            raise ValueError(f"expected channels and size of at least 1, got {channels} and {size}")
        self.channels, self.size, self.num_features = channels, size, channels * size**2
        # A buffer, which tells the device of the images and enters the checksum.
        self.register_buffer("shape", torch.tensor([channels, size]))

    def describe(self, images: Tensor) -> Features:
        if images.ndim != 4 or images.shape[1] != self.channels:
            raise ValueError(
                f"expected images (N, {self.channels}, H, W), got {tuple(images.shape)}; set feature.extractor.channels"
            )
        x = images.float() / 255 if images.dtype == torch.uint8 else images.float()
        return Features(F.adaptive_avg_pool2d(x, self.size).flatten(1))
