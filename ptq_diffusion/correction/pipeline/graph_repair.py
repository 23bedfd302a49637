"""A correction as the end of a network's graph: another output layer where it folds, repairs behind it."""

from collections.abc import Sequence

from torch import Tensor, nn

from ptq_diffusion.correction.fitted import FittedCorrection
from ptq_diffusion.correction.pipeline.folding import fold
from ptq_diffusion.correction.repair.repair import Repair, repaired_output
from ptq_diffusion.network import QuantizedDenoiser
from ptq_diffusion.network.onnx.finish import Finish
from ptq_diffusion.network.onnx.step_values import of_equalised_input


class GraphRepair(nn.Module):
    """m~ from q, x_t and the features, by repairs one after the other.

    Args:
        repairs: of a step.
    """

    def __init__(self, repairs: Sequence[Repair]) -> None:
        super().__init__()
        self.repairs = tuple(repairs)

    def forward(self, q: Tensor, x_t: Tensor, features: Tensor) -> Tensor:
        return repaired_output(self.repairs, q, x_t, features)


def finish(quantized: QuantizedDenoiser, correction: FittedCorrection, i: int) -> Finish:
    """The end of the network's graph at a step: a readout is folded into the output layer's weight where it fits.

    It fits an output layer that is a convolution of a kernel of at least its size; elsewhere it is computed beside.

    Args:
        quantized: the network, with the correction's rescalings.
        correction: fitted to it.
        i: the step.
    """
    layer, one = quantized.output_layer, correction.corrections[i]
    repairs = one.repairs
    try:
        folded = fold(layer, i, one, quantized.shape[0])
    except ValueError:
        folded = None
    values: dict[str, Tensor] = {}
    if folded is not None and folded.repairs is not repairs and folded.weight.shape == layer.operands(i)[0].shape:
        repairs, name = folded.repairs, quantized.output_layer_name
        values = {f"{name}.weight": of_equalised_input(layer, folded.weight), f"{name}.bias": folded.bias}
    return Finish(values, GraphRepair(repairs) if repairs else None)
