"""The layers that read a skip connection, and what lies in front of it, are those of a forward."""

import pytest
import torch
from diffusers import UNet2DConditionModel, UNet2DModel

from ptq_diffusion.model.family.skip_channels import skip_channels

SIZES = {"sample_size": 8, "in_channels": 3, "out_channels": 3, "norm_num_groups": 4, "layers_per_block": 2}
NETWORKS = {
    "plain": (
        lambda: UNet2DModel(
            **SIZES,
            block_out_channels=(8, 16, 24),
            down_block_types=("DownBlock2D", "AttnDownBlock2D", "DownBlock2D"),
            up_block_types=("UpBlock2D", "AttnUpBlock2D", "UpBlock2D"),
        ),
        {},
    ),
    "conditional": (
        lambda: UNet2DConditionModel(
            **SIZES,
            block_out_channels=(8, 16),
            cross_attention_dim=8,
            attention_head_dim=4,
            down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"),
            up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"),
        ),
        {"encoder_hidden_states": torch.zeros(1, 2, 8)},
    ),
}


@pytest.mark.parametrize(("make", "condition"), NETWORKS.values(), ids=NETWORKS)
def test_states_are_as_wide_as_what_is_concatenated(monkeypatch, make, condition):
    network = make()
    joined, cat = [], torch.cat

    def record(tensors, dim=0, **options):
        if len(tensors) == 2 and tensors[0].ndim == 4:
            joined.append(tensors[0].shape[1])
        return cat(tensors, dim=dim, **options)

    monkeypatch.setattr(torch, "cat", record)
    network(torch.zeros(1, 3, 8, 8), torch.tensor(1), **condition)
    channels = skip_channels(network)
    assert [state for name, state in channels.items() if name.endswith("conv1")] == joined
    for name in channels:
        assert network.get_submodule(name).in_channels > channels[name]
        assert channels[name.rpartition(".")[0] + ".conv1"] == channels[name]
