"""Statistics of real images: two devices share them, batch by batch, and leave the numbers of one."""

import numpy as np
import pytest
from PIL import Image
from safetensors.torch import load_file

from ptq_diffusion.data import FolderImages
from ptq_diffusion.metric.feature.pixels import Pixels
from ptq_diffusion.metric.real_statistics import RealStatistics

IMAGES = Pixels.batch + 4
"""Those of two batches, the second of which is not full."""


@pytest.fixture
def folder(tmp_path):
    """Random images."""
    place, pixels = tmp_path / "images", np.random.default_rng(0).integers(0, 256, (IMAGES, 4, 4, 3), np.uint8)
    place.mkdir()
    for index, image in enumerate(pixels):
        Image.fromarray(image).save(place / f"{index:04d}.png")
    return place


@pytest.mark.usefixtures("imported")
def test_two_devices_leave_the_statistics_of_all_images_at_once(make, folder, tmp_path):
    words = ["goal=reference_statistics", "data=folder", f"data.folder={folder}", "feature=pixels"]
    found = [
        make(*words, f"runtime.devices={devices}", f"outputs={tmp_path / str(devices)}") / "reference.safetensors"
        for devices in (1, 2)
    ]
    assert found[0].parent.name == found[1].parent.name
    assert not (found[1].parent / "batches").exists(), "features of all images are scratch"
    RealStatistics.of_images(FolderImages(str(folder)).load().images, Pixels(3, 4)).save(tmp_path / "expected")
    # The words beside tensors are in any order within a file.
    expected, *statistics = (load_file(path) for path in (tmp_path / "expected", *found))
    for own in statistics:
        assert own.keys() == expected.keys() and all(own[name].equal(expected[name]) for name in expected)
