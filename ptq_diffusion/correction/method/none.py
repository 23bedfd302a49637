"""No correction: the quantized network as it is."""

import dataclasses

from ptq_diffusion.correction.contract import Correction, Reads
from ptq_diffusion.correction.evidence import MomentEvidence
from ptq_diffusion.correction.fitted import StepCorrection
from ptq_diffusion.correction.method.ptqd import PTQD
from ptq_diffusion.sampler.step import Step


class NoCorrection(Correction[MomentEvidence]):
    """m~ = q and sigma' = sigma. Its report still shows what PTQD would find with all its terms off."""

    reads = Reads.MOMENTS

    def fit_step(self, evidence: MomentEvidence, step: Step) -> StepCorrection:
        return dataclasses.replace(PTQD.of_terms().fit_step(evidence, step), repairs=())
