"""Model folders: the files of one that are read, and the reason where there is none to read."""

import hashlib
import json
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ptq_diffusion.artefact.bundle import Bundles
from ptq_diffusion.artefact.digest import files_digest

MODELS = Bundles(Path(__file__).parent)
"""The models that come with the package."""

PIPELINE, NETWORK, SCHEDULER = "model_index.json", "config.json", "scheduler_config.json"
WEIGHTS = "diffusion_pytorch_model"
"""The beginning of the names of all files of weights."""

LATENT = ("vae", "vqvae", "movq")
"""Names of decoders beside a network, by which a pipeline is known to be a latent one."""
DECODER = re.compile(r"Autoencoder|VQModel|VAE")
"""Part of the class of every decoder."""
HUB_NAME = re.compile(r"[\w.-]+/[\w.-]+")
SAVE = "save one with pipeline.save_pretrained(folder, safe_serialization=True)"


@dataclass(frozen=True)
class ModelFiles:
    """Files that are read of a model folder.

    Args:
        folder: the model folder.
        network: the configuration of the network.
        scheduler: the configuration of the scheduler.
        weights: one file, or all shards.
        index: of shards, the file that names them; None of a single file.
        pipeline: model_index.json, or None where there is none.
    """

    folder: Path
    network: Path
    scheduler: Path
    weights: tuple[Path, ...]
    index: Path | None
    pipeline: Path | None

    def checksum(self) -> str:
        """Sixteen hex digits over the names and the contents of all that is read; a process reads each file once."""
        files = [file for file in (self.pipeline, self.network, self.scheduler, self.index, *self.weights) if file]
        names = "\n".join(file.relative_to(self.folder).as_posix() for file in files)
        return hashlib.sha256(f"{files_digest(files)}\n{names}".encode()).hexdigest()[:16]


def find_files(path: str) -> ModelFiles:
    """The files of a model folder: `unet/` and `scheduler/`, or all at its top as in the google/ddpm repositories.

    Weights without a variant come before those of a variant such as fp16.

    Args:
        path: the folder, or `bundled:NAME`.

    Raises:
        FileNotFoundError: there is no such folder, or it lacks one of its files.
        ValueError: it is another kind of folder, the pipeline is a latent one, or it is not clear which weights are
            meant.
    """
    folder = MODELS.path(path)
    _require_folder(folder)
    pipeline = folder / PIPELINE if (folder / PIPELINE).is_file() else None
    _require_images(folder, {} if pipeline is None else read_json(pipeline))
    flat = not (folder / "unet").is_dir() and (folder / NETWORK).is_file()
    home, beside = (folder, folder) if flat else (folder / "unet", folder / "scheduler")
    network, scheduler = home / NETWORK, beside / SCHEDULER
    weights_file = _choose_weights(home)
    missing = [str(file.relative_to(folder)) for file in (network, scheduler) if not file.is_file()]
    if weights_file is None:
        missing.append(f"{(home / WEIGHTS).relative_to(folder)}.safetensors{_others(home)}")
    if missing or weights_file is None:
        raise FileNotFoundError(
            f"expected a folder that a diffusers pipeline saved, {folder} lacks {', '.join(missing)}; {_remedy(folder)}"
        )
    sharded = weights_file.suffix == ".json"
    weights = _shards(weights_file) if sharded else (weights_file,)
    return ModelFiles(folder, network, scheduler, weights, weights_file if sharded else None, pipeline)


def shard_names(index: Path) -> Mapping[str, str]:
    """The file of every weight, by the weight's name, as an index of shards has it.

    Raises:
        ValueError: the index is broken, or it names files that are not safetensors beside it.
    """
    names = read_json(index).get("weight_map")
    if not isinstance(names, dict) or not names or not all(isinstance(name, str) for name in names.values()):
        raise ValueError(f"expected a weight_map of names of files in {index}, got another; save the pipeline again")
    for name in sorted(set(names.values())):
        if Path(name).name != name or not name.endswith(".safetensors"):
            raise ValueError(
                f"expected {index} to name safetensors files beside it, got {name}, which is not opened; save the "
                "pipeline again with safe_serialization=True"
            )
    return names


def read_json(path: Path) -> dict[str, Any]:
    """The object of a json file.

    Raises:
        ValueError: the file holds something else.
    """
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise ValueError(f"expected JSON in {path}, got something else ({error}); save the pipeline again") from error
    if not isinstance(content, dict):
        raise ValueError(f"expected a JSON object in {path}, got {type(content).__name__}; save the pipeline again")
    return content


def _choose_weights(home: Path) -> Path | None:
    """The file of weights or the index of shards: one without a variant, else the only one of a variant."""
    plain = [home / f"{WEIGHTS}.safetensors", home / f"{WEIGHTS}.safetensors.index.json"]
    candidates = [file for file in plain if file.is_file()]
    if not candidates:
        # A variant stands before the ending; shards, whose names end in numbers, are chosen by their index alone.
        singles = [file for file in home.glob(f"{WEIGHTS}.*.safetensors") if not re.search(r"-\d+-of-\d+", file.name)]
        candidates = sorted([*singles, *home.glob(f"{WEIGHTS}.safetensors.index.*.json")])
    if len(candidates) > 1:
        raise ValueError(
            f"expected one set of weights in {home}, got {', '.join(file.name for file in candidates)}; keep one in a "
            "copy of the folder"
        )
    return candidates[0] if candidates else None


def _shards(index: Path) -> tuple[Path, ...]:
    shards = tuple(index.with_name(name) for name in sorted(set(shard_names(index).values())))
    if missing := [shard.name for shard in shards if not shard.is_file()]:
        raise FileNotFoundError(
            f"expected the shards that {index} names, {index.parent} lacks {', '.join(missing)}; fetch them or save "
            "the pipeline again"
        )
    return shards


def _others(home: Path) -> str:
    """Files that look like weights under names or in forms that are not read, in words."""
    names = sorted(file.name for ending in ("bin", "safetensors", "ckpt", "pt") for file in home.glob(f"*.{ending}"))
    return f" (not read: {', '.join(names)})" if names else ""


def _require_folder(folder: Path) -> None:
    """Refuse what is no folder, or a folder of the hub's cache around the model's."""
    if str(folder).startswith("~"):
        raise FileNotFoundError(
            f"expected a folder, got {folder}, whose ~ stands for no home here; write its path in full, such as "
            f"{os.path.expanduser(folder)}"
        )
    if folder.is_file():
        raise ValueError(f"expected a model folder, got the file {folder}; give the folder that a pipeline saved")
    if not folder.is_dir():
        hub = (
            f"if it is a name on the hub, download it first: hf download {folder} --local-dir FOLDER"
            if HUB_NAME.fullmatch(str(folder))
            else "check the path"
        )
        raise FileNotFoundError(
            f"expected a folder that a diffusers pipeline saved, there is no folder {folder}; {hub}"
        )
    if (folder / "snapshots").is_dir():
        snapshots = sorted(str(snapshot) for snapshot in (folder / "snapshots").iterdir() if snapshot.is_dir())
        raise ValueError(
            f"expected a model folder, got the hub's cache of one, {folder}; give a folder in its snapshots: "
            f"{', '.join(snapshots[:3]) or 'it has none yet, download the model first'}"
        )


def _require_images(folder: Path, pipeline: Mapping[str, Any]) -> None:
    """Refuse a latent pipeline, known by folders or by what model_index.json names."""
    components = {
        name: str(entry[-1])
        for name, entry in pipeline.items()
        if isinstance(entry, list) and entry and entry[-1] is not None
    }
    decoders = [name for name in LATENT if (folder / name).is_dir() or name in components]
    decoders += [name for name, kind in components.items() if DECODER.search(kind) and name not in decoders]
    if decoders:
        raise ValueError(
            f"expected a pipeline of images, got a latent one: {folder} has a decoder in {', '.join(decoders)}, which "
            "is not supported yet; give the folder of a pipeline without one"
        )


def _remedy(folder: Path) -> str:
    """The way from a folder that lacks files to one that has them."""
    parent = folder.resolve().parent
    if (
        folder.resolve().name in ("unet", "scheduler")
        and (parent / "unet").is_dir()
        and (parent / "scheduler").is_dir()
    ):
        return f"it is a part of a pipeline, give all of it: {parent}"
    return SAVE
