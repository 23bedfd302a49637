"""PSNR equals torchmetrics' up to its cap, image by image."""

import pytest
import torch
from torchmetrics.functional.image import peak_signal_noise_ratio

from ptq_diffusion.metric import psnr
from ptq_diffusion.metric.distance.psnr import CAP


def images(seed=0):
    return torch.rand(6, 3, 8, 8, generator=torch.Generator().manual_seed(seed))


def test_equals_torchmetrics_for_every_image():
    ours = psnr(images(0), images(1))
    theirs = peak_signal_noise_ratio(images(0), images(1), data_range=1.0, reduction="none", dim=(1, 2, 3))
    assert ours.shape == (6,)
    assert torch.allclose(ours, theirs.double(), rtol=1e-5)


def test_a_known_error_has_the_known_ratio():
    flat = torch.full((2, 1, 4, 4), 0.5)
    assert psnr(flat + 0.1, flat).tolist() == pytest.approx([20.0, 20.0], abs=1e-4)


def test_rises_as_the_error_falls():
    noise = images(1) - 0.5
    ratios = [psnr(images() + scale * noise, images()).mean() for scale in (0.3, 0.1, 0.01, 0.003)]
    assert ratios == sorted(ratios)


def test_equal_images_have_the_cap_and_none_exceeds_it():
    assert psnr(images(), images()).tolist() == [CAP] * 6
    assert pytest.approx(58.92, abs=0.005) == CAP
    assert psnr(images() + 1e-6, images()).max() == CAP


def test_rounding_to_bytes_costs_about_the_cap():
    flat = torch.rand(4, 3, 64, 64, generator=torch.Generator().manual_seed(2))
    assert psnr((flat * 255).round().byte(), flat).mean().item() == pytest.approx(CAP, abs=0.1)


@pytest.mark.parametrize("other", [torch.zeros(5, 3, 8, 8), torch.zeros(6, 1, 8, 8)])
def test_other_shapes_are_refused(other):
    with pytest.raises(ValueError, match="equal shapes"):
        psnr(images(), other)
