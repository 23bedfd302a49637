"""Every layer's input grid, scales and bias anew for each step."""

import copy
from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import replace
from typing import Any, Self

import torch
from torch import Tensor

from ptq_diffusion.bitwidth.additions import Additions
from ptq_diffusion.correction.contract import Correction, PathName, along
from ptq_diffusion.correction.evidence import PathEvidence
from ptq_diffusion.correction.fitted import StepCorrection
from ptq_diffusion.correction.layer_rules import (
    EACH_STEP,
    IN_SEQUENCE,
    GainSteps,
    LayerRules,
    LazyTargets,
    Order,
    require_once,
    rescalings_towards,
)
from ptq_diffusion.correction.measurement import StepMeasurement
from ptq_diffusion.correction.path_state import PathState
from ptq_diffusion.model import Denoiser
from ptq_diffusion.network import QuantizedDenoiser, Rescaling, watching
from ptq_diffusion.network.gain import DeviationRatio, Gain, Target
from ptq_diffusion.quantizer import NO_SHIFT, WHOLE, Form, RangeSearch, Shift
from ptq_diffusion.sampler.step import Step
from ptq_diffusion.sampler.table import Table

M, BEFORE = "/m", "/before"
"""Names of values received beside the targets of layers: m, and the noise of held-out images before rescaling."""
FEWEST = 8
"""The fewest images that determine the means and deviations of a layer's channels."""

DEVIATION_RATIO = DeviationRatio()


class Rescaled(Correction[PathEvidence]):
    """y~ = g y + c of every layer's output channels at every step, with the mean and the deviation of the float layer.

    Layers are matched one after the other within one forward, each on what the rescaled ones before it say, so that no
    layer inherits an error of mean or scale. Other rules replace each part of that: g and c by regression (`gain`), all
    layers matched at once (`order`), one g and c for all steps (`steps`). g multiplies the scales of the quantized
    weight and c joins the bias, so that a step costs what it did. The output layer is left to the links behind this one
    in a `Chain`. Attention's products, which have neither scales of weights nor a bias, stay as they are. Three of four
    images are fitted; where that does not bring the output on every fourth nearer to the float one, the step keeps its
    layers as they are.

    The report's noise, and the share of it that is explained, are those of the rescaled network.

    Args:
        range_search: chooses the interval that the grid of a layer's input covers at a step; None leaves the grids as
            they were calibrated.
        images: how many images, the first ones, layers are rescaled on, all in memory at once; all if there are fewer.
        path: "float" fits on float trajectories, "corrected" on what the corrected steps before lead to.
        shift: chooses what is subtracted from the channels of a layer's input at a step before its grid, whose product
            with the weight joins the bias; of linear layers and convolutions without padding, with `Dither` of those
            with padding too, whose input has one static grid and differs from image to image.
        gain: how g and c follow from the outputs of the float and the quantized layer.
        order: whether a layer is matched on what rescaled ones before it say.
        steps: which steps share g and c. A step whose held-out images they do not help keeps its layers, too.
        differences: where guidance asks two rows for each image, chooses the interval of the grid on which a layer's
            input of the null condition is put as its difference from that with the condition, see `by_difference`; a
            layer has it at the steps at which the guided combination of its inputs has less error by it. None puts
            every row on one grid. A network without guidance has no differences.

    Raises:
        ValueError: there is no such path, fewer than 8 images, a shift or differences without a range search, or
            steps that share g along the corrected path, where a step is reached by those before it alone; when it is
            fitted, the network computes a layer several times.
    """

    maps_output = False

    def __init__(
        self,
        range_search: RangeSearch | None,
        images: int = 64,
        path: PathName = "corrected",
        shift: Shift = NO_SHIFT,
        gain: Gain = DEVIATION_RATIO,
        order: Order = IN_SEQUENCE,
        steps: GainSteps = EACH_STEP,
        differences: RangeSearch | None = None,
    ) -> None:
        if images < FEWEST:
            raise ValueError(
                f"expected at least {FEWEST} images to rescale layers on, got {images}; raise correction.images, of a "
                "chain correction.links.rescaled.images"
            )
        self.reads, self.images_with_m = along(path, images if path == "corrected" else None)
        if shift.shifts and range_search is None:
            raise ValueError(
                "expected a range search beside a shift of inputs, whose grid is another, got none; set "
                "shift@correction.shift=none, of a chain shift@correction.links.rescaled.shift=none"
            )
        if differences and range_search is None:
            raise ValueError(
                "expected a range search beside that of differences, which are from inputs on a grid of the step, got "
                "none; set correction.differences=null, of a chain correction.links.rescaled.differences=null"
            )
        if steps.looks_ahead and path == "corrected":
            raise ValueError(
                "expected steps that share gains to be compared along float sampling, got path=corrected, where a step "
                "is known once those before it are fitted; set correction.path=float, of a chain path and images=null "
                "of matched, or gain_steps@correction.steps=each, of a chain "
                "gain_steps@correction.links.rescaled.steps=each"
            )
        self.shift, self.differences, self.gain, self.images_for_rescaling = shift, differences, gain, images
        self.rules = LayerRules(range_search, shift, order, steps, differences)
        self.looks_ahead, self.keeps_outputs = steps.looks_ahead, gain.keeps_outputs
        # Outputs of all layers would take longer to send than to compute.
        self.is_divisible = not gain.keeps_outputs

    def check_borders(self) -> None:
        if self.shift.shifts_bordered:
            raise ValueError(
                f"expected a shift whose product with the weight is one bias, got {type(self.shift).__name__} on a "
                "network of convolutions with padding, where it is another at the border, which neither the integer "
                "backend nor a graph has; set shift@correction.shift=none, of a chain "
                "shift@correction.links.rescaled.shift=none"
            )

    def check_rows_apart(self) -> None:
        if self.differences:
            raise ValueError(
                "expected guidance at every step, where rows come in pairs, for a grid of the differences between "
                "them, got images without guidance, or a fit on other steps with an interval of it; set "
                "noise.guidance or noise.steps to null, or correction.differences=null, of a chain "
                "correction.links.rescaled.differences=null, below correction.candidates.NAME of a choice"
            )

    def check_carried(self, steps: Table) -> None:
        if self.shift.fractions(0, 1) is not None:
            raise ValueError(
                f"expected shifts that another table can follow, got {type(self.shift).__name__}, which puts the grids "
                f"of the neighbours among {len(steps)} steps apart; set noise.steps=null, or "
                "shift@correction.shift=none, of a chain shift@correction.links.rescaled.shift=none"
            )

    def check_images(self, images: int, channels: int) -> None:  # noqa: ARG002
        if images < FEWEST:
            raise ValueError(
                f"expected at least {FEWEST} images to rescale layers on, every fourth to judge it, got {images}; "
                "raise noise.images"
            )

    def check_inputs(self, forms: Collection[Form]) -> None:
        others = ", ".join(sorted({str(form) for form in forms}))
        if self.shift.shifts and WHOLE not in forms:
            raise ValueError(
                "expected layers with one static grid for their whole input, before which a shift is subtracted, got "
                f"{others} at all of them; set shift@correction.shift=none, of a chain "
                "shift@correction.links.rescaled.shift=none, or another quantizer@quantizer.activation"
            )
        if self.differences and WHOLE not in forms:
            raise ValueError(
                "expected layers with one static grid for their whole input, beside which differences have one, got "
                f"{others} at all of them; set correction.differences=null, of a chain "
                "correction.links.rescaled.differences=null, or another quantizer@quantizer.activation"
            )

    def additions(self, steps: Table, shape: tuple[int, ...], patch_size: int) -> Additions:  # noqa: ARG002
        # Gains and offsets are in scales and biases. A shift is a subtraction, of which counts hold none, as of biases.
        return Additions()

    def ahead(self, model: Denoiser, quantized: QuantizedDenoiser, path: Iterable[PathState]) -> Self:
        if not self.looks_ahead:
            return self
        each_step = replace(self.rules, steps=EACH_STEP)
        comparisons = []
        for state in path:
            targets: dict[str, Target] = {}
            self._see_targets(model, quantized, state, targets.__setitem__)
            comparisons.append(rescalings_towards(targets, quantized, state.images(~_judging(state)), each_step)[1])
        correction = copy.copy(self)
        correction.rules = replace(self.rules, steps=self.rules.steps.informed(comparisons))
        return correction

    def rescalings(
        self, model: Denoiser, quantized: QuantizedDenoiser, state: PathState
    ) -> tuple[Mapping[str, Rescaling], Tensor]:
        """Rescalings of all layers but the output layer, or none where every fourth image gains nothing; and m."""
        received: dict[str, Any] = {}
        self.send_targets(model, quantized, state, received.__setitem__)
        return self.rescalings_received(received.__getitem__, quantized, state)

    def send_targets(
        self, model: Denoiser, quantized: QuantizedDenoiser, state: PathState, send: Callable[[str, Any], None]
    ) -> None:
        m = self._see_targets(model, quantized, state, send)
        send(M, m.cpu())
        send(BEFORE, _noise_of_judging(quantized.at(state.step.i, {}), m, state))

    def rescalings_received(
        self, received: Callable[[str], Any], quantized: QuantizedDenoiser, state: PathState
    ) -> tuple[Mapping[str, Rescaling], Tensor]:
        targets = LazyTargets(quantized.inner_layers(), received)
        rescalings, _ = rescalings_towards(targets, quantized, state.images(~_judging(state)), self.rules)
        m = received(M).to(state.x_t.device)
        after = _noise_of_judging(quantized.at(state.step.i, rescalings), m, state)
        return (rescalings if after < received(BEFORE) else {}), m

    def _see_targets(
        self, model: Denoiser, quantized: QuantizedDenoiser, state: PathState, send: Callable[[str, Target], None]
    ) -> Tensor:
        """Tell the targets of all layers but the output layer, from the images that are fitted on; m of all images."""
        layers, rows = quantized.inner_layers(), model.rows(~_judging(state), state.step)
        targets: dict[str, Target] = {}

        def see(name: str, output: Tensor) -> None:
            # What is computed once for all images, such as a time embedding, has no rows to choose from.
            fitted = output[rows] if len(output) == len(rows) else output
            target = self.gain.target(fitted, layers[name].channels)
            if name in targets:
                require_once(name, targets[name].equals(target))
            targets[name] = target
            send(name, target)

        with watching(model.network, layers, see):
            return model.predict(*state).m

    def fit_step(self, evidence: PathEvidence, step: Step) -> StepCorrection:
        return StepMeasurement.of(evidence.paired, (), step).correction(step.sigma)


def _judging(state: PathState) -> Tensor:
    """The marks of every fourth image, which no layer is fitted on, (B,) bool."""
    return torch.arange(len(state.x_t)) % 4 == 3


def _noise_of_judging(quantized: QuantizedDenoiser, m: Tensor, state: PathState) -> float:
    """The squared noise of a network on the images that no layer is fitted on."""
    judging = _judging(state)
    noise = quantized.predict(*state.images(judging)).m - m[judging]
    return float(noise.cpu().double().square().sum())
