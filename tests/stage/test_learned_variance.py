"""Experiments with a variance that the network says: a guided DiT, from its path to its stock pipeline."""

import pytest
import torch
from diffusers import DDPMScheduler, DiTPipeline

from ptq_diffusion.data import Labels
from ptq_diffusion.engine.conditions import DrawnLabels
from ptq_diffusion.model import DiffusersDenoiser
from ptq_diffusion.model.decoder import load_decoder
from ptq_diffusion.numeric.seed import SampleNoise
from ptq_diffusion.stage.drawing.images import to_bytes
from ptq_diffusion.stage.samples import read_images
from tests.model import pipelines
from tests.stage.test_path_fit import IMAGES, NAMES, followed, joined

COUNT, SEED, SCALE, STEPS, NO_CLASS = 3, 5, 2.0, 3, 1000
LEARNED = ["sampler=ddpm", "+sampler.scheduler.variance_type=learned_range"]


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    """The folder of a DiT that says a variance."""
    folder = tmp_path_factory.mktemp("model")
    pipelines.dit(folder)
    return folder


@pytest.fixture
def words(model, outputs):
    words = [
        f"model.path={model}",
        f"outputs={outputs}",
        "condition=labels",
        f"condition.guidance.scale={SCALE:g}",
        *LEARNED,
    ]
    return [*words, f"images={COUNT}", f"seeds=[{SEED}]", "noise.images=8", f"sampler.steps={STEPS}"]


def labels():
    return DrawnLabels(Labels(None, None), 10).of(SEED, range(COUNT), "images").labels


@torch.no_grad()
def test_images_are_those_of_diffusers_scheduler_with_guidance_of_the_output_alone(make, words, model, monkeypatch):
    """The loop of DiTPipeline, but for the variance, which it drops and its scheduler then lacks."""
    denoiser = DiffusersDenoiser.from_folder(str(model))
    noise, network = SampleNoise(SEED, range(COUNT), denoiser.shape), denoiser.network
    scheduler = DDPMScheduler.from_config(denoiser.scheduler_config, variance_type="learned_range")
    scheduler.set_timesteps(STEPS)
    x, both = noise.draw(), torch.cat([labels(), torch.full((COUNT,), NO_CLASS)])
    for t in scheduler.timesteps:
        said = network(torch.cat([x, x]), timestep=t.expand(2 * COUNT), class_labels=both).sample
        conditional, null = said.chunk(2)
        output = null[:, :4] + SCALE * (conditional[:, :4] - null[:, :4])
        drawn = noise.draw()
        monkeypatch.setattr("diffusers.schedulers.scheduling_ddpm.randn_tensor", lambda *_, drawn=drawn, **__: drawn)
        x = scheduler.step(torch.cat([output, conditional[:, 4:]], dim=1), t, x).prev_sample
    expected = to_bytes(load_decoder(str(model)).decode(x))
    images = read_images(make("goal=samples_full_precision", *words))
    assert (images.int() - expected.int()).abs().max() <= 1
    others = [word for word in words if "variance_type" not in word]
    known = read_images(make("goal=samples_full_precision", *others))
    assert (images.int() - known.int()).abs().max() > 10


@pytest.mark.parametrize("correction", ["ptqd", "rescaled_readout_matched"])
def test_the_stock_pipeline_draws_the_corrected_images(make, words, monkeypatch, correction):
    """A DiTPipeline hands no generator to its scheduler, so here its noise is put in the place of what it draws."""
    words += [f"correction={correction}", "noise.images=18"]
    pipe = DiTPipeline.from_pretrained(make("goal=export", *words))
    pipe.set_progress_bar_config(disable=True)
    noise = SampleNoise(SEED, range(COUNT), (4, 8, 8))

    def drawn(shape, **_):
        z = noise.draw()
        return torch.cat([z, z])[: shape[0]]

    for module in ("ptq_diffusion.correction.pipeline.corrected_scheduler", "diffusers.pipelines.dit.pipeline_dit"):
        monkeypatch.setattr(f"{module}.randn_tensor", drawn)
    asked = {"class_labels": labels().tolist(), "num_inference_steps": STEPS, "output_type": "np"}
    images = torch.from_numpy(pipe(**asked, guidance_scale=SCALE).images).permute(0, 3, 1, 2)
    expected = read_images(make("goal=samples_corrected", *words))
    assert expected.float().std() > 1
    assert (255 * images - expected).abs().max() < 0.51
    with pytest.raises(ValueError, match=r"expected guidance_scale=2, .* got about 3"):
        pipe(**asked, guidance_scale=1.5 * SCALE)


@pytest.mark.parametrize("correction", ["rescaled_matched", "wiener"])
def test_a_path_goes_on_with_the_variance_that_each_network_says(
    make, monkeypatch, tiny_model_folder, outputs, correction
):
    """Of the float network on the float path; of the quantized one, rescaled where it is, on the corrected path."""
    folder = tiny_model_folder(out_channels=6)
    words = [
        f"model.path={folder}",
        f"outputs={outputs}",
        "goal=fit",
        "force=fit",
        *LEARNED,
        f"correction={correction}",
    ]
    own, seen, _ = followed(make, monkeypatch, *words)
    noise = SampleNoise(own.chunks[0].seed, range(IMAGES), own.model.shape, "noise")
    first, second = ({name: joined([*paired, *others], name) for name in NAMES} for _, paired, others in seen)
    noise.draw()
    z, step, fitted = noise.draw(), own.steps[0], own.fitted[0]
    said = own.model.predict(first["float_x_t"], step).variance
    float_next = step.mean(first["float_x_t"], first["float_m"]) + step.spread(said) * z
    assert torch.allclose(second["float_x_t"], float_next, atol=1e-5)
    said = own.quantized.at(0, fitted.rescalings).predict(first["x_t"], step).variance
    m = fitted.output(first["q"], first["x_t"], first["features"])
    corrected = step.mean(first["x_t"], m) + fitted.spread(step, said) * z
    along = correction != "wiener"
    assert torch.allclose(second["x_t"], corrected if along else float_next, atol=1e-5)
    assert not torch.allclose(corrected, float_next, atol=1e-3)


def test_a_whole_experiment_carries_a_correction_and_spends_bits_by_effect(report, words):
    rows = report(*words, "noise.steps=5", "correction=ptqd")[0]["rows"]
    assert [row["variant"] for row in rows] == ["full_precision", "quantized", "corrected"]
    report(
        *words, "bitwidth=budget", "bitwidth.saving=5", "sensitivity.images=4", "correction=matched", "noise.images=18"
    )


def test_what_is_not_said_not_guided_so_or_not_written_is_refused_before_anything_is_computed(make, words, tmp_path):
    words += [f"outputs={tmp_path / 'outputs'}"]
    with pytest.raises(ValueError, match=r"a network that says a variance .*variance_type=fixed_small"):
        make("goal=trajectories", *LEARNED)
    with pytest.raises(ValueError, match=r"noise of the sampler, which those who run a graph know"):
        make("goal=onnx", *words, "correction=none")
    with pytest.raises(ValueError, match=r"learned variance; set correction.variance=original"):
        make("goal=fit", *words, "correction=wiener", "correction.variance=rule")
    assert not list((tmp_path / "outputs").rglob("chunks"))
