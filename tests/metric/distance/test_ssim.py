"""SSIM is 1 for equal images alone, falls with the error, and equals its formula on a flat image."""

from itertools import product

import pytest
import torch
from torch.nn import functional as F

from ptq_diffusion.metric import ssim


def images(seed=0, count=4, size=16):
    return torch.randint(256, (count, 3, size, size), generator=torch.Generator().manual_seed(seed), dtype=torch.uint8)


def test_equal_images_are_wholly_similar_and_others_less():
    assert ssim(images(), images()).tolist() == pytest.approx([1] * 4, abs=1e-6)
    assert ssim(images(), images(1)).max() < 0.5


def test_flat_images_differ_by_their_means_alone():
    a, b = torch.full((1, 1, 16, 16), 51, dtype=torch.uint8), torch.full((1, 1, 16, 16), 102, dtype=torch.uint8)
    expected = (2 * 0.2 * 0.4 + 0.01**2) / (0.2**2 + 0.4**2 + 0.01**2)
    assert ssim(a, b).item() == pytest.approx(expected, rel=1e-4)


def test_equals_its_formula_pixel_by_pixel():
    a, b = (images(seed, 1, 8)[:, :1] for seed in (0, 1))
    offsets = torch.arange(-5, 6).double()
    window = torch.exp(-(offsets[:, None] ** 2 + offsets**2) / (2 * 1.5**2))
    x, y = (F.pad(image.double() / 255, [5] * 4, mode="reflect")[0, 0] for image in (a, b))
    similarities = []
    for row, column in product(range(8), range(8)):
        u, v = x[row : row + 11, column : column + 11], y[row : row + 11, column : column + 11]
        mean_u, mean_v = ((window * w).sum() / window.sum() for w in (u, v))
        var_u, var_v, covariance = (
            (window * p * q).sum() / window.sum()
            for p, q in ((u - mean_u,) * 2, (v - mean_v,) * 2, (u - mean_u, v - mean_v))
        )
        luminance = (2 * mean_u * mean_v + 0.01**2) / (mean_u**2 + mean_v**2 + 0.01**2)
        similarities.append(luminance * (2 * covariance + 0.03**2) / (var_u + var_v + 0.03**2))
    assert ssim(a, b).item() == pytest.approx((sum(similarities) / 64).item(), abs=1e-4)


def test_falls_as_the_error_rises_and_belongs_to_the_image():
    flat = torch.full((300, 3, 16, 16), 128.0)
    noise = torch.randn(flat.shape, generator=torch.Generator().manual_seed(2))
    mild, strong = ((flat + scale * noise).clamp(0, 255).to(torch.uint8) for scale in (5, 30))
    still = flat.to(torch.uint8)
    assert (ssim(mild, still) > ssim(strong, still)).all()
    assert torch.allclose(ssim(strong, still)[290:], ssim(strong[290:], still[290:]), atol=1e-6)


@pytest.mark.parametrize(
    ("first", "second", "message"),
    [
        (images(), images(count=3), "equal shapes"),
        (images(size=5), images(size=5), "H >= 6"),
        (images() / 255, images() / 255, "uint8"),
    ],
)
def test_what_cannot_be_compared_is_refused(first, second, message):
    with pytest.raises(ValueError, match=message):
        ssim(first, second)
