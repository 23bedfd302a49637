"""No correction: the quantized network as it is."""

import dataclasses

from ptq_diffusion.bitwidth.additions import Additions
from ptq_diffusion.correction.contract import Correction, Reads
from ptq_diffusion.correction.evidence import MomentEvidence
from ptq_diffusion.correction.fitted import StepCorrection
from ptq_diffusion.correction.method.ptqd import PTQD
from ptq_diffusion.sampler.step import Step
from ptq_diffusion.sampler.table import Table


class NoCorrection(Correction[MomentEvidence]):
    """m~ = q and sigma' = sigma. Its report still shows what PTQD would find with all its terms off."""

    reads = Reads.MOMENTS

    def additions(self, steps: Table, shape: tuple[int, ...], patch_size: int) -> Additions:  # noqa: ARG002
        return Additions()

    def fit_step(self, evidence: MomentEvidence, step: Step) -> StepCorrection:
        return dataclasses.replace(PTQD.of_terms().fit_step(evidence, step), repairs=())
