"""The quantizers of conf/quantizer, by what they can quantize."""

from omegaconf import OmegaConf

from ptq_diffusion.engine.factory import construct
from ptq_diffusion.main import CONF

SEARCHES = sorted(path.stem for path in (CONF / "range_search").glob("*.yaml"))
GRANULARITY = {p.stem: construct(OmegaConf.load(p).granularity) for p in sorted((CONF / "quantizer").glob("*.yaml"))}
QUANTIZERS = list(GRANULARITY)
OF_WEIGHTS = [name for name, granularity in GRANULARITY.items() if granularity.of_weights]
OF_INPUTS = [name for name, granularity in GRANULARITY.items() if granularity.of_inputs]
