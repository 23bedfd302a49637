"""A quantized network whose output is corrected, along the path of some images."""

from collections.abc import Callable

import torch
from torch import Tensor

from ptq_diffusion.correction.fitted import FittedCorrection
from ptq_diffusion.model import Output
from ptq_diffusion.numeric.seed import SampleNoise
from ptq_diffusion.sampler.step import Step

Ask = Callable[[Tensor, Step], Output]
"""A quantized network with the correction's rescalings, from states at a step to q and the features."""


class CorrectedDenoiser:
    """m~, (B, C, H, W), of (x_t, step): the repairs of q - d, with d the latest estimate of the bias of q.

    A correction that estimates nothing has d = 0. Where the step's variance is learned, the network's stands behind m~.

    Args:
        correction: fitted.
        ask: the quantized network, with the correction's rescalings.
        noise: for the estimates, of the same images as the path and independent of its noise.
    """

    def __init__(self, correction: FittedCorrection, ask: Ask, noise: SampleNoise) -> None:
        self._correction, self._ask, self._noise = correction, ask, noise
        self._bias: Tensor | float = 0.0

    def __call__(self, x_t: Tensor, step: Step) -> Tensor:
        correction = self._correction.corrections[step.i]
        q, features, variance = self._ask(x_t, step)
        if correction.estimates:
            self._bias = estimated_bias(self._ask, x_t, q, step, self._noise.draw(x_t.device))
        return step.joined(self._correction.output(q - self._bias, x_t, features, step), variance)


def estimated_bias(ask: Ask, x_t: Tensor, q: Tensor, step: Step, noise: Tensor) -> Tensor:
    """d, (B, C, 1, 1): the mean over pixels of q at a noised x_0, less the output that is exact there.

    x' = sqrt(abar_t) x_0 + sqrt(1 - abar_t) e with the x_0 that q implies, and d = mean(q(x', t) - m(x_0, e)), where m
    is the native output that gives x_0 at x': e of a network that predicts epsilon.
    """
    x_0 = step.predict_x_0(x_t, q)
    noised = step.signal * x_0 + step.noise * noise
    exact = (x_0 - step.p_x * noised) / step.p_m
    return torch.mean(ask(noised, step).m - exact, dim=(2, 3), keepdim=True)
