"""Parts that are built from a configuration fit each other, or are refused before anything is computed."""

import pytest
import torch
from diffusers import DDPMScheduler, UNet2DModel

from ptq_diffusion.engine.runtime import Runtime
from ptq_diffusion.engine.workshop import Workshop
from ptq_diffusion.model import DiffusersDenoiser
from ptq_diffusion.model.family import UNet2D
from tests.experiments import composed as experiment


@pytest.mark.parametrize("sampler", ["ddim", "ddpm"])
def test_a_network_of_fourier_times_is_told_none_at_zero(composed, sampler):
    """Their logarithm is finite at every time of a table with trailing spacing, and at the last of another is not."""
    network = UNet2DModel(8, block_out_channels=(4, 4), norm_num_groups=2, layers_per_block=1, attention_head_dim=2,
                          down_block_types=("DownBlock2D",) * 2, up_block_types=("UpBlock2D",) * 2,
                          time_embedding_type="fourier")  # fmt: skip
    model = DiffusersDenoiser(network, UNet2D(), network.config, dict(DDPMScheduler().config))
    words, shop = [f"+sampler={sampler}", "sampler.steps=4"], Workshop(Runtime("cpu", False))
    with pytest.raises(ValueError, match=r"expected times above 0, .* got t = 0; set \+(sampler\.\S+=trailing)"):
        shop.table(composed(*words), model)
    trailing = shop.table(composed(*words, "+sampler.scheduler.timestep_spacing=trailing"), model)
    assert min(step.t for step in trailing) > 0


def test_what_draws_images_is_forgotten_and_the_float_network_kept(tiny, tiny_model_folder):
    """On the host beside another device too."""
    cfg = experiment(*tiny, f"model.path={tiny_model_folder()}")
    shop = Workshop(Runtime("cpu", False), torch.device("meta"))
    kept, forgotten = ([part(one, cfg) for one in (shop, shop.host)] for part in (Workshop.model, Workshop.decoder))
    shop.release_drawing()
    assert [shop.model(cfg), shop.host.model(cfg)] == kept
    assert all(
        now is not before for now, before in zip((shop.decoder(cfg), shop.host.decoder(cfg)), forgotten, strict=True)
    )
