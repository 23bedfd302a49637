"""Decoders: from latents to images."""

import torch

from ptq_diffusion.model import Pixels


def test_pixels_are_decoded_to_the_unit_interval() -> None:
    latents = torch.tensor([-5.0, -1.0, 0.0, 0.5, 1.0, 5.0]).view(1, 1, 2, 3)
    assert Pixels().decode(latents).flatten().tolist() == [0, 0, 0.5, 0.75, 1, 1]
    assert Pixels().shape((1, 2, 3)) == (1, 2, 3)
