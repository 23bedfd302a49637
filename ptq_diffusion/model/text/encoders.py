"""Text encoders of a model folder: prompts to conditions, by the pipeline that the folder was saved by."""

import importlib.util
import inspect
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import diffusers
import torch
from diffusers import DiffusionPipeline
from torch import Tensor, nn

from ptq_diffusion.model.components import read_json
from ptq_diffusion.model.condition import Condition
from ptq_diffusion.model.decoder import decoder_factor
from ptq_diffusion.model.folder import ModelFiles, find_files
from ptq_diffusion.model.loading import complete_config, network_config, state_shape
from ptq_diffusion.model.pipeline_index import PIPELINE, SCHEDULER, TEXT
from ptq_diffusion.model.text.files import LIBRARY, text_block, text_files, weights_variant

AT_ONCE = 16
"""Prompts that are encoded together."""
LOADED = (*TEXT, SCHEDULER)
"""The components of a pipeline that are loaded: some pipelines are not built without a scheduler."""


class TextEncoders(nn.Module):
    """The text encoders of a model folder, with their tokenizers: prompts to conditions, as its pipeline makes them.

    Of the pipeline nothing else is loaded but its scheduler. The encoders are float32, whatever their files have.
    Prompts are always encoded `AT_ONCE` together, with empty ones in the places of those that are lacking, so that no
    bit of a row depends on how many prompts there are.

    Args:
        path: the model folder, `bundled:NAME`, or `org/name` in the hub's local cache.

    Raises:
        FileNotFoundError: there is no such folder, or it lacks files of a text encoder.
        ValueError: the folder has no text encoders, or they do not fit its network.
        ModuleNotFoundError: transformers, which encodes texts, is not installed.
    """

    def __init__(self, path: str) -> None:
        super().__init__()
        files = find_files(path)
        config, family = network_config(files)
        needs = family.needs(complete_config(config, family.network_class))
        if "embeddings" not in needs:
            raise ValueError(
                f"expected a network that reads prompts in {files.network.config.parent}, got one without; set "
                "condition=labels or none"
            )
        text_files(files)
        self._pipeline = _pipeline(files)
        self._shared = {"ids": _time_ids(files)} if "ids" in needs else {}
        self._names = ("embeddings", "mask" if "mask" in needs else "pooled")
        networks = {name: getattr(self._pipeline, name, None) for name in TEXT}
        # What moves or lends this module so does it with the networks that the pipeline asks.
        self.networks = nn.ModuleDict({name: part for name, part in networks.items() if isinstance(part, nn.Module)})

    def blocks(self) -> list[nn.Module]:
        """The blocks of the encoders, see `text_block`."""
        return [module for name, module in self.named_modules() if text_block(name) == name]

    def rows(self, prompts: Sequence[str], device: torch.device | str = "cpu") -> Condition:
        """The conditions of at most `AT_ONCE` prompts, a row for each, on the CPU.

        Args:
            prompts: texts.
            device: where the encoders are.
        """
        return self._condition(self._asked(_filled(prompts), None, device)[0], len(prompts))

    def rows_and_negative(
        self, prompts: Sequence[str], negative: str, device: torch.device | str = "cpu"
    ) -> tuple[Condition, Condition]:
        """The same, and the condition of the text to guide away from, of one row.

        An empty text is none, for which some pipelines have zeros.
        """
        positive, none = self._asked(_filled(prompts), negative, device)
        # Pipelines that never guide by two forwards know no negative prompts.
        none = none or self._asked([negative], None, device)[0]
        return self._condition(positive, len(prompts)), self._condition(none, 1)

    @torch.no_grad()
    def _asked(
        self, prompts: Sequence[str], negative: str | None, device: torch.device | str
    ) -> tuple[Sequence[Tensor], Sequence[Tensor]]:
        """The tensors of some prompts, and those of as many negative ones where there is one."""
        pipeline = self._pipeline
        zeros = not negative and "force_zeros_for_empty_prompt" in pipeline.config
        options = {
            "device": torch.device(device),
            "num_images_per_prompt": 1,
            "do_classifier_free_guidance": negative is not None,
            "negative_prompt": None if zeros or negative is None else [negative] * len(prompts),
            "prompt_2": None,
            "prompt_3": None,
        }
        parameters = inspect.signature(pipeline.encode_prompt).parameters
        call = inspect.signature(type(pipeline).__call__).parameters
        # As when the pipeline itself encodes: some defaults of the call are others than those of encode_prompt.
        usual = {name: call[name].default for name in ("clean_caption", "complex_human_instruction") if name in call}
        arguments = {name: value for name, value in (options | usual).items() if name in parameters}
        results = pipeline.encode_prompt(list(prompts), **arguments)
        if "do_classifier_free_guidance" not in parameters:
            return results[:2], ()
        return (results[:2], results[2:]) if "mask" in self._names else (results[::2], results[1::2])

    def _condition(self, tensors: Sequence[Tensor], rows: int) -> Condition:
        """The condition of the first rows of tensors, with those that all rows share."""
        # Not strict: pipelines without pooled embeddings return fewer.
        named = {name: tensor[:rows].cpu() for name, tensor in zip(self._names, tensors, strict=False)}
        shared = {name: tensor.expand(rows, *tensor.shape[1:]) for name, tensor in self._shared.items()}
        return Condition(**named, **shared)


def _filled(prompts: Sequence[str]) -> list[str]:
    """The prompts, and empty ones behind them up to `AT_ONCE`."""
    return [*prompts, *[""] * (AT_ONCE - len(prompts))]


def _pipeline(files: ModelFiles) -> Any:  # noqa: ANN401
    """The pipeline of a folder with its text encoders and tokenizers alone.

    Raises:
        ValueError: the pipeline is of no class of diffusers that encodes prompts, or a component that is loaded is of
            another library than transformers, or diffusers for the scheduler.
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
    listed = {name: entry for name, entry in read_json(folder / PIPELINE).items() if isinstance(entry, list)}
    for name in (name for name in LOADED if name in files.index.components):
        # Other libraries would be imported by the name that the folder gives.
        library = LIBRARY if name in TEXT else diffusers.__name__
        if listed[name][0] != library:
            raise ValueError(
                f"expected the {name} of {folder} to be of {library}, got one of {listed[name][0]}; give a folder "
                "that names no other library"
            )
    others: dict[str, bool | None] = {name: None for name in listed if name not in LOADED}
    if "requires_safety_checker" in inspect.signature(pipeline).parameters:
        others["requires_safety_checker"] = False
    # transformers would load in the type of the files, half precision for many folders.
    options = {"use_safetensors": True, "local_files_only": True, "torch_dtype": torch.float32}
    with _without_bars(), warnings.catch_warnings():
        # Later versions of diffusers call it dtype, a name that earlier ones do not know.
        warnings.filterwarnings("ignore", message=".*torch_dtype.* is deprecated", category=FutureWarning)
        return pipeline.from_pretrained(folder, variant=weights_variant(folder / "text_encoder"), **others, **options)


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


def _time_ids(files: ModelFiles) -> Tensor:
    """The time ids of an image of the network's own size that is not cropped, (1, 6)."""
    height, width = (decoder_factor(files) * side for side in state_shape(files)[1:])
    return torch.tensor([[height, width, 0, 0, height, width]], dtype=torch.float32)
