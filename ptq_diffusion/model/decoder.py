"""Decoders: from the states that a model denoises to images."""

from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from ptq_diffusion.model.components import Component, read_json
from ptq_diffusion.model.folder import AUTOENCODERS, ModelFiles, find_configurations, find_files, named_digest
from ptq_diffusion.model.loading import complete_config, component_outline, load_component, require_latents

OUTLINE = "outline"
"""The checksum of a decoder whose weights nobody read."""
PIXELS = 2**18
"""Pixels of the images that are decoded together, as many as one of 512 x 512 has: kernels are launched once for many
small images, and a large one alone takes the memory of many."""
UNSCALED = "movq"
"""The name of a component whose latents the stock pipelines neither scale nor quantize."""


class Decoder(nn.Module, ABC):
    """The way from states x_0 to images. It has no state: the same x_0 always gives the same image.

    Attributes:
        factor: pixels of an image's side by those of a state's.
        checksum: sixteen hex digits over all that decides the images, or the name of a decoder without files.
    """

    factor: int
    checksum: str

    @abstractmethod
    def decode(self, x_0: Tensor) -> Tensor:
        """Images (B, 3 or 1, factor H, factor W) in [0, 1] of states (B, C, H, W), each of its own state alone."""

    @abstractmethod
    def shape(self, state: tuple[int, int, int]) -> tuple[int, int, int]:
        """The shape of the image, (3 or 1, H', W'), of a state of shape (C, H, W)."""


class Pixels(Decoder):
    """Images that are themselves denoised, in [-1, 1]."""

    factor, checksum = 1, "pixels"

    def shape(self, state: tuple[int, int, int]) -> tuple[int, int, int]:
        return state

    def decode(self, x_0: Tensor) -> Tensor:
        return _to_unit_interval(x_0)


class Autoencoder(Decoder):
    """The decoder of a latent model: AutoencoderKL, VQModel or AutoencoderDC, of x_0 / scaling + shift.

    Images are decoded in groups of one size, as kernels round otherwise in batches of other sizes.

    Args:
        network: of one of the classes; it is not changed.
        checksum: of its files.
        scaled: whether the latents are scaled and, of a VQModel, quantized; those of `movq` are not.
    """

    def __init__(self, network: nn.Module, checksum: str, scaled: bool = True) -> None:
        super().__init__()
        self.network, self.checksum, self.scaled = network, checksum, scaled
        config: Any = network.config
        self.factor = _factor(config)

    def shape(self, state: tuple[int, int, int]) -> tuple[int, int, int]:
        config: Any = self.network.config
        # AutoencoderDC has one number for both ends.
        channels = config.get("out_channels", config["in_channels"])
        return channels, self.factor * state[1], self.factor * state[2]

    def decode(self, x_0: Tensor) -> Tensor:
        options = {} if self.scaled else {"force_not_quantize": True}
        decode: Any = self.network.decode
        _, height, width = self.shape((x_0.shape[1], x_0.shape[2], x_0.shape[3]))
        groups = self._latents(x_0).split(max(1, PIXELS // (height * width)))
        images = [decode(latents, **options).sample for latents in groups]
        return _to_unit_interval(torch.cat(images))

    def _latents(self, x_0: Tensor) -> Tensor:
        """The latents as the autoencoder made them."""
        if not self.scaled:
            return x_0
        config: Any = self.network.config
        mean, deviation = _moments(config, x_0)
        return x_0 * deviation / config["scaling_factor"] + mean


def scaled_latents(latents: Tensor, config: Mapping[str, Any]) -> Tensor:
    """Latents as an autoencoder makes them, (B, C, H, W), to x_0 as a denoiser sees it, which decoding undoes.

    Args:
        latents: of the autoencoder.
        config: of the autoencoder: `scaling_factor`, and `latents_mean` with `latents_std` or `shift_factor`, if any.
    """
    mean, deviation = _moments(config, latents)
    return (latents - mean) * config["scaling_factor"] / deviation


def _moments(config: Mapping[str, Any], like: Tensor) -> tuple[Tensor | float, Tensor | float]:
    """The mean and the deviation of latents by which an autoencoder's configuration says they are standardized."""
    mean, deviation = (config.get(name) for name in ("latents_mean", "latents_std"))
    if mean is not None and deviation is not None:
        return like.new_tensor(mean).view(1, -1, 1, 1), like.new_tensor(deviation).view(1, -1, 1, 1)
    return config.get("shift_factor") or 0.0, 1.0


def load_decoder(path: str) -> Decoder:
    """The decoder of a model folder, in evaluation mode; `Pixels` of one without.

    Args:
        path: the folder, `bundled:NAME`, or `org/name` in the hub's local cache.

    Raises:
        FileNotFoundError: there is no such folder, or it lacks one of its files.
        ValueError: the decoder is of no known class, its files are broken, or its latents are of other channels than
            the network's.
    """
    files = find_files(path)
    if files.decoder is None:
        return Pixels()
    require_latents(files)
    config = read_json(files.decoder.config)
    network = load_component(files.decoder, config, AUTOENCODERS[config["_class_name"]]).eval().requires_grad_(False)
    return Autoencoder(network, decoder_checksum(path), files.decoder.config.parent.name != UNSCALED)


def outlined_decoder(path: str) -> Decoder:
    """The decoder that `load_decoder` would load, on the meta device; the folder needs no weights.

    Raises:
        FileNotFoundError: there is no such folder, or it lacks a configuration.
        ValueError: the decoder is of no known class, or its latents are of other channels than the network's.
    """
    files = find_configurations(path)
    if files.decoder is None:
        return Pixels()
    require_latents(files)
    config = read_json(files.decoder.config)
    network = component_outline(files.decoder, config, AUTOENCODERS[config["_class_name"]]).eval().requires_grad_(False)
    return Autoencoder(network, OUTLINE, files.decoder.config.parent.name != UNSCALED)


def decoder_factor(files: ModelFiles) -> int:
    """Pixels of an image's side by those of a state's, of a model folder."""
    return Pixels.factor if files.decoder is None else _factor(_decoder_config(files.decoder))


def decoder_checksum(path: str) -> str:
    """Sixteen hex digits over the files of a model folder's decoder, or the name of a decoder without files."""
    files = find_files(path)
    return Pixels.checksum if files.decoder is None else named_digest(files.decoder.files, files.index.folder)


def _decoder_config(decoder: Component) -> dict[str, Any]:
    config = read_json(decoder.config)
    return complete_config(config, AUTOENCODERS[config["_class_name"]])


def _factor(config: Mapping[str, Any]) -> int:
    blocks = config.get("encoder_block_out_channels", config.get("block_out_channels"))
    return 2 ** (len(blocks) - 1)


def _to_unit_interval(x: Tensor) -> Tensor:
    return (x / 2 + 0.5).clamp(0, 1)
