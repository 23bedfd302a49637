"""Float arithmetic on operands that are rounded to their grids."""

import torch

from ptq_diffusion.network.attention import QuantizedAttention
from ptq_diffusion.network.backend.backend import Backend
from ptq_diffusion.network.layer import QuantizedConv2d, QuantizedLayer, QuantizedLinear


class Simulated(Backend):
    """y = conv(x_hat, w_hat) in float32, on every device and of every quantized layer."""

    name = "simulated"

    def require(self, device: torch.device) -> None:
        """Accept every device."""

    def obstacle(self, part: QuantizedLayer | QuantizedAttention) -> str | None:  # noqa: ARG002
        """None: it computes every layer."""
        return None

    def layer(self, layer: QuantizedLayer) -> QuantizedLayer:
        kind = QuantizedConv2d if isinstance(layer, QuantizedConv2d) else QuantizedLinear
        return kind(layer, list(layer.weights), layer.bias, layer.settings, layer.current)  # type: ignore[arg-type]
