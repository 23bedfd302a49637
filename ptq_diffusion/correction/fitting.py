"""A correction fitted to the moments of all steps of a table."""

from collections.abc import Sequence

from ptq_diffusion.correction.contract import Correction
from ptq_diffusion.correction.evidence import MomentEvidence
from ptq_diffusion.correction.fitted import FittedCorrection
from ptq_diffusion.correction.noise.moments import StepMoments
from ptq_diffusion.correction.noise.statistics import NoiseStatistics
from ptq_diffusion.sampler.table import Table


def fit_moments(correction: Correction[MomentEvidence], statistics: NoiseStatistics, steps: Table) -> FittedCorrection:
    """Fit a correction that reads moments to statistics of every step of a table.

    Raises:
        ValueError: the correction cannot serve the table, or the statistics do not cover it or are degenerate.
    """
    correction.check(steps)
    statistics.require_table(steps)
    halves: Sequence[StepMoments | None] = statistics.even or [None] * len(steps)
    rows = zip(statistics.steps, halves, steps, strict=True)
    corrections = [correction.fit_step(MomentEvidence(whole, even), step) for whole, even, step in rows]
    return correction.assembled(corrections, steps)
