"""goal=onnx writes graphs that draw the corrected images in other runtimes, beside numpy alone."""

import importlib.util
import json
import subprocess
import sys
from collections import Counter
from pathlib import Path

import numpy as np
import onnx
import openvino
import pytest
import torch

from ptq_diffusion.network.backend.onednn import cuts_off_sums
from ptq_diffusion.network.onnx.session import run_model
from ptq_diffusion.numeric.seed import SampleNoise
from ptq_diffusion.stage.drawing.images import to_bytes
from ptq_diffusion.stage.samples import read_images

PAGES = Path(__file__).parents[3] / "docs" / "how_to"
CODE = PAGES / "sample_onnx.py"
LABEL = 1


def drawn(folder):
    """The images of the example with the noise of ours, uint8, where its command runs too."""
    spec = importlib.util.spec_from_file_location("sample_onnx", CODE)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    noise = SampleNoise(5, range(4), (3, 8, 8), "images")
    condition, states = {"labels": np.full(4, LABEL)}, folder.parent / "states.npy"
    np.savez(folder.parent / "condition.npz", **condition)
    words = [CODE, folder, 4, 0, states, folder.parent / "condition.npz"]
    subprocess.run([sys.executable, *map(str, words)], check=True)
    assert np.load(states).shape == (4, 3, 8, 8)
    x_0 = module.sample(folder, lambda: noise.draw("cpu").numpy(), condition)
    return to_bytes((torch.from_numpy(x_0) / 2 + 0.5).clamp(0, 1))


def compiled(graph, inputs):
    """A graph in OpenVINO for the shapes of these inputs, in float32 between integers."""
    core = openvino.Core()
    model = core.read_model(graph)
    for name, value in inputs.items():
        model.input(name).node.set_partial_shape(openvino.PartialShape(list(value.shape)))
    model.validate_nodes_and_infer_types()
    return core.compile_model(model, "CPU", {"INFERENCE_PRECISION_HINT": "f32", "INFERENCE_NUM_THREADS": 1})


def test_the_graphs_draw_the_corrected_images(make, tiny_model_folder):
    """Guided ones, of which layers quantize the difference between the rows."""
    chosen = ["images=4", "seeds=[5]", "noise.images=16", "bitwidth=w4a8", "correction=rescaled_readout_matched"]
    chosen += ["sampler.steps=2", "micro_batch=16"]
    chosen += ["shift@correction.links.rescaled.shift=mean", "+range_search@correction.links.rescaled.differences=mse"]
    chosen += [f"model.path={tiny_model_folder(classes=4)}", "condition=labels", f"condition.source.only=[{LABEL}]"]
    chosen += ["condition.source.no_class=3", "condition.guidance.scale=3"]
    chosen.append("condition.guidance.interval=[0,0.4]")
    if cuts_off_sums():  # OpenVINO would cut off sums of the first layer.
        chosen.append("bitwidth.first.weight=6")
    folder = make("goal=onnx", *chosen)
    assert {path.suffix for path in folder.iterdir()} == {".json", ".onnx", ".bin", ".yaml", ".npz"}
    graphs = sorted(folder.glob("*.onnx"))
    assert len(graphs) == 2
    for path in graphs:
        onnx.checker.check_model(str(path))
    images, simulated = drawn(folder), read_images(make("goal=samples_corrected", *chosen))
    assert (images.float() - simulated.float()).square().mean() < 255**2 / 10**4, "below 40 dB"
    read = [value.name for path in graphs for value in onnx.load(path, load_external_data=False).graph.input]
    assert set(read) == {"x", "labels"}
    about = json.loads((folder / "onnx.json").read_text())
    assert about["guided"] == about["pairs"] == [False, True]
    inputs = {"x": np.random.default_rng(0).standard_normal((2, 3, 8, 8), np.float32), "labels": np.array([3, LABEL])}
    network = compiled(graphs[1], inputs)
    kinds = Counter(
        (operator.get_rt_info()["layerType"].astype(str), operator.get_rt_info()["primitiveType"].astype(str)[-2:])
        for operator in network.get_runtime_model().get_ops()
    )
    # The readout is folded into the output layer, whose weight is float then.
    assert kinds["Convolution", "I8"] > 10 * kinds["Convolution", "32"]
    (m,) = run_model(graphs[1], inputs)
    assert np.linalg.norm(network(inputs)["m"] - m) < 0.02 * np.linalg.norm(m)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["onnx.opset=17"], "from 21 to 23, got 17, which is too old.*set onnx.opset=21"),
        (["correction=qncd"], "evaluates the network once a step.*got qncd; draw its images with"),
        (["onnx.int4=4"], "onnx.int4 to be a valid boolean"),
    ],
)
def test_what_no_graph_can_be_is_refused_before_anything_is_computed(make, options, words):
    with pytest.raises(ValueError, match=words):
        make("goal=onnx", *options)


def test_the_page_shows_the_file_that_is_run():
    assert f"```python\n{CODE.read_text()}```\n" in (PAGES / "onnx.md").read_text()
