"""ResNet-9: a small classifier whose pooled last layer is a feature space for small images."""

import json
import re
from collections.abc import Sequence
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from ptq_diffusion.artefact.bundle import Bundles
from ptq_diffusion.artefact.files import write_json
from ptq_diffusion.artefact.tensors import write_tensors
from ptq_diffusion.metric.feature.feature import FeatureExtractor, Features, colour_images

WEIGHTS, CONFIG = "model.safetensors", "config.json"
LAST_STAGE = 8
"""The index in the trunk of its last stage, at 4x4 pixels."""
FEATURE_NETWORKS = Bundles(Path(__file__).parent)
"""The trained networks that come with the package, each with a `reference.safetensors` of what it was trained on."""


class ResNet9(FeatureExtractor):
    """A small residual classifier, whose pooled last layer is the feature space of `fid_<name>`.

    It is not the Inception network: its distances compare methods with each other on small images and are not
    comparable with published FID. A grey image is repeated over three channels, and an image of another size
    than 32x32 is resized bilinearly (antialiased where it shrinks).

    Its spatial features are the first D / 16 channels, rounded up, of the 4x4 map before the last stage: D numbers that
    keep where things are, as the first seven channels of Inception's 17x17 map do in sFID (Nash et al., ICML 2021,
    arXiv 2103.03841).

    The layout follows ResNet-9 (Page, "How to train your ResNet", 2018), narrowed and pooled early.

    Args:
        name: what it is called, of small letters, digits and underscores.
        widths: channels at 32x32, 16x16, 8x8 and 4x4 pixels; the last is the number of features.
        num_classes: the number of classes.
    """

    size = 32

    def __init__(self, name: str, widths: Sequence[int], num_classes: int) -> None:
        super().__init__()
        if not re.fullmatch("[a-z0-9_]+", name):
            raise ValueError(f"expected a name of small letters, digits and underscores, as in fid_NAME, got {name!r}")
        if len(widths) != 4:
            raise ValueError(f"expected four widths, for 32, 16, 8 and 4 pixels, got {list(widths)}")
        self.name, self.widths, self.num_classes = name, tuple(widths), num_classes
        self.num_features = widths[-1]
        a, b, c, d = widths
        self.trunk = nn.Sequential(
            _convolution(3, a),
            nn.MaxPool2d(2),
            _convolution(a, b),
            _Residual(b),
            nn.MaxPool2d(2),
            _convolution(b, c),
            _Residual(c),
            nn.MaxPool2d(2),
            _convolution(c, d) if c != d else nn.Identity(),
            _Residual(d),
        )
        self.classifier = nn.Linear(d, num_classes)

    def describe(self, images: Tensor) -> Features:
        x = self._prepare(images).contiguous(memory_format=torch.channels_last)
        grid = self.trunk[:LAST_STAGE](x)
        vectors = self.trunk[LAST_STAGE:](grid).float().mean((2, 3))
        spatial = grid[:, : -(-self.num_features // 16)].float().flatten(1)
        return Features(vectors, spatial, self.logits(vectors).softmax(1))

    def logits(self, features: Tensor) -> Tensor:
        """Class scores, (N, num_classes), of features (N, D)."""
        return self.classifier(features)

    def _prepare(self, images: Tensor) -> Tensor:
        """Images as (N, 3, 32, 32) float32 in [-1, 1]."""
        return colour_images(images, self.size) * 2 - 1

    def save(self, folder: Path) -> None:
        """Write `model.safetensors` and `config.json` into a folder, each whole or not at all."""
        folder.mkdir(parents=True, exist_ok=True)
        config = {
            "network": type(self).__name__,
            "name": self.name,
            "widths": list(self.widths),
            "num_classes": self.num_classes,
            "checksum": self.checksum(),
        }
        write_json(folder / CONFIG, config)
        write_tensors(folder / WEIGHTS, self.state_dict())

    @classmethod
    def from_folder(cls, path: str) -> "ResNet9":
        """The network saved in a folder, or the one of `bundled:NAME`, as a configuration constructs it; see `load`."""
        return cls.load(FEATURE_NETWORKS.path(path))

    @classmethod
    def load(cls, folder: Path) -> "ResNet9":
        """The network of a folder written by `save`, in evaluation mode, its parameters frozen.

        Raises:
            FileNotFoundError: the folder lacks one of the two files.
            ValueError: the folder holds another kind of network, or its weights are not those that were saved.
        """
        for name in (CONFIG, WEIGHTS):
            if not (folder / name).is_file():
                raise FileNotFoundError(f"expected {name} in {folder}; train one with experiment=train_feature_network")
        try:
            config = json.loads((folder / CONFIG).read_text())
            if config["network"] != cls.__name__:
                raise ValueError(f"the network is {config['network']!r}")
            network = cls(config["name"], config["widths"], config["num_classes"])
            network.load_state_dict(load_file(folder / WEIGHTS))
            checksum = config["checksum"]
        except (ValueError, KeyError, TypeError, RuntimeError, SafetensorError) as error:
            raise ValueError(
                f"expected a {cls.__name__} and its weights in {folder}, got another or broken files "
                f"({' '.join(str(error).split())[:300]}); train one with experiment=train_feature_network"
            ) from error
        if network.checksum() != checksum:
            raise ValueError(f"expected weights of checksum {checksum} in {folder}, got {network.checksum()}")
        return network.eval().requires_grad_(False)


class _Residual(nn.Module):
    """x + f(x) with two convolutions of equal width, (N, C, H, W) to the same shape."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.branch = nn.Sequential(_convolution(width, width), _convolution(width, width))

    def forward(self, x: Tensor) -> Tensor:
        return x + self.branch(x)


def _convolution(inputs: int, outputs: int) -> nn.Sequential:
    """3x3 convolution, batch norm and ReLU at constant resolution."""
    convolution = nn.Conv2d(inputs, outputs, 3, padding=1, bias=False)
    return nn.Sequential(convolution, nn.BatchNorm2d(outputs), nn.ReLU())
