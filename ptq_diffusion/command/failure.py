"""Records why a job failed in its run's folder, and lets the other jobs of a sweep go on."""

import glob
import hashlib
import json
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from hydra.conf import HydraConf
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException
from rich.console import Console

from ptq_diffusion.artefact.files import write_json
from ptq_diffusion.command.experiment import STAGES
from ptq_diffusion.command.run_name import named
from ptq_diffusion.engine.plugins import PLUGINS
from ptq_diffusion.engine.run_files import FAILED, FAILURE
from ptq_diffusion.engine.run_folder import run_folder, run_path
from ptq_diffusion.engine.runtime import Runtime
from ptq_diffusion.engine.store import Store
from ptq_diffusion.engine.workshop import Workshop
from ptq_diffusion.stage.evaluate import Evaluate


@contextmanager
def recorded(cfg: DictConfig, hydra: HydraConf) -> Iterator[None]:
    """Write failure.json when the job within the context fails.

    The job of a sweep ends there, so that it cannot take the others with it: launchers that work in several processes
    would have to pickle its exception. `ListFailures` makes the sweep's exit code. The exception of a single run, and
    an interruption, pass through; a single run that was refused before it began leaves nothing.

    Args:
        cfg: the job's configuration.
        hydra: Hydra's own, for the job's overrides and its sweep.
    """
    nameless = _nameless_folder(cfg)
    (nameless / FAILURE).unlink(missing_ok=True)
    try:
        yield
    except Exception as error:
        sweep = str(hydra.sweep.dir) if hydra.mode == RunMode.MULTIRUN else None
        if sweep is None and not _begun(cfg):
            raise
        path = _folder(cfg, nameless) / FAILURE
        failure = describe(error, list(hydra.overrides.task), cfg, sweep)
        write_json(path, failure)
        if sweep is None:
            raise
        summary = {"path": str(path), "error": failure["error"], "message": failure["message"]}
        write_json(Path(sweep) / FAILED.replace("*", f"{hydra.job.num:04d}"), summary)
        text = f"failed: {summary['error']}: {error}\n{path}"
        Console().print(text, highlight=False, soft_wrap=True, markup=False)


def describe(error: Exception, overrides: list[str], cfg: DictConfig, sweep: str | None) -> dict[str, Any]:
    """The content of failure.json: text, numbers and lists, where a number that JSON lacks is text."""
    return {
        "error": type(error).__name__,
        "message": str(error),
        "overrides": overrides,
        "sweep": sweep,
        "traceback": "".join(traceback.format_exception(error)),
        "config": json.loads(json.dumps(_plain(cfg), default=str), parse_constant=str),
    }


def _begun(cfg: DictConfig) -> bool:
    """Whether the run has a folder."""
    try:
        job = named(cfg)
        # Most refusals come before there is a folder of the run's name, and a signature takes longer than to see that.
        if not any((Path(job.outputs) / "runs").glob(f"{glob.escape(job.name)}-*")):
            return False
        return run_path(_store(job), STAGES.get(job.goal, Evaluate), job).is_dir()
    except Exception:
        return False


def _folder(cfg: DictConfig, nameless: Path) -> Path:
    """The run's folder; where its name cannot be computed, one by the hash of the configuration."""
    try:
        return run_folder(_store(cfg), STAGES.get(cfg.goal, Evaluate), named(cfg))
    except Exception:
        nameless.mkdir(parents=True, exist_ok=True)
        return nameless


def _store(cfg: DictConfig) -> Store:
    shop = Workshop(Runtime(cfg.runtime.accelerator, False), plugins=cfg.get(PLUGINS, ()))
    return Store(Path(cfg.outputs) / "store", shop)


def _nameless_folder(cfg: DictConfig) -> Path:
    text = json.dumps(_plain(cfg), sort_keys=True, default=str)
    return Path(cfg.outputs) / "runs" / f"unnamed-{hashlib.sha256(text.encode()).hexdigest()[:16]}"


def _plain(cfg: DictConfig) -> Any:  # noqa: ANN401
    """The configuration as dicts and lists, resolved as far as it can be."""
    try:
        return OmegaConf.to_container(cfg, resolve=True)
    except OmegaConfBaseException:
        return OmegaConf.to_container(cfg, resolve=False)
