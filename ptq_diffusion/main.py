"""The command line: compose a configuration and make its goal, or collect the reports of many."""

import sys
from pathlib import Path

import hydra
from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig

HERE = Path(__file__).parent
CONF = next(folder for folder in (HERE / "conf", HERE.parent / "conf") if folder.is_dir())


@hydra.main(config_path=str(CONF), config_name="config", version_base="1.3")
def experiment(cfg: DictConfig) -> None:
    """Make the goal of one composed experiment."""
    from ptq_diffusion.stage.experiment import run
    from ptq_diffusion.stage.failure import recorded

    with recorded(cfg, HydraConfig.get()):
        run(cfg)


def main() -> None:
    """`ptq-diffusion [OVERRIDES]` runs experiments, `ptq-diffusion collect FOLDER` prints one table of reports."""
    if sys.argv[1:2] == ["collect"]:
        from rich.console import Console

        from ptq_diffusion.stage.collect import collect

        if len(sys.argv) != 3:
            sys.exit("expected one folder: ptq-diffusion collect FOLDER")
        Console(soft_wrap=True).print(collect(Path(sys.argv[2])), markup=False, highlight=False)
    else:
        experiment()
