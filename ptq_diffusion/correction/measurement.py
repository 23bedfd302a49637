"""What is reported of a step, measured on the images whose float output is known."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import reduce

import torch

from ptq_diffusion.correction.contract import AskedBatch
from ptq_diffusion.correction.fitted import StepCorrection
from ptq_diffusion.correction.noise.moments import StepMoments
from ptq_diffusion.correction.noise.residual import Residual
from ptq_diffusion.correction.repair.repair import Repair
from ptq_diffusion.correction.step_report import StepReport
from ptq_diffusion.numeric.moments import Moments
from ptq_diffusion.sampler.step import Step


@dataclass(frozen=True)
class StepMeasurement:
    """The noise of a step before and after its repairs.

    Args:
        step: the row.
        repairs: what was done.
        before: moments of m, q - m and x_t.
        after: moments of m, m~ - m and x_t.
        spread: Var F(m~) - Var F(m) with F the step's mean, averaged over channels.
    """

    step: Step
    repairs: tuple[Repair, ...]
    before: StepMoments
    after: StepMoments
    spread: float

    @classmethod
    def of(cls, batches: Sequence[AskedBatch], repairs: tuple[Repair, ...], step: Step) -> "StepMeasurement":
        """Measure the repairs on the images of a step."""
        before, after, means = [], [], []
        for batch in batches:
            m = batch.repaired(repairs)
            before.append(StepMoments.of(batch.m, batch.q, batch.x_t))
            after.append(StepMoments.of(batch.m, m, batch.x_t))
            pair = torch.cat([step.mean(batch.x_t, batch.m), step.mean(batch.x_t, m)], dim=1)
            means.append(Moments.of(pair.permute(0, 2, 3, 1).flatten(0, 2)))
        variances = reduce(Moments.merge, means).covariance.diagonal()
        of_float, of_repaired = variances.chunk(2)
        spread = float(of_repaired.mean() - of_float.mean())
        return cls(step, repairs, reduce(StepMoments.merge, before), reduce(StepMoments.merge, after), spread)

    def matched_sigma(self) -> float:
        """sigma' of the variance rule; 0 stays 0, so that a deterministic sampler stays one."""
        if self.step.sigma == 0:
            return 0.0
        return max(self.step.sigma**2 - self.spread, 0.0) ** 0.5

    def correction(self, sigma: float) -> StepCorrection:
        """The repairs with their report; another sigma' than the step's own belongs to its table alone."""
        residual = Residual(self.after.pooled()[0], absorbed=0)
        report = self._report(sigma, residual)
        return StepCorrection(self.repairs, sigma, report, residual=residual if sigma == self.step.sigma else None)

    def _report(self, sigma: float, residual: Residual) -> StepReport:
        _, across, of_m = self.before.pooled()
        k = across / of_m if of_m > 0 else 0.0
        left, power = self.after.noise_power, self.before.noise_power
        return StepReport(
            t=self.step.t,
            k=k,
            bias=float((self.before.mean_noise - k * self.before.mean_m).square().mean().sqrt()),
            variance=residual.variance,
            sigma=self.step.sigma,
            sigma_used=sigma,
            r2=1 - left / power if power > 0 else 1.0,
            budget=residual.budget(self.step),
            snr_q=self.before.snr,
            snr_f=self.step.snr,
        )
