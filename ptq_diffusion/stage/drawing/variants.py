"""The variants of a model that an experiment draws and compares."""

from ptq_diffusion.stage.samples import Samples
from ptq_diffusion.stage.samples_corrected import CorrectedSamples
from ptq_diffusion.stage.samples_full_precision import FullPrecisionSamples
from ptq_diffusion.stage.samples_quantized import QuantizedSamples

VARIANTS: dict[str, type[Samples]] = {
    "full_precision": FullPrecisionSamples,
    "quantized": QuantizedSamples,
    "corrected": CorrectedSamples,
}
"""The stage that draws each, in the order of reports."""
