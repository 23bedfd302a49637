"""Work on samples, chunk by chunk: the one Lightning module behind trajectories, noise and images."""

from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import lightning as L
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.utils.data import DataLoader

from ptq_diffusion.numeric.seed import SampleNoise
from ptq_diffusion.stage.runtime import Runtime


@dataclass(frozen=True)
class Chunk:
    """A micro-batch of samples of one run seed.

    Every chunk is computed at the full size, so that the last one is bit-identical whatever the number of images; the
    first `count` samples are wanted, the others are padding.
    """

    purpose: str
    seed: int
    first: int
    size: int
    count: int

    @property
    def name(self) -> str:
        """The name of its file; files sort by seed and sample."""
        return f"{self.seed:010d}-{self.first:010d}.safetensors"

    def noise(self, shape: Sequence[int]) -> SampleNoise:
        """The noise of its samples, padding included."""
        return SampleNoise(self.seed, range(self.first, self.first + self.size), shape, self.purpose)


def chunks(purpose: str, seeds: Sequence[int], images: int, micro_batch: int) -> list[Chunk]:
    """The chunks of `images` samples for every seed.

    Raises:
        ValueError: no seed, image or batch, or a seed named twice.
    """
    if images < 1 or micro_batch < 1:
        raise ValueError(f"expected at least 1 image and a micro_batch of at least 1, got {images} and {micro_batch}")
    if any(type(seed) is not int for seed in seeds):
        raise ValueError(f"expected whole numbers as seeds, such as seeds=[0,1], got {list(seeds)}")
    if not seeds or len(set(seeds)) != len(seeds) or min(seeds) < 0:
        raise ValueError(f"expected seeds that are distinct and not negative, at least one, got {list(seeds)}")
    starts = range(0, images, micro_batch)
    return [
        Chunk(purpose, seed, first, micro_batch, min(micro_batch, images - first)) for seed in seeds for first in starts
    ]


class ChunkWork(nn.Module, ABC):
    """What is done with a chunk. Networks that it holds are moved to the device by Lightning."""

    @abstractmethod
    def forward(self, chunk: Chunk, device: torch.device) -> dict[str, Tensor]:
        """Tensors to keep of this chunk, padding dropped."""


class ChunkModule(L.LightningModule):
    """Does the work of each chunk, named by its place in the list, and keeps its file."""

    def __init__(self, work: ChunkWork, wanted: Sequence[Chunk], folder: Path) -> None:
        super().__init__()
        self.work, self.wanted, self.folder = work, wanted, folder

    def predict_step(self, place: int, _: int) -> None:
        chunk = self.wanted[place]
        tensors = self.work(chunk, self.device)
        beside = self.folder / f"{chunk.name}.tmp"
        save_file({name: tensor.cpu().contiguous() for name, tensor in tensors.items()}, beside)
        beside.replace(self.folder / chunk.name)


def run_chunks(work: ChunkWork, wanted: Sequence[Chunk], folder: Path, runtime: Runtime, title: str) -> None:
    """Do the chunks whose files are missing in `folder`."""
    folder.mkdir(exist_ok=True)
    missing = [chunk for chunk in wanted if not (folder / chunk.name).is_file()]
    if missing:
        places: DataLoader[int] = DataLoader(range(len(missing)), batch_size=None)  # type: ignore[arg-type]
        trainer = runtime.trainer(folder.parent, title)
        trainer.predict(ChunkModule(work, missing, folder), places, return_predictions=False)


def read_chunks(folder: Path) -> Iterator[dict[str, Tensor]]:
    """The tensors of every chunk in the order of seeds and samples.

    Raises:
        FileNotFoundError: the folder holds no chunk.
    """
    files = sorted(folder.glob("*.safetensors"))
    if not files:
        raise FileNotFoundError(f"expected chunk files in {folder}, found none; remove its parent to make it again")
    for file in files:
        yield load_file(file)
