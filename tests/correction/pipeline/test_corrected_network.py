"""A network that repairs its own output, in a stock pipeline and alone."""

import pytest
import torch
from diffusers import DDPMPipeline

from ptq_diffusion.correction import CorrectedNetwork, CorrectedScheduler
from ptq_diffusion.model import DiffusersDenoiser
from ptq_diffusion.sampler import DDIM, DDPM
from tests.correction.pipelines import OURS, WITH_NETWORK, assert_equal, fitted, our_states, pipeline_states, states
from tests.correction.presets import WITH_SHIFTED
from tests.steps import at


def repairing(quantized, correction):
    """The pipeline that goal=export writes."""
    network = CorrectedNetwork(quantized, correction)
    return DDPMPipeline(network, CorrectedScheduler(correction.without_repairs()))


@pytest.mark.parametrize("name", [name for name in WITH_SHIFTED if name not in WITH_NETWORK])
def test_a_network_that_repairs_itself_gives_a_saved_pipeline_our_images_bit_for_bit(name, pair, tmp_path):
    correction = fitted(name, DDIM(eta=0.5, **OURS).table(pair[0].scheduler_config), pair)
    repairing(pair[1], correction).save_pretrained(tmp_path)
    assert {path.suffix for path in tmp_path.rglob("*") if path.is_file()} == {".json", ".safetensors"}
    loaded = DDPMPipeline.from_pretrained(tmp_path)
    assert type(loaded.unet) is CorrectedNetwork
    assert_equal(our_states(pair, correction), pipeline_states(loaded))


def test_a_network_that_predicts_a_variance_too_repairs_itself(tiny_model_folder, quantized_copy):
    model = DiffusersDenoiser.from_folder(str(tiny_model_folder(out_channels=6)))
    pair = model, quantized_copy(model)
    correction = fitted("readout", DDPM(**OURS).table(model.scheduler_config), pair)
    assert_equal(our_states(pair, correction), pipeline_states(repairing(pair[1], correction)))


@pytest.fixture(scope="module")
def network(pair):
    steps = DDIM(eta=1.0, **OURS).table(pair[0].scheduler_config)
    return repairing(pair[1], fitted("readout", steps, pair)).unet


def test_it_answers_like_a_unet_at_the_times_of_its_table_only(network, pair):
    x = states(pair[0], 0)
    (m,) = network(x, torch.full((len(x),), 333), return_dict=False)
    assert torch.equal(m, network(x, 333.0).sample)
    assert not torch.equal(m, network.quantized.predict(x, at(333)).m)
    with pytest.raises(ValueError, match="one of 666, 333, 0, got 500"):
        network(x, 500)
    with pytest.raises(ValueError, match="got 333, 666"):
        network(x, torch.tensor([666, 333]))


def test_it_answers_states_in_float32_only(network, pair):
    with pytest.raises(ValueError, match="expected states in float32"):
        network(states(pair[0], 0).double(), 333)


def test_it_moves_between_devices_and_not_to_another_dtype(network, pair):
    x = states(pair[0], 0)
    (before,) = network(x, 333, return_dict=False)
    for move in (lambda: network.to(torch.bfloat16), network.half, network.double):
        with pytest.raises(ValueError, match=r"expected the dtypes that .* move the pipeline with pipe\.to\(device\)"):
            move()
    assert torch.equal(network.to("cpu", torch.float32)(x, 333).sample, before)


def test_a_correction_that_asks_twice_is_refused(pair):
    correction = fitted("qncd", DDIM(eta=1.0, **OURS).table(pair[0].scheduler_config), pair)
    with pytest.raises(ValueError, match=r"asks the network once a step.*goal=samples_corrected"):
        CorrectedNetwork(pair[1], correction)


def test_its_output_layer_folded_for_every_step_says_the_same(network, pair):
    quantized, x = network.quantized, states(pair[0], 0)
    for step, layer in zip(network.correction.steps, network.output_layers(), strict=True):
        features = quantized.predict(x, step).features
        assert not torch.equal(layer.weight, quantized.output_layer.operands(step.i)[0])
        assert torch.allclose(layer.output(x, features), network(x, step.t).sample, atol=1e-5)


def test_a_broken_file_of_quantizers_makes_no_network(network, tmp_path):
    network.save_pretrained(tmp_path)
    (file,) = tmp_path.rglob("quantized.safetensors")
    file.write_bytes(file.read_bytes()[:50])
    with pytest.raises(
        ValueError,
        match=rf"expected a quantized network .*{file.parent}, got other or broken files .*; quantize or export it",
    ):
        CorrectedNetwork.from_pretrained(tmp_path)


def test_a_folder_that_is_not_whole_makes_no_network(network, tmp_path):
    network.save_pretrained(tmp_path)
    for file in [file for file in tmp_path.rglob("*") if file.is_file()]:
        kept = file.read_bytes()
        file.unlink()
        with pytest.raises(FileNotFoundError, match=f"lacks .*{file.suffix}.*; (write|save) one with"):
            CorrectedNetwork.from_pretrained(tmp_path)
        file.write_bytes(kept)
    for options in ({"torch_dtype": torch.float16}, {"device_map": "auto"}):
        with pytest.raises(ValueError, match=r"expected torch.float32 and no device_map.*pipe.to"):
            CorrectedNetwork.from_pretrained(tmp_path, **options)
    again = CorrectedNetwork.from_pretrained(tmp_path, torch_dtype=torch.float32)
    x = torch.zeros(2, 3, 8, 8)
    assert torch.equal(again(x, 0).sample, network(x, 0).sample)
