"""No correction: the quantized network as it is."""

from collections.abc import Sequence

from torch import Tensor

from ptq_diffusion.correction.correction import Correction, FittedCorrection, StepReport
from ptq_diffusion.correction.ptqd import PTQD
from ptq_diffusion.correction.statistics import NoiseStatistics
from ptq_diffusion.sampler.step import Step


class NoCorrection(Correction):
    """m~ = q and sigma' = sigma. Its report still shows what PTQD would find with all its terms off."""

    def fit(self, statistics: NoiseStatistics, steps: Sequence[Step]) -> "FittedNoCorrection":
        terms_off = PTQD(
            correlated=False, bias="off", variance="off", centre="channel", k_clamp=False, direction="original"
        )
        return FittedNoCorrection(steps, terms_off.fit(statistics, steps).report())


class FittedNoCorrection(FittedCorrection):
    """The identity."""

    def __init__(self, steps: Sequence[Step], report: Sequence[StepReport]) -> None:
        self._steps, self._report = steps, report

    def steps(self) -> Sequence[Step]:
        return self._steps

    def output(self, q: Tensor, x_t: Tensor, step: Step) -> Tensor:  # noqa: ARG002
        return q

    def sigma(self, step: Step) -> float:
        return step.sigma

    def report(self) -> Sequence[StepReport]:
        return self._report
