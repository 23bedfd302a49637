"""Images of every mode and depth are those of their 8-bit twins, or are refused by name."""

import numpy as np
import pytest
import torch
from PIL import Image

from ptq_diffusion.data import FolderImages, images
from ptq_diffusion.metric import FolderReference, RealStatistics
from ptq_diffusion.metric.feature.pixels import Pixels


def grey(count):
    return [np.random.default_rng(i).integers(0, 256, (8, 8), dtype=np.uint8) for i in range(count)]


def opaque(image, mode):
    return image.convert(mode)


def with_alpha(image, mode):
    return Image.merge(mode, [*image.convert(mode[:-1]).split(), Image.new("L", image.size, 255)])


def sixteen(image, mode):
    return Image.fromarray(np.array(image).astype(np.uint16) * 257)


MODES = {
    "L": opaque,
    "RGB": opaque,
    "LA": with_alpha,
    "RGBA": with_alpha,
    "P": opaque,
    "CMYK": opaque,
    "I;16": sixteen,
}


def saved(folder, pictures, mode="L"):
    folder.mkdir()
    for i, pixels in enumerate(pictures):
        image = MODES[mode](Image.fromarray(pixels), mode)
        # Of the formats that are read only TIFF and JPEG hold CMYK.
        image.save(folder / f"{i}.{'jpg' if mode == 'CMYK' else 'png'}", quality=100, subsampling=0)
    return folder


@pytest.mark.parametrize("mode", MODES)
def test_images_of_a_mode_are_their_8_bit_twins(mode, tmp_path):
    twins = saved(tmp_path / "twins", grey(6), "RGB")
    others = saved(tmp_path / "others", grey(6), mode)
    extractor = Pixels(3, 4)
    real, other = (FolderReference(str(folder)).statistics(extractor) for folder in (twins, others))
    if mode == "CMYK":  # A JPEG is never exact.
        assert torch.allclose(real.moments.mean, other.moments.mean, atol=0.02)
    else:
        assert torch.equal(real.moments.mean, other.moments.mean)
        assert torch.equal(real.moments.covariance, other.moments.covariance)
    FolderReference(str(others)).check(extractor, 3)


def test_black_and_white_is_grey(tmp_path):
    bits = [np.where(pixels > 127, 255, 0).astype(np.uint8) for pixels in grey(3)]
    for name, mode in (("bits", "1"), ("twins", "L")):
        (tmp_path / name).mkdir()
        for i, pixels in enumerate(bits):
            Image.fromarray(pixels).convert(mode).save(tmp_path / name / f"{i}.png")
    bits, twins = (FolderImages(str(tmp_path / name)).load().images for name in ("bits", "twins"))
    assert torch.equal(bits, twins) and bits.shape == (3, 1, 8, 8)


def test_a_reference_is_read_batch_by_batch_and_checked_by_its_first_image(tmp_path, monkeypatch):
    folder, extractor, held = saved(tmp_path / "images", grey(6)), Pixels(3, 4), []
    whole = RealStatistics.of_images(FolderImages(str(folder)).load().images.expand(-1, 3, -1, -1), extractor)
    describe, decoded, decode = Pixels.describe, [], images._decode
    monkeypatch.setattr(images, "_decode", lambda *given: decoded.append(given[1].name) or decode(*given))
    FolderReference(str(folder)).check(extractor, 3)
    assert decoded == ["0.png"]
    monkeypatch.setattr(Pixels, "batch", 4)
    monkeypatch.setattr(Pixels, "describe", lambda own, batch: held.append(len(batch)) or describe(own, batch))
    found = FolderReference(str(folder)).statistics(extractor)
    assert held[-2:] == [4, 2] and torch.allclose(found.moments.covariance, whole.moments.covariance)
    assert torch.equal(found.vectors, whole.vectors)


@pytest.mark.parametrize("first", ["L", "RGB"])
def test_a_grey_image_among_colours_is_repeated_over_the_channels(first, tmp_path):
    folder = saved(tmp_path / "mixed", grey(2), first)
    Image.fromarray(grey(3)[2]).convert("RGB" if first == "L" else "L").save(folder / "2.png")
    twins = saved(tmp_path / "twins", grey(3), "RGB")
    assert torch.equal(FolderImages(str(folder)).load().images, FolderImages(str(twins)).load().images)
    assert FolderImages(str(folder)).check().shape == (1, 3, 8, 8)
