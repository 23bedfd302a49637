"""Every layer's input grid, scales and bias anew for each step."""

from collections.abc import Collection, Mapping
from contextlib import ExitStack
from dataclasses import replace

import torch
from torch import Tensor

from ptq_diffusion.bitwidth.additions import Additions
from ptq_diffusion.correction.contract import Correction, PathName, along
from ptq_diffusion.correction.evidence import PathEvidence
from ptq_diffusion.correction.fitted import StepCorrection
from ptq_diffusion.correction.measurement import StepMeasurement
from ptq_diffusion.model import Condition, Denoiser
from ptq_diffusion.model.condition import rows_of
from ptq_diffusion.network import InputGrid, QuantizedDenoiser, Rescaling, Simulated, Spread, regridding, watching
from ptq_diffusion.quantizer import NO_SHIFT, WHOLE, Form, RangeSearch, Shift
from ptq_diffusion.sampler.step import Step
from ptq_diffusion.sampler.table import Table

FEWEST = 8
"""The fewest images that determine the means and deviations of a layer's channels."""


class Rescaled(Correction[PathEvidence]):
    """y~ = g y + c of every layer's output channels at every step, with the mean and the deviation of the float layer.

    Layers are matched one after the other within one forward, each on what the rescaled ones before it say, so that no
    layer inherits an error of mean or scale. g multiplies the scales of the quantized weight and c joins the bias: a
    step costs what it did. The output layer is left to what comes behind in a `Chain`, attention's products, which have
    neither, as they are. Three of four images are fitted;
    where that does not bring the output on every fourth nearer to the float one, the step keeps its layers as they are.

    The report's noise, and the share of it that is explained, are those of the rescaled network.

    Args:
        range_search: chooses the interval that the grid of a layer's input covers at a step; None leaves the grids as
            they were calibrated.
        images: how many images, the first ones, layers are rescaled on, all in memory at once; all if there are fewer.
        path: "float" fits on float trajectories, "corrected" on what the corrected steps before lead to.
        shift: chooses what is subtracted from the channels of a layer's input at a step before its grid, whose product
            with the weight joins the bias; of linear layers and convolutions without padding, whose input has one
            static grid and differs from image to image.

    Raises:
        ValueError: there is no such path, fewer than 8 images, or a shift without a range search; when it is fitted,
            the network computes a layer several times.
    """

    def __init__(
        self,
        range_search: RangeSearch | None,
        images: int = 64,
        path: PathName = "corrected",
        shift: Shift = NO_SHIFT,
    ) -> None:
        if images < FEWEST:
            raise ValueError(
                f"expected at least {FEWEST} images to rescale layers on, got {images}; raise correction.images"
            )
        self.reads, self.images_with_m = along(path, images if path == "corrected" else None)
        if shift.shifts and range_search is None:
            raise ValueError(
                "expected a range search beside a shift of inputs, whose grid is another, got none; set "
                "shift@correction.shift=none"
            )
        self.range_search, self.shift, self.images_for_rescaling = range_search, shift, images

    def check_images(self, images: int, channels: int) -> None:  # noqa: ARG002
        if images < FEWEST:
            raise ValueError(
                f"expected at least {FEWEST} images to rescale layers on, every fourth to judge it, got {images}; "
                "raise noise.images"
            )

    def check_inputs(self, forms: Collection[Form]) -> None:
        if self.shift.shifts and WHOLE not in forms:
            others = ", ".join(sorted({str(form) for form in forms}))
            raise ValueError(
                "expected layers with one static grid for their whole input, before which a shift is subtracted, got "
                f"{others} at all of them; set shift@correction.shift=none or another quantizer@quantizer.activation"
            )

    def additions(self, steps: Table, shape: tuple[int, ...], patch_size: int) -> Additions:  # noqa: ARG002
        # Gains and offsets are in scales and biases. A shift is a subtraction, of which counts hold none, as of biases.
        return Additions()

    def rescalings(
        self, model: Denoiser, quantized: QuantizedDenoiser, x_t: Tensor, condition: Condition | None, step: Step
    ) -> tuple[Mapping[str, Rescaling], Tensor]:
        """Rescalings of all layers but the output layer, or none where every fourth image gains nothing; and m."""
        judging = torch.arange(len(x_t)) % 4 == 3
        layers, rows = quantized.inner_layers(), model.rows(~judging, step)
        targets: dict[str, Spread] = {}

        def see(name: str, output: Tensor) -> None:
            # What is computed once for all images, such as a time embedding, has no rows to choose from.
            fitted = output[rows] if len(output) == len(rows) else output
            _keep(name, Spread.of(fitted, layers[name].channels), targets)

        with watching(model.network, layers, see):
            m = model.predict(x_t, step, condition).m
        fitting = x_t[~judging], rows_of(condition, ~judging)
        rescalings = rescalings_towards(targets, quantized, *fitting, step, self.range_search, self.shift)
        judged = x_t[judging], step, rows_of(condition, judging)
        before, after = (_power(quantized.at(step.i, use).predict(*judged).m - m[judging]) for use in ({}, rescalings))
        return (rescalings if after < before else {}), m

    def fit_step(self, evidence: PathEvidence, step: Step) -> StepCorrection:
        return StepMeasurement.of(evidence.paired, (), step).correction(step.sigma)


def rescalings_towards(
    targets: Mapping[str, Spread],
    quantized: QuantizedDenoiser,
    x_t: Tensor,
    condition: Condition | None,
    step: Step,
    range_search: RangeSearch | None,
    shift: Shift = NO_SHIFT,
) -> Mapping[str, Rescaling]:
    """Rescalings that give layers the targets' means and deviations on these states, layer by layer in one forward.

    The input of each is first given a grid of its own, if there is a range search.
    """
    # Grids are chosen and layers matched on float tensors.
    quantized = quantized.computed_by(Simulated())
    layers = quantized.inner_layers()
    rescalings: dict[str, Rescaling] = {}
    grids: dict[str, InputGrid] = {}
    sources: dict[str, Spread] = {}

    def match(name: str, output: Tensor) -> Tensor:
        channels = layers[name].channels
        _keep(name, Spread.of(output, channels), sources)
        rescalings[name] = Rescaling.between(sources[name], targets[name])
        return rescalings[name].of(output, channels)

    with ExitStack() as stack:
        if range_search:
            stack.enter_context(regridding(layers, range_search, step.i, grids, shift))
        stack.enter_context(watching(quantized.network, targets, match))
        quantized.predict(x_t, step, condition)
    return {name: replace(rescaling, input_grid=grids.get(name)) for name, rescaling in rescalings.items()}


def _keep(name: str, spread: Spread, spreads: dict[str, Spread]) -> None:
    """Keep the spread of a layer's output; a layer that is computed anew on the same, as in a DiT, has the same."""
    if name in spreads and not spreads[name].equals(spread):
        raise ValueError(
            f"expected a network that computes every layer once, this one computes {name} several times, which one "
            "scale does not serve; choose a correction without rescaled layers, such as correction=matched"
        )
    spreads[name] = spread


def _power(noise: Tensor) -> float:
    return float(noise.cpu().double().square().sum())
