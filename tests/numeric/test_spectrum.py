"""The cosine transform keeps lengths, undoes itself and turns a reflecting blur into products; bands cover it once."""

import pytest
import torch
from torch.nn import functional as F

from ptq_diffusion.numeric.spectrum import RINGS, Whitening, cosine_transform, inverse_cosine_transform, radial_bands

every_size = pytest.mark.parametrize("size", [(8, 8), (5, 7), (32, 32), (1, 1), (1, 6)])


@every_size
def test_the_transform_is_orthonormal(size):
    x = torch.randn(3, 2, *size, generator=torch.Generator().manual_seed(0)).double()
    spectrum = cosine_transform(x)
    assert torch.allclose(inverse_cosine_transform(spectrum), x, atol=1e-12)
    assert torch.allclose(spectrum.square().sum(), x.square().sum())
    assert torch.allclose(spectrum[..., 0, 0], x.mean((-2, -1)) * (size[0] * size[1]) ** 0.5)


def test_a_symmetric_blur_is_a_product():
    """With half-sample reflection at the border, for which the last row is repeated."""
    x = torch.randn(1, 1, 8, 8, generator=torch.Generator().manual_seed(0)).double()
    kernel = torch.tensor([[1.0, 2.0, 1.0]]).double()
    kernel = (kernel.T @ kernel)[None, None] / 16
    blurred = F.conv2d(F.pad(x, (1, 1, 1, 1), mode="replicate"), kernel)
    u = torch.arange(8).double()
    factor = (1 + torch.cos(torch.pi * u / 8)) / 2
    assert torch.allclose(cosine_transform(blurred), cosine_transform(x) * torch.outer(factor, factor), atol=1e-12)


@every_size
@pytest.mark.parametrize("count", [1, 4, 16])
def test_bands_cover_every_coefficient_and_grow_outwards(size, count):
    bands = radial_bands(*size, count)
    assert bands.shape == size
    assert set(bands.flatten().tolist()) == set(range(int(bands.max()) + 1))
    assert (bands == 0).sum() == 1 and bands[0, 0] == 0
    assert int(bands.max()) <= count
    assert (bands.diff(dim=0) >= 0).all() and (bands.diff(dim=1) >= 0).all()


def test_a_coefficient_on_an_edge_belongs_inside_whatever_the_rounding():
    """The corner's squared radius is 2^7, so the edges of seven rings are the square roots of 2, 4, ... 64."""
    bands = radial_bands(9, 9, 7)
    found = [int(bands[u, v]) for u, v in ((1, 0), (1, 1), (2, 0), (2, 2), (4, 0), (4, 4), (8, 0), (8, 8))]
    assert found == [1, 1, 2, 3, 4, 5, 6, 7]


def test_what_was_cached_in_inference_mode_serves_gradients():
    with torch.inference_mode():
        radial_bands(11, 13, 3)
        cosine_transform(torch.ones(1, 1, 11, 13).double())
    x = torch.randn(1, 1, 11, 13, generator=torch.Generator().manual_seed(0)).double().requires_grad_()
    gains = torch.ones(4).double().requires_grad_()
    inverse_cosine_transform(cosine_transform(x) * gains[radial_bands(11, 13, 3)]).square().sum().backward()
    assert torch.allclose(x.grad, 2 * x) and gains.grad.sum() == pytest.approx(2 * float(x.detach().square().sum()))


def images(count=400):
    """Of a falling spectrum, about a mean image."""
    white = torch.randn(count, 2, 12, 8, generator=torch.Generator().manual_seed(1)).double()
    bands = radial_bands(12, 8, RINGS)
    return inverse_cosine_transform(white * 3.0 / (1 + bands) * torch.tensor([1.0, 5.0])[:, None, None]) + white[0]


def test_whitened_images_have_unit_variance_in_every_band():
    bands = radial_bands(12, 8, RINGS)
    whitened = Whitening.of(images())(images() - images().mean(0))
    power = cosine_transform(whitened).square().mean(0)
    for band in range(int(bands.max()) + 1):
        assert torch.allclose(power[:, bands == band].mean(1), torch.ones(2).double())


def test_whitening_is_the_same_by_either_factor_of_a_product():
    """So that a direction may be whitened in place of the change that it reads."""
    whitening = Whitening.of(images())
    x, y = images()[:2], images()[2:4]
    assert torch.allclose((whitening(x) * y).sum(), (x * whitening(y)).sum())


def test_a_coefficient_that_never_varies_is_not_divided_by_nothing():
    smooth = images()[..., :1, :1].expand(-1, -1, 12, 8)
    assert Whitening.of(smooth)(smooth).isfinite().all()


@pytest.mark.parametrize("still", [torch.rand(1, 3, 8, 8), torch.zeros(4, 3, 8, 8)])
def test_images_that_do_not_differ_cannot_be_whitened(still):
    with pytest.raises(ValueError, match="images that differ in every channel, got .* sensitivity.distance=euclidean"):
        Whitening.of(still)
