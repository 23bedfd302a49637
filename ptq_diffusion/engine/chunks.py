"""Work on samples, chunk by chunk, on any number of devices, as the stages of trajectories, noise and images do it."""

import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import lightning as L
import torch
from lightning import Fabric
from safetensors.torch import load_file
from torch import Tensor

from ptq_diffusion.artefact.tensors import holds_tensors, write_tensors
from ptq_diffusion.engine.conditions import ConditionSource
from ptq_diffusion.engine.runtime import track
from ptq_diffusion.engine.workshop import Workshop
from ptq_diffusion.model import Condition
from ptq_diffusion.numeric.seed import SampleNoise


@dataclass(frozen=True)
class Chunk:
    """A micro-batch of samples of one run seed.

    Every chunk is computed at the full size, so that the last one is bit-identical whatever the number of images; the
    first `count` samples count, the others are padding.

    Args:
        purpose: of the samples, such as "images"; different purposes have independent noise.
        seed: the run's seed.
        first: the index of the first sample within the seed.
        size: B, samples that are computed, padding included.
        count: samples that count, at most `size`.
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
        return SampleNoise(self.seed, self._indices, shape, self.purpose)

    def condition(self, source: ConditionSource, device: torch.device | str = "cpu") -> Condition | None:
        """The condition of its samples, padding included; None where there is none."""
        condition = source.of(self.seed, self._indices, self.purpose)
        return None if condition is None else condition.to(device)

    @property
    def _indices(self) -> range:
        return range(self.first, self.first + self.size)


def chunks(purpose: str, seeds: Sequence[int], images: int, micro_batch: int) -> list[Chunk]:
    """The chunks of `images` samples for every seed.

    Raises:
        ValueError: see `require_chunks`.
    """
    require_chunks(seeds, images, micro_batch)
    starts = range(0, images, micro_batch)
    return [
        Chunk(purpose, seed, first, micro_batch, min(micro_batch, images - first)) for seed in seeds for first in starts
    ]


def require_chunks(seeds: Sequence[int], images: int, micro_batch: int) -> None:
    """Refuse numbers that make no chunks, without listing those that they make.

    Raises:
        ValueError: no seed, image or batch, or a seed named twice.
    """
    if images < 1 or micro_batch < 1:
        raise ValueError(f"expected at least 1 image and a micro_batch of at least 1, got {images} and {micro_batch}")
    if any(type(seed) is not int for seed in seeds):
        raise ValueError(f"expected whole numbers as seeds, such as seeds=[0,1], got {list(seeds)}")
    if not seeds or len(set(seeds)) != len(seeds) or min(seeds) < 0:
        raise ValueError(f"expected seeds that are distinct and not negative, at least one, got {list(seeds)}")


class ChunkWork(L.LightningModule, ABC):
    """A Lightning module whose batches are chunks, run by Fabric. Networks that it holds are moved to the device."""

    @abstractmethod
    def forward(self, chunk: Chunk, device: torch.device) -> dict[str, Tensor]:
        """Tensors to keep of this chunk, padding dropped where nothing later asks a network for whole chunks."""

    def predict_step(self, chunk: Chunk, _: int) -> dict[str, Tensor]:
        return self(chunk, self.device)


@dataclass(frozen=True)
class Missing:
    """Instructions to all devices: the chunks that are still to be done, and how.

    Args:
        chunks: in their order.
        folder: where their files go.
        title: what the progress bar calls them.
        progress: whether there is a bar.
        threads: of torch in every process, on which the last bits of a result on the CPU depend.
    """

    chunks: Sequence[Chunk]
    folder: Path
    title: str
    progress: bool
    threads: int


def do_share(fabric: Fabric, build: Callable[[Workshop], ChunkWork], missing: Missing, shop: Workshop) -> None:
    """Do this device's share, every n-th of the missing chunks of n devices."""
    torch.set_num_threads(missing.threads)
    work = build(shop.on(fabric.device)).eval().to(fabric.device)
    share = missing.chunks[fabric.global_rank :: fabric.world_size]
    with torch.inference_mode():
        for index, chunk in enumerate(track(share, missing.title, missing.progress and fabric.is_global_zero)):
            write_tensors(missing.folder / chunk.name, work.predict_step(chunk, index))


def run_chunks(
    build: Callable[[Workshop], ChunkWork],
    all_chunks: Sequence[Chunk],
    folder: Path,
    shop: Workshop,
    title: str,
    samples: str = "images",
) -> None:
    """Do the chunks whose files `folder` lacks, shared by all devices; no chunk depends on another.

    Args:
        build: makes the work with a workshop. Each device calls it in a process of its own, so it is what can be
            pickled and its result need not be: a bound method of a stage with its configuration, never a lambda.
        all_chunks: in their order.
        folder: receives a file for each; a file cut short by a power cut counts as missing.
        shop: of this process, with the devices.
        title: what the progress bar calls the work.
        samples: what the line behind it counts.
    """
    folder.mkdir(exist_ok=True)
    missing = [chunk for chunk in all_chunks if not holds_tensors(folder / chunk.name)]
    if missing:
        work = Missing(missing, folder, title, shop.runtime.progress, torch.get_num_threads())
        start = time.monotonic()
        shop.runtime.launch(partial(do_share, build=build, missing=work, shop=shop), len(missing))
        count, seconds = sum(chunk.count for chunk in missing), time.monotonic() - start
        shop.runtime.say(f"{title}: {count:,} {samples} in {seconds:.3g} s, {count / seconds:.3g} {samples}/s")


class Statistics(L.LightningModule, ABC):
    """A Lightning module that counts over chunks, one after the other, such as histograms; run by Fabric.

    Networks that it holds are moved to the device.
    """

    @abstractmethod
    def forward(self, chunk: Chunk, device: torch.device) -> None:
        """Take in a chunk."""

    def predict_step(self, chunk: Chunk, _: int) -> None:
        self(chunk, self.device)

    @abstractmethod
    def tensors(self) -> dict[str, Tensor]:
        """The counts so far, to be joined with those of other chunks."""


def count_share(fabric: Fabric, build: Callable[[Workshop], Statistics], missing: Missing, shop: Workshop) -> None:
    """Count over this device's share of the chunks, unless its file is there.

    Device r of n counts chunks r, r + n, r + 2n, ...; devices beyond the number of chunks count nothing.
    """
    sharers, file = min(fabric.world_size, len(missing.chunks)), part_file(missing.folder, fabric.global_rank)
    if fabric.global_rank >= sharers or holds_tensors(file):
        return
    torch.set_num_threads(missing.threads)
    statistics = build(shop.on(fabric.device)).eval().to(fabric.device)
    share = missing.chunks[fabric.global_rank :: sharers]
    with torch.inference_mode():
        for index, chunk in enumerate(track(share, missing.title, missing.progress and fabric.is_global_zero)):
            statistics.predict_step(chunk, index)
    write_tensors(file, statistics.tensors())


def part_file(folder: Path, rank: int) -> Path:
    """The file of the part that a device counts."""
    return folder / f"{rank:04d}.safetensors"


def run_statistics(
    build: Callable[[Workshop], Statistics], all_chunks: Sequence[Chunk], folder: Path, shop: Workshop, title: str
) -> list[dict[str, Tensor]]:
    """Count over all chunks, shared by all devices; the part of each device, in their order.

    A part that is there is not counted again, as long as as many devices share the chunks as before.

    Args:
        build: makes the statistics with a workshop, as `run_chunks` has it for its work.
        all_chunks: in their order.
        folder: receives a file for each part.
        shop: of this process, with the devices.
        title: what the progress bar calls the work.
    """
    sharers = shop.runtime.sharers(len(all_chunks))
    place = folder / f"{sharers}_parts"
    place.mkdir(parents=True, exist_ok=True)
    files = [part_file(place, rank) for rank in range(sharers)]
    if not all(map(holds_tensors, files)):
        work = Missing(all_chunks, place, title, shop.runtime.progress, torch.get_num_threads())
        shop.runtime.launch(partial(count_share, build=build, missing=work, shop=shop), len(all_chunks))
    return [load_file(file) for file in files]


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
