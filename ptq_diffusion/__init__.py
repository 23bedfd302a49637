"""Post-training quantization of diffusion models, with the quantization noise measured and repaired.

In Python:

    import ptq_diffusion as pd

    pipe = pd.quantize(pipeline, bitwidth="w4a8", correction="rescaled_matched", steps=20)
    report = pd.run(pd.compose("bitwidth=w4a4", "sampler.eta=0"))
"""

from typing import TYPE_CHECKING

__version__ = "0.1.0"
__all__ = ["Report", "compose", "load_correction", "load_quantized", "make", "quantize", "run"]

if TYPE_CHECKING:
    from ptq_diffusion.command.python import (
        Report,
        compose,
        load_correction,
        load_quantized,
        make,
        quantize,
        run,
    )


def __getattr__(name: str) -> object:
    """A name of `ptq_diffusion.command.python`, which is imported when it is first asked for: it needs torch."""
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from ptq_diffusion.command import python

    return getattr(python, name)


def __dir__() -> list[str]:
    return [*globals(), *__all__]
