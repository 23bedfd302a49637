"""The contract of a correction."""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor

from ptq_diffusion.correction.statistics import NoiseStatistics
from ptq_diffusion.sampler.step import Step


@dataclass(frozen=True)
class StepReport:
    """What a correction found at one step.

    Args:
        t: the time.
        k: the correlation coefficient in use.
        bias: the root mean square over channels of the bias in use.
        variance: v, the residual's variance.
        sigma: the noise scale of the step's table.
        sigma_used: sigma', what is left of it to add.
        r2: 1 - E|residual|^2 / E|D|^2, the share of the noise that the correction explains.
        budget: the share of sigma^2 that the residual takes, above 1 where sigma^2 cannot absorb it; None where the
            sampler adds no noise.
        snr_q: signal-to-noise ratio of the quantized output.
        snr_f: of the forward process.
    """

    t: float
    k: float
    bias: float
    variance: float
    sigma: float
    sigma_used: float
    r2: float
    budget: float | None
    snr_q: float
    snr_f: float


class Correction(ABC):
    """A method of repair, before it has seen noise."""

    def check(self, steps: Sequence[Step]) -> None:  # noqa: ARG002, B027
        """Refuse a table that this method cannot correct, before anything is measured; by default none is refused.

        Raises:
            ValueError: the table's sampler lacks what the method needs.
        """

    @abstractmethod
    def fit(self, statistics: NoiseStatistics, steps: Sequence[Step]) -> "FittedCorrection":
        """Turn statistics of every step of a table into a correction of that table.

        Raises:
            ValueError: the statistics do not cover the table, or are degenerate.
        """


class FittedCorrection(ABC):
    """A repair of the output and of the noise scale at every step."""

    @abstractmethod
    def steps(self) -> Sequence[Step]:
        """The table to sample with."""

    @abstractmethod
    def output(self, q: Tensor, x_t: Tensor, step: Step) -> Tensor:
        """m~, the estimate of the float output from the quantized one, (B, C, H, W)."""

    @abstractmethod
    def sigma(self, step: Step) -> float:
        """sigma', the standard deviation of the noise to add."""

    @abstractmethod
    def report(self) -> Sequence[StepReport]:
        """What was found, one entry for each step."""
