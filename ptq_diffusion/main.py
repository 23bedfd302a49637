"""The command line: compose a configuration, make its goal."""

from pathlib import Path

import hydra
from omegaconf import DictConfig

HERE = Path(__file__).parent
CONF = next(folder for folder in (HERE / "conf", HERE.parent / "conf") if folder.is_dir())


@hydra.main(config_path=str(CONF), config_name="config", version_base="1.3")
def main(cfg: DictConfig) -> None:
    """Make the goal of one composed experiment."""
    from ptq_diffusion.stage.experiment import run

    run(cfg)
