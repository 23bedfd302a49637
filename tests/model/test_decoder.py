"""Decoders: from latents to images."""

import pytest
import torch

from ptq_diffusion.model import Pixels
from ptq_diffusion.model.decoder import load_decoder


def test_pixels_are_decoded_to_the_unit_interval() -> None:
    latents = torch.tensor([-5.0, -1.0, 0.0, 0.5, 1.0, 5.0]).view(1, 1, 2, 3)
    assert Pixels().decode(latents).flatten().tolist() == [0, 0, 0.5, 0.75, 1, 1]
    assert Pixels().shape((1, 2, 3)) == (1, 2, 3)


def test_small_images_are_decoded_together_and_large_ones_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    decoder, sizes = load_decoder("bundled:cifar10_ldm"), []
    decode = decoder.network.decode
    monkeypatch.setattr(decoder.network, "decode", lambda z, **options: sizes.append(len(z)) or decode(z, **options))
    monkeypatch.setattr("ptq_diffusion.model.decoder.PIXELS", 2 * 32 * 32)
    latents = torch.randn(5, decoder.network.config.latent_channels, 8, 8, generator=torch.Generator().manual_seed(0))
    images = decoder.decode(latents)
    monkeypatch.setattr("ptq_diffusion.model.decoder.PIXELS", 1)
    torch.testing.assert_close(decoder.decode(latents), images, atol=1e-5, rtol=0)
    assert sizes == [2, 2, 1] + [1] * 5
