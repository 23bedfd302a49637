"""Floor 1: quantizers of one tensor."""

from ptq_diffusion.quantizer.affine import AffineQuantizer
from ptq_diffusion.quantizer.dynamic import DynamicQuantizer
from ptq_diffusion.quantizer.embedding import EmbeddingTables
from ptq_diffusion.quantizer.entropy_search import EntropySearch
from ptq_diffusion.quantizer.equalisation import Equalisation, NoEqualisation, PowersOfTwo, SmoothQuant
from ptq_diffusion.quantizer.form import WHOLE, Form, Numbers, Static, described_form
from ptq_diffusion.quantizer.granularity import Granularity, PerChannel, PerGroup, PerTensor
from ptq_diffusion.quantizer.input_granularity import PerInputChannel, PerParts, PerSkip, PerToken
from ptq_diffusion.quantizer.log2 import Log2Quantizer
from ptq_diffusion.quantizer.low_rank import LowRank, LowRankQuantizer
from ptq_diffusion.quantizer.quantizer import Quantizer, State
from ptq_diffusion.quantizer.range_search import LpSearch, MinMax, Percentile, RangeSearch
from ptq_diffusion.quantizer.shift import NO_SHIFT, Dither, MeanShift, MidRangeShift, NoShift, Shift
from ptq_diffusion.quantizer.step_groups import ClusteredGroups, EqualGroups, GivenGroups, StepGroups

__all__ = [
    "NO_SHIFT",
    "WHOLE",
    "AffineQuantizer",
    "ClusteredGroups",
    "Dither",
    "DynamicQuantizer",
    "EmbeddingTables",
    "EntropySearch",
    "EqualGroups",
    "Equalisation",
    "Form",
    "GivenGroups",
    "Granularity",
    "Log2Quantizer",
    "LowRank",
    "LowRankQuantizer",
    "LpSearch",
    "MeanShift",
    "MidRangeShift",
    "MinMax",
    "NoEqualisation",
    "NoShift",
    "Numbers",
    "PerChannel",
    "PerGroup",
    "PerInputChannel",
    "PerParts",
    "PerSkip",
    "PerTensor",
    "PerToken",
    "Percentile",
    "PowersOfTwo",
    "Quantizer",
    "RangeSearch",
    "Shift",
    "SmoothQuant",
    "State",
    "Static",
    "StepGroups",
    "described_form",
]
