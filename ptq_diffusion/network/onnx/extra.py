"""The libraries of the extra `[onnx]`."""

from importlib.util import find_spec

LIBRARIES = ("onnx", "onnxscript", "onnxruntime")
"""Libraries that write and try graphs."""
OPSETS = range(21, 24)
"""The versions of ONNX's operators that graphs can be written in: 21 is the first with integers of 4 bits."""


def require_libraries() -> None:
    """Refuse to go on without the extra.

    Raises:
        ModuleNotFoundError: one of the libraries is not installed.
    """
    if missing := [library for library in LIBRARIES if find_spec(library) is None]:
        raise ModuleNotFoundError(
            f"expected {', '.join(LIBRARIES)}, which write and try graphs, got an installation without "
            f"{', '.join(missing)}: pip install '.[onnx]'"
        )


def require_opset(opset: int) -> None:
    """Refuse a version of ONNX's operators that graphs are not written in.

    Raises:
        ValueError: it is older, or newer than torch writes.
    """
    if opset not in OPSETS:
        kind = "is too old: its QuantizeLinear has no 4 bits" if opset < OPSETS.start else "is newer than torch writes"
        raise ValueError(
            f"expected an opset from {OPSETS.start} to {OPSETS.stop - 1}, got {opset}, which {kind}; set "
            f"onnx.opset={OPSETS.start}"
        )
