"""The command line: compose a configuration and make its goal, or collect the reports of many."""

import sys
from argparse import ArgumentParser
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


def collect_runs(arguments: list[str]) -> None:
    """`ptq-diffusion collect FOLDER [--against CORRECTION]`."""
    from rich.console import Console

    from ptq_diffusion.stage.collect import collect

    parser = ArgumentParser("ptq-diffusion collect", description="One table and one figure of many runs.")
    parser.add_argument("folder", type=Path, help="where runs lie, such as outputs/runs")
    parser.add_argument(
        "--against",
        metavar="CORRECTION",
        help="also compare the corrections of each cell with this one, from their images: a name, none or best",
    )
    given = parser.parse_args(arguments)
    collected = collect(given.folder, given.against)
    console = Console(soft_wrap=True)
    console.print(collected.table)
    for path in collected.paths:
        console.print(str(path), markup=False, highlight=False)


def main() -> None:
    """`ptq-diffusion [OVERRIDES]` runs experiments, `ptq-diffusion collect FOLDER` makes one table of their reports."""
    if sys.argv[1:2] == ["collect"]:
        collect_runs(sys.argv[2:])
    else:
        experiment()
