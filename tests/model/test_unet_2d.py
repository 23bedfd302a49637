"""Networks of `UNet2DModel` that can be asked are taken; others are refused."""

import pytest
import torch

from tests.model.networks import around, small
from tests.steps import at

TWO_BLOCKS = {"down_block_types": ("DownBlock2D",) * 2, "up_block_types": ("UpBlock2D",) * 2}


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"class_embed_type": "timestep"}, "expected a UNet2DModel without classes or with num_class_embeds"),
        (
            {"in_channels": 6, "out_channels": 3},
            "6 input and 3 output channels, which is conditioned by an image",
        ),
        ({"in_channels": 3, "out_channels": 4}, "as many output channels as the 3 input channels, or twice as many"),
        ({"sample_size": None}, "set sample_size"),
    ],
    ids=["class embedding", "image beside the state", "channels", "size"],
)
def test_networks_that_do_not_fit_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        around(small(**options))


@pytest.mark.parametrize("size", ["8", [8], 8.0, (8.0, 8), 0, -8, (8, 0), 10**9, True, (8, True), (8, 8, 8), {}])
def test_sizes_that_are_none_are_refused(size):
    with pytest.raises(ValueError, match=r"expected a sample_size of one or two whole numbers of 1 to \d+, got"):
        around(small(sample_size=size))


@pytest.mark.parametrize("levels", [1, 2, 3, 4])
@pytest.mark.parametrize("size", [7, 8, 12, 28, (8, 12), (16, 6)])
def test_a_size_is_taken_exactly_where_the_network_answers(levels, size):
    """The rule of multiples against the network itself."""
    blocks = {
        "down_block_types": ("DownBlock2D",) * levels,
        "up_block_types": ("UpBlock2D",) * levels,
        "block_out_channels": (4,) * levels,
    }
    network = small(sample_size=size, add_attention=False, **blocks)
    height, width = (size, size) if isinstance(size, int) else size
    try:
        answers = network(torch.zeros(1, 3, height, width), 1).sample.shape[2:] == (height, width)
    except RuntimeError:
        answers = False
    if answers:
        assert around(network).shape == (3, height, width)
    else:
        with pytest.raises(ValueError, match=rf"a multiple of 2\^{levels - 1} = .* got {height}x{width}"):
            around(network)


def test_blocks_that_do_not_meet_are_refused_in_one_line():
    """Such a network can be made, and fails when it is asked."""
    odd = around(small(downsample_padding=5, block_out_channels=(4, 4), **TWO_BLOCKS, add_attention=False))
    for ask in (odd.sites, odd.attention_macs):
        with pytest.raises(ValueError, match=r"expected a network that can be asked about \(3, 8, 8\)"):
            ask()


def test_only_fourier_times_have_no_zero():
    """The logarithm of 0 makes nothing finite, that of any later time does."""
    x_t = torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    for kind in ("positional", "fourier"):
        denoiser = around(small(time_embedding_type=kind))
        answers = [bool(denoiser.predict(x_t, at(t)).m.isfinite().all()) for t in (0.0, 1.0, 999.0)]
        assert answers == [denoiser.accepts_time_zero, True, True]
