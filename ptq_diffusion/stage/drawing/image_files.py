"""Stage: the images of every variant as files that other tools read."""

import zipfile
from collections.abc import Iterator, Mapping
from pathlib import Path

import numpy as np
from numpy.lib import format as npy
from omegaconf import DictConfig
from PIL import Image
from torch import Tensor

from ptq_diffusion.engine.chunks import read_chunks
from ptq_diffusion.engine.runtime import track
from ptq_diffusion.engine.stage import Stage
from ptq_diffusion.engine.workshop import Workshop
from ptq_diffusion.stage.drawing.variants import VARIANTS


class ImageFiles(Stage):
    """A folder of PNG files and an npz file for each variant, both in the order of seeds and samples.

    Folders are what clean-fid and torch-fidelity read. An npz holds one array `arr_0`, (N, H, W, 3) uint8, as the
    evaluator of guided diffusion (Dhariwal and Nichol, NeurIPS 2021) reads it; grey images are repeated over three
    channels there.
    """

    name = "images"
    version = 1
    needs = tuple(VARIANTS.values())
    uses = ()

    def make(self, cfg: DictConfig, inputs: Mapping[str, Path], out: Path, shop: Workshop) -> None:  # noqa: ARG002
        for variant in track(list(VARIANTS), self.title, shop.runtime.progress):
            folder = inputs[VARIANTS[variant].name] / "chunks"
            write_png(folder, out / variant)
            write_npz(folder, out / f"{variant}.npz")


def write_png(chunks: Path, folder: Path) -> None:
    """Write every image as a PNG file, named by its place among all.

    Args:
        chunks: of a samples artefact.
        folder: receives `00000.png` and on, with more digits where 100,000 images and more need them.

    Raises:
        ValueError: the images have other than 1 or 3 channels.
    """
    folder.mkdir(exist_ok=True)
    names = png_names(sum(len(batch) for batch in _batches(chunks)))
    images = (image for batch in _batches(chunks) for image in batch)
    for name, image in zip(names, images, strict=True):
        Image.fromarray(image.permute(1, 2, 0).squeeze(2).numpy()).save(folder / name)


def png_names(count: int) -> list[str]:
    """The names of so many files, which sort as they are numbered."""
    digits = max(5, len(str(count - 1)))
    return [f"{place:0{digits}d}.png" for place in range(count)]


def write_npz(chunks: Path, path: Path) -> None:
    """Write all images as one array, one chunk in memory at a time.

    Args:
        chunks: of a samples artefact.
        path: the file.

    Raises:
        ValueError: the images have other than 1 or 3 channels.
    """
    count = sum(len(batch) for batch in _batches(chunks))
    height, width = next(_batches(chunks)).shape[2:]
    header = {"descr": "|u1", "fortran_order": False, "shape": (count, height, width, 3)}
    with zipfile.ZipFile(path, "w", zipfile.ZIP_STORED, allowZip64=True) as archive:
        # A date of its own would make equal images unequal files.
        member = zipfile.ZipInfo("arr_0.npy", date_time=(1980, 1, 1, 0, 0, 0))
        with archive.open(member, "w", force_zip64=True) as file:
            npy.write_array_header_1_0(file, header)
            for batch in _batches(chunks):
                pixels = batch.expand(-1, 3, -1, -1).permute(0, 2, 3, 1)
                file.write(np.ascontiguousarray(pixels.numpy()).tobytes())


def _batches(chunks: Path) -> Iterator[Tensor]:
    """The images of every chunk, (B, 1 or 3, H, W) uint8."""
    for chunk in read_chunks(chunks):
        if chunk["images"].shape[1] not in (1, 3):
            raise ValueError(
                f"expected images of 1 or 3 channels, which files can hold, got {chunk['images'].shape[1]}; the "
                f"samples themselves are in {chunks}"
            )
        yield chunk["images"]
