"""Measurement of a step on the images with m: the noise before and after its repairs, and the report."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import reduce
from typing import Literal

import torch

from ptq_diffusion.correction.evidence import PairedBatch
from ptq_diffusion.correction.fitted import StepCorrection
from ptq_diffusion.correction.noise.moments import StepMoments
from ptq_diffusion.correction.noise.residual import Residual
from ptq_diffusion.correction.repair.repair import Repair
from ptq_diffusion.correction.step_report import StepReport
from ptq_diffusion.numeric.moments import Moments
from ptq_diffusion.sampler.step import Step

Variance = Literal["original", "rule"]
"""sigma' = sigma, or sigma'^2 = max(sigma^2 - [Var F(m~) - Var F(m)], 0) with F the step's mean."""


@dataclass(frozen=True)
class StepMeasurement:
    """Noise of a step before and after its repairs.

    Args:
        step: the row.
        repairs: those of the step.
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
    def of(cls, batches: Sequence[PairedBatch], repairs: tuple[Repair, ...], step: Step) -> "StepMeasurement":
        """Measure the repairs on the images of a step."""
        before, after, means = [], [], []
        for batch in batches:
            m = batch.repaired(repairs)
            before.append(StepMoments.of(batch.m, batch.q, batch.x_t))
            after.append(StepMoments.of(batch.m, m, batch.x_t))
            pair = torch.cat([step.mean(batch.x_t, own, batch.past) for own in (batch.m, m)], dim=1)
            means.append(Moments.of(pair.permute(0, 2, 3, 1).flatten(0, 2)))
        variances = reduce(Moments.merge, means).covariance.diagonal()
        float_variance, repaired_variance = variances.chunk(2)
        spread = float(repaired_variance.mean() - float_variance.mean())
        return cls(step, repairs, reduce(StepMoments.merge, before), reduce(StepMoments.merge, after), spread)

    def sigma(self, variance: Variance) -> float:
        """sigma' by the variance rule or as it is; 0 stays 0, so that a deterministic sampler stays one."""
        if variance == "original" or self.step.sigma == 0:
            return self.step.sigma
        return max(self.step.sigma**2 - self.spread, 0.0) ** 0.5

    def correction(self, sigma: float) -> StepCorrection:
        """The repairs with their report; another sigma' than the step's own belongs to its table alone."""
        residual = Residual(self.after.pooled()[0], absorbed=0)
        report = self._report(sigma, residual)
        return StepCorrection(self.repairs, sigma, report, residual=residual if sigma == self.step.sigma else None)

    def _report(self, sigma: float, residual: Residual) -> StepReport:
        k = self.before.k
        bias = self.before.mean_noise - k * self.before.mean_m
        budget, unexplained = residual.budget(self.step), self.after.noise_power
        return StepReport.without_diagnostics(
            self.step, self.before, k, bias, residual.variance, unexplained, sigma, budget
        )


def require_variance(variance: Variance) -> None:
    """Refuse a rule of sigma' that does not exist.

    Raises:
        ValueError: the variance is none of the two.
    """
    if variance not in ("original", "rule"):
        raise ValueError(f"expected variance to be original or rule, got {variance!r}")


def require_known_noise(variance: Variance, steps: Sequence[Step]) -> None:
    """Refuse the variance rule on a table whose variance the network says.

    Raises:
        ValueError: it is learned, and the rule changes it.
    """
    if variance == "rule" and any(step.is_learned for step in steps):
        raise ValueError(
            "expected a noise scale of the table, which variance=rule changes, got a learned variance; set "
            "correction.variance=original or +sampler.scheduler.variance_type=fixed_small"
        )


def require_carried(variance: Variance, steps: Sequence[Step]) -> None:
    """Refuse a sigma' that belongs to a table where it is to be carried onto another.

    Raises:
        ValueError: the rule changes the sigma of a step.
    """
    if variance == "rule" and any(step.sigma > 0 for step in steps):
        raise ValueError(
            "expected a noise scale that another table can follow, got variance=rule; set "
            "correction.variance=original or noise.steps=null"
        )
