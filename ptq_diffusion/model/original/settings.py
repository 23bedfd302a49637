"""Settings of an original latent-diffusion checkpoint: its YAML, or the same as a short JSON."""

import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from omegaconf import OmegaConf
from yaml import YAMLError

FirstStage = Literal["kl", "vq"]


@dataclass(frozen=True)
class UNetSettings:
    """The options of the original `UNetModel` that its layout follows from.

    Args:
        image_size: pixels of a side of the latents.
        in_channels: of the latents.
        out_channels: of the output.
        model_channels: of the first level.
        num_res_blocks: of every level on the way down; the way up has one more.
        channel_mult: channels of every level over `model_channels`.
        attention_resolutions: downsampling factors at which there is attention.
        num_heads: of attention; -1 where `num_head_channels` says it.
        num_head_channels: channels of a head; -1 where `num_heads` says it.
        use_spatial_transformer: whether attention is a transformer that looks at a context.
        transformer_depth: blocks of a transformer.
        context_dim: channels of the context; None where there is none.
        use_scale_shift_norm: whether time scales and shifts the second norm, not only shifts its input.
        resblock_updown: whether residual blocks change the size, not a convolution.
    """

    image_size: int
    in_channels: int
    out_channels: int
    model_channels: int
    num_res_blocks: int
    channel_mult: tuple[int, ...]
    attention_resolutions: tuple[int, ...]
    num_heads: int = -1
    num_head_channels: int = -1
    use_spatial_transformer: bool = False
    transformer_depth: int = 1
    context_dim: int | None = None
    use_scale_shift_norm: bool = False
    resblock_updown: bool = False

    @property
    def channels(self) -> tuple[int, ...]:
        """Channels of every level."""
        return tuple(self.model_channels * factor for factor in self.channel_mult)

    def attends(self, level: int) -> bool:
        """Whether a level has attention."""
        return 2**level in self.attention_resolutions

    def heads(self, channels: int) -> int:
        """Heads of attention over so many channels."""
        return self.num_heads if self.num_head_channels == -1 else channels // self.num_head_channels


@dataclass(frozen=True)
class Settings:
    """All settings that a conversion needs.

    Args:
        unet: of the network.
        first_stage: a KL or a VQ autoencoder.
        linear_start: the first beta of the schedule, linear in its square root.
        linear_end: the last beta.
        classes: rows of the class embedding, the last of which is "no class"; None for an unconditional network.
        prediction: of the network, in diffusers' words.
        scale_factor: of latents; None where the checkpoint says it or it is 1.
        timesteps: of the schedule.
    """

    unet: UNetSettings
    first_stage: FirstStage
    linear_start: float
    linear_end: float
    classes: int | None
    prediction: str = "epsilon"
    scale_factor: float | None = None
    timesteps: int = 1000


IGNORED = ("dropout", "use_checkpoint", "use_fp16", "legacy", "conv_resample", "dims")
"""Options of the original network that do not change what a trained one computes."""
PREDICTIONS = {"eps": "epsilon", "v": "v_prediction", "x0": "sample"}
"""The predictions of networks in diffusers' words, by the original `parameterization`."""
SCHEDULE, CLASS_STAGE = "linear", "ClassEmbedder"
"""The one original schedule of betas and the one stage of conditions that are converted."""


def read_settings(path: Path) -> Settings:
    """The settings in a file.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is none, or says what this conversion does not know.
    """
    if not path.is_file():
        raise FileNotFoundError(
            f"expected the configuration of the checkpoint at {path}, found no file; check the path"
        )
    with _another_file(path):
        text = path.read_text(encoding="utf-8")
        content: Any = json.loads(text) if path.suffix == ".json" else OmegaConf.to_container(OmegaConf.create(text))
        original = "model" in content
        params = dict(content["model"]["params"] if original else content)
    _require_converted(params, path)
    with _another_file(path):
        return _of_yaml(params) if original else _of_json(params)


@contextmanager
def _another_file(path: Path) -> Iterator[None]:
    """Within this context errors are those of a file of another kind."""
    try:
        yield
    except (ValueError, KeyError, TypeError, AttributeError, YAMLError, RecursionError) as error:
        raise ValueError(
            f"expected the YAML of the original latent-diffusion code, or its unet, first_stage and betas as JSON, in "
            f"{path}, got another file ({type(error).__name__}: {' '.join(str(error).split())[:200]})"
        ) from error


def _require_converted(params: Mapping[str, Any], path: Path) -> None:
    """Refuse a model of another kind than is converted.

    Raises:
        ValueError: its prediction is unknown, its schedule is another, or its condition is none of classes.
    """
    prediction, schedule = params.get("parameterization", "eps"), params.get("beta_schedule", SCHEDULE)
    if prediction not in PREDICTIONS:
        raise ValueError(f"expected parameterization of {', '.join(PREDICTIONS)} in {path}, got {prediction!r}")
    if schedule != SCHEDULE:
        raise ValueError(
            f"expected beta_schedule={SCHEDULE} in {path}, linear in the square root of beta, got {schedule!r}, which "
            "is not converted; save the model with diffusers yourself"
        )
    condition = params.get("cond_stage_config")
    kind = str(condition.get("target")).rpartition(".")[2] if isinstance(condition, Mapping) else CLASS_STAGE
    if kind != CLASS_STAGE:
        raise ValueError(
            f"expected a model of classes or without a condition, got cond_stage_config of {kind} in {path}; convert a "
            "text model with diffusers' StableDiffusionPipeline.from_single_file(CHECKPOINT).save_pretrained(FOLDER)"
        )


def _of_json(content: Mapping[str, Any]) -> Settings:
    return Settings(
        _unet(content["unet"]),
        content["first_stage"]["kind"],
        content["linear_start"],
        content["linear_end"],
        content["classes"],
        PREDICTIONS[content.get("parameterization", "eps")],
        content.get("scale_factor"),
        content.get("timesteps", 1000),
    )


def _of_yaml(params: Mapping[str, Any]) -> Settings:
    condition = params.get("cond_stage_config")
    classes = condition["params"].get("n_classes", 1000) if isinstance(condition, Mapping) else None
    kind: FirstStage = "vq" if "VQ" in params["first_stage_config"]["target"] else "kl"
    return Settings(
        _unet(params["unet_config"]["params"]),
        kind,
        params["linear_start"],
        params["linear_end"],
        classes,
        PREDICTIONS[params.get("parameterization", "eps")],
        params.get("scale_factor"),
        params.get("timesteps", 1000),
    )


def _unet(options: Mapping[str, Any]) -> UNetSettings:
    values: dict[str, Any] = {
        name: tuple(value) if isinstance(value, list) else value for name, value in options.items()
    }
    return UNetSettings(**{name: value for name, value in values.items() if name not in IGNORED})
