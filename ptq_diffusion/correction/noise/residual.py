"""Residual noise after a step's repairs, and the sampler variance that absorbs it."""

from collections.abc import Sequence
from dataclasses import dataclass

from ptq_diffusion.sampler.step import Step
from ptq_diffusion.sampler.table import Table


@dataclass(frozen=True)
class Residual:
    """sigma'^2 = max(sigma^2 - absorbed b^2 variance, 0), with b the step's gain.

    It belongs to a network at a time, and sigma' to a table: on another one sigma' is computed anew from it. A learned
    variance loses as much at every pixel, and is 0 where it is less.

    Args:
        variance: the variance of m~ - m, as noise.
        absorbed: the share of it that sigma' makes room for: 1 of PTQD, 0 where sigma stays, -1 where sigma' holds a
            sample of it as well, as the stochastic D2-DPM has it.
        slope: the regression of m on x_t, by which the output answers an error of the state.
    """

    variance: float
    absorbed: float
    slope: float = 0.0

    def sigma(self, step: Step) -> float:
        """The noise scale sigma' of a step."""
        if self.absorbed == 0:
            return step.sigma
        return max(step.sigma**2 - self.taken(step), 0.0) ** 0.5

    def taken(self, step: Step) -> float:
        """The variance that sigma'^2 leaves out of sigma^2, or of a learned variance."""
        return self.absorbed * step.gain**2 * self.variance

    def budget(self, step: Step) -> float | None:
        """The share of sigma^2 that it takes, above 1 where sigma^2 is too small; None where no noise is added."""
        return step.gain**2 * self.variance / step.sigma**2 if step.sigma > 0 else None

    def lerp(self, other: "Residual", weight: float) -> "Residual":
        """The residual between this one, at weight 0, and the other, at 1."""
        return Residual(
            (1 - weight) * self.variance + weight * other.variance,
            (1 - weight) * self.absorbed + weight * other.absorbed,
            (1 - weight) * self.slope + weight * other.slope,
        )


def multistep_errors(residuals: Sequence[Residual], steps: Table) -> list[float]:
    """The variance that residuals leave in the next states of a sampler that reads earlier predictions of x_0.

    With c the coefficient of the prediction of x_0 one step before, p the coefficient of the output in it, b_1 and v_1
    the gain and the variance one step before, and J = a + b slope the derivative of the next state by this one, it is
    b^2 v + 2 J c b_1 p v_1 + c^2 p^2 v_1: x_t has the right variance, made up by the sigma' before, but its error and
    that of the prediction are one, so that the sum may be negative. Residuals of two steps count as uncorrelated.

    Args:
        residuals: of every step.
        steps: the table, whose steps read one earlier prediction at most.
    """
    errors = []
    for step, residual in zip(steps, residuals, strict=True):
        again = 0.0
        if any(step.c_0[1:]):
            before, follows = steps[step.i - 1], step.carry + step.gain * residual.slope
            error = step.c_0[1] * before.p_m
            again = (2 * follows * before.gain * error + error**2) * residuals[step.i - 1].variance
        errors.append(step.gain**2 * residual.variance + again)
    return errors
