"""backend=integer draws what simulation draws but for rounding, from the same integers, to the end of a pipeline."""

import pytest
import torch
from diffusers import DDPMPipeline

from ptq_diffusion.correction import CorrectedNetwork
from ptq_diffusion.network import load_quantized
from ptq_diffusion.numeric.seed import generator
from ptq_diffusion.stage.drawing.images import to_bytes
from ptq_diffusion.stage.samples import read_images

WORDS = ("images=4", "seeds=[5]", "noise.images=16")


def difference(images, others):
    """Mean absolute difference in steps of a byte."""
    return float((images.float() - others.float()).abs().mean())


@pytest.mark.parametrize("correction", ["rescaled_readout_matched", "ptqd"])
def test_images_are_those_of_simulation_but_for_rounding(shared, correction):
    """A network is made once for both; an exported pipeline goes on with the backend that it was exported for."""
    chosen = [*WORDS, f"correction={correction}", "bitwidth=step_snr" if correction == "ptqd" else "bitwidth=w4a8"]
    simulated, integer, lossless = (
        read_images(shared("goal=samples_corrected", *chosen, *words))
        for words in ([], ["backend=integer"], ["bitwidth=float"])
    )
    assert difference(integer, simulated) < 0.5 * difference(lossless, simulated)


def test_an_exported_pipeline_computes_with_its_backend(shared):
    chosen = [*WORDS, "correction=rescaled_matched", "backend=integer"]
    folder = shared("goal=export", *chosen)
    pipe = DDPMPipeline.from_pretrained(folder)
    pipe.set_progress_bar_config(disable=True)
    assert isinstance(pipe.unet, CorrectedNetwork) and pipe.unet.quantized.backend.name == "integer"
    streams = [generator("images", 5, index) for index in range(4)]
    images = pipe(4, generator=streams, num_inference_steps=3, output_type="pt").images
    assert torch.equal(to_bytes(images), read_images(shared("goal=samples_corrected", *chosen)))
    assert load_quantized(folder / "unet").backend.name == "simulated"
    assert pipe.unet.to_backend("simulated").config.backend == "simulated"


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (
            ["bitwidth.patterns=[{name:conv_in,weight:32,activation:8}]"],
            "conv_in, for its weight is float at step 0, where its input has 8 bits",
        ),
        (["quantizer.low_rank.rank=2"], r"a part of its weight is in 16 bits \(quantizer.low_rank.rank\)"),
        (["quantizer@quantizer.activation=dynamic_per_token"], "its input has more than one scale"),
        (["bitwidth.attention={weight:8,activation:8}"], "the products of attention have quantized operands"),
    ],
)
def test_a_layer_that_it_cannot_compute_is_refused_by_its_name_before_anything_is_made(make, tmp_path, words, message):
    with pytest.raises(ValueError, match=message):
        make("goal=samples_quantized", *WORDS, "backend=integer", *words)
    assert not (tmp_path / "outputs" / "store").exists()


def test_a_device_without_it_is_refused_before_anything_is_made(make, monkeypatch):
    monkeypatch.setattr("ptq_diffusion.network.backend.onednn._complaint", lambda *_: "got nothing")
    with pytest.raises(ValueError, match=r"expected torch.ops.onednn.qconv_pointwise to .* set backend=simulated"):
        make("goal=samples_quantized", *WORDS, "backend=integer")
