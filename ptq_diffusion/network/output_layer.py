"""What a quantized network's output layer sees."""

from collections.abc import Mapping, Sequence
from types import MappingProxyType

from torch import Tensor

from ptq_diffusion.model import Denoiser, Output, Timestep
from ptq_diffusion.model.site import Role, Site
from ptq_diffusion.network.layer import QuantizedLayer
from ptq_diffusion.network.rescaling import Rescaling, rescaled


class OutputLayerTap:
    """Asks a quantized denoiser and hands over the input of its output layer with the output.

    Attributes:
        layer: the output layer.
        network: all of it.

    Args:
        denoiser: around a network that `quantize` made.
        sites: of the float network.

    Raises:
        ValueError: the network has not exactly one output layer, or it is not quantized by this package.
    """

    def __init__(self, denoiser: Denoiser, sites: Sequence[Site]) -> None:
        names = [site.name for site in sites if site.role is Role.LAST]
        layer = denoiser.network.get_submodule(names[0]) if len(names) == 1 else None
        if not isinstance(layer, QuantizedLayer):
            raise ValueError(f"expected a quantized network with one output layer, got the output layers {names}")
        self.layer, self.network, self._denoiser = layer, denoiser.network, denoiser

    def other_layers(self) -> Mapping[str, QuantizedLayer]:
        """All quantized layers but the output layer, by name."""
        modules = self.network.named_modules()
        return {name: m for name, m in modules if isinstance(m, QuantizedLayer) and m is not self.layer}

    def predict(
        self, x_t: Tensor, step: Timestep, rescalings: Mapping[str, Rescaling] = MappingProxyType({})
    ) -> Output:
        """The output q, (B, C, H, W), with the features, (B, F, H, W).

        Args:
            x_t: the state, (B, C, H, W).
            step: the row of the table.
            rescalings: of layers by name.
        """
        seen: list[Tensor] = []
        hook = self.layer.activation.register_forward_hook(lambda *call: seen.append(call[-1]))
        with hook, rescaled(self.network, rescalings):
            q = self._denoiser.predict(x_t, step).m
        if len(seen) != 1:
            raise ValueError(f"expected an output layer that is computed once, got {len(seen)} times")
        return Output(q, seen[0])
