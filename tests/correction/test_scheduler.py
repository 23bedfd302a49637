"""A stock pipeline with a corrected scheduler draws what the sampling loop of this package draws, bit for bit."""

import dataclasses
import json

import pytest
import torch
from diffusers import DDIMPipeline, DDIMScheduler, DDPMPipeline, DDPMScheduler

from ptq_diffusion.correction import (
    Batch,
    CorrectedNetwork,
    CorrectedScheduler,
    Fingerprint,
    FittedCorrection,
    NoiseStatistics,
    PathCorrection,
)
from ptq_diffusion.model import UNetDenoiser
from ptq_diffusion.network import OutputLayerTap, observing, quantize
from ptq_diffusion.numeric.seed import SampleNoise, generator
from ptq_diffusion.sampler import DDIM, DDPM, sample
from ptq_diffusion.sampler.step import fingerprint
from ptq_diffusion.stage.parts import build_quantizers
from tests.correction.presets import CORRECTIONS, FILES

WITH_FEATURES = {name for name, file in FILES.items() if file.get("on_features")}
WITH_NETWORK = {"qncd"}
SEED, BATCH, STEPS = 3, 3, 3
OURS = {"steps": STEPS, "scheduler": {}}

of_a_pipeline = pytest.mark.parametrize(
    "name", [name for name in CORRECTIONS if name not in WITH_FEATURES | WITH_NETWORK]
)
every_sampler = pytest.mark.parametrize(
    ("sampler", "clip"),
    [
        (DDIM(eta=0.0, **OURS), True),
        (DDIM(eta=0.5, **OURS), False),
        (DDIM(eta=1.0, **OURS), True),
    ],
    ids=["eta 0, clipped", "eta 0.5", "eta 1, clipped"],
)


@pytest.fixture(scope="module")
def calibrated(composed):
    """From a float model to quantizers with weights of four bits."""
    cfg = composed(
        "+bitwidth=w4a8",
        "+quantizer@quantizer.weight=symmetric_per_channel",
        "+quantizer@quantizer.activation=affine_per_tensor",
    )

    def make(model):
        quantizers = build_quantizers(cfg, model)
        quantizers.observe_weights(model.network)
        with observing(model.network, quantizers):
            model.predict(states(model, 0), 500)
        quantizers.freeze()
        return quantizers

    return make


@pytest.fixture(scope="module")
def quantized_copy(calibrated):
    """From a float model to its quantized copy."""
    return lambda model: model.with_network(quantize(model.network, calibrated(model)))


@pytest.fixture(scope="module")
def pair(tiny_model_folder, quantized_copy):
    """A float model and its quantized copy."""
    model = UNetDenoiser.from_folder(str(tiny_model_folder()))
    return model, quantized_copy(model)


def states(model, seed):
    return torch.randn(96, *model.shape, generator=torch.Generator().manual_seed(seed))


@torch.no_grad()
def fitted(name, steps, pair):
    """On white noise at every step; the path does not matter here."""
    model, quantized = pair
    tap = OutputLayerTap(quantized, model.sites())
    correction = CORRECTIONS[name]
    seen = []
    for step in steps:
        x = states(model, step.i)
        seen.append((model.predict(x, step.t), *tap.predict(x, step.t), x))
    if isinstance(correction, PathCorrection):
        batches = [[Batch(0, m, q, x, features, m, x)] for m, q, features, x in seen]
        found = [correction.fit_step(batch, step) for batch, step in zip(batches, steps, strict=True)]
        return FittedCorrection(steps, found)
    owner = Fingerprint("network", fingerprint(steps), model.shape)
    return correction.fit(NoiseStatistics.of(owner, ((m, q, x) for m, q, _, x in seen), first=0), steps)


@torch.no_grad()
def our_states(pair, correction):
    """x_T and every x_s after it, and the images."""
    model, quantized = pair
    tap = OutputLayerTap(quantized, model.sites())

    def predict(x_t, step):
        q, features = tap.predict(x_t, step.t)
        return correction.output(q, x_t, features, step)

    noise = SampleNoise(SEED, range(BATCH), model.shape)
    visits = list(sample(predict, correction.steps, noise, correction.sigma))
    return torch.stack([visit.x_t for visit in visits]), model.decode(visits[-1].x_s)


def pipeline_states(pipe):
    """The same by a stock pipeline."""
    seen = []
    hook = pipe.unet.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    pipe.set_progress_bar_config(disable=True)
    streams = [generator("images", SEED, index) for index in range(BATCH)]
    images = pipe(batch_size=BATCH, generator=streams, num_inference_steps=STEPS, output_type="pt").images
    hook.remove()
    return torch.stack(seen), images


def stock(unet):
    """Any pipeline around the network, as a user has it."""
    return DDPMPipeline(unet, DDPMScheduler())


def assert_equal(ours, theirs):
    for mine, other in zip(ours, theirs, strict=True):
        assert torch.equal(mine.view(torch.int32), other.view(torch.int32))


@of_a_pipeline
@every_sampler
def test_a_pipeline_draws_the_images_of_our_loop_bit_for_bit(name, sampler, clip, pair):
    steps = sampler.steps(pair[0].scheduler_config | {"clip_sample": clip})
    correction = fitted(name, steps, pair)
    pipe = stock(pair[1].network)
    pipe.scheduler = CorrectedScheduler(correction)
    ours = our_states(pair, correction)
    assert_equal(ours, pipeline_states(pipe))
    pipe.scheduler = CorrectedScheduler(correction.without_repairs())
    assert (name in ("none", "variance")) == torch.equal(ours[0], pipeline_states(pipe)[0])


def test_noise_that_a_step_absorbs_whole_is_drawn_all_the_same(pair):
    correction = fitted("ptqd", DDIM(eta=1.0, **OURS).steps(pair[0].scheduler_config), pair)
    sigmas = [0.0, 0.5, 0.0]
    found = [dataclasses.replace(own, sigma=sigma) for own, sigma in zip(correction.found, sigmas, strict=True)]
    correction = FittedCorrection(correction.steps, found)
    pipe = DDPMPipeline(pair[1].network, CorrectedScheduler(correction))
    assert_equal(our_states(pair, correction), pipeline_states(pipe))


def test_a_network_that_predicts_a_variance_too(tiny_model_folder, quantized_copy):
    model = UNetDenoiser.from_folder(str(tiny_model_folder(out_channels=6)))
    pair = model, quantized_copy(model)
    correction = fitted("ptqd", DDPM(**OURS).steps(model.scheduler_config), pair)
    pipe = DDPMPipeline(pair[1].network, CorrectedScheduler(correction))
    assert_equal(our_states(pair, correction), pipeline_states(pipe))


@of_a_pipeline
def test_saved_and_loaded_it_is_the_same_bit_for_bit(name, pair, tmp_path):
    correction = fitted(name, DDIM(eta=1.0, **OURS).steps(pair[0].scheduler_config), pair)
    pipe = DDPMPipeline(pair[1].network, CorrectedScheduler(correction))
    pipe.scheduler.save_pretrained(tmp_path / "new" / "scheduler")
    written = {path.name for path in (tmp_path / "new" / "scheduler").iterdir()}
    assert written == {"scheduler_config.json", "correction.json", "correction.safetensors"}
    expected = pipeline_states(pipe)
    pipe.scheduler = CorrectedScheduler.from_pretrained(tmp_path / "new", subfolder="scheduler")
    assert_equal(expected, pipeline_states(pipe))
    (tmp_path / "fit").mkdir()
    correction.save(tmp_path / "fit")
    pipe.scheduler = CorrectedScheduler.from_pretrained(tmp_path / "fit")
    assert_equal(expected, pipeline_states(pipe))


def test_a_saved_pipeline_finds_its_scheduler(pair, tmp_path):
    correction = fitted("wiener_matched", DDIM(eta=0.5, **OURS).steps(pair[0].scheduler_config), pair)
    pipe = DDPMPipeline(pair[0].network, CorrectedScheduler(correction))
    pipe.save_pretrained(tmp_path)
    loaded = DDPMPipeline.from_pretrained(tmp_path, unet=pair[1].network)
    assert type(loaded.scheduler) is CorrectedScheduler
    assert_equal(our_states(pair, correction), pipeline_states(loaded))


def test_one_generator_serves_all_images_and_a_tuple_holds_the_state(pair):
    steps = DDIM(eta=1.0, **OURS).steps(pair[0].scheduler_config)
    correction = fitted("ptqd", steps, pair)
    x, q = states(pair[0], 0), states(pair[0], 1)
    z = torch.randn(x.shape, generator=torch.Generator().manual_seed(5))
    scheduler = CorrectedScheduler(correction)
    (x_s,) = scheduler.step(q, steps[1].t, x, torch.Generator().manual_seed(5), return_dict=False)
    expected = steps[1].mean(x, correction.output(q, x, torch.empty(0), steps[1])) + correction.sigma(steps[1]) * z
    assert torch.equal(x_s, expected)
    assert scheduler.scale_model_input(x, steps[1].t) is x


@pytest.mark.parametrize("name", sorted(WITH_FEATURES))
def test_a_correction_that_needs_features_is_refused(name, pair):
    correction = fitted(name, DDIM(eta=1.0, **OURS).steps(pair[0].scheduler_config), pair)
    with pytest.raises(ValueError, match=r"input of the network's output layer.*goal=export"):
        CorrectedScheduler(correction)


@pytest.mark.parametrize("name", sorted(WITH_NETWORK))
def test_a_correction_that_asks_twice_is_refused(name, pair):
    correction = fitted(name, DDIM(eta=1.0, **OURS).steps(pair[0].scheduler_config), pair)
    with pytest.raises(ValueError, match=r"a pipeline's scheduler has no network.*goal=samples_corrected"):
        CorrectedScheduler(correction)


@pytest.fixture
def scheduler(pair):
    return CorrectedScheduler(fitted("ptqd", DDIM(eta=1.0, **OURS).steps(pair[0].scheduler_config), pair))


def test_another_number_of_steps_is_refused(pair, scheduler):
    pipe = DDPMPipeline(pair[1].network, scheduler)
    with pytest.raises(ValueError, match="expected num_inference_steps=3, .* got 1000; .*sampler.steps"):
        pipe()


def test_ddim_pipeline_neither_drops_the_correction_nor_its_eta(pair, scheduler):
    unet = pair[1].network
    with pytest.raises(NotImplementedError, match="which only itself can follow"):
        DDIMPipeline(unet, scheduler)
    pipe = DDIMPipeline(unet, DDIMScheduler())
    pipe.scheduler = scheduler
    pipe.set_progress_bar_config(disable=True)
    with pytest.raises(ValueError, match="no other options, got eta.*use DDPMPipeline"):
        pipe(num_inference_steps=STEPS)


def test_other_times_and_broken_outputs_are_refused(pair, scheduler):
    x = states(pair[0], 0)
    with pytest.raises(ValueError, match="one of 666, 333, 0, got 667"):
        scheduler.step(x, 667, x)
    with pytest.raises(FloatingPointError, match="after t = 333"):
        scheduler.step(x * torch.nan, torch.tensor(333), x)
    twice = FittedCorrection([scheduler.correction.steps[0]] * STEPS, scheduler.correction.found)
    with pytest.raises(ValueError, match="whose times differ"):
        CorrectedScheduler(twice)


def test_a_configuration_or_a_strange_folder_makes_no_scheduler(scheduler, tmp_path):
    with pytest.raises(ValueError, match=r"use CorrectedScheduler.from_pretrained\(folder\)"):
        CorrectedScheduler.from_config(scheduler.config)
    DDPMScheduler().save_pretrained(tmp_path)
    with pytest.raises(FileNotFoundError, match="expected correction.json"):
        CorrectedScheduler.from_pretrained(tmp_path)
    scheduler.save_pretrained(tmp_path)
    assert json.loads((tmp_path / "scheduler_config.json").read_text())["num_inference_steps"] == STEPS
    with pytest.raises(NotImplementedError, match="which only itself can follow"):
        DDPMScheduler.from_pretrained(tmp_path)


def repairing(model, calibrated, correction):
    """The pipeline that goal=export writes."""
    network = CorrectedNetwork(model, calibrated(model), correction)
    return DDPMPipeline(network, CorrectedScheduler(correction.without_repairs()))


@pytest.mark.parametrize("name", [name for name in CORRECTIONS if name not in WITH_NETWORK])
def test_a_network_that_repairs_itself_gives_a_saved_pipeline_our_images_bit_for_bit(name, pair, calibrated, tmp_path):
    correction = fitted(name, DDIM(eta=0.5, **OURS).steps(pair[0].scheduler_config), pair)
    repairing(pair[0], calibrated, correction).save_pretrained(tmp_path)
    assert {path.suffix for path in tmp_path.rglob("*") if path.is_file()} == {".json", ".safetensors"}
    loaded = DDPMPipeline.from_pretrained(tmp_path)
    assert type(loaded.unet) is CorrectedNetwork
    assert_equal(our_states(pair, correction), pipeline_states(loaded))


def test_a_network_that_predicts_a_variance_too_repairs_itself(tiny_model_folder, calibrated):
    model = UNetDenoiser.from_folder(str(tiny_model_folder(out_channels=6)))
    pair = model, model.with_network(quantize(model.network, calibrated(model)))
    correction = fitted("readout", DDPM(**OURS).steps(model.scheduler_config), pair)
    assert_equal(our_states(pair, correction), pipeline_states(repairing(model, calibrated, correction)))


@pytest.fixture(scope="module")
def network(pair, calibrated):
    steps = DDIM(eta=1.0, **OURS).steps(pair[0].scheduler_config)
    return repairing(pair[0], calibrated, fitted("readout", steps, pair)).unet


def test_it_answers_like_a_unet_at_the_times_of_its_table_only(network, pair):
    x = states(pair[0], 0)
    (m,) = network(x, torch.full((len(x),), 333), return_dict=False)
    assert torch.equal(m, network(x, 333.0).sample)
    assert not torch.equal(m, network.quantized.predict(x, 333))
    with pytest.raises(ValueError, match="one of 666, 333, 0, for all images, got 500"):
        network(x, 500)
    with pytest.raises(ValueError, match="got 333, 666"):
        network(x, torch.tensor([666, 333]))


def test_its_output_layer_folded_for_every_step_says_the_same(network, pair):
    tap, x = OutputLayerTap(network.quantized, pair[0].sites()), states(pair[0], 0)
    for step, layer in zip(network.correction.steps, network.output_layers(), strict=True):
        _, features = tap.predict(x, step.t)
        assert not torch.equal(layer.weight, tap.layer.weight)
        assert torch.allclose(layer.output(x, features), network(x, step.t).sample, atol=1e-5)


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
