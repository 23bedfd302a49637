"""The framework in Python: `import ptq_diffusion as pd`, then `pd.compose`, `pd.run`, `pd.quantize`, `pd.load_*`.

Nothing global is left behind: Hydra is as it was before, so a notebook may use its own configurations beside these.
"""

import json
import shutil
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property, partial
from html import escape
from pathlib import Path
from typing import Any

import hydra
from diffusers import DiffusionPipeline
from hydra import initialize_config_dir, version
from hydra.core.global_hydra import GlobalHydra
from hydra.core.singleton import Singleton
from hydra.errors import HydraException
from omegaconf import DictConfig
from omegaconf.errors import OmegaConfBaseException
from torch import Tensor

from ptq_diffusion.artefact.digest import files_digest
from ptq_diffusion.command import experiment
from ptq_diffusion.command.check.python_arguments import (
    require_arguments,
    require_composed,
    require_list,
    require_overrides,
    require_path,
)
from ptq_diffusion.command.check.schema import require_schema
from ptq_diffusion.command.check.typed_plugins import require_typed
from ptq_diffusion.command.check.unread import require_read
from ptq_diffusion.command.conf import CONF
from ptq_diffusion.command.refusal import refusal
from ptq_diffusion.command.run_name import named_without_hydra
from ptq_diffusion.command.sweep import require_one_cell
from ptq_diffusion.correction import FittedCorrection
from ptq_diffusion.correction.fitted import COEFFICIENTS
from ptq_diffusion.correction.pipeline.pipeline_folder import load_pipeline
from ptq_diffusion.engine.models import build_model
from ptq_diffusion.engine.plugins import require_plugins
from ptq_diffusion.engine.run_files import CONFIG, LOG, REPORT, STEPS, TABLE
from ptq_diffusion.model.pipeline_index import NETWORKS
from ptq_diffusion.model.weights import DTYPES
from ptq_diffusion.network import QuantizedDenoiser
from ptq_diffusion.network import load_quantized as load_network
from ptq_diffusion.network.saving import DESCRIPTION
from ptq_diffusion.stage.drawing.variants import VARIANTS
from ptq_diffusion.stage.samples import read_images

SEVERAL = "several values are composed one after the other"
"""The way to a sweep in Python."""


@dataclass(frozen=True)
class Report:
    """The results of an experiment.

    Args:
        folder: the run's folder.
        store: the folder of the artefacts.
        content: all of report.json.
    """

    folder: Path
    store: Path
    content: Mapping[str, Any]

    @property
    def rows(self) -> Sequence[Mapping[str, Any]]:
        """A row for each variant: full_precision, quantized, corrected; metrics, their standard errors, costs."""
        return self.content["rows"]

    @property
    def paired(self) -> Sequence[Mapping[str, Any]]:
        """The difference of every two variants in every metric, with its 95 % interval."""
        return self.content["paired"]

    @property
    def paths(self) -> Mapping[str, Path]:
        """The run's files by name: report, table, steps, config, log."""
        files = {"report": REPORT, "table": TABLE, "steps": STEPS, "config": CONFIG, "log": LOG}
        return {name: self.folder / file for name, file in files.items()}

    @property
    def figures(self) -> Mapping[str, Path]:
        """The figures' files by name, such as images, noise and plan."""
        return {Path(file).stem: self.folder / file for file in self.content["figures"]}

    @property
    def artefacts(self) -> Mapping[str, Path]:
        """The folder of every stage's artefact, by the stage's name."""
        return {stage: self.store / stage / signature for stage, signature in self.content["signatures"].items()}

    @cached_property
    def images(self) -> Mapping[str, Tensor]:
        """The samples of every variant, (seeds x images, C, H, W) uint8; row i is of the same noise in all of them.

        They are read from the store when they are first asked for.
        """
        return {variant: read_images(self.artefacts[stage.name]) for variant, stage in VARIANTS.items()}

    def _repr_html_(self) -> str:
        """The main columns as a notebook shows them."""
        columns = [name for name in ("variant", "correction", "fid", "fid_se", "fid_to_fp") if name in self.rows[0]]
        cells = [
            [f"{row[name]:.2f}" if isinstance(row[name], float) else row[name] for name in columns] for row in self.rows
        ]
        lines = [f"<tr>{''.join(f'<th>{name}</th>' for name in columns)}</tr>"]
        lines += [f"<tr>{''.join(f'<td>{escape(str(cell))}</td>' for cell in row)}</tr>" for row in cells]
        return f"<table>{''.join(lines)}</table>"


def compose(*overrides: str) -> DictConfig:
    """The configuration that the command line composes from the same words.

    Args:
        overrides: as on the command line, such as `"bitwidth=w4a4"`, `"sampler.eta=0"`.

    Raises:
        TypeError: a word is no text.
        ValueError: a word is no override, or names a group or an option that there is not; an experiment is a grid and
            an option that it varies is not given; or a file that a word chooses brings in plugins.
    """
    require_overrides(overrides)
    with _hydra_as_it_was():
        try:
            with initialize_config_dir(str(CONF), version_base="1.3"):
                cfg = hydra.compose("config", list(overrides), return_hydra_config=True)
                require_typed(cfg, overrides)
                require_read(cfg, overrides)
                require_one_cell(cfg.hydra)
            return named_without_hydra(cfg)
        except (HydraException, OmegaConfBaseException, ValueError) as error:
            message = refusal(error, overrides, CONF, SEVERAL) or str(error)
            raise ValueError(message.removeprefix("error: ")) from error


def run(cfg: DictConfig) -> Report:
    """Run the experiment of a configuration; what the store has is not made again.

    Args:
        cfg: of `compose`, with any changes of its values.

    Raises:
        TypeError: it is no configuration of `compose`.
        ValueError: the goal is another than a report, or see `make`.
        OSError: the outputs cannot be written; what was finished is kept.
    """
    require_composed(cfg)
    if cfg.get("goal") != "report":
        raise ValueError(f"expected goal=report, got {cfg.get('goal')!r}; pd.make(cfg) makes any other goal")
    path = experiment.run(cfg)
    return Report(path.parent, Path(cfg.outputs) / "store", json.loads(path.read_text()))


def make(cfg: DictConfig) -> Path:
    """Make what `cfg.goal` names, such as `fit`, `export` or `samples_corrected`; its folder in the store.

    Raises:
        TypeError: it is no configuration of `compose`.
        ValueError: choices that do not fit each other, or an option that is unknown or of another type.
        OSError: the outputs cannot be written; what was finished is kept.
    """
    require_composed(cfg)
    return experiment.run(cfg)


def quantize(
    pipeline: DiffusionPipeline,
    *overrides: str,
    bitwidth: str = "w4a8",
    correction: str = "rescaled_matched",
    sampler: str = "ddim",
    steps: int = 20,
    calibration_images: int = 64,
    fit_images: int = 256,
    seed: int = 0,
) -> DiffusionPipeline:
    """A pipeline that draws with the quantized, corrected network; the one that is passed in stays as it is.

    It is the pipeline of `goal=export`, for the sampler and the number of steps that the correction was fitted for.

    Args:
        pipeline: of diffusers. A network in half precision is computed so, any other in float32.
        overrides: anything else, as on the command line, such as `"sampler.eta=0"`, `"condition=labels"`.
        bitwidth: a name of the group `bitwidth`.
        correction: a name of the group `correction`; `auto`, the command's default, tries several and takes longer.
        sampler: a name of the group `sampler`.
        steps: of the sampler, and of the pipeline that is returned.
        calibration_images: float samples that input ranges are searched on.
        fit_images: samples that the correction is fitted on, the option noise.images.
        seed: added to the seeds of both.

    Raises:
        TypeError: it is no pipeline, such as the folder of one, or a number is no whole one.
        ValueError: the network is not supported, choices do not fit each other, or an override sets what is given.
        OSError: the outputs cannot be written.
    """
    counts = {"steps": steps, "calibration_images": calibration_images, "fit_images": fit_images, "seed": seed}
    require_arguments(pipeline, overrides, counts)
    words = ["model=diffusers", "goal=export", "logger=none", f"bitwidth={bitwidth}", f"correction={correction}"]
    words += [f"sampler={sampler}", f"sampler.steps={steps}", f"model.dtype={_dtype(pipeline)}"]
    cfg = compose(*words, f"calibration.images={calibration_images}", f"noise.images={fit_images}", *overrides)
    _shift_seeds(cfg, seed)
    cfg.model.path = str(_saved(pipeline, Path(cfg.outputs) / "models"))
    return load_pipeline(make(cfg)).to(pipeline.device)


def load_quantized(folder: str | Path, plugins: Sequence[str] = ()) -> QuantizedDenoiser:
    """The quantized network of `goal=quantize` or `goal=export`, without its correction.

    Args:
        folder: as the goal printed it.
        plugins: packages of your own whose code may run, for a network of one of them.

    Raises:
        TypeError: it is no path, or the plugins are one text in place of a list.
        FileNotFoundError: the folder holds none.
        ValueError: the files are broken, of another version, or do not belong together; or a plugin cannot be imported.
    """
    require_list(plugins, "plugins")
    require_plugins(plugins)
    return load_network(_part(require_path(folder), DESCRIPTION), partial(build_model, plugins=plugins))


def load_correction(folder: str | Path) -> FittedCorrection:
    """The fitted correction of `goal=fit` or `goal=export`.

    Raises:
        TypeError: it is no path.
        FileNotFoundError: the folder holds none.
        ValueError: the files are broken or of another version.
    """
    return FittedCorrection.load(_part(require_path(folder), COEFFICIENTS))


@contextmanager
def _hydra_as_it_was() -> Iterator[None]:
    """Within this context Hydra is not initialized; afterwards it is as it was, its version base included."""
    base, before = version.getbase(), Singleton._instances.pop(GlobalHydra, None)
    try:
        yield
    finally:
        version.VersionBase.instance().version_base = base
        Singleton._instances.pop(GlobalHydra, None)
        if before is not None:
            Singleton._instances[GlobalHydra] = before


def _shift_seeds(cfg: DictConfig, seed: int) -> None:
    """Add to the seeds of calibration and fit, of options that fit the schema."""
    # The folder is written once all else is known to be right.
    cfg.model.path = "not written yet"
    require_schema(cfg)
    for part in (cfg.calibration, cfg.noise, cfg.trial):
        part.seed += seed


def _saved(pipeline: DiffusionPipeline, home: Path) -> Path:
    """The folder of a pipeline below `home`, named by its content, so that the store knows it again."""
    home.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=home, ignore_cleanup_errors=True) as beside:
        folder = Path(beside) / "pipeline"
        pipeline.save_pretrained(folder, safe_serialization=True)
        # Of text encoders and decoders too, which an export takes along.
        files = sorted(file for file in folder.rglob("*") if file.is_file())
        final = home / files_digest(files)
        if not final.is_dir():
            shutil.move(folder, final)
    return final


def _dtype(pipeline: DiffusionPipeline) -> str:
    """The name of the dtype that the network of a pipeline is computed in; of one without a network the default."""
    networks = (pipeline.components[name] for name in NETWORKS if pipeline.components.get(name) is not None)
    kinds = (str(network.dtype).removeprefix("torch.") for network in networks)
    return next((kind for kind in kinds if kind in DTYPES), "float32")


def _part(folder: Path, file: str) -> Path:
    """The folder that holds a file: itself, or that of a pipeline's network."""
    homes = (folder, *(folder / name for name in NETWORKS))
    return next((home for home in homes if (home / file).is_file()), folder)
