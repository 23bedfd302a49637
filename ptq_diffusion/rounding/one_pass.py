"""The rounding that stands for another where its damage is to be known before bits are chosen."""

from dataclasses import replace

from ptq_diffusion.rounding.gptq import GPTQ
from ptq_diffusion.rounding.inputs import Inputs
from ptq_diffusion.rounding.rounding import LayerRounding, Rounding
from ptq_diffusion.rounding.step_weights import UniformSteps

DEFAULT = Inputs("float", "weight", False, UniformSteps())
"""The inputs that are read for a rounding of blocks, which reads none of layers."""


def one_pass(rounding: Rounding) -> GPTQ:
    """Error feedback in place of any rounding that learns, along the float path: one pass serves all bitwidths.

    What gradients would decide takes longer than a measurement may; error feedback is nearer to it than nearest is.

    Args:
        rounding: which reads something, and whose inputs are taken where they are of layers.
    """
    if isinstance(rounding, GPTQ):
        return GPTQ(replace(rounding.inputs, path="float"), rounding.damping)
    inputs = rounding.inputs if isinstance(rounding, LayerRounding) else DEFAULT
    return GPTQ(replace(inputs, path="float"))
