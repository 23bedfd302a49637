"""The corrections of conf/correction that are fitted; a choice among them is tested in test_auto."""

from omegaconf import OmegaConf

from ptq_diffusion.main import CONF
from ptq_diffusion.stage.factory import construct

FILES = {path.stem: OmegaConf.load(path) for path in sorted((CONF / "correction").glob("*.yaml"))}
CORRECTIONS = {name: construct(file) for name, file in FILES.items() if "defaults" not in file}
