"""The quantizers of conf/quantizer, by what they can quantize."""

from omegaconf import OmegaConf

from ptq_diffusion.engine.factory import construct
from ptq_diffusion.main import CONF

SEARCHES = sorted(path.stem for path in (CONF / "range_search").glob("*.yaml"))
NODES = {path.stem: OmegaConf.load(path) for path in sorted((CONF / "quantizer").glob("*.yaml"))}
GRANULARITY = {name: construct(node.granularity) for name, node in NODES.items() if "granularity" in node}
OF_WEIGHTS = [name for name, granularity in GRANULARITY.items() if granularity.of_weights and "dynamic" not in name]
OF_INPUTS = [name for name, granularity in GRANULARITY.items() if granularity.of_inputs]
DYNAMIC = [name for name in NODES if "dynamic" in name]
STATIC = [name for name in GRANULARITY if name not in DYNAMIC]
