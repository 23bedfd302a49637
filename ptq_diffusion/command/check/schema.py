"""The schema of an experiment: its options that name no class, and their types."""

from collections.abc import Mapping, Sequence
from typing import Annotated, Any, Literal

from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException
from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    Field,
    FiniteFloat,
    NonNegativeInt,
    PositiveInt,
    ValidationError,
)
from pydantic_core import ErrorDetails

from ptq_diffusion.command.check.schema_message import NO_PART, schema_message
from ptq_diffusion.command.option_words import quoted
from ptq_diffusion.engine.factory import plain

FOLDER = r"[^/\\]*[^/\\.][^/\\]*"
"""A name of a folder: no slashes, and not only dots."""
PATHS = ("path", "folder", "outputs")
"""Names of the options that are paths."""
Count = Annotated[int, Field(gt=0, le=10**12)]
"""A number of images; whether they fit is asked of the machine."""
GuidanceScale = Annotated[FiniteFloat, Field(gt=-(2**24), lt=2**24)]
"""A scale of guidance; beyond 2^24 it makes the rounding of float32, of two outputs, larger than the outputs are."""
Part = Mapping[str, Any]
"""The content of a group's file; `construct` checks those that name a class."""


def _list_of_seeds(seeds: object) -> object:
    if not isinstance(seeds, list):
        raise ValueError(f"expected a list of seeds, such as seeds=[0,1,2], got seeds={seeds}")
    return seeds


def _list_of_plugins(names: object) -> object:
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        raise ValueError(f"expected a list of packages, such as plugins=[my_package], got plugins={names}")
    return names


class Options(BaseModel):
    """Options by name; another name or another type is refused, and nothing is converted."""

    model_config = ConfigDict(extra="forbid", strict=True)


class Samples(Options):
    """Samples of one seed."""

    images: Count
    seed: NonNegativeInt


class NoiseSamples(Samples):
    """Samples that the noise is measured on, how many steps they take, and their guidance scale."""

    steps: PositiveInt | None
    guidance: GuidanceScale | None


class FeatureSpace(Options):
    """The group `feature`."""

    extractor: Part


class Judging(Options):
    """Settings that all metrics share."""

    replicates: Annotated[int, Field(le=1_000_000)]
    neighbours: int
    seed: int


class Guidance(Options):
    """Classifier-free guidance."""

    scale: GuidanceScale
    interval: Annotated[Sequence[FiniteFloat], Field(min_length=2, max_length=2)]
    embedded: GuidanceScale | None


class ConditionOptions(Options):
    """The group `condition`."""

    source: Part | None
    guidance: Guidance
    negative_prompt: str = ""


class MeasuredImages(Options):
    """The images that sensitivities or the drift of states are measured on."""

    images: Count


class SensitivitySamples(MeasuredImages):
    """The images that sensitivities are measured on, their distance of x_0, and how damages of steps count."""

    distance: Literal["mahalanobis", "euclidean"]
    steps: Literal["correlated", "independent"]
    first_step: Annotated[float, Field(gt=0, le=1)]


class ComparedImages(Options):
    """The images that layers are compared on, if any."""

    images: Annotated[int, Field(ge=0, le=10**12)]


class StepSignalOptions(Options):
    """The options of the signal to noise of each offer of bits."""

    shown: bool


class Running(Options):
    """Options that change no number."""

    accelerator: str
    devices: PositiveInt
    offload: str
    progress: bool


class Onnx(Options):
    """Options of the graphs that goal=onnx writes."""

    opset: int
    fold_time: bool
    int4: bool


class Beginning(Options):
    """The saved model that a training begins from."""

    path: str | None


class Training(Options):
    """Options that every training has, and those of single kinds of training, `check.training.OWN_OPTIONS`."""

    seed: NonNegativeInt
    steps: PositiveInt
    batch_size: PositiveInt
    warmup: PositiveInt
    cooldown: PositiveInt
    precision: str
    checkpoint_every: PositiveInt
    network: Part
    optimizer: Part
    init_from: Beginning = Beginning(path=None)
    scheduler: Part = {}
    objective: Part = {}
    augmentation: Part = {}
    ema_decay: FiniteFloat = 0.0
    mirrored: bool = False
    unlabelled_share: FiniteFloat = 0.0
    edge_weight: FiniteFloat = 0.0
    kl_weight: FiniteFloat = 0.0
    label_smoothing: FiniteFloat = 0.0


class Experiment(Options):
    """The whole configuration."""

    goal: str
    name: Annotated[str, Field(pattern=rf"^{FOLDER}(/{FOLDER})*$", max_length=200)]
    labels: Mapping[str, str | None]
    images: Count
    seeds: Annotated[Any, AfterValidator(_list_of_seeds)]
    micro_batch: Count
    calibration: Samples
    noise: NoiseSamples
    sensitivity: SensitivitySamples
    trial: Samples
    drift: MeasuredImages
    layers: ComparedImages
    step_signal: StepSignalOptions
    outputs: Annotated[str, Field(min_length=1)]
    force: bool | str
    runtime: Running
    plugins: Annotated[Any, AfterValidator(_list_of_plugins)] = ()
    model: Part
    condition: ConditionOptions
    sampler: Part
    quantizer: Mapping[str, Part]
    bitwidth: Part
    rounding: Part
    activation_scales: Part
    calibration_set: Part
    backend: Part
    correction: Part
    feature: FeatureSpace
    metric: Mapping[str, Part]
    judging: Judging
    reference: Part
    onnx: Onnx
    logger: Part
    data: Part | None = None
    test_data: Part | None = None
    training: Training | None = None
    autoencoder: Training | None = None


def require_schema(cfg: DictConfig) -> None:
    """Refuse options that do not exist or are of another type.

    Raises:
        ValueError: an option is missing, unknown or of another type; the message names it. Interpolations to nothing
            and options without a value (`???`) are omegaconf's errors.
    """
    required = {name for name, field in Experiment.model_fields.items() if field.is_required()}
    if removed := sorted(required - set(cfg.keys())):
        raise ValueError(f"expected the option {removed[0]}, got none; leave out what removes or replaces it")
    try:
        _require_values(cfg)
        options = plain(cfg)
    except OmegaConfBaseException:
        # A value in the place of a part breaks what refers to the part's options.
        raw = OmegaConf.to_container(cfg, resolve=False)
        if replaced := [
            error for error in _errors(raw) if error["type"] in NO_PART and "${" not in str(error["input"])
        ]:
            raise ValueError(schema_message(replaced[0], Experiment)) from None
        raise
    if errors := _errors(options):
        raise ValueError(schema_message(errors[0], Experiment))
    _require_full_paths(options, "")


def _require_values(cfg: DictConfig) -> None:
    if missing := sorted(OmegaConf.missing_keys(cfg)):
        raise ValueError(
            f"expected a value of {', '.join(missing)}, which {'has' if len(missing) == 1 else 'have'} none; "
            f"give {' '.join(f'{key}=VALUE' for key in missing)}"
        )


def _errors(options: object) -> list[ErrorDetails]:
    """The errors of pydantic in options, none of those that fit."""
    try:
        Experiment.model_validate(options)
    except ValidationError as error:
        return error.errors()
    return []


def _require_full_paths(node: Mapping[str, Any], prefix: str) -> None:
    """Refuse a ~ that the shell has left, in a path: it would be the name of a folder here."""
    for key, value in node.items():
        if isinstance(value, Mapping):
            _require_full_paths(value, f"{prefix}{key}.")
        elif key in PATHS and isinstance(value, str) and value.startswith("~"):
            raise ValueError(
                f"expected {prefix}{key} to be a path in full, got {value}, whose ~ the shell leaves; write "
                f"{quoted(f'{prefix}{key}={value}')}"
            )
