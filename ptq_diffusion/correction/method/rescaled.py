"""Every layer's input grid, scales and bias anew for each step, and what is left repaired behind the network."""

from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import replace

import torch
from torch import Tensor

from ptq_diffusion.correction.contract import AskedBatch, Batch, FitPath, PathCorrection
from ptq_diffusion.correction.fitted import StepCorrection
from ptq_diffusion.correction.measurement import StepMeasurement
from ptq_diffusion.model import Denoiser
from ptq_diffusion.network import InputGrid, QuantizedDenoiser, Rescaling, Spread, regridding, watching
from ptq_diffusion.quantizer import RangeSearch
from ptq_diffusion.sampler.step import Step
from ptq_diffusion.sampler.table import Table

FEWEST = 8
"""Images of which the means and deviations of a layer's channels are told."""


class Rescaled(PathCorrection):
    """y~ = g y + c of every layer's output channels at every step, with the mean and the deviation of the float layer.

    Layers are matched one after the other within one forward, each on what the rescaled ones before it say, so that no
    layer inherits an error of mean or scale. g multiplies the scales of the quantized weight and c joins the bias: a
    step costs what it did. The output layer is left to `then`. Three of four images are fitted; where that does not
    bring the output on every fourth nearer to the float one, the step keeps its layers as they are.

    What a report says of the noise, and of the share of it that is explained, is of the rescaled network's.

    Args:
        then: what is fitted behind the rescaled network; None leaves its output as it is.
        range_search: chooses the interval that the grid of a layer's input covers at a step; None leaves the grids as
            they were calibrated.
        images: how many images, the first ones, layers are rescaled on, all in memory at once; all if there are fewer.

    Raises:
        ValueError: `then` is not fitted along a path or rescales layers itself, or there are fewer than 8 images; when
            it is fitted, the network computes a layer several times.
    """

    def __init__(self, then: PathCorrection | None, range_search: RangeSearch | None, images: int) -> None:
        if not isinstance(then, PathCorrection | None):
            raise ValueError(
                "expected then to be a correction that is fitted along a path, such as matched or readout, or null, "
                f"got {type(then).__name__}; set correction.then=null to leave the output as it is"
            )
        if then and then.together:
            raise ValueError(
                "expected then to repair what rescaled layers leave, got one that rescales them again; "
                "set correction.then to what comes behind it, or to null"
            )
        if images < FEWEST:
            raise ValueError(
                f"expected at least {FEWEST} images to rescale layers on, got {images}; raise correction.images"
            )
        self.then, self.range_search, self.together = then, range_search, images
        self.path, self.asked = (then.path, then.asked) if then else (FitPath.CORRECTED, images)

    def check(self, steps: Table) -> None:
        if self.then:
            self.then.check(steps)

    def check_carried(self, steps: Table) -> None:
        if self.then:
            self.then.check_carried(steps)

    def check_images(self, images: int, channels: int) -> None:
        if images < FEWEST:
            raise ValueError(
                f"expected at least {FEWEST} images to rescale layers on, every fourth to judge it, got {images}; "
                "raise noise.images"
            )
        if self.then:
            self.then.check_images(images, channels)

    def rescalings(
        self, model: Denoiser, quantized: QuantizedDenoiser, x_t: Tensor, step: Step
    ) -> tuple[Mapping[str, Rescaling], Tensor]:
        """All layers but the output layer, or none where every fourth image gains nothing from a fit to the rest; m."""
        judging = torch.arange(len(x_t)) % 4 == 3
        layers = quantized.inner_layers()
        targets: dict[str, Spread] = {}

        def see(name: str, output: Tensor) -> None:
            _require_once(name, targets)
            targets[name] = Spread.of(output[~judging], layers[name].channels)

        with watching(model.network, layers, see):
            m = model.predict(x_t, step).m
        found = rescalings_towards(targets, quantized, x_t[~judging], step, self.range_search)
        before, after = (
            _power(quantized.at(step.i, use).predict(x_t[judging], step).m - m[judging]) for use in ({}, found)
        )
        return (found if after < before else {}), m

    def fit_step(self, asked: Sequence[AskedBatch], step: Step, others: Sequence[Batch] = ()) -> StepCorrection:
        if self.then:
            return self.then.fit_step(asked, step, others)
        return StepMeasurement.of(asked, (), step).correction(step.sigma)


def rescalings_towards(
    targets: Mapping[str, Spread],
    quantized: QuantizedDenoiser,
    x_t: Tensor,
    step: Step,
    range_search: RangeSearch | None,
) -> Mapping[str, Rescaling]:
    """What gives layers the targets' means and deviations on these states, one after the other in one forward.

    The input of each is first given a grid of its own, if there is a range search.
    """
    layers = quantized.inner_layers()
    found: dict[str, Rescaling] = {}
    grids: dict[str, InputGrid] = {}

    def match(name: str, output: Tensor) -> Tensor:
        channels = layers[name].channels
        found[name] = Rescaling.between(Spread.of(output, channels), targets[name])
        return found[name].of(output, channels)

    with ExitStack() as stack:
        if range_search:
            stack.enter_context(regridding(layers, range_search, step.i, grids))
        stack.enter_context(watching(quantized.network, targets, match))
        quantized.predict(x_t, step)
    return {name: replace(own, input_grid=grids.get(name)) for name, own in found.items()}


def _require_once(name: str, seen: Mapping[str, Spread]) -> None:
    if name in seen:
        raise ValueError(
            f"expected a network that computes every layer once, this one computes {name} several times, which one "
            "scale does not serve; choose a correction without rescaled layers, such as correction=matched"
        )


def _power(noise: Tensor) -> float:
    return float(noise.cpu().double().square().sum())
