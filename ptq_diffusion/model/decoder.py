"""Decoders: images from the latents that sampling ends in."""

from abc import ABC, abstractmethod

from torch import Tensor, nn


class Decoder(nn.Module, ABC):
    """A map from latents to images; the last part of drawing, which no quantization touches."""

    @abstractmethod
    def decode(self, x_0: Tensor) -> Tensor:
        """Images in [0, 1], (B, 3 or 1, H', W'), from latents, (B, C, H, W)."""

    @abstractmethod
    def shape(self, latent: tuple[int, int, int]) -> tuple[int, int, int]:
        """The shape of the image, (3 or 1, H', W'), of a latent of shape (C, H, W)."""


class Pixels(Decoder):
    """Images themselves, in [-1, 1], as the latents of a pixel model."""

    def decode(self, x_0: Tensor) -> Tensor:
        return (x_0 / 2 + 0.5).clamp(0, 1)

    def shape(self, latent: tuple[int, int, int]) -> tuple[int, int, int]:
        return latent


def load_decoder(path: str) -> Decoder:  # noqa: ARG001
    """The decoder of a model folder.

    Args:
        path: the folder, or `bundled:NAME`.
    """
    return Pixels()
