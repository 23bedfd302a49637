"""The shape of a run's files, as far as a sweep's table reads them: a damaged file is refused, a newer one is read."""

from typing import Any, Literal

from ptq_diffusion.stage.evaluation.schema import Evaluation, Name, Part


class Report(Evaluation):
    """report.json."""

    signatures: dict[str, Name]


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
