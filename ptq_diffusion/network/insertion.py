"""Observe a float network, then build its quantized copy."""

import copy
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

from torch import nn

from ptq_diffusion.network.layer import QuantizedConv2d, QuantizedLayer, QuantizedLinear
from ptq_diffusion.network.quantizers import LayerQuantizers, NetworkQuantizers


@contextmanager
def observing(network: nn.Module, quantizers: NetworkQuantizers) -> Iterator[None]:
    """Within this context a forward of the float network shows its layers' inputs to their activation quantizers."""
    with ExitStack() as hooks:
        for name, layer in quantizers.layers.items():
            if layer.activation is not None:
                hook = network.get_submodule(name).register_forward_pre_hook(
                    lambda _, inputs, quantizer=layer.activation: quantizer.observe(inputs[0])
                )
                hooks.enter_context(hook)
        yield


def quantize(network: nn.Module, quantizers: NetworkQuantizers) -> nn.Module:
    """A copy of the float network whose layers compute with the given frozen quantizers; the original stays."""
    copied = copy.deepcopy(network)
    for name, layer_quantizers in quantizers.layers.items():
        parent, _, child = name.rpartition(".")
        layer = copied.get_submodule(name)
        setattr(copied.get_submodule(parent), child, _quantized(layer, layer_quantizers))
    return copied


def _quantized(layer: nn.Module, quantizers: LayerQuantizers) -> QuantizedLayer:
    if isinstance(layer, nn.Conv2d):
        return QuantizedConv2d(layer, quantizers)
    if isinstance(layer, nn.Linear):
        return QuantizedLinear(layer, quantizers)
    raise TypeError(f"expected a Conv2d or Linear layer, got {type(layer).__name__}")
