"""Training batches as a function of (seed, step), so that an interrupted training goes on as if it had not been."""

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.utils.data import IterableDataset

from ptq_diffusion.data import LabelledImages
from ptq_diffusion.numeric.seed import generator


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


class TrainingStream(IterableDataset[dict[str, Tensor]]):
    """Batches `{images, labels, draw}` from step `start` to `stop`; images in [-1, 1].

    Every epoch is a fresh permutation from (seed, epoch); augmentation comes from (seed, step), and `draw` is a seed
    for whatever else the step needs at random. The last, incomplete batch of an epoch is dropped.
    """

    def __init__(
        self, data: LabelledImages, batch_size: int, augmentation: Augmentation, seed: int, start: int, stop: int
    ) -> None:
        if len(data) < batch_size:
            raise ValueError(f"expected at least batch_size={batch_size} images, got {len(data)}; lower batch_size")
        self.data, self.batch_size, self.augmentation = data, batch_size, augmentation
        self.seed, self.start, self.stop = seed, start, stop

    def __iter__(self) -> Iterator[dict[str, Tensor]]:
        per_epoch = len(self.data) // self.batch_size
        epoch, order = -1, torch.empty(0)
        for step in range(self.start, self.stop):
            if step // per_epoch != epoch:
                epoch = step // per_epoch
                order = torch.randperm(len(self.data), generator=generator("epoch", self.seed, epoch))
            first = (step % per_epoch) * self.batch_size
            yield self._batch(order[first : first + self.batch_size], generator("step", self.seed, step))

    def _batch(self, rows: Tensor, draw: torch.Generator) -> dict[str, Tensor]:
        images = self.augmentation(self.data.images[rows].float() / 127.5 - 1, draw)
        labels = torch.zeros(len(rows), dtype=torch.long) if self.data.labels is None else self.data.labels[rows]
        return {"images": images, "labels": labels, "draw": torch.randint(2**62, (1,), generator=draw)}
