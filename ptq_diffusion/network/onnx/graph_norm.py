"""Group normalisation that runtimes have kernels for."""

import torch
from torch import Tensor, nn

from ptq_diffusion.network.onnx.graph_layer import node


class GraphGroupNorm(nn.Module):
    """`nn.GroupNorm` by InstanceNormalization of the groups, (B, G, N), and a factor and an offset of each channel.

    ONNX's own GroupNormalization is taken apart into a dozen operators by ONNX Runtime, which has no kernel for it.

    Args:
        norm: which it stands for.
    """

    weight: Tensor
    bias: Tensor
    ones: Tensor
    zeros: Tensor

    def __init__(self, norm: nn.GroupNorm) -> None:
        super().__init__()
        self.groups, self.eps = norm.num_groups, norm.eps
        ones, zeros = torch.ones(norm.num_channels), torch.zeros(norm.num_channels)
        self.register_buffer("weight", ones if norm.weight is None else norm.weight.detach())
        self.register_buffer("bias", zeros if norm.bias is None else norm.bias.detach())
        self.register_buffer("ones", ones[: self.groups].clone())
        self.register_buffer("zeros", zeros[: self.groups].clone())

    def forward(self, x: Tensor) -> Tensor:
        groups = x.reshape(x.shape[0], self.groups, -1)
        inputs = [groups, self.ones, self.zeros]
        normed = node("InstanceNormalization", inputs, torch.float32, groups, epsilon=self.eps).reshape(x.shape)
        shape = (-1, *[1] * (x.ndim - 2))
        return normed * self.weight.view(shape) + self.bias.view(shape)
