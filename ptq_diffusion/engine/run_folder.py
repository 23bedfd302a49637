"""Names and makes the folder of a run."""

from pathlib import Path

from omegaconf import DictConfig, OmegaConf

from ptq_diffusion.artefact.files import write_text
from ptq_diffusion.engine.run_files import CONFIG, FAILURE
from ptq_diffusion.engine.stage import Stage
from ptq_diffusion.engine.store import Store


def run_path(store: Store, stage: type[Stage], cfg: DictConfig) -> Path:
    """outputs/runs/<name>-<signature of the stage>."""
    return Path(cfg.outputs) / "runs" / f"{cfg.name}-{store.signature(stage, cfg)}"


def run_folder(store: Store, stage: type[Stage], cfg: DictConfig) -> Path:
    """The folder of a run, made now: the resolved configuration, no earlier failure."""
    folder = run_path(store, stage, cfg)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / FAILURE).unlink(missing_ok=True)
    write_text(folder / CONFIG, OmegaConf.to_yaml(cfg, resolve=True))
    return folder
