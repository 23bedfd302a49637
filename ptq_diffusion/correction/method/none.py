"""No correction: the quantized network as it is."""

import dataclasses

from ptq_diffusion.correction.contract import MomentCorrection
from ptq_diffusion.correction.fitted import FittedCorrection
from ptq_diffusion.correction.method.ptqd import PTQD
from ptq_diffusion.correction.noise.statistics import NoiseStatistics
from ptq_diffusion.sampler.table import Table


class NoCorrection(MomentCorrection):
    """m~ = q and sigma' = sigma. Its report still shows what PTQD would find with all its terms off."""

    def fit(self, statistics: NoiseStatistics, steps: Table) -> FittedCorrection:
        fitted = PTQD.of_terms().fit(statistics, steps)
        return FittedCorrection(steps, [dataclasses.replace(found, repairs=()) for found in fitted.found])
