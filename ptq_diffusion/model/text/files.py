"""The files of a model folder that prompts are encoded with, without loading any."""

import hashlib
import importlib.util
from importlib.metadata import version
from math import prod
from pathlib import Path

from safetensors import SafetensorError, safe_open

from ptq_diffusion.model.folder import ModelFiles, find_configurations, find_files, named_digest
from ptq_diffusion.model.pipeline_index import TEXT

ENDINGS = (".json", ".txt", ".model", ".safetensors")
"""The files of text encoders and tokenizers that are read."""
LIBRARY = "transformers"
FLOAT = 4
"""Bytes of a number in memory, where text encoders are float32."""


def text_checksum(path: str) -> str:
    """Sixteen hex digits over all that encoded prompts depend on of a model folder.

    These are the files of the text encoders and tokenizers, the configurations of the network and the decoder, which
    say what the network reads, and the version of transformers. The network's weights are not among them.

    Raises:
        FileNotFoundError: there is no such folder, or it lacks files of a text encoder.
        ValueError: the folder has no text encoders.
    """
    files = find_files(path)
    configs = [part.config for part in (files.network, files.decoder) if part]
    digest = named_digest([*text_files(files), *configs], files.index.folder)
    installed = version(LIBRARY) if importlib.util.find_spec(LIBRARY) else None
    return hashlib.sha256(f"{digest} {installed}".encode()).hexdigest()[:16]


def text_files(files: ModelFiles) -> list[Path]:
    """The files that are read of the text encoders and tokenizers of a model folder.

    Raises:
        FileNotFoundError: one of them lacks files.
        ValueError: the folder has none.
    """
    folder, names = files.index.folder, [name for name in TEXT if name in files.index.components]
    if "text_encoder" not in names or files.index.file is None:
        raise ValueError(
            f"expected a text_encoder in {folder}, which encodes prompts, the pipeline has none; set condition=labels, "
            "or give the folder of a pipeline that was saved with it"
        )
    listed: list[Path] = [files.index.file]
    for name in names:
        inside = sorted(file for file in (folder / name).glob("*") if file.suffix in ENDINGS)
        weights = any(file.suffix == ".safetensors" for file in inside)
        if not inside or (name.startswith("text_encoder") and not weights):
            lacking = "its files" if not inside else "safetensors weights"
            raise FileNotFoundError(
                f"expected the {name} of the pipeline in {folder}, {folder / name} lacks {lacking}; fetch them or save "
                "the pipeline again with safe_serialization=True"
            )
        listed += inside
    return listed


def weights_variant(home: Path) -> str | None:
    """The variant of the weights of a text encoder; None where there are some without."""
    variants = [_variant_of(file) for file in sorted(home.glob("model*.safetensors"))]
    return None if None in variants or not variants else variants[0]


def _variant_of(file: Path) -> str | None:
    """The variant that a file of weights is named by, if any: fp16 of model.fp16-00001-of-00002.safetensors."""
    plain = file.name == "model.safetensors" or file.name.startswith("model-")
    return None if plain else file.name.split(".")[1].split("-")[0]


def text_block(name: str) -> str | None:
    """The block of a text encoder that a tensor's name lies in, up to the number of a layer; None outside of blocks."""
    parts = name.split(".")
    place = next((place for place, part in enumerate(parts) if part.isdigit()), None)
    return None if place is None else ".".join(parts[: place + 1])


def text_sizes(path: str) -> dict[str, int]:
    """The bytes of every tensor of the text encoders of a model folder in memory, by the component's name and its own.

    Of weights that are not there nothing is told.
    """
    files = find_configurations(path)
    folder, sizes = files.index.folder, dict[str, int]()
    variant = weights_variant(folder / "text_encoder")
    for component in (name for name in TEXT if name.startswith("text_encoder") and name in files.index.components):
        found = sorted((folder / component).glob("model*.safetensors"))
        # A component without weights of that variant is loaded from those that have none.
        chosen = [file for file in found if _variant_of(file) == variant] or found
        for file in chosen:
            sizes |= {f"{component}.{name}": size for name, size in _tensor_sizes(file).items()}
    return sizes


def _tensor_sizes(file: Path) -> dict[str, int]:
    """The bytes of every tensor of a file in float32, in which encoders compute whatever the file has."""
    try:
        with safe_open(file, "pt") as tensors:
            return {name: FLOAT * prod(tensors.get_slice(name).get_shape()) for name in tensors.keys()}  # noqa: SIM118
    except SafetensorError as error:
        raise ValueError(f"expected weights in {file}, got another file ({error}); fetch it again") from error
