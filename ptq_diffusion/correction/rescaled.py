"""Every layer's scales and bias anew for each step, and what is left repaired behind the network."""

from collections.abc import Mapping, Sequence

from torch import Tensor

from ptq_diffusion.correction.correction import Batch, Path, PathCorrection
from ptq_diffusion.correction.fitted import StepCorrection
from ptq_diffusion.correction.measured import StepMeasurement
from ptq_diffusion.model import Denoiser
from ptq_diffusion.network import OutputLayerTap, QuantizedLayer, Rescaling, Spread, watching
from ptq_diffusion.sampler.step import Step


class Rescaled(PathCorrection):
    """y~ = g y + c of every layer's output channels at every step, with the mean and the deviation of the float layer.

    Layers are matched one after the other within one forward, each on what the rescaled ones before it say, so that no
    layer inherits an error of mean or scale. g multiplies the scales of the quantized weight and c joins the bias: a
    step costs what it did. The output layer is left to `then`. Where the rescaling of half of the images does not bring
    the output on the other half nearer to the float one, the step keeps its layers as they are.

    Means and deviations are of the first micro-batch, which this holds at once.

    Args:
        then: what is fitted behind the rescaled network; None leaves its output as it is.
    """

    rescales = True

    def __init__(self, then: PathCorrection | None) -> None:
        self.then = then
        self.path = Path.CORRECTED if then is None else then.path

    def check(self, steps: Sequence[Step]) -> None:
        if self.then:
            self.then.check(steps)

    def check_carried(self, steps: Sequence[Step]) -> None:
        if self.then:
            self.then.check_carried(steps)

    def fit_step(self, batches: Sequence[Batch], step: Step) -> StepCorrection:
        if self.then:
            return self.then.fit_step(batches, step)
        return StepMeasurement.of(batches, (), step).correction(step.sigma)


def fit_rescalings(model: Denoiser, tap: OutputLayerTap, x_t: Tensor, t: float) -> Mapping[str, Rescaling]:
    """What matches every quantized layer but the output layer to the float one, or nothing where that is no gain.

    Args:
        model: the float model.
        tap: of the quantized one.
        x_t: states of that time, (B, C, H, W), of which those of odd place judge what those of even place give.
        t: the time.

    Raises:
        ValueError: fewer than 2 images.
    """
    if len(x_t) < 2:
        raise ValueError(
            f"expected at least 2 images in the first micro-batch to rescale layers, got {len(x_t)}; "
            "raise noise.images and micro_batch"
        )
    names = [name for name, module in tap.network.named_modules() if _rescalable(module, tap)]
    whole: dict[str, Spread] = {}
    even: dict[str, Spread] = {}

    def see(name: str, output: Tensor) -> None:
        # A layer of the time alone may answer once for all images.
        whole[name] = Spread.of(output)
        even[name] = Spread.of(output[::2])

    with watching(model.network, names, see):
        m = model.predict(x_t, t)[1::2]
    tried = matched(tap, x_t[::2], t, even)
    before, after = (float((tap.predict(x_t[1::2], t, use)[0] - m).double().square().sum()) for use in ({}, tried))
    return matched(tap, x_t, t, whole) if after < before else {}


def matched(tap: OutputLayerTap, x_t: Tensor, t: float, targets: Mapping[str, Spread]) -> Mapping[str, Rescaling]:
    """The rescalings that give layers the targets' means and deviations on these states, fitted in one forward."""
    found: dict[str, Rescaling] = {}

    def match(name: str, output: Tensor) -> Tensor:
        found[name] = Rescaling.between(Spread.of(output), targets[name])
        return found[name].of(output)

    with watching(tap.network, targets, match):
        tap.predict(x_t, t)
    return found


def _rescalable(module: object, tap: OutputLayerTap) -> bool:
    return isinstance(module, QuantizedLayer) and module is not tap.layer
