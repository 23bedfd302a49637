"""What a quantized network's output layer sees."""

from collections.abc import Sequence

from torch import Tensor

from ptq_diffusion.model import Denoiser
from ptq_diffusion.model.site import Role, Site
from ptq_diffusion.network.layer import QuantizedLayer


class OutputLayerTap:
    """Asks a quantized denoiser and hands over the input of its output layer with the output.

    Attributes:
        layer: the output layer.

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
        self.layer, self._denoiser = layer, denoiser

    def predict(self, x_t: Tensor, t: float) -> tuple[Tensor, Tensor]:
        """q (B, C, H, W) and the input of the output layer after its activation quantizer (B, F, H, W)."""
        seen: list[Tensor] = []
        with self.layer.activation.register_forward_hook(lambda *call: seen.append(call[-1])):
            return self._denoiser.predict(x_t, t), seen[-1]
