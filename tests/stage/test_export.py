"""goal=export writes a pipeline that stock diffusers loads and that draws the corrected images."""

import pytest
import torch
from diffusers import DDPMPipeline

from ptq_diffusion.numeric.seed import generator
from ptq_diffusion.stage.draw import to_bytes
from ptq_diffusion.stage.samples import read_images


@pytest.mark.parametrize("correction", ["readout_matched", "rescaled_matched"])
def test_the_exported_pipeline_draws_the_corrected_images(make, correction):
    chosen = [f"correction={correction}", "images=4", "seeds=[5]", "noise.images=16"]
    folder = make("goal=export", *chosen)
    read = {path.suffix for path in folder.rglob("*") if path.is_file()}
    assert read == {".json", ".safetensors", ".yaml"}
    pipe = DDPMPipeline.from_pretrained(folder)
    pipe.set_progress_bar_config(disable=True)
    streams = [generator("images", 5, index) for index in range(4)]
    images = pipe(4, generator=streams, num_inference_steps=3, output_type="pt").images
    assert torch.equal(to_bytes(images), read_images(make("goal=samples_corrected", *chosen)))
