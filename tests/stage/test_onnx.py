"""goal=onnx writes graphs that draw the corrected images in ONNX Runtime, beside numpy alone."""

import importlib.util
from pathlib import Path

import onnx
import pytest
import torch

from ptq_diffusion.numeric.seed import SampleNoise
from ptq_diffusion.stage.drawing.images import to_bytes
from ptq_diffusion.stage.samples import read_images

CHOSEN = ["images=4", "seeds=[5]", "noise.images=16"]
PAGE = Path(__file__).parents[2] / "docs" / "how_to" / "sample_onnx.py"


@pytest.fixture(scope="module")
def example():
    spec = importlib.util.spec_from_file_location("sample_onnx", PAGE)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def drawn(example, folder):
    """The images of the example with the noise of ours, uint8."""
    noise = SampleNoise(5, range(4), (3, 8, 8), "images")
    x_0 = example.sample(folder, lambda: noise.draw("cpu").numpy(), {})
    return to_bytes((torch.from_numpy(x_0) / 2 + 0.5).clamp(0, 1))


@pytest.mark.parametrize(
    ("bits", "options"),
    [("w4a8", ["correction=rescaled_readout_matched", "onnx.int4=true"]), ("w8a8", ["correction=ptqd"])],
)
def test_the_graphs_draw_the_corrected_images(make, example, bits, options):
    chosen = [*CHOSEN, f"bitwidth={bits}", *options]
    folder = make("goal=onnx", *chosen)
    assert {path.suffix for path in folder.iterdir()} == {".json", ".onnx", ".bin", ".yaml"}
    for path in folder.glob("*.onnx"):
        onnx.checker.check_model(str(path))
    images, simulated = drawn(example, folder), read_images(make("goal=samples_corrected", *chosen))
    assert (images.float() - simulated.float()).square().mean() < 255**2 / 10**4, "below 40 dB"
