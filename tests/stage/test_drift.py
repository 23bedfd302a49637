"""The drift of states: Gaussian models whose states are known, and whole experiments at its limits."""

import math

import pytest
import torch
from omegaconf import OmegaConf

from ptq_diffusion.engine.chunks import Chunk
from ptq_diffusion.engine.conditions import Unconditional
from ptq_diffusion.model import Decoder, GaussianDenoiser, Pixels
from ptq_diffusion.sampler import DDIM, sample
from ptq_diffusion.stage.drawing.drift import Drift, SideBySide, drift_chunks, read_drift
from ptq_diffusion.stage.drawing.images import DrawImages

SHAPE = (2, 4, 4)
MODELS = {
    "full_precision": GaussianDenoiser(SHAPE, 0.4, 0.5),
    "quantized": GaussianDenoiser(SHAPE, 0.1, 0.6),
    "corrected": GaussianDenoiser(SHAPE, 0.35, 0.5),
}
STEPS = DDIM(8, 1.0, {}).table(MODELS["full_precision"].scheduler_config)
CHUNK = Chunk("images", seed=3, first=0, size=5, count=4)


class Latents(Decoder):
    factor, checksum = 1, "latents"

    def decode(self, x_0):
        raise AssertionError("states are compared, and no images")

    def shape(self, state):
        return state


def measured(decoder):
    works = {name: DrawImages.of(model, STEPS, Unconditional(), decoder) for name, model in MODELS.items()}
    return SideBySide(works)(CHUNK, torch.device("cpu"))


def states(name):
    """The states of one model that is sampled alone, (steps, N, C, H, W)."""
    walk = sample(lambda x, step: MODELS[name].predict(x, step).m, STEPS, CHUNK.noise(SHAPE))
    return torch.stack([visit.x_s for visit in walk])[:, : CHUNK.count]


def test_models_side_by_side_have_the_states_that_they_have_alone():
    errors = measured(Pixels())
    for name in ("quantized", "corrected"):
        expected = (states(name) - states("full_precision")).square().mean((2, 3, 4)).double()
        assert expected.shape == (8, 4) and torch.equal(errors[name], expected)
    assert (errors["corrected"][-1] < errors["quantized"][-1]).all()


def test_ratios_are_to_the_range_of_pixels_or_of_latents_own():
    pixels, latents = measured(Pixels()), measured(Latents())
    last = states("full_precision")[-1].flatten(1)
    assert torch.equal(pixels["range"], torch.full((4,), 2.0, dtype=torch.float64))
    assert torch.equal(latents["range"], (last.max(1).values - last.min(1).values).double())
    drift = Drift.of(pixels["quantized"], pixels["range"])
    assert drift.mse == pytest.approx(pixels["quantized"].mean(1).tolist())
    each = [[10 * math.log10(4 / error) for error in row] for row in pixels["quantized"].tolist()]
    assert drift.psnr == pytest.approx([sum(row) / 4 for row in each])


def test_equal_states_have_no_finite_ratio():
    assert Drift.of(torch.tensor([[1.0, 0.0], [1.0, 1.0]]), torch.tensor([2.0, 2.0])).psnr[0] is None
    assert Drift.of(torch.ones(1, 1), torch.zeros(1)).psnr == [None]


def test_a_model_that_nothing_was_done_to_does_not_drift(make):
    """A float plan leaves every state as it is, and no correction those of the quantized model."""
    exact = read_drift(make("goal=drift", "bitwidth=float", "correction=none"))
    assert {number for drift in exact.values() for number in drift.mse} == {0.0}
    assert {number for drift in exact.values() for number in drift.psnr} == {None}
    folder = make("goal=drift", "correction=none")
    drift = read_drift(folder)
    assert drift["quantized"] == drift["corrected"] and min(drift["quantized"].mse) > 0
    assert not (folder / "chunks").exists()


@pytest.mark.parametrize(("asked", "count"), [(3, 3), (7, 7), (9, 7)])
def test_it_is_measured_on_the_first_images_of_the_first_seed(asked, count):
    cfg = OmegaConf.create({"drift": {"images": asked}, "images": 7, "seeds": [5, 0], "micro_batch": 4})
    chunks = drift_chunks(cfg)
    assert {(chunk.purpose, chunk.seed) for chunk in chunks} == {("images", 5)}
    assert [chunk.first + place for chunk in chunks for place in range(chunk.count)] == list(range(count))
