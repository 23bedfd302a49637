"""A correction as a weight set of the output layer for every step, in place of the layer and a filter behind it."""

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from ptq_diffusion.correction.fitted import StepCorrection
from ptq_diffusion.correction.repair.filter import Filter, FilterInt8
from ptq_diffusion.correction.repair.repair import Repair, repaired_output
from ptq_diffusion.network import QuantizedConv2d, QuantizedLayer


@dataclass(frozen=True)
class FoldedLayer:
    """m~ = the repairs that are left, of W' * h + b' and x_t, where h is the output layer's quantized input.

    Args:
        weight: W', (O, F, k, k).
        bias: b', (O,).
        channels: C, the first outputs, which are m; others predict a variance and are dropped.
        repairs: what is left to do.
    """

    weight: Tensor
    bias: Tensor
    channels: int
    repairs: tuple[Repair, ...]

    def output(self, x_t: Tensor, features: Tensor) -> Tensor:
        """m~, (B, C, H, W), from the state and h, (B, F, H, W), padded with zeros."""
        m = F.conv2d(features, self.weight, self.bias, padding=self.weight.shape[-1] // 2)[:, : self.channels]
        return repaired_output(self.repairs, m, x_t, features)


def fold(layer: QuantizedLayer, i: int, correction: StepCorrection, channels: int) -> FoldedLayer:
    """W' = (1 + K_q) W + R and b' = (1 + K_q) b + c of the step's filter; K_x and what comes after it are left.

    Without a filter that reads h the layer stays as it is, with all repairs left. W' is off the weight's grid.

    Args:
        layer: the quantized output layer.
        i: the step.
        correction: fitted behind it.
        channels: C of an image.

    Raises:
        ValueError: the layer changes the size of an image, or the filter reads h and the neighbours of q, which a layer
            that no longer says q cannot give.
    """
    if not isinstance(layer, QuantizedConv2d) or not _keeps_size(layer):
        raise ValueError(f"expected an output layer that is a convolution and keeps the size, got {layer}")
    values, bias = layer.operands(i)
    bias = values.new_zeros(len(values)) if bias is None else bias
    first, *others = correction.repairs or (None,)
    first = first.filter if isinstance(first, FilterInt8) else first
    if not isinstance(first, Filter) or not first.needs_features:
        return FoldedLayer(values, bias, channels, correction.repairs)
    if first.on_q.shape[-1] > 1:
        raise ValueError(
            f"expected a filter of h with K_q of one pixel, got {first.on_q.shape[-1]} x {first.on_q.shape[-1]}; "
            "fit the correction with on_q=1 or 0"
        )
    side = max(values.shape[-1], first.on_features.shape[-1])
    weight, bias = _widened(values, side).cpu().double(), bias.cpu().double()
    mix = torch.eye(channels, dtype=torch.float64) + (first.on_q[:, :, 0, 0] if first.on_q.numel() else 0)
    refitted = torch.einsum("oc,cfij->ofij", mix, weight[:channels]) + _widened(first.on_features, side)
    weight = torch.cat([refitted, weight[channels:]])
    bias = torch.cat([mix @ bias[:channels] + first.offset, bias[channels:]])
    rest = (_only_x(first),) if first.on_x.numel() else ()
    return FoldedLayer(weight.to(values), bias.to(values), channels, (*rest, *others))


def _keeps_size(layer: QuantizedConv2d) -> bool:
    *_, height, side = layer.operands(0)[0].shape
    others = (layer.stride, layer.dilation, layer.groups)
    return height == side and layer.padding == (side // 2,) * 2 and others == ((1, 1), (1, 1), 1)


def _widened(kernel: Tensor, side: int) -> Tensor:
    """(O, F, k, k) with zeros around it, (O, F, side, side): the same convolution, since h is padded with zeros."""
    return F.pad(kernel, ((side - kernel.shape[-1]) // 2,) * 4)


def _only_x(whole: Filter) -> Filter:
    channels = len(whole.offset)
    empty = whole.on_q.new_zeros(channels, 0, 1, 1)
    return Filter(empty, whole.on_x, empty, torch.zeros_like(whole.offset))
