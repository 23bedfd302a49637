"""Folders of stock pipelines with a corrected network and scheduler in the places of the float ones."""

import json
import shutil
from collections.abc import Collection
from pathlib import Path

from diffusers import DDPMPipeline

from ptq_diffusion.correction.pipeline.corrected_network import CorrectedNetwork
from ptq_diffusion.correction.pipeline.corrected_scheduler import CorrectedScheduler

INDEX = "model_index.json"
NETWORKS = {"StableDiffusionPipeline": "unet", "LDMPipeline": "unet", "DiTPipeline": "transformer"}
"""Pipelines whose other components are copied, and the name of the network in each."""
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
    index = model_folder / INDEX
    name = json.loads(index.read_text()).get("_class_name") if index.is_file() else None
    if name in NETWORKS:
        return str(name)
    if needs or latent:
        reads = f"reads {', '.join(needs)}" if needs else "denoises latents"
        raise ValueError(
            f"expected a network of {', '.join(NETWORKS)}, or an unconditional one of pixels for DDPMPipeline, to "
            f"export as a pipeline, got one that {reads}, of {name or 'no pipeline'}; draw its images with "
            "goal=samples_corrected"
        )
    return DDPMPipeline.__name__


def copied(model_folder: Path) -> list[Path]:
    """The files of a model folder that an export takes along as they are: all components but network and scheduler."""
    replaced = {*NETWORKS.values(), "scheduler"}
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
    if name not in NETWORKS:
        DDPMPipeline(network, scheduler).save_pretrained(out)
        return
    place, content = NETWORKS[name], json.loads((model_folder / INDEX).read_text())
    parts: dict[str, CorrectedNetwork | CorrectedScheduler] = {place: network, "scheduler": scheduler}
    for file in copied(model_folder):
        target = out / file.relative_to(model_folder)
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(file, target)
    for part, written in parts.items():
        written.save_pretrained(out / part)
        content[part] = [type(written).__module__, type(written).__name__]
    (out / INDEX).write_text(json.dumps(content, indent=2) + "\n")
