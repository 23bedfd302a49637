"""Checks of the arguments of `pd.compose`, `pd.run`, `pd.quantize` and `pd.load_*`, before anything is computed."""

from collections.abc import Mapping, Sequence
from numbers import Integral
from os import PathLike
from pathlib import Path

from diffusers import DiffusionPipeline
from omegaconf import DictConfig

from ptq_diffusion.correction.pipeline.pipeline_folder import PLACES
from ptq_diffusion.model.pipeline_index import DECODERS, TEXT

ARGUMENTS: Mapping[str, str] = {
    "bitwidth": "bitwidth",
    "correction": "correction",
    "sampler": "sampler",
    "sampler.steps": "steps",
    "calibration.images": "calibration_images",
    "noise.images": "fit_images",
}
"""The arguments of `quantize` that stand for options."""
OF_PIPELINE = ("model", "model.path", "model.dtype", "goal")
"""The options that the pipeline given to `quantize`, or what is made of it, decides."""


def require_overrides(words: Sequence[object]) -> None:
    """Refuse words of a command line that are no texts, by a TypeError, and those that are its own by a ValueError."""
    for word in words:
        if not isinstance(word, str):
            raise TypeError(f"expected words as on the command line, such as 'bitwidth=w4a4', got {word!r:.100}")
        if word.startswith("-"):
            raise ValueError(
                f"expected OPTION=VALUE, got {word!r}, which the command line alone has; a folder of configurations is "
                "'hydra.searchpath=[DIR]', a sweep is a loop"
            )


def require_composed(cfg: object) -> None:
    """Refuse what is no configuration, by a TypeError."""
    if not isinstance(cfg, DictConfig):
        raise TypeError(f"expected a configuration, got {type(cfg).__name__}; make it with pd.compose('bitwidth=w4a4')")


def require_path(folder: object) -> Path:
    """The path of a folder; what names none is refused by a TypeError."""
    if not isinstance(folder, str | PathLike):
        raise TypeError(f"expected the path of a folder, as its goal printed it, got {folder!r:.100}")
    return Path(folder)


def require_list(names: object, argument: str) -> None:
    """Refuse a text in place of a list of names, whose letters would be taken for names, by a TypeError."""
    if isinstance(names, str):
        raise TypeError(f"expected a list of names as {argument}, got the text {names!r}; write {argument}=[{names!r}]")


def require_arguments(pipeline: object, overrides: Sequence[str], counts: Mapping[str, int]) -> None:
    """Refuse what is no pipeline, overrides of what an argument or the pipeline says, and numbers that are none.

    Args:
        pipeline: of diffusers.
        overrides: words of a command line.
        counts: the seed, and numbers of images and steps, by argument.

    Raises:
        TypeError: it is no pipeline, a word is no text, or a number is no whole one.
        ValueError: its class is not exported, there is such an override, a word is none, or a number is too small.
    """
    if not isinstance(pipeline, DiffusionPipeline):
        raise TypeError(
            f"expected a pipeline of diffusers, got {pipeline!r:.100} of {type(pipeline).__name__}; give that of "
            "DiffusionPipeline.from_pretrained(FOLDER)"
        )
    _require_exported(pipeline)
    require_overrides(overrides)
    for word in overrides:
        key = word.lstrip("+~/").partition("=")[0]
        if key in ARGUMENTS:
            raise ValueError(f"expected the argument {ARGUMENTS[key]} of quantize, got {word!r}; give it as that")
        if key in OF_PIPELINE:
            raise ValueError(
                f"expected options beside those of the pipeline and of goal=export, got {word!r}; leave it out, or run "
                "pd.make(pd.compose(...)) on a folder"
            )
    for name, count in counts.items():
        if not isinstance(count, Integral) or isinstance(count, bool):
            raise TypeError(f"expected a whole number of {name}, got {count!r}")
        if count < (least := 0 if name == "seed" else 1):
            raise ValueError(f"expected {name} of at least {least}, got {count}")


def _require_exported(pipeline: DiffusionPipeline) -> None:
    """Refuse a pipeline that `goal=export` would refuse once its folder is written.

    Raises:
        ValueError: it reads more than a state and is of no class that is exported.
    """
    name = type(pipeline).__name__
    if name not in PLACES and any(pipeline.components.get(part) is not None for part in (*DECODERS, *TEXT)):
        raise ValueError(
            f"expected a pipeline of {', '.join(PLACES)}, or an unconditional one of pixels, got a {name}; give one "
            "of the same parts, such as StableDiffusionPipeline.from_pipe(pipeline), or draw the images of its folder "
            "with goal=samples_corrected"
        )
