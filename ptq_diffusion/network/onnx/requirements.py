"""The quantizers that ONNX's QuantizeLinear and DequantizeLinear compute as; needs none of the extra's libraries."""

from collections.abc import Sequence

from ptq_diffusion.quantizer import WHOLE, Form


def require_input(name: str, form: Form, option: str = "quantizer.activation") -> None:
    """Refuse a form of an input that no node has.

    Args:
        name: of the input.
        form: of its quantizer.
        option: that chooses the quantizer.

    Raises:
        TypeError: the form is not one of static ranges of the whole input.
    """
    if form != WHOLE:
        raise TypeError(
            f"expected static ranges of a whole input at {name}, which QuantizeLinear has, got {form}; choose another "
            f"{option}"
        )


def require_scales(name: str, shape: Sequence[int], outputs: int) -> None:
    """Refuse scales of a weight that no node has.

    Args:
        name: of the layer.
        shape: of the scales.
        outputs: how many output channels there are.

    Raises:
        ValueError: the scales are neither of the output channels nor of the whole.
    """
    if tuple(shape) not in ((1,), (outputs,)):
        raise ValueError(
            f"expected a scale for each of the {outputs} output channels of {name} or one, which DequantizeLinear has, "
            f"got scales of {tuple(shape)}; choose another quantizer.weight"
        )
