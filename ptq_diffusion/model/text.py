"""Text encoders of a model folder: prompts to conditions, by the pipeline that the folder was saved by."""

import gc
import hashlib
import importlib.util
import inspect
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from importlib.metadata import version
from pathlib import Path
from typing import Any

import diffusers
import torch
from diffusers import DiffusionPipeline
from torch import Tensor

from ptq_diffusion.model.components import read_json
from ptq_diffusion.model.condition import Condition
from ptq_diffusion.model.decoder import decoder_factor
from ptq_diffusion.model.folder import ModelFiles, find_files, named_digest
from ptq_diffusion.model.loading import complete_config, network_config, state_shape
from ptq_diffusion.model.pipeline_index import TEXT

ENDINGS = (".json", ".txt", ".model", ".safetensors")
"""The files of text encoders and tokenizers that are read."""
LIBRARY = "transformers"
AT_ONCE = 16
"""Prompts that are encoded together."""
NEGATIVE = "negative "


def encode_prompts(path: str, prompts: Sequence[str], negative: str) -> tuple[Condition, Condition]:
    """The conditions of prompts, a row for each, and that of the negative prompt, one row, as the pipeline makes them.

    Of the pipeline only text encoders and tokenizers are loaded, and freed afterwards. An empty negative prompt is
    none, for which some pipelines have zeros.

    Args:
        path: the model folder, `bundled:NAME`, or `org/name` in the hub's local cache.
        prompts: texts.
        negative: the text to guide away from, which may be empty.

    Raises:
        FileNotFoundError: there is no such folder, or it lacks files of a text encoder.
        ValueError: there are no prompts, the folder has no text encoders, or they do not fit its network.
        ModuleNotFoundError: transformers, which encodes texts, is not installed.
    """
    if not prompts:
        raise ValueError("expected at least one prompt, got none; give a file with prompts")
    files = find_files(path)
    config, family = network_config(files)
    needs = family.needs(complete_config(config, family.network_class))
    if "embeddings" not in needs:
        raise ValueError(
            f"expected a network that reads prompts in {files.network.config.parent}, got one without; set "
            "condition=labels or none"
        )
    text_files(files)
    pipeline = _pipeline(files)
    rows = []
    for first in range(0, len(prompts), AT_ONCE):
        rows.append(_encoded(pipeline, list(prompts[first : first + AT_ONCE]), negative, list(needs)))
    del pipeline
    gc.collect()
    ids = {"ids": _time_ids(files)} if "ids" in needs else {}
    positive = {name: torch.cat([part[name] for part in rows]) for name in rows[0] if not name.startswith(NEGATIVE)}
    none = {name.removeprefix(NEGATIVE): rows[0][name][:1] for name in rows[0] if name.startswith(NEGATIVE)}
    return _condition(positive, ids), _condition(none, ids)


def _condition(tensors: Mapping[str, Tensor], shared: Mapping[str, Tensor]) -> Condition:
    """The condition of some rows with tensors that all of them share, of one row."""
    rows = len(tensors["embeddings"])
    return Condition(**tensors, **{name: tensor.expand(rows, *tensor.shape[1:]) for name, tensor in shared.items()})


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


def _pipeline(files: ModelFiles) -> Any:  # noqa: ANN401
    """The pipeline of a folder with its text encoders and tokenizers alone.

    Raises:
        ValueError: the pipeline is of no class of diffusers that encodes prompts, or its text components are not of
            transformers.
        ModuleNotFoundError: transformers is not installed.
    """
    if importlib.util.find_spec(LIBRARY) is None:
        raise ModuleNotFoundError(
            f"expected {LIBRARY} to encode prompts, it is not installed; in the folder of this project: pip "
            "install -e '.[text]'"
        )
    folder, kind = files.index.folder, getattr(diffusers, files.index.pipeline, None)
    pipeline: Any = kind
    if not (isinstance(kind, type) and issubclass(kind, DiffusionPipeline) and "encode_prompt" in dir(kind)):
        raise ValueError(
            f"expected a pipeline of diffusers that encodes prompts in {folder}, got {files.index.pipeline}; give the "
            "folder of another"
        )
    listed = {name: entry for name, entry in read_json(folder / "model_index.json").items() if isinstance(entry, list)}
    for name in (name for name in TEXT if name in files.index.components):
        # Other libraries would be imported by the name that the folder gives.
        if listed[name][0] != LIBRARY:
            raise ValueError(f"expected the {name} of {folder} to be of {LIBRARY}, got one of {listed[name][0]}")
    others: dict[str, bool | None] = {name: None for name in listed if name not in (*TEXT, "scheduler")}
    if "requires_safety_checker" in inspect.signature(pipeline).parameters:
        others["requires_safety_checker"] = False
    options = {"use_safetensors": True, "local_files_only": True}
    with _without_bars():
        return pipeline.from_pretrained(folder, variant=_variant(folder / "text_encoder"), **others, **options)


@contextmanager
def _without_bars() -> Iterator[None]:
    """Within this context neither diffusers nor transformers draw a progress bar of what they load."""
    from transformers.utils import logging

    libraries: list[Any] = [logging, diffusers.utils.logging]
    drawing = [library for library in libraries if library.is_progress_bar_enabled()]
    for library in drawing:
        library.disable_progress_bar()
    try:
        yield
    finally:
        for library in drawing:
            library.enable_progress_bar()


def _variant(home: Path) -> str | None:
    """The variant of the weights of a text encoder; None where there are some without."""
    names = sorted(file.name for file in home.glob("model*.safetensors"))
    if not names or any(name == "model.safetensors" or name.startswith("model-") for name in names):
        return None
    return names[0].split(".")[1].split("-")[0]


@torch.no_grad()
def _encoded(pipeline: Any, prompts: list[str], negative: str, needs: Sequence[str]) -> dict[str, Tensor]:  # noqa: ANN401
    """The tensors of some prompts, and those of the negative one under names that begin with `NEGATIVE`."""
    zeros = not negative and "force_zeros_for_empty_prompt" in pipeline.config
    options = {
        "device": torch.device("cpu"),
        "num_images_per_prompt": 1,
        "do_classifier_free_guidance": True,
        "negative_prompt": None if zeros else [negative] * len(prompts),
        "prompt_2": None,
        "prompt_3": None,
    }
    parameters = inspect.signature(pipeline.encode_prompt).parameters
    call = inspect.signature(type(pipeline).__call__).parameters
    # As when the pipeline itself encodes: some defaults of the call are others than those of encode_prompt.
    usual = {name: call[name].default for name in ("clean_caption", "complex_human_instruction") if name in call}
    arguments = {name: value for name, value in (options | usual).items() if name in parameters}
    results = pipeline.encode_prompt(prompts, **arguments)
    if "do_classifier_free_guidance" not in parameters:
        others = pipeline.encode_prompt([negative], **arguments)
        return _named(results[:2], ("embeddings", "pooled")) | _named(others[:2], ("embeddings", "pooled"), NEGATIVE)
    if "mask" in needs:
        return _named(results[:2], ("embeddings", "mask")) | _named(results[2:], ("embeddings", "mask"), NEGATIVE)
    names = ("embeddings", "pooled")
    return _named(results[::2], names) | _named(results[1::2], names, NEGATIVE)


def _named(tensors: Sequence[Tensor], names: Sequence[str], prefix: str = "") -> dict[str, Tensor]:
    # Not strict: pipelines without pooled embeddings return fewer.
    return {f"{prefix}{name}": tensor for name, tensor in zip(names, tensors, strict=False)}


def _time_ids(files: ModelFiles) -> Tensor:
    """The time ids of an image of the network's own size that is not cropped, (1, 6)."""
    height, width = (decoder_factor(files) * side for side in state_shape(files)[1:])
    return torch.tensor([[height, width, 0, 0, height, width]], dtype=torch.float32)
