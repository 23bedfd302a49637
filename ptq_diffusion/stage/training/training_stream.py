"""Training batches as a function of (seed, step), so that an interrupted training goes on as if it had not been."""

from abc import ABC, abstractmethod
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.utils.data import IterableDataset

from ptq_diffusion.data import LabelledImages
from ptq_diffusion.numeric.seed import generator


class Examples(ABC):
    """Examples by row, from which batches are made."""

    @abstractmethod
    def __len__(self) -> int:
        """The number of examples."""

    @abstractmethod
    def batch(self, rows: Tensor, draw: torch.Generator) -> dict[str, Tensor]:
        """The examples of some rows.

        Args:
            rows: (B,) int64.
            draw: what is random about them comes from here.

        Returns:
            `images`: what is trained on, (B, C, H, W) float32; `labels`: (B,) int64, zeros where there are none.
        """


@dataclass(frozen=True)
class Augmentation:
    """Random changes of a training image.

    Args:
        flip: mirror left and right with probability 1/2.
        shift: pad by this many reflected pixels and crop back at a random place.
    """

    flip: bool
    shift: int

    def __call__(self, images: Tensor, draw: torch.Generator) -> Tensor:
        """Augment images (B, C, H, W), each on its own."""
        batch, _, height, width = images.shape
        if self.flip:
            mirror = torch.rand(batch, generator=draw) < 0.5
            images = torch.where(mirror[:, None, None, None], images.flip(3), images)
        if self.shift:
            padded = torch.nn.functional.pad(images, [self.shift] * 4, mode="reflect")
            rows = torch.randint(2 * self.shift + 1, (batch, 1), generator=draw) + torch.arange(height)
            columns = torch.randint(2 * self.shift + 1, (batch, 1), generator=draw) + torch.arange(width)
            sample = torch.arange(batch)[:, None, None]
            images = padded[sample, :, rows[:, :, None], columns[:, None, :]].permute(0, 3, 1, 2)
        return images


@dataclass(frozen=True)
class AugmentedImages(Examples):
    """Images in [-1, 1], each changed at random."""

    data: LabelledImages
    augmentation: Augmentation

    def __len__(self) -> int:
        return len(self.data)

    def batch(self, rows: Tensor, draw: torch.Generator) -> dict[str, Tensor]:
        images = self.augmentation(self.data.images[rows].float() / 127.5 - 1, draw)
        labels = torch.zeros(len(rows), dtype=torch.long) if self.data.labels is None else self.data.labels[rows]
        return {"images": images, "labels": labels}


class TrainingStream(IterableDataset[dict[str, Tensor]]):
    """Batches `{images, labels, draw}` from step `start` to `stop`.

    Every epoch is a fresh permutation from (seed, epoch); what is random about an example comes from (seed, step), and
    `draw` is a seed for whatever else the step needs at random. The last, incomplete batch of an epoch is dropped.
    """

    def __init__(self, examples: Examples, batch_size: int, seed: int, start: int, stop: int) -> None:
        if len(examples) < batch_size:
            raise ValueError(f"expected at least batch_size={batch_size} images, got {len(examples)}; lower batch_size")
        self.examples, self.batch_size = examples, batch_size
        self.seed, self.start, self.stop = seed, start, stop

    def __iter__(self) -> Iterator[dict[str, Tensor]]:
        per_epoch = len(self.examples) // self.batch_size
        epoch, order = -1, torch.empty(0)
        for step in range(self.start, self.stop):
            if step // per_epoch != epoch:
                epoch = step // per_epoch
                order = torch.randperm(len(self.examples), generator=generator("epoch", self.seed, epoch))
            first = (step % per_epoch) * self.batch_size
            draw = generator("step", self.seed, step)
            batch = self.examples.batch(order[first : first + self.batch_size], draw)
            yield batch | {"draw": torch.randint(2**62, (1,), generator=draw)}
