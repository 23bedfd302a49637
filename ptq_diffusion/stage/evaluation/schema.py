"""The shape of an evaluation's file, as far as it is read: a damaged file is refused, a newer one is read."""

from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field, FiniteFloat, NonNegativeInt, PositiveInt, ValidationError

Name = Annotated[str, Field(max_length=1000)]
Distance = Annotated[float, Field(ge=0, allow_inf_nan=False)]
Plain = bool | int | float | Name | None
"""A value that a cell of a table shows."""


class Part(BaseModel):
    """A part of a file, which may hold more than is read."""

    model_config = ConfigDict(extra="allow", strict=True)


class Cells(Part):
    """A part of a file that becomes a row of a table, whose further values are plain too."""

    __pydantic_extra__: dict[str, Plain]


class Row(Cells):
    """The numbers of a variant."""

    fid: Distance
    fid_se: Distance
    fid_to_fp: Distance
    psnr_to_fp: FiniteFloat | None = None
    images: PositiveInt
    seeds: Annotated[list[NonNegativeInt], Field(min_length=1)]
    bops_per_image: Distance
    bops_saving: Distance
    weight_bytes: Distance


class Pair(Cells):
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


class Evaluation(Part):
    """evaluation.json."""

    rows: Annotated[list[Row], Field(min_length=3, max_length=3)]
    paired: list[Pair]
    protocol: Protocol
    protocol_id: Name
    higher_is_better: list[Name] | None = None


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
    if isinstance(content, dict) and issubclass(kind, Evaluation):
        asked = ("quantized", "corrected", "fid")
        count = sum((pair["a"], pair["b"], pair["metric"]) == asked for pair in content["paired"])
        if count != 1:
            raise ValueError(f"paired: expected one difference of quantized and corrected in fid, got {count}")
