"""Floor 1: quantizers of one tensor."""

from ptq_diffusion.quantizer.affine import AffineQuantizer, Numbers
from ptq_diffusion.quantizer.entropy_search import EntropySearch
from ptq_diffusion.quantizer.granularity import Granularity, PerChannel, PerGroup, PerTensor
from ptq_diffusion.quantizer.quantizer import Quantizer, State
from ptq_diffusion.quantizer.range_search import LpSearch, MinMax, Percentile, RangeSearch

__all__ = [
    "AffineQuantizer",
    "EntropySearch",
    "Granularity",
    "LpSearch",
    "MinMax",
    "Numbers",
    "PerChannel",
    "PerGroup",
    "PerTensor",
    "Percentile",
    "Quantizer",
    "RangeSearch",
    "State",
]
