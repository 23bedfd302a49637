"""The contract of a feature space, and the features of images in it."""

from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import torch
from safetensors import safe_open
from torch import Tensor, nn
from torch.nn import functional as F

from ptq_diffusion.artefact.digest import tensors_digest
from ptq_diffusion.artefact.tensors import write_tensors


@dataclass(frozen=True)
class Features:
    """The features of N images, row i of image i.

    Args:
        vectors: (N, D) float32, the space of FID, KID and the neighbours.
        spatial: (N, S) float32, a coarse map of an earlier layer, flattened; None where the extractor has none.
        probabilities: (N, K) float32, of the extractor's own classes; None where it is no classifier.
    """

    vectors: Tensor
    spatial: Tensor | None = None
    probabilities: Tensor | None = None

    @classmethod
    def cat(cls, parts: Sequence["Features"]) -> "Features":
        """The features of several batches of one extractor, in their order."""
        spatial = [part.spatial for part in parts if part.spatial is not None]
        probabilities = [part.probabilities for part in parts if part.probabilities is not None]
        vectors = torch.cat([part.vectors for part in parts])
        return cls(
            vectors, torch.cat(spatial) if spatial else None, torch.cat(probabilities) if probabilities else None
        )

    def tensors(self) -> dict[str, Tensor]:
        """The features that there are, by their names here."""
        tensors = {"vectors": self.vectors, "spatial": self.spatial, "probabilities": self.probabilities}
        return {name: x.contiguous() for name, x in tensors.items() if x is not None}

    def save(self, path: Path, extractor: str) -> None:
        """Write a safetensors file, whole or not at all, with the extractor's checksum."""
        write_tensors(path, self.tensors(), {"extractor": extractor})

    @classmethod
    def load(cls, path: Path, extractor: str) -> "Features":
        """Features that `save` wrote.

        Raises:
            FileNotFoundError: there is no such file.
            ValueError: the file holds something else, or features of another extractor than that of this checksum.
        """
        if not path.is_file():
            raise FileNotFoundError(f"expected features at {path}; evaluate the run again (goal=evaluate)")
        with safe_open(path, "pt") as file:
            source, names = (file.metadata() or {}).get("extractor"), set(file.keys())
            if not {"vectors"} <= names <= {"vectors", "spatial", "probabilities"} or source != extractor:
                raise ValueError(
                    f"expected features of the extractor {extractor} in {path}, got {sorted(names)} of {source}; "
                    "evaluate both runs with one extractor"
                )
            return cls(**{name: file.get_tensor(name) for name in names})


class FeatureExtractor(nn.Module, ABC):
    """A map from images to feature vectors, without any rounding of its own.

    Attributes:
        name: of the space, as in `fid_<name>`.
        num_features: the length D of a feature vector; torchmetrics reads it too.
        batch: how many images are described together, which bounds memory.
    """

    name: str
    num_features: int
    batch: ClassVar[int] = 256

    @abstractmethod
    def describe(self, images: Tensor) -> Features:
        """The features of one batch.

        Args:
            images: (N, C, H, W), uint8 in 0..255 or floating point in [0, 1]; bytes and bytes / 255 give the same.

        Raises:
            ValueError: the images are not of such a shape or type.
        """

    def forward(self, images: Tensor) -> Tensor:
        """The feature vectors alone, (N, D) float32; see `describe`."""
        return self.describe(images).vectors

    @torch.no_grad()
    def batches(self, images: Tensor) -> Iterator[Features]:
        """Features of (N, C, H, W) images on the CPU, `batch` images at a time, of the extractor's evaluation mode."""
        device = next(iter(self.state_dict().values())).device
        training = self.training
        self.eval()
        try:
            for batch in images.split(self.batch):
                part = self.describe(batch.to(device))
                yield Features(part.vectors.cpu(), _on_cpu(part.spatial), _on_cpu(part.probabilities))
        finally:
            self.train(training)

    def extract(self, images: Tensor) -> Features:
        """The features of all images, (N, C, H, W), on the CPU; see `describe`."""
        return Features.cat(list(self.batches(images)))

    def features(self, images: Tensor) -> Tensor:
        """The feature vectors of all images, (N, C, H, W) to (N, D) float32 on the CPU."""
        return self.extract(images).vectors

    def checksum(self) -> str:
        """Sixteen hex digits over the names, shapes and values of all parameters and buffers."""
        return tensors_digest(self.state_dict())


def colour_images(images: Tensor, size: int) -> Tensor:
    """Images as a network for colour images of one size takes them, (N, 3, size, size) float32 in [0, 1].

    A grey image is repeated over three channels; another size is resized bilinearly, antialiased where it shrinks.

    Args:
        images: (N, 1 or 3, H, W), uint8 in 0..255 or floating point in [0, 1].
        size: pixels of a side.

    Raises:
        ValueError: the images are not of such a shape or type, or smaller than 8x8.
    """
    if images.ndim != 4 or images.shape[1] not in (1, 3) or min(images.shape[2:]) < 8:
        raise ValueError(
            f"expected images (N, 1 or 3, H >= 8, W >= 8), got {tuple(images.shape)}; "
            "feature=pixels takes any number of channels"
        )
    if images.dtype != torch.uint8 and not images.is_floating_point():
        raise ValueError(f"expected uint8 or floating-point images, got {images.dtype}; convert them first")
    x = images.float() / 255 if images.dtype == torch.uint8 else images.float()
    if tuple(x.shape[2:]) != (size, size):
        x = F.interpolate(x, (size, size), mode="bilinear", align_corners=False, antialias=True)
    return x.expand(-1, 3, -1, -1)


def _on_cpu(rows: Tensor | None) -> Tensor | None:
    return None if rows is None else rows.cpu()
