"""The stored images of all variants as a Lightning data module, the same noise in the same row."""

from collections.abc import Iterator, Mapping
from pathlib import Path

import lightning as L
from torch import Tensor
from torch.utils.data import DataLoader, IterableDataset

from ptq_diffusion.stage.samples import image_batches

Batch = dict[str, Tensor]
"""Images by variant, (N, C, H, W) uint8; image i of each comes from the same noise."""


class PairedImages(IterableDataset[Batch]):
    """Batches of the images of several samples artefacts; one batch and one chunk of each is in memory at a time.

    Args:
        folders: of the artefacts, by variant.
        count: how many images each holds.
        batch: images of a batch; the last one may have fewer.
    """

    def __init__(self, folders: Mapping[str, Path], count: int, batch: int) -> None:
        self.folders, self.count, self.batch = folders, count, batch

    def __len__(self) -> int:
        return -(-self.count // self.batch)

    def __iter__(self) -> Iterator[Batch]:
        streams = [image_batches(folder, self.batch) for folder in self.folders.values()]
        for batches in zip(*streams, strict=True):
            yield dict(zip(self.folders, batches, strict=True))


class StoredImages(L.LightningDataModule):
    """The images that an experiment drew, to be tested; arguments as of `PairedImages`."""

    def __init__(self, folders: Mapping[str, Path], count: int, batch: int) -> None:
        super().__init__()
        self.images = PairedImages(folders, count, batch)

    def test_dataloader(self) -> DataLoader[Batch]:
        return DataLoader(self.images, batch_size=None)
