"""The shape of a run's files, as far as a sweep's table reads them: a damaged file is refused, a newer one is read."""

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, FiniteFloat, NonNegativeInt, PositiveInt, ValidationError

Name = Annotated[str, Field(max_length=1000)]
Distance = Annotated[float, Field(ge=0, allow_inf_nan=False)]


class Part(BaseModel):
    """A part of a file, which may hold more than is read."""

    model_config = ConfigDict(extra="allow", strict=True)


class Row(Part):
    """The numbers of a variant."""

    fid: Distance
    fid_se: Distance
    fid_to_fp: Distance
    psnr_to_fp: FiniteFloat | None = None
    images: PositiveInt
    seeds: Annotated[list[NonNegativeInt], Field(min_length=1)]
    bops_per_image: Distance
    weight_bytes: Distance


class Pair(Part):
    """The difference of two variants in a metric."""

    a: Name
    b: Name
    metric: Name
    difference: FiniteFloat
    standard_error: Distance
    seed_spread: Distance | None


class Protocol(Part):
    """The protocol that numbers hold for."""

    metric: Name
    against: Name


class Report(Part):
    """report.json."""

    rows: Annotated[list[Row], Field(min_length=3, max_length=3)]
    paired: list[Pair]
    protocol: Protocol
    protocol_id: Name
    signatures: dict[str, Name]
    higher_is_better: list[Name] | None = None


class Failure(Part):
    """failure.json."""

    error: Name
    message: str
    config: dict[str, Any]


class Labels(Part):
    """Names of choices."""

    correction: Name
    bitwidth: Name


class Config(Part):
    """The configuration of a run whose goal was a report."""

    goal: Literal["report"]
    labels: Labels


def require_shape(kind: type[Part], content: object) -> None:
    """Refuse the content of a file that lacks what is read, or has it in another type.

    Raises:
        ValueError: the message says which place and what is expected there.
    """
    try:
        kind.model_validate(content)
    except ValidationError as error:
        first = error.errors()[0]
        place = ".".join(str(step) for step in first["loc"]) or kind.__name__
        raise ValueError(f"{place}: {first['msg']}, got {first['input']!r:.60}") from None
    if isinstance(content, dict) and kind is Report:
        asked = ("quantized", "corrected", "fid")
        count = sum((pair["a"], pair["b"], pair["metric"]) == asked for pair in content["paired"])
        if count != 1:
            raise ValueError(f"paired: expected one difference of quantized and corrected in fid, got {count}")
