"""goal=images writes files that hold the stored images and no other."""

import hashlib

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file

from ptq_diffusion.stage.drawing.image_files import png_names, write_npz, write_png
from ptq_diffusion.stage.drawing.variants import VARIANTS
from ptq_diffusion.stage.samples import read_images


def test_files_hold_the_images_of_every_variant(make):
    words = ["correction=bias", "images=5", "seeds=[0,1]"]
    folder = make("goal=images", *words)
    for variant, stage in VARIANTS.items():
        images = read_images(make(f"goal={stage.name}", *words))
        pixels = images.permute(0, 2, 3, 1).numpy()
        files = sorted((folder / variant).iterdir())
        assert [file.name for file in files] == [f"{place:05d}.png" for place in range(10)]
        assert np.array_equal(np.stack([np.array(Image.open(file)) for file in files]), pixels)
        assert np.array_equal(np.load(folder / f"{variant}.npz")["arr_0"], pixels)


def test_grey_images_are_grey_files_and_three_equal_channels(tmp_path):
    chunks = tmp_path / "chunks"
    chunks.mkdir()
    images = torch.arange(2 * 64, dtype=torch.uint8).reshape(2, 1, 8, 8)
    save_file({"images": images}, chunks / "0.safetensors")
    write_png(chunks, tmp_path / "grey")
    with Image.open(tmp_path / "grey" / "00001.png") as image:
        assert image.mode == "L"
    digests = []
    for name in ("a.npz", "b.npz"):
        write_npz(chunks, tmp_path / name)
        digests.append(hashlib.sha256((tmp_path / name).read_bytes()).hexdigest())
    assert digests[0] == digests[1]
    array = np.load(tmp_path / "a.npz")["arr_0"]
    assert all(np.array_equal(array[..., channel], images[:, 0].numpy()) for channel in range(3))


@pytest.mark.parametrize("count", [1, 100_000, 100_001])
def test_files_sort_as_they_are_numbered(count):
    names = png_names(count)
    assert len(set(names)) == count and names == sorted(names)
    assert names[0] == "00000.png" or count > 100_000


def test_images_that_no_file_can_hold_are_refused(tmp_path):
    save_file({"images": torch.zeros(1, 4, 8, 8, dtype=torch.uint8)}, tmp_path / "0.safetensors")
    with pytest.raises(ValueError, match="1 or 3 channels, which files can hold, got 4"):
        write_png(tmp_path, tmp_path / "images")
