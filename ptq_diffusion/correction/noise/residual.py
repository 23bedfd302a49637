"""Residual noise after a step's repairs, and the sampler variance that absorbs it."""

from dataclasses import dataclass

from ptq_diffusion.sampler.step import Step


@dataclass(frozen=True)
class Residual:
    """sigma'^2 = max(sigma^2 - absorbed b^2 variance, 0), with b the step's gain.

    It belongs to a network at a time, and sigma' to a table: on another one sigma' is computed anew from it.

    Args:
        variance: the variance of m~ - m, as noise.
        absorbed: the share of it that sigma' makes room for: 1 of PTQD, 0 where sigma stays, -1 where sigma' holds a
            sample of it as well, as the stochastic D2-DPM has it.
    """

    variance: float
    absorbed: float

    def sigma(self, step: Step) -> float:
        """The noise scale sigma' of a step."""
        if self.absorbed == 0:
            return step.sigma
        return max(step.sigma**2 - self.absorbed * step.gain**2 * self.variance, 0.0) ** 0.5

    def budget(self, step: Step) -> float | None:
        """The share of sigma^2 that it takes, above 1 where sigma^2 is too small; None where no noise is added."""
        return step.gain**2 * self.variance / step.sigma**2 if step.sigma > 0 else None

    def lerp(self, other: "Residual", weight: float) -> "Residual":
        """The residual between this one, at weight 0, and the other, at 1."""
        return Residual(
            (1 - weight) * self.variance + weight * other.variance,
            (1 - weight) * self.absorbed + weight * other.absorbed,
        )
