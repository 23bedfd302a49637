"""Stage: the quantized, corrected network as ONNX graphs of integers, which ONNX Runtime and OpenVINO run."""

import json
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from omegaconf import DictConfig
from torch import Tensor

from ptq_diffusion.correction import FittedCorrection
from ptq_diffusion.correction.pipeline.graph_repair import finish
from ptq_diffusion.engine.factory import plain
from ptq_diffusion.engine.stage import ModelStage
from ptq_diffusion.engine.workshop import Workshop
from ptq_diffusion.model import Condition, Guided
from ptq_diffusion.network import QuantizedDenoiser, QuantizedWeight
from ptq_diffusion.network.backend.onednn import HALF, cuts_off_sums
from ptq_diffusion.network.onnx.extra import require_libraries
from ptq_diffusion.sampler import Step
from ptq_diffusion.stage.fit import Fit
from ptq_diffusion.stage.prompts import EncodePrompts
from ptq_diffusion.stage.quantize import Quantize

TRIAL_SAMPLES = 2
"""Samples that every graph is tried on."""
NULL = "null.npz"
"""The file of the condition that guidance leads away from."""
LARGEST_DIFFERENCE = 0.1
"""Root mean square of what a graph may differ by from the simulation, relative to the output's: what is rounded to
another neighbour where two are nearly as near is some hundredths at most, a wrong graph is near 1."""


class WriteOnnx(ModelStage):
    """A folder of graphs, `onnx.json`, which says which of them every step takes and how to sample, and constants.

    Guidance is left to who samples: the graphs answer every row of a batch by itself, or, where a correction has
    differences between the rows of guidance, pairs of rows.
    """

    name = "onnx"
    version = 1
    needs = (Quantize, Fit, EncodePrompts)
    uses = ("model", "condition", "onnx")

    def make(self, cfg: DictConfig, inputs: Mapping[str, Path], out: Path, shop: Workshop) -> None:
        require_libraries()
        # Only here, so that nothing else needs the extra.
        from ptq_diffusion.network.onnx.folder import DESCRIPTION, GraphFolder
        from ptq_diffusion.network.onnx.writing import GraphOptions, write_graphs

        quantized, correction = shop.host.simulated(inputs[Quantize.name]), FittedCorrection.load(inputs[Fit.name])
        rescaled = quantized.rescaled(correction.rescalings)
        network = rescaled.paired() if correction.pairs_rows else rescaled.unguided()
        # Of samples of the images: prompts belong to the purposes of `data.prompts.FIRST` alone.
        condition = shop.host.conditions(cfg, quantized, inputs).of(0, range(TRIAL_SAMPLES), "images")
        options = GraphOptions(**plain(cfg.onnx))
        files = write_graphs(network, correction.steps, partial(finish, network, correction), condition, options, out)
        description = _description(quantized, correction, files, cfg.onnx.opset)
        (out / DESCRIPTION).write_text(json.dumps(description, indent=2) + "\n")
        if isinstance(quantized.denoiser, Guided):
            tensors = quantized.denoiser.null.tensors()
            null: Any = {name: tensor.numpy() for name, tensor in tensors.items()}
            np.savez(out / NULL, **null)
        asked = _with_null(quantized, condition) if correction.pairs_rows else condition
        worst = _largest_difference(GraphFolder(out).predict, network, correction, asked)
        if not worst <= LARGEST_DIFFERENCE:
            raise ValueError(
                f"expected graphs that differ from the simulation by at most {LARGEST_DIFFERENCE} of the output, got "
                f"{worst:.3g}; draw the images with goal=samples_corrected, and report this"
            )
        shop.runtime.say(
            f"onnx: {len(set(files))} graphs of {len(files)} steps, in ONNX Runtime {worst:.1e} from the simulation"
        )
        if cuts_off_sums() and (wide := _wide_weights(quantized)):
            shop.runtime.say(
                f"onnx: this processor has no products of 8-bit integers, so that runtimes cut off sums of {wide} "
                "layers whose weights have more than 6 bits; run the graphs on another, or give these 6 bits, such "
                "as bitwidth.first.weight=6"
            )


def _wide_weights(network: QuantizedDenoiser) -> int:
    """The number of layers with quantized inputs and integers of weights beyond those of `onednn.HALF`."""
    layers = [layer for layer in network.layers().values() if any(map(layer.settings.grid, range(len(layer.settings))))]
    weights = ([part for part in layer.weights if isinstance(part, QuantizedWeight)] for layer in layers)
    return sum(any(int(part.centred().abs().max()) > HALF[1] for part in parts) for parts in weights)


def _with_null(quantized: QuantizedDenoiser, condition: Condition | None) -> Condition:
    """The condition of pairs: rows of the one that guidance leads away from, and behind them those of this one."""
    assert isinstance(quantized.denoiser, Guided) and condition is not None, "who guides has pairs"
    return quantized.denoiser.both(condition)


def _largest_difference(
    graph: Callable[[Tensor, Step, Condition | None], Tensor],
    network: QuantizedDenoiser,
    correction: FittedCorrection,
    condition: Condition | None,
) -> float:
    """The largest over the steps of |graph - simulation| / |simulation|, on the same random states."""
    x_t = torch.randn(TRIAL_SAMPLES, *network.shape, generator=torch.Generator().manual_seed(0))
    x_t = torch.cat([x_t, x_t]) if correction.pairs_rows else x_t

    def at(step: Step) -> float:
        q, features, _ = network.predict(x_t, step, condition)
        simulated = correction.output(q, x_t, features, step)
        return float((graph(x_t, step, condition) - simulated).norm() / simulated.norm())

    return max(at(step) for step in correction.steps)


def _description(
    quantized: QuantizedDenoiser, correction: FittedCorrection, files: list[str], opset: int
) -> dict[str, Any]:
    """The content of the description: all that sampling needs beside the graphs."""
    from ptq_diffusion.network.onnx.folder import FORMAT

    denoiser = quantized.denoiser
    guidance = {"scale": denoiser.scale, "interval": denoiser.interval} if isinstance(denoiser, Guided) else None
    return {
        "format": FORMAT,
        "opset": opset,
        "shape": quantized.shape,
        "condition": list(quantized.needs),
        "guidance": guidance,
        "pairs": [one.pairs_rows for one in correction.corrections],
        "guided": [quantized.rows_per_image(step) == 2 for step in correction.steps],
        "files": files,
        "sigma": [correction.sigma(step) for step in correction.steps],
        "table": correction.steps.to_json(),
    }
