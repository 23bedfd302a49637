"""A folder that stock diffusers wrote is loaded as it is, and its layers are known by name, role and work."""

import json
import math

import pytest
import torch
from diffusers import DDPMPipeline, DDPMScheduler, UNet2DModel
from diffusers.models.attention_processor import Attention
from safetensors.torch import load_file
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from ptq_diffusion.model import DiffusersDenoiser, Kind, Role
from ptq_diffusion.model.family import UNet2D
from ptq_diffusion.model.loading import folder_checksum
from ptq_diffusion.model.site import products_by_attention
from tests.model.networks import around, small
from tests.steps import at

CASES = [
    {"prediction_type": "epsilon", "channels": 3, "size": (8, 8)},
    {"prediction_type": "v_prediction", "channels": 1, "size": (8, 8)},
    {"prediction_type": "sample", "channels": 3, "size": (16, 12)},
    {"prediction_type": "epsilon", "channels": 2, "size": (8, 8), "out_channels": 4},
]
every_case = pytest.mark.parametrize("case", CASES, ids=lambda case: "-".join(str(value) for value in case.values()))


def states(denoiser, count=2):
    return torch.randn(count, *denoiser.shape, generator=torch.Generator().manual_seed(0))


def edit(path, **changes):
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


@every_case
def test_predicts_what_the_pipeline_predicts(tiny_model_folder, case):
    folder = tiny_model_folder(**case)
    pipeline = DDPMPipeline.from_pretrained(folder)
    denoiser = DiffusersDenoiser.from_folder(str(folder))
    assert denoiser.shape == (case["channels"], *case["size"])
    for t in (0, 500, 999):
        x = states(denoiser)
        with torch.no_grad():
            expected = pipeline.unet(x, t).sample
        assert expected.abs().max() > 0.01
        # A network with twice the channels also predicts a variance, which is not part of m.
        assert torch.equal(denoiser.predict(x, at(float(t))).m, expected[:, : case["channels"]])


@every_case
def test_knows_the_scheduler_it_was_saved_with(tiny_model_folder, case):
    folder = tiny_model_folder(**case)
    config = DiffusersDenoiser.from_folder(str(folder)).scheduler_config
    loaded = DDPMScheduler.from_pretrained(folder, subfolder="scheduler")
    assert config["prediction_type"] == case["prediction_type"]
    assert DDPMScheduler.from_config(dict(config)).config == loaded.config


def test_is_frozen_and_in_evaluation_mode(tiny_model_folder):
    denoiser = DiffusersDenoiser.from_folder(str(tiny_model_folder()))
    assert not any(module.training for module in denoiser.network.modules())
    assert not any(parameter.requires_grad for parameter in denoiser.parameters())
    assert not denoiser.predict(states(denoiser), at(10.0)).m.requires_grad


def test_loading_draws_no_random_numbers_that_matter(tiny_model_folder):
    first, second = (DiffusersDenoiser.from_folder(str(tiny_model_folder())) for _ in range(2))
    for a, b in zip(first.network.parameters(), second.network.parameters(), strict=True):
        assert torch.equal(a, b) and a.data_ptr() != b.data_ptr()


def test_states_are_scaled_as_the_step_says_before_the_network_sees_them(tiny_model_folder):
    denoiser = DiffusersDenoiser.from_folder(str(tiny_model_folder()))
    x, step = states(denoiser), at(300.0)
    step.input_scale = 0.25
    assert torch.equal(denoiser.predict(x, step).m, denoiser.predict(0.25 * x, at(300.0)).m)


@pytest.mark.parametrize("missing", ["unet/config.json", "scheduler/scheduler_config.json", "unet/*.safetensors"])
def test_a_folder_that_lacks_a_file_is_refused(folder, missing):
    for path in folder.glob(missing):
        path.unlink()
    for load in (DiffusersDenoiser.from_folder, folder_checksum):
        with pytest.raises(FileNotFoundError, match=f"lacks {missing.replace('*', '.*')}; save one with pipeline"):
            load(str(folder))


def test_pickled_weights_are_never_opened(folder):
    """A folder with diffusion_pytorch_model.bin alone is refused, whatever is in it."""
    for path in (folder / "unet").glob("*.safetensors"):
        path.unlink()
    (folder / "unet" / "diffusion_pytorch_model.bin").write_bytes(b"\x80\x04cos\nsystem\n(S'exit 1'\ntR.")
    with pytest.raises(FileNotFoundError, match=r"lacks unet/.*not read: .*\.bin.*safe_serialization=True"):
        DiffusersDenoiser.from_folder(str(folder))


def test_pickled_weights_beside_other_safe_ones_are_not_opened_either(folder):
    (safe,) = (folder / "unet").glob("*.safetensors")
    torch.save(load_file(safe), safe.with_suffix(".bin"))
    assert DiffusersDenoiser.from_folder(str(folder)).sites()
    safe.rename(safe.with_name("other.safetensors"))
    with pytest.raises(FileNotFoundError, match="lacks unet/diffusion_pytorch_model.safetensors"):
        DiffusersDenoiser.from_folder(str(folder))


@pytest.mark.parametrize("name", ["UNetSpatioTemporalConditionModel", "AutoencoderKL", None])
def test_another_class_is_refused(folder, name):
    edit(folder / "unet" / "config.json", _class_name=name)
    with pytest.raises(ValueError, match=f"expected a network of UNet2DModel, .* got {name};"):
        DiffusersDenoiser.from_folder(str(folder))


@pytest.fixture(params=[*CASES, "bundled:cifar10_ddpm", "bundled:fashion_ddpm"], ids=str)
def denoiser(request, tiny_model_folder):
    case = request.param
    return DiffusersDenoiser.from_folder(case if isinstance(case, str) else str(tiny_model_folder(**case)))


def test_sites_are_all_convolutions_and_linear_layers_in_order(denoiser):
    layers = {
        name: layer for name, layer in denoiser.network.named_modules() if isinstance(layer, nn.Conv2d | nn.Linear)
    }
    sites = denoiser.sites()
    assert [site.name for site in sites if site.weighted] == list(layers)
    for site in (site for site in sites if site.weighted):
        layer = layers[site.name]
        assert site.kind is (Kind.CONV2D if isinstance(layer, nn.Conv2d) else Kind.LINEAR)
        assert site.weight_shape == tuple(layer.weight.shape)
    assert {site.kind for site in sites} == set(Kind)
    assert all(site.operands == (site.name,) for site in sites if site.weighted)


def test_every_attention_has_two_products_without_a_weight(denoiser):
    products = [site for site in denoiser.sites() if site.kind is Kind.MATMUL]
    attentions = [name for name, module in denoiser.network.named_modules() if isinstance(module, Attention)]
    assert [site.name for site in products] == [f"{name}.{pair}" for name in attentions for pair in ("qk", "pv")]
    for site in products:
        attention, _, (first, second) = site.name.rpartition(".")
        assert site.operands == (f"{attention}.{first}", f"{attention}.{second}")
        assert not site.weighted and math.prod(site.weight_shape) == 0 and site.role is Role.ATTENTION
    assert list(products_by_attention(denoiser.sites())) == attentions


def test_the_first_and_the_last_layer_have_their_roles(denoiser):
    roles = {site.name: site.role for site in denoiser.sites()}
    assert roles.pop("conv_in") is Role.FIRST and roles.pop("conv_out") is Role.LAST
    assert set(roles.values()) == {Role.INNER, Role.ATTENTION}
    # By shape: they are where images go in and come out.
    shapes = {site.role: site.weight_shape for site in denoiser.sites()}
    assert shapes[Role.FIRST][1] == denoiser.shape[0]
    assert shapes[Role.LAST][0] == denoiser.network.config.out_channels


def flops(denoiser):
    """By torch's own counter: of every operation, in all and by module."""
    network = UNet2DModel.from_config(denoiser.network.config).to("meta").eval()
    with torch.device("meta"), FlopCounterMode(display=False) as counter:
        network(torch.zeros(1, *denoiser.shape), torch.zeros(1))
    return counter


def test_macs_are_half_the_operations_that_torch_counts(denoiser):
    counts = flops(denoiser).get_flop_counts()
    by_kind = {str(operation): count for operation, count in counts["Global"].items()}
    products = sum(by_kind.get(f"aten.{name}", 0) for name in ("convolution", "mm", "addmm"))
    layers = [site for site in denoiser.sites() if site.weighted]
    assert 2 * sum(site.macs for site in layers) == products
    for site in layers:
        (module,) = {name for name in counts if name.endswith(f".{site.name}")}
        assert 2 * site.macs == sum(counts[module].values())


def test_macs_by_hand(tiny_model_folder):
    denoiser = DiffusersDenoiser.from_folder(str(tiny_model_folder(channels=3, size=(16, 12))))
    macs = {site.name: site.macs for site in denoiser.sites()}
    assert macs["conv_in"] == 16 * 12 * 8 * 3 * 9
    assert macs["conv_out"] == 16 * 12 * 3 * 8 * 9
    assert macs["down_blocks.0.downsamplers.0.conv"] == 8 * 6 * 8 * 8 * 9
    assert macs["time_embedding.linear_1"] == 8 * 32
    assert macs["mid_block.attentions.0.to_q"] == 8 * 6 * 16 * 16


@every_case
def test_attention_macs_by_hand(tiny_model_folder, case):
    """QK^T and PV: 2 L L C for each of the layers, all at half resolution with 16 channels."""
    denoiser = DiffusersDenoiser.from_folder(str(tiny_model_folder(**case)))
    attentions = [name for name, _ in denoiser.network.named_modules() if name.endswith(".to_q")]
    assert len(attentions) == 4
    _, height, width = denoiser.shape
    length = height // 2 * (width // 2)
    macs = [site.macs for site in denoiser.sites() if site.kind is Kind.MATMUL]
    assert macs == len(attentions) * 2 * [length * length * 16]
    assert denoiser.attention_macs() == 0, "every product is a site"


def test_products_that_a_family_does_not_tell_are_no_sites(denoiser):
    class Reticent(UNet2D):
        def attentions(self, network):
            return ()

    told = sum(site.macs for site in denoiser.sites() if site.kind is Kind.MATMUL)
    reticent = DiffusersDenoiser(denoiser.network, Reticent(), denoiser.config, {})
    assert list(reticent.sites()) == [site for site in denoiser.sites() if site.weighted]
    assert reticent.attention_macs() == told > 0


def test_attention_macs_are_the_rest_of_what_torch_counts(denoiser):
    total = flops(denoiser).get_total_flops()
    assert 2 * (denoiser.attention_macs() + sum(site.macs for site in denoiser.sites())) == total


def test_a_network_without_attention_has_no_attention_macs():
    without = around(small(add_attention=False))
    assert without.attention_macs() == 0 and all(site.weighted for site in without.sites())


def test_counting_leaves_the_network_as_it_was(denoiser):
    before = [parameter.clone() for parameter in denoiser.network.parameters()]
    expected = denoiser.predict(states(denoiser), at(3.0)).m
    denoiser.sites()
    denoiser.attention_macs()
    for layer in denoiser.network.modules():
        assert not layer._forward_hooks and not layer._forward_pre_hooks
    assert all(torch.equal(a, b) for a, b in zip(before, denoiser.network.parameters(), strict=True))
    assert torch.equal(denoiser.predict(states(denoiser), at(3.0)).m, expected)


def test_another_network_leaves_the_first_untouched(denoiser):
    x = states(denoiser)
    before = denoiser.predict(x, at(7.0)).m
    other = UNet2DModel.from_config(denoiser.network.config)
    replaced = denoiser.with_network(other)
    assert replaced.network is other and denoiser.network is not other
    assert replaced.shape == denoiser.shape and replaced.scheduler_config == denoiser.scheduler_config
    assert torch.equal(denoiser.predict(x, at(7.0)).m, before)
    assert not torch.equal(replaced.predict(x, at(7.0)).m, before)
