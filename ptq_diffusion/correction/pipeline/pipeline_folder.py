"""Folders of stock pipelines with a corrected network and scheduler in the places of the float ones."""

import json
import logging
import shutil
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

from diffusers import DDPMPipeline, DiffusionPipeline

from ptq_diffusion.correction.pipeline.corrected_network import CorrectedNetwork
from ptq_diffusion.correction.pipeline.corrected_scheduler import CorrectedScheduler
from ptq_diffusion.correction.pipeline.flow_networks import CorrectedFlux, CorrectedSana, CorrectedSD3
from ptq_diffusion.model.pipeline_index import PIPELINE
from ptq_diffusion.sampler.table import Table


class Place(NamedTuple):
    """The place of the network in a pipeline.

    Attributes:
        component: its name.
        network_class: the network that is called as the pipeline calls its own.
        guides: whether the pipeline guides by asking about two rows of each image at once.
        keeps_variance: whether guidance of the pipeline leaves a variance alone that the network says.
    """

    component: str
    network_class: type[CorrectedNetwork]
    guides: bool = True
    keeps_variance: bool = False


DDPM = Place("unet", CorrectedNetwork, guides=False)
"""The place in a `DDPMPipeline`."""
PLACES = {
    "StableDiffusionPipeline": Place("unet", CorrectedNetwork),
    "LDMPipeline": Place("unet", CorrectedNetwork, guides=False),
    "DiTPipeline": Place("transformer", CorrectedNetwork, keeps_variance=True),
    "StableDiffusion3Pipeline": Place("transformer", CorrectedSD3),
    "FluxPipeline": Place("transformer", CorrectedFlux, guides=False),
    "SanaPipeline": Place("transformer", CorrectedSana),
}
"""Pipelines whose other components are copied, by name."""
COPIED = frozenset({".json", ".safetensors", ".txt", ".model"})
"""Endings of the files that are copied; nothing pickled is."""


def pipeline_name(model_folder: Path, needs: Collection[str], latent: bool) -> str:
    """The stock pipeline that a corrected network of a model folder can be part of.

    Args:
        model_folder: of the float model.
        needs: the tensors of a condition that its network reads.
        latent: whether its states are latents.

    Raises:
        ValueError: there is none.
    """
    index = model_folder / PIPELINE
    name = json.loads(index.read_text()).get("_class_name") if index.is_file() else None
    if name in PLACES:
        return str(name)
    if needs or latent:
        reads = f"reads {', '.join(needs)}" if needs else "denoises latents"
        raise ValueError(
            f"expected a network of {', '.join(PLACES)}, or an unconditional one of pixels for DDPMPipeline, to "
            f"export as a pipeline, got one that {reads}, of {name or 'no pipeline'}; draw its images with "
            "goal=samples_corrected"
        )
    return DDPMPipeline.__name__


def require_guides(name: str, scale: float, steps: Table) -> None:
    """Refuse guidance that a pipeline does otherwise than the images are drawn that it is to draw.

    Args:
        name: of the pipeline.
        scale: of guidance; 1 is none.
        steps: the table.

    Raises:
        ValueError: the pipeline guides in another way, or guides a learned variance too.
    """
    place = PLACES.get(name, DDPM)
    if scale != 1 and not place.guides:
        raise ValueError(
            f"expected condition.guidance.scale=1, for a {name} does not ask about two rows of an image at once, got "
            f"{scale:g}; set it, or draw its images with goal=samples_corrected"
        )
    if scale != 1 and not place.keeps_variance and any(step.is_learned for step in steps):
        raise ValueError(
            f"expected noise of the sampler, for a {name} guides a learned variance as it guides the output, got "
            "variance_type=learned_range; set +sampler.scheduler.variance_type=fixed_small"
        )


def copied(model_folder: Path) -> list[Path]:
    """The files of a model folder that an export takes along as they are: all components but network and scheduler."""
    replaced = {*(place.component for place in PLACES.values()), "scheduler"}
    components = sorted(path for path in model_folder.iterdir() if path.is_dir() and path.name not in replaced)
    return [file for part in components for file in sorted(part.rglob("*")) if file.suffix in COPIED]


def write_pipeline(model_folder: Path, name: str, network: CorrectedNetwork, out: Path) -> None:
    """Write a pipeline's folder: corrected network and scheduler, and the model folder's other components as they are.

    Args:
        model_folder: of the float model.
        name: of the pipeline, see `pipeline_name`.
        network: corrected.
        out: an existing folder.
    """
    scheduler = CorrectedScheduler(network.correction.without_repairs())
    if name not in PLACES:
        DDPMPipeline(network, scheduler).save_pretrained(out)
        return
    component, content = PLACES[name].component, json.loads((model_folder / PIPELINE).read_text())
    parts: dict[str, CorrectedNetwork | CorrectedScheduler] = {component: network, "scheduler": scheduler}
    for file in copied(model_folder):
        target = out / file.relative_to(model_folder)
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(file, target)
    for part, written in parts.items():
        written.save_pretrained(out / part)
        content[part] = [type(written).__module__, type(written).__name__]
    (out / PIPELINE).write_text(json.dumps(content, indent=2) + "\n")


def load_pipeline(folder: Path) -> DiffusionPipeline:
    """The pipeline of a folder that `write_pipeline` wrote.

    diffusers does not warn that the network is of another class than its own, which it is meant to be.
    """
    with _other_networks_expected():
        return DiffusionPipeline.from_pretrained(folder)


@contextmanager
def _other_networks_expected() -> Iterator[None]:
    """Within this context diffusers' loading of pipelines leaves out its warnings of the types of networks."""
    beginnings = tuple(f"Expected types for {place.component}: " for place in (DDPM, *PLACES.values()))

    def is_other(record: logging.LogRecord) -> bool:
        return not record.getMessage().startswith(beginnings)

    logger = logging.getLogger(DiffusionPipeline.__module__)
    logger.addFilter(is_other)
    try:
        yield
    finally:
        logger.removeFilter(is_other)
